"""The file training_state.pt: written as `torch.save` would, a piece of a tensor at a time, and read whole or in part.

The file is a zip archive that nothing in is compressed of: data.pkl, a pickle in which tensors stand as references to
storages, and each storage under its number. `torch.save` itself takes tensors that are there, whole, all at once. The
same content makes the same bytes, whoever writes it.
"""

import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llada.checkpoints.pieces import InParts, Stored, pieces_of, raw
from llada.system.mapped_files import give_back_pages

STORAGES: dict[torch.dtype, type] = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.int64: torch.LongStorage,
    torch.int32: torch.IntStorage,
    torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage,
}
PROTOCOL = 2  # of the pickle: that of torch.save
VERSION = b"3\n"  # of the archive's layout
ROOT = "training_state"
ALIGNMENT = 64  # bytes that a storage begins at a multiple of, so that it can be used where it is mapped
HEADER, ZIP64_FIELD, FIELD = 30, 20, 4  # bytes of a zip entry's header, of the field of its size, of any field's head
FIRST_DAY = (1980, 1, 1, 0, 0, 0)  # the date of all entries, so that they do not differ


class _Storage(NamedTuple):
    """The numbers of a tensor, in the pickle."""

    number: int
    dtype: torch.dtype
    n: int


class _Pickler(pickle.Pickler):
    """Collects the tensors of what it pickles."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, PROTOCOL)
        self.fast = True  # no references back, which depend on what happens to be the same object
        self.tensors: list[Stored] = []

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, (Tensor, InParts)):
            return NotImplemented
        storage = _Storage(len(self.tensors), value.dtype, value.shape.numel())
        self.tensors.append(value)
        stride = torch.empty(value.shape, device="meta").stride()
        return torch._utils._rebuild_tensor_v2, (storage, 0, tuple(value.shape), stride, False, OrderedDict())

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _Storage):
            return None
        return "storage", STORAGES[value.dtype], str(value.number), "cpu", value.n


def write_state_file(path: Path, state: Mapping[str, Any]) -> None:
    """Write dictionaries, lists, plain values and tensors, which `torch.load` reads as they were.

    Args:
        state: may hold tensors that several processes have parts of, which are brought here as they are written.

    Raises:
        OSError: the disk failed.
    """
    text = io.BytesIO()
    pickler = _Pickler(text)
    pickler.dump(dict(state))
    with zipfile.ZipFile(path, "w") as archive:
        _put(archive, "data.pkl", [text.getbuffer()])
        _put(archive, "byteorder", [sys.byteorder.encode()])
        for number, tensor in enumerate(pickler.tensors):
            _put(archive, f"data/{number}", map(raw, pieces_of(tensor)))
        _put(archive, "version", [VERSION])


def _put(archive: zipfile.ZipFile, name: str, pieces: Iterable[Any]) -> None:
    """Add an entry, with a field in its header that is as long as it takes for the entry to begin where it should."""
    entry = zipfile.ZipInfo(f"{ROOT}/{name}", FIRST_DAY)
    start = archive.start_dir + HEADER + len(entry.filename) + ZIP64_FIELD + FIELD
    n_filling = -start % ALIGNMENT
    entry.extra = b"FB" + n_filling.to_bytes(2, "little") + bytes(n_filling)
    with archive.open(entry, "w", force_zip64=True) as file:
        for piece in pieces:
            file.write(piece)


def give_back(tensor: Tensor) -> None:
    """Let go of the memory of a tensor that is mapped; it is read anew if it is used again."""
    give_back_pages(tensor.data_ptr(), tensor.nbytes)


def read_state_file(path: Path, is_mapped: bool = False) -> Any:
    """Read a state; nothing is unpickled but tensors and plain values.

    Args:
        is_mapped: map its tensors from the file, of which then only what is used is read.

    Raises:
        Exception: almost any, if the file is damaged.
    """
    return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
