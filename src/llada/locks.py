"""One writer a folder: the second process is refused with the name of the first.

The lock is the system's (flock, or LockFileEx on Windows, by filelock), so it goes when its process goes, however that
ends; what the file says is only who holds it. A file that a killed process left behind holds nobody up.

filelock locks our own descriptor here and is not given the path: its `FileLock` never removes the file on POSIX, and
falls back on a file that a killed process leaves locked where a file system has no locks.
"""

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import lock_descriptor

from llada.errors import UserError
from llada.files import IS_WINDOWS, LOCK_SUFFIX, patiently

_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
_LOCKED_BYTES = 1 if IS_WINDOWS else 0  # at the start of the file, which others cannot even read there
_POLL_SECONDS = 0.02
# Of systems and of file systems of clusters that have no locks; there, nobody is refused.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False, inside: bool = False) -> Iterator[None]:
    """Be the only process that writes a folder, by a file `.NAME.lock` beside it, which goes at the end.

    Args:
        wait: for whoever has it, instead of refusing.
        inside: the file is `.lock` in the folder, which is made if need be: for a folder that is not replaced as a
            whole, so that nothing is asked of the one above it.

    Raises:
        UserError: another process has it.
    """
    folder = folder.resolve()
    path = folder / LOCK_SUFFIX if inside else folder.with_name(f".{folder.name}{LOCK_SUFFIX}")
    made = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _acquire(path, folder, wait)
    try:
        yield
    except Exception:  # no other: a process that is stopped at once may have a thread that still writes
        _release(path, descriptor, made)
        raise
    _release(path, descriptor, made)


def _release(path: Path, descriptor: int, made: Iterable[Path]) -> None:
    """And remove what was made for it, as far as the disk allows."""
    with contextlib.suppress(OSError):  # while it is held: whoever waits for it sees that it is gone, and makes another
        path.unlink(missing_ok=True)
    os.close(descriptor)
    if IS_WINDOWS:  # there it goes only now, and only if nobody else has it open
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # those that hold something by now stay
        for parent in made:
            parent.rmdir()


def _acquire(path: Path, folder: Path, wait: bool) -> int:
    """A descriptor of the locked file, which says who has it."""
    while True:
        descriptor = patiently(lambda: os.open(path, _FLAGS, 0o644))
        try:
            is_ours = lock_descriptor(descriptor, blocking=wait, poll_interval=_POLL_SECONDS)
        except OSError as error:
            is_ours = error.errno in _NO_LOCKS
            if not is_ours:
                os.close(descriptor)
                raise
        if not is_ours:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise UserError(f"{folder} is being written by {holder}: wait for it or stop it, or choose another folder.")
        if _is_there(path, descriptor):
            break
        os.close(descriptor)  # the one before has just removed it
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, b" " * _LOCKED_BYTES + json.dumps(_myself()).encode())
    return descriptor


def _is_there(path: Path, descriptor: int) -> bool:
    """Whether the open file is still the one of that name."""
    if IS_WINDOWS:  # nobody can remove it while it is open
        return True
    try:
        named, opened = path.stat(), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


def _myself() -> dict[str, Any]:
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since}


def _holder(descriptor: int) -> str:
    """Who has the lock, in words."""
    try:
        os.lseek(descriptor, _LOCKED_BYTES, os.SEEK_SET)
        said = json.loads(os.read(descriptor, 4096))
        return f"process {int(said['pid'])} on {said['host']!s} since {said['since']!s}"
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):  # it has not written its name yet
        return "another process"
