"""Weights as safetensors files: cut into shards with an index, mapped into memory, every tensor accounted for.

Nothing is unpickled, and no more is held in memory than what was asked for: a tensor that is wanted as it is stored is
mapped from the file, and any other is converted piece by piece. Each has a mapping of its own, since pages of a mapped
file count as memory until they are unmapped.

That is why tensors are not read by safetensors' own `safe_open`, which checks the header and maps the whole file: 0.4
GB in bf16, widened to fp32 by `get_tensor` or by `get_slice`, took 1.505 times the weights at the peak, the file opened
once or anew for each tensor, and 1.009 times here, in the same time (safetensors 0.8.0, torch 2.13, Linux).
"""

import contextlib
import ctypes
import json
import math
import mmap
import os
import re
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import EllipsisType
from typing import Any, NamedTuple, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llada.checkpoints.pieces import Stored, bytes_of, pieces_of, raw
from llada.system.errors import UserError, system_remedy
from llada.system.files import file_written_whole, read_json, write_json
from llada.system.mapped_files import FileState, remember
from llada.system.regular_files import open_regular

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
SUFFIX = ".safetensors"
PIECE_BYTES = 1 << 24
# Far more than any network has, and few enough to be refused quickly; the header is that of a safetensors file.
MAX_TENSORS, MAX_HEADER_BYTES = 100_000, 20_000_000
LENGTH_BYTES = 8
ALIGNMENT = 8  # the header's length is a multiple of it
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}  # in the order of a file's tensors
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def _c_library() -> ctypes.CDLL | None:
    """Return the C library with `mmap` and `munmap`; None where there is no such library, as on Windows."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        library.mmap.restype = ctypes.c_void_p
        library.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
        library.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    except (TypeError, OSError, AttributeError):
        return None
    return library


_LIBC = _c_library()
_MAP_FAILED = ctypes.c_void_p(-1).value


class Entry(NamedTuple):
    """The place of a stored tensor, its shape and its type."""

    path: Path
    state: FileState
    start: int
    """Start of its bytes in the file."""
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, first: int, stop: int) -> Self:
        """Return the entry of some of its rows."""
        part = self._replace(shape=(first, *self.shape[1:]))
        return self._replace(start=self.start + part.n_bytes, shape=(stop - first, *self.shape[1:]))


def save_tensors(folder: Path, tensors: Mapping[str, Stored], shard_bytes: int) -> None:
    """Write tensors into an existing folder, replacing weights that are there, one piece of a tensor at a time.

    Args:
        shard_bytes: largest size of a file; more are spread over several files, with an index.
    """
    shards = _cut_into_shards(tensors, shard_bytes)
    file_of: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = WEIGHTS_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with file_written_whole(folder / file) as aside:  # tensors may be mapped from the very file that is replaced
            write_safetensors(aside, {name: tensors[name] for name in names}, {"format": "pt"})
        file_of.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        total = sum(map(bytes_of, tensors.values()))
        write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": file_of})
    written = {*file_of.values(), *([INDEX_FILE] if len(shards) > 1 else [])}
    for path in folder.iterdir():
        is_of_weights = path.name in (INDEX_FILE, WEIGHTS_FILE) or SHARD.fullmatch(path.name)
        if is_of_weights and path.name not in written:  # left behind, it would be taken for weights
            path.unlink(missing_ok=True)


def write_safetensors(path: Path, tensors: Mapping[str, Stored], metadata: Mapping[str, str]) -> None:
    """Write a file of tensors, in fp32, bf16 and fp16, with the bytes that safetensors' own `save_file` writes.

    That takes whole tensors, all of them at once. Where there is more than one entry of metadata it also orders them by
    chance, and here they are sorted.

    Raises:
        OSError: the disk failed.
    """
    types = list(NAMES)
    in_order = sorted(tensors, key=lambda name: (types.index(tensors[name].dtype), name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in in_order:
        start, end = end, end + bytes_of(tensors[name])
        facts = {"dtype": NAMES[tensors[name].dtype], "shape": list(tensors[name].shape), "data_offsets": [start, end]}
        header[name] = facts
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // ALIGNMENT) * ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
        for name in in_order:
            for piece in pieces_of(tensors[name]):
                file.write(raw(piece))


def _cut_into_shards(tensors: Mapping[str, Stored], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + bytes_of(tensor) > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += bytes_of(tensor)
    return shards


def has_weights(folder: Path) -> bool:
    return (folder / WEIGHTS_FILE).is_file() or (folder / INDEX_FILE).is_file()


def weight_files(folder: Path) -> list[Path]:
    """List the files that hold the weights: one, or those of the index, which all lie in the folder itself.

    Raises:
        UserError: the index names no files of the folder.
    """
    if not (folder / INDEX_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    return [folder / name for name in sorted(set(_read_weight_map(folder).values()))]


def _read_weight_map(folder: Path) -> dict[str, str]:
    """Read the index: a file name for each tensor."""
    weight_map = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(map(_is_file_name, weight_map.values())):
        raise UserError(f"{folder / INDEX_FILE} names no files of its folder: download the checkpoint again.")
    return weight_map


def _is_file_name(name: Any) -> bool:
    return isinstance(name, str) and Path(name).name == name and name.endswith(SUFFIX) and name.isprintable()


@dataclass(frozen=True)
class StoredWeights:
    """The tensors in the weight files of a folder, known from the headers alone."""

    folder: Path
    entries: Mapping[str, Entry]

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Read the headers of the files in a folder.

        Raises:
            UserError: a file is missing or damaged, has tensors of another kind than fp32, bf16 and fp16, or disagrees
                with the index.
        """
        entries: dict[str, Entry] = {}
        for path in weight_files(folder):
            for name, entry in _read_header(path):
                if len(entries) == MAX_TENSORS:
                    raise UserError(f"{folder} has more than {MAX_TENSORS:,} tensors: use another checkpoint.")
                if name in entries:
                    raise UserError(f"{name} is both in {entries[name].path} and in {path}: remove one of them.")
                entries[name] = entry
        if (folder / INDEX_FILE).is_file():
            _check_index(folder, entries)
        return cls(folder, entries)

    def renamed(self, names: Mapping[str, str]) -> Self:
        """Return these weights under other names."""
        return replace(self, entries={names[name]: entry for name, entry in self.entries.items()})

    def tensor(self, name: str, device: torch.device, dtype: torch.dtype | None) -> Tensor:
        """Return a tensor in a type on a device: mapped from its file if it is stored so, otherwise a copy.

        Args:
            dtype: None for the type in which it is stored.

        Raises:
            UserError: the file was changed since its header was read, or cannot be read or mapped any more.
        """
        entry = self.entries[name]
        if device.type == "cpu" and dtype in (None, entry.dtype):
            return _map(entry)
        target = torch.empty(entry.shape, dtype=dtype or entry.dtype, device=device)
        self.copy_into(name, target)
        return target

    @torch.no_grad()
    def copy_into(self, name: str, target: Tensor, first: int | None = None) -> None:
        """Fill a tensor of the same shape, of any type and on any device, in place.

        Args:
            first: of a tensor that has some of the rows only, which are all that is read: the number of the first.
        """
        entry = self.entries[name]
        for rows, piece in _pieces(entry if first is None else entry.rows(first, first + len(target))):
            target[rows].copy_(piece)

    def are_equal(self, name: str, other: str) -> bool:
        """Whether two tensors hold the same bits; tensors of different types are widened to fp32 first."""
        one, two = self.entries[name], self.entries[other]
        if one.shape != two.shape:
            return False
        common = one.dtype if one.dtype == two.dtype else torch.float32
        pairs = zip(_pieces(one), _pieces(two), strict=True)
        return all(torch.equal(_bits(piece.to(common)), _bits(twin.to(common))) for (_, piece), (_, twin) in pairs)


def _pieces(entry: Entry) -> Iterator[tuple[slice | EllipsisType, Tensor]]:
    """Iterate over rows of a tensor, mapped, in pieces of at most `PIECE_BYTES` in fp32 (or one row); a scalar is one
    piece."""
    if not entry.shape:
        yield ..., _map(entry)
        return
    n_rows = max(1, PIECE_BYTES // max(1, math.prod(entry.shape[1:]) * torch.float32.itemsize))
    for first in range(0, entry.shape[0], n_rows):
        stop = min(first + n_rows, entry.shape[0])
        yield slice(first, stop), _map(entry.rows(first, stop))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.reshape(tensor.shape or (1,)).view(torch.uint8)


def check_header(path: Path) -> None:
    """Refuse a safetensors file whose header is longer than that of any network, before it is read.

    Raises:
        UserError: the header is too long.
    """
    with _troubles_of(path), open_regular(path) as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes")


def _read_header(path: Path) -> Iterator[tuple[str, Entry]]:
    """Iterate over the tensors of a file that safetensors has found sound, by name."""
    with _troubles_of(path), open_regular(path) as file:
        state = FileState.of(os.fstat(file.fileno()))
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        data = LENGTH_BYTES + length
        if length > MAX_HEADER_BYTES or data > state.size:
            raise ValueError(f"a header of {length} bytes")
        with safe_open(path, framework="np"):  # with framework="pt" it would be mapped twice
            _check_unchanged(path, state, path.stat())
        header = json.loads(file.read(length))
    for name, facts in header.items():
        if name == "__metadata__":
            continue
        dtype, (start, stop) = DTYPES.get(facts["dtype"]), facts["data_offsets"]
        if dtype is None:
            raise UserError(
                f"{name} in {path} is stored as {facts['dtype']}, and only fp32, bf16 and fp16 can be read: "
                "use a checkpoint of one of these types."
            )
        entry = Entry(path, state, data + start, tuple(facts["shape"]), dtype)
        if stop - start != entry.n_bytes or not 0 <= start <= stop <= state.size - data:
            raise UserError(f"{path} cannot be read ({name} is not where its header says): use another one.")
        yield name, entry


def _check_unchanged(path: Path, state: FileState, status: os.stat_result) -> None:
    if FileState.of(status) != state:
        raise UserError(f"{path} was changed while it was read: try again when nothing writes to its folder.")


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


def _map(entry: Entry) -> Tensor:
    """Map a tensor from its bytes of the file; what is written into it does not reach the file.

    Raises:
        UserError: the file is gone, was replaced, or cannot be mapped.
    """
    if entry.n_bytes == 0:
        return torch.empty(entry.shape, dtype=entry.dtype)
    with _troubles_of(entry.path), open_regular(entry.path) as file:
        _check_unchanged(entry.path, entry.state, os.fstat(file.fileno()))
        before = entry.start % mmap.ALLOCATIONGRANULARITY  # a mapping begins with a page
        buffer = _map_bytes(file.fileno(), entry.start - before, before + entry.n_bytes)
        remember(buffer, entry.path, entry.state)
        raw = torch.frombuffer(buffer, dtype=torch.uint8, offset=before)
    if entry.start % entry.dtype.itemsize:
        raw = raw.clone()  # numbers in memory begin at multiples of their size
    return raw.view(entry.dtype).view(entry.shape)


def _map_bytes(file: int, start: int, length: int) -> Any:
    """Return a buffer mapped from these bytes of an open file, which is unmapped when nobody uses it any more.

    Where there is a C library, Python's `mmap` is not used, since it keeps a file open for each mapping: LLaDA-MoE has
    more tensors than a process may usually open files. Windows allows millions.
    """
    if _LIBC is None:
        return mmap.mmap(file, length, access=mmap.ACCESS_COPY, offset=start)
    access = mmap.PROT_READ | mmap.PROT_WRITE
    address = _LIBC.mmap(None, length, access, mmap.MAP_PRIVATE, file, start)
    if address == _MAP_FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    buffer = (ctypes.c_char * length).from_address(address)
    weakref.finalize(buffer, _LIBC.munmap, address, length).atexit = False
    return buffer


@contextlib.contextmanager
def _troubles_of(path: Path) -> Iterator[None]:
    """Report the errors of reading a safetensors file in one sentence."""
    try:
        yield
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        remedy = system_remedy(error) or "it is incomplete or damaged, use another one"
        raise UserError(f"{path} cannot be read ({error}): {remedy}.") from error


def some_of(names: Iterable[str]) -> str:
    """Write the first name, and how many more there are."""
    first, *others = sorted(names)
    return f"{first} and {len(others)} more are" if others else f"{first} is"
