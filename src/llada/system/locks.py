"""A lock that gives each folder one writer: the second process is refused with the name of the first.

The lock is the system's (flock, or LockFileEx on Windows, by filelock), so it goes when its process goes, however that
ends; what the file says is only who holds it. A file that a killed process left behind holds nobody up. A folder that
is not replaced as a whole is locked itself as well, where the system can, so that nothing depends on its file, which
somebody may tidy away.

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

from llada.system.errors import UserError
from llada.system.files import IS_WINDOWS, patiently, resolved
from llada.system.regular_files import open_own

LOCK_FILE = ".llada.lock"
"""Name of the lock's file in a folder; next to a folder that is replaced as a whole, it is `.NAME.llada.lock`."""
_LOCKED_BYTES = 1 if IS_WINDOWS else 0  # at the start of the file, which others cannot even read there
_POLL_SECONDS = 0.02
# Errors of systems and cluster file systems that have no locks; there, nobody is refused.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_NO_FOLDERS = (errno.EBADF, errno.EINVAL, errno.EISDIR)  # errors of NFS, which locks only what is open for writing


class Lock:
    """A held lock, with the descriptors that its holder has open."""

    def __init__(self, folder: Path, path: Path, descriptor: int, folder_descriptor: int | None) -> None:
        self.folder, self._path = folder, path
        self._descriptor, self._folder_descriptor = descriptor, folder_descriptor

    def check(self) -> None:
        """Refuse to write on, once the folder is another one or somebody else may have the lock.

        Raises:
            UserError: the folder was renamed, removed or replaced; or the lock's file was, and the folder itself
                cannot be locked.
        """
        if self._folder_descriptor is not None:
            if not is_there(self.folder, self._folder_descriptor):
                now = _name_of(self._folder_descriptor)
                moved = f"it is {now} now, go on from there" if now else "restore it, or start again"
                raise UserError(
                    f"{self.folder} was renamed, removed or replaced while it was written, and nothing was saved "
                    f"since: {moved}."
                )
        elif not is_there(self._path, self._descriptor):
            raise UserError(
                f"{self._path}, which keeps other processes away, was removed while {self.folder} was written, and "
                "nothing was saved since: repeat the command, and leave that file."
            )

    def release(self, made: Iterable[Path]) -> None:
        """Release the lock and remove what was made for it, as far as the disk allows."""
        with contextlib.suppress(OSError):  # while it is held: whoever waits for it sees that it is gone
            if is_there(self._path, self._descriptor):  # and not that of somebody else in a folder that came instead
                self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        if self._folder_descriptor is not None:
            os.close(self._folder_descriptor)
        if IS_WINDOWS:  # there it goes only now, and only if nobody else has it open
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # those that hold something by now stay
            for parent in made:
                parent.rmdir()


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False, inside: bool = False) -> Iterator[Lock]:
    """Be the only process that writes a folder, by a file next to it, which is removed at the end.

    Args:
        wait: whether to wait for the holder instead of refusing.
        inside: the file is in the folder, which is made if need be: for a folder that is not replaced as a whole, so
            that nothing is asked of the one above it.

    Raises:
        UserError: another process has it.
    """
    folder = resolved(folder)
    if not folder.name:
        raise UserError(f"{folder} is the root of a disk: choose a folder in it.")
    path = folder / LOCK_FILE if inside else folder.with_name(f".{folder.name}{LOCK_FILE}")
    made = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _acquire(path, folder, wait)
    try:
        lock = Lock(folder, path, descriptor, _lock_folder(folder, descriptor, wait) if inside else None)
    except BaseException:
        os.close(descriptor)
        raise
    try:
        yield lock
    except Exception:  # no other: a process that is stopped at once may have a thread that still writes
        lock.release(made)
        raise
    lock.release(made)


def _lock_folder(folder: Path, file_descriptor: int, wait: bool) -> int | None:
    """Lock a folder and return its descriptor; None where folders cannot be locked."""
    if IS_WINDOWS:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except PermissionError:  # of a system, or of a folder, that lets nobody open it
        return None
    try:
        is_ours = lock_descriptor(descriptor, blocking=wait, poll_interval=_POLL_SECONDS)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (*_NO_LOCKS, *_NO_FOLDERS):
            return None
        raise
    if not is_ours:
        os.close(descriptor)
        raise _refusal(folder, "another process, whose lock's file was removed")
    return descriptor


def _name_of(descriptor: int) -> str | None:
    """Return where an open folder is now, if the system reports it and the folder still exists."""
    with contextlib.suppress(OSError):
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if os.path.isdir(name):
            return name
    return None


def _refusal(folder: Path, holder: str) -> UserError:
    return UserError(f"{folder} is being written by {holder}: wait for it or stop it, or choose another folder.")


def _acquire(path: Path, folder: Path, wait: bool) -> int:
    """Lock the file and return its descriptor; the file says who has it."""
    while True:
        descriptor = patiently(lambda: open_own(path, os.O_RDWR))
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
            raise _refusal(folder, holder)
        if is_there(path, descriptor):
            break
        os.close(descriptor)  # the one before has just removed it
    try:
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, b" " * _LOCKED_BYTES + json.dumps(_myself()).encode())
    except BaseException:
        os.close(descriptor)  # or this process would hold it for as long as it lives
        raise
    return descriptor


def is_there(path: Path, descriptor: int) -> bool:
    """Whether the open file is still the one that has that name."""
    if IS_WINDOWS:  # nobody can remove it while it is open
        return True
    try:
        named, opened = path.stat(), os.fstat(descriptor)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


def _myself() -> dict[str, Any]:
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since}


def _holder(descriptor: int) -> str:
    """Say in words who has the lock."""
    try:
        os.lseek(descriptor, _LOCKED_BYTES, os.SEEK_SET)
        said = json.loads(os.read(descriptor, 4096))
        return f"process {int(said['pid'])} on {said['host']!s} since {said['since']!s}"
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):  # it has not written its name yet
        return "another process"
