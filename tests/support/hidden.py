"""`python hidden.py COMMAND ...`: `llada COMMAND` as on a system that has none of what only POSIX has.

Hidden are `fcntl` and `resource`, SIGUSR1, `os.sysconf`, `pread`, `pwrite`, `fork` and the like, and the C library by
ctypes; links cannot be made, and folders can be neither opened nor flushed, as on Windows. psutil and
torch are imported before that, since on another system they would import other modules.
"""

import ctypes
import errno
import os
import pathlib
import shutil
import signal
import stat
import sys

import psutil

sys.modules["fcntl"] = None  # type: ignore[assignment]  # before filelock is imported, which knows what to do without

import torch  # noqa: E402, F401

HIDDEN_MODULES = ("fcntl", "resource")
HIDDEN_CALLS = ("sysconf", "pread", "pwrite", "fork", "sched_getaffinity", "mkfifo")
HIDDEN_SIGNALS = ("SIGUSR1", "SIGUSR2", "SIGKILL", "SIGHUP")


def hide() -> None:
    for name in HIDDEN_MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    for name in HIDDEN_CALLS:
        delattr(os, name)
    for name in HIDDEN_SIGNALS:
        delattr(signal, name)
    for name in ("RLIMIT_AS", "RLIMIT_DATA", "RLIM_INFINITY"):
        delattr(psutil, name)
    shutil._use_fd_functions = False  # type: ignore[attr-defined]  # else it opens folders
    plain_open, plain_library = os.open, ctypes.CDLL

    def open_file(path: os.PathLike[str] | str, flags: int, *rest: int, **options: int) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return plain_open(path, flags, *rest, **options)

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EBADF, "Bad file descriptor")

    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "A required privilege is not held by the client")

    class Library(plain_library):  # type: ignore[misc, valid-type]
        def __init__(self, name: str | None, *rest: object, **options: object) -> None:
            if name is None:
                raise TypeError("LoadLibrary() argument 1 must be str, not None")
            super().__init__(name, *rest, **options)

    os.open, os.fsync, os.symlink, os.link = open_file, fsync, no_links, no_links  # type: ignore[assignment]
    pathlib.Path.symlink_to = no_links  # type: ignore[method-assign]
    ctypes.CDLL = Library  # type: ignore[misc]


if __name__ == "__main__":
    hide()
    from llada.cli import main

    main()
