"""Files that are mapped into memory: what happens to them happens to the numbers that are computed with.

A file that is written anew in its place changes them without a word, and one that is cut ends the process (SIGBUS). One
that is removed, or replaced by another of its name, is kept by the system as it was, for as long as it is mapped.
"""

import gc
import os
import weakref
from pathlib import Path
from typing import NamedTuple, Self

from llada.system.errors import UserError


class FileState(NamedTuple):
    """What tells a file from the one that was there before."""

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
        UserError: a file was written into since it was mapped.
    """
    if _changed() is None:
        return
    gc.collect()  # what is not in use any more may still be waiting for that
    path = _changed()
    if path is not None:
        raise UserError(
            f"{path} was changed while it was in use, and nothing was saved since: restore it, and go on from the last "
            "checkpoint."
        )


def _changed() -> Path | None:
    """A file that is not as it was mapped."""
    for path, state in dict.fromkeys(_mapped.copy().values()):
        try:
            now = FileState.of(path.stat())
        except OSError:  # removed, or out of reach; what is mapped is still there
            continue
        if now.identity == state.identity and now != state:
            return path
    return None
