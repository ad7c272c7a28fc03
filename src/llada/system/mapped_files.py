"""A watch over files that are mapped into memory: a change of the file changes the numbers that are computed with.

A file that is rewritten in place changes them silently, and one that is cut short ends the process (SIGBUS). One that
is removed, or replaced by another of its name, is kept by the system as it was, for as long as it is mapped.
"""

import ctypes
import gc
import mmap
import os
import sys
import weakref
from pathlib import Path
from typing import NamedTuple, Self

from llada.system.errors import UserError


class FileState(NamedTuple):
    """Facts that distinguish a file from its earlier state."""

    device: int
    inode: int
    modified_ns: int
    size: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        return cls(status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)

    @property
    def identity(self) -> tuple[int, int]:
        return self.device, self.inode


_mapped: dict[int, tuple[Path, FileState]] = {}


def remember(mapping: object, path: Path, state: FileState) -> None:
    """Watch a file for as long as a mapping of it is in use."""
    key = id(mapping)
    _mapped[key] = path, state
    weakref.finalize(mapping, _mapped.pop, key, None).atexit = False


def check_mapped() -> None:
    """Refuse to go on with numbers that somebody else has changed.

    Raises:
        UserError: a mapped file was written into.
    """
    if _changed() is None:
        return
    gc.collect()  # mappings that are not in use any more may still await collection
    path = _changed()
    if path is not None:
        raise UserError(
            f"{path} was changed while it was in use, and nothing was saved since: restore it, and go on from the last "
            "checkpoint."
        )


def _changed() -> Path | None:
    """Find a file that differs from what was mapped."""
    for path, state in dict.fromkeys(_mapped.copy().values()):
        try:
            now = FileState.of(path.stat())
        except OSError:  # removed, or out of reach; what is mapped is still there
            continue
        if now.identity == state.identity and now != state:
            return path
    return None


def give_back_pages(address: int, n_bytes: int) -> None:
    """Let go of memory that is mapped from a file and was not written into; it is read anew if it is used again.

    The whole pages of the range are, on Linux, and nothing elsewhere. Until then, what was read counts as memory of the
    process, though the system would take it back when it needs it.
    """
    if sys.platform != "linux":
        return
    first, last = -(-address // mmap.PAGESIZE), (address + n_bytes) // mmap.PAGESIZE
    if last > first:
        n_bytes = (last - first) * mmap.PAGESIZE
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first * mmap.PAGESIZE), ctypes.c_size_t(n_bytes), mmap.MADV_DONTNEED)
