"""Weights as safetensors files: cut into shards with an index, mapped into memory, every tensor accounted for.

Nothing is unpickled, and no more is held in memory than what was asked for: a tensor that is wanted as it is stored is
the file itself, mapped, and any other is converted piece by piece, the file being opened anew for each, since pages of
a mapped file count as memory until it is closed.
"""

import contextlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llada.errors import UserError
from llada.files import read_json, write_json

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
PIECE_BYTES = 1 << 24
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class Entry(NamedTuple):
    """Where a tensor is stored, and how."""

    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


def save_tensors(folder: Path, tensors: Mapping[str, Tensor], shard_bytes: int) -> None:
    """Write tensors into an existing folder, those that share memory once each.

    Args:
        shard_bytes: more are spread over several files, with an index.
    """
    shards = _cut_into_shards(tensors, shard_bytes)
    file_of: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = WEIGHTS_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / file, {name: tensors[name] for name in names})
        file_of.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": file_of})


def _write_file(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Aside first, since the tensors may be mapped from the very file that is to be written."""
    plain: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        plain[name] = tensor.clone() if tensor.data_ptr() in places else tensor
        places.add(tensor.data_ptr())
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.touch()
        mode = aside.stat().st_mode
        save_file(plain, aside, metadata={"format": "pt"})
        aside.chmod(mode)  # safetensors makes the file for its owner alone
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _cut_into_shards(tensors: Mapping[str, Tensor], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards


def has_weights(folder: Path) -> bool:
    return (folder / WEIGHTS_FILE).is_file() or (folder / INDEX_FILE).is_file()


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights: one, or those of the index, which all lie in the folder itself.

    Raises:
        UserError: the index names no files of the folder.
    """
    if not (folder / INDEX_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    return [folder / name for name in sorted(set(_read_weight_map(folder).values()))]


def _read_weight_map(folder: Path) -> dict[str, str]:
    """File by tensor, as the index says."""
    weight_map = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(map(_is_file_name, weight_map.values())):
        raise UserError(f"{folder / INDEX_FILE} names no files of its folder: download the checkpoint again.")
    return weight_map


def _is_file_name(name: Any) -> bool:
    return isinstance(name, str) and Path(name).name == name


@dataclass(frozen=True)
class StoredWeights:
    """What the weight files of a folder hold, without having read it."""

    folder: Path
    entries: Mapping[str, Entry]

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Look into the files of a folder.

        Raises:
            UserError: a file is missing or damaged, has tensors of another kind than fp32, bf16 and fp16, or disagrees
                with the index.
        """
        entries: dict[str, Entry] = {}
        for path in weight_files(folder):
            for name, entry in _read_header(path):
                if name in entries:
                    raise UserError(f"{name} is both in {entries[name].path} and in {path}: remove one of them.")
                entries[name] = entry
        if (folder / INDEX_FILE).is_file():
            _check_index(folder, entries)
        return cls(folder, entries)

    def tensor(self, name: str, device: torch.device, dtype: torch.dtype | None) -> Tensor:
        """A tensor of a type on a device: mapped from its file if it is so stored, otherwise a copy.

        Args:
            dtype: None for the type that it is stored in.
        """
        path, shape, stored = self.entries[name]
        if device.type == "cpu" and dtype in (None, stored):
            with _open(path) as file:
                mapped: Tensor = file.get_tensor(name)
                return mapped
        target = torch.empty(shape, dtype=dtype or stored, device=device)
        self.copy_into(name, target)
        return target

    @torch.no_grad()
    def copy_into(self, name: str, target: Tensor) -> None:
        """Fill a tensor of the same shape, of any type and on any device, in place."""
        for rows, piece in self._pieces(name):
            target[rows].copy_(piece)

    def are_equal(self, name: str, other: str) -> bool:
        """Whether two tensors hold the same numbers."""
        if self.entries[name][1:] != self.entries[other][1:]:
            return False
        pairs = zip(self._pieces(name), self._pieces(other), strict=True)
        return all(torch.equal(piece, twin) for (_, piece), (_, twin) in pairs)

    def _pieces(self, name: str) -> Iterator[tuple[slice, Tensor]]:
        """Rows of a tensor, mapped, together no larger than a piece (or one row)."""
        path, shape, dtype = self.entries[name]
        n_rows = max(1, PIECE_BYTES // max(1, math.prod(shape[1:]) * dtype.itemsize))
        for start in range(0, shape[0], n_rows):
            rows = slice(start, min(start + n_rows, shape[0]))
            with _open(path) as file:
                yield rows, file.get_slice(name)[rows]


def _read_header(path: Path) -> Iterator[tuple[str, Entry]]:
    with _open(path) as file:
        for name in file.keys():  # noqa: SIM118  # the file is no mapping
            view = file.get_slice(name)
            dtype = DTYPES.get(view.get_dtype())
            if dtype is None:
                raise UserError(
                    f"{name} in {path} is stored as {view.get_dtype()}, and only fp32, bf16 and fp16 can be read: "
                    "use a checkpoint of one of these types."
                )
            yield name, Entry(path, tuple(view.get_shape()), dtype)


def _check_index(folder: Path, entries: Mapping[str, Entry]) -> None:
    weight_map = _read_weight_map(folder)
    actual = {name: entry.path.name for name, entry in entries.items()}
    wrong = sorted(name for name in weight_map.keys() | actual.keys() if weight_map.get(name) != actual.get(name))
    if wrong:
        said, is_in = (places.get(wrong[0], "no file") for places in (weight_map, actual))
        raise UserError(
            f"{folder / INDEX_FILE} does not fit the files ({wrong[0]} should be in {said} and is in {is_in}): "
            "download the checkpoint again."
        )


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    """An open safetensors file, whose troubles are told in one sentence."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}): it is incomplete or damaged, use another one.") from error


def some_of(names: Iterable[str]) -> str:
    """The first name, and how many there are besides."""
    first, *others = sorted(names)
    return f"{first} and {len(others)} more are" if others else f"{first} is"
