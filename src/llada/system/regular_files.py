"""Safe opening of files: a regular file of a plausible size to read, or one of our own to write.

A folder may be untrusted. Where a file is expected, a pipe would be waited for, a device read for ever, a sparse file
hashed for hours, and a link followed to what it should not reach.
"""

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from llada.system.errors import UserError
from llada.system.temporary_names import aside_of

LARGEST_HOLES = 4 << 30  # bytes of holes in a sparse file; files that are written here have none
_MOST_HOLES = 10_000
# Flags that not every system has; O_NONBLOCK does not wait for a pipe's other end.
_PLAIN = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


def open_unwaiting(path: Path) -> tuple[int, os.stat_result]:
    """Open whatever is there for reading, without waiting; returns its descriptor and status."""
    descriptor = os.open(path, os.O_RDONLY | _PLAIN)
    try:
        return descriptor, os.fstat(descriptor)
    except BaseException:
        os.close(descriptor)
        raise


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file to read, for the time of the block.

    Raises:
        OSError: it cannot be opened.
        UserError: it is not a regular file.
    """
    try:
        descriptor, status = open_unwaiting(path)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket, or a terminal where there is none
            raise _not_regular(path) from error
        raise
    try:
        _check_regular(path, status)
    except BaseException:
        os.close(descriptor)
        raise
    with open(descriptor, "rb") as file:
        yield file


def read_optional(path: Path, most: int) -> bytes | None:
    """The content of a file that need not be there; what is there and cannot be read does not count as absent.

    Raises:
        OSError: it cannot be read.
        UserError: it is not a regular file, is larger, or is a link that leads nowhere.
    """
    if not os.path.lexists(path):
        return None
    try:
        return read_bounded(path, most)
    except FileNotFoundError:
        raise UserError(f"{path} is a link to what is not there: restore the file, or remove the link.") from None


def check_regular(path: Path) -> None:
    """Refuse a path that is not a regular file, before a library opens it by its name; a missing file is left to the
    library.

    Raises:
        UserError: it is not a regular file.
    """
    with contextlib.suppress(FileNotFoundError):
        _check_regular(path, path.stat())


def read_bounded(path: Path, most: int) -> bytes:
    """Read a regular file of at most `most` bytes.

    Raises:
        OSError: it cannot be read; FileNotFoundError if it does not exist.
        UserError: it is not a regular file, or is larger.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"{path} has more than {most:,} bytes, which no such file needs: restore or recreate it.")
    return content


def check_holes(path: Path, file: BinaryIO) -> None:
    """Refuse a sparse file before all of it is read: it can be larger than any disk.

    Raises:
        UserError: most of it is not on the disk.
    """
    descriptor, size = file.fileno(), os.fstat(file.fileno()).st_size
    if size <= LARGEST_HOLES or not hasattr(os, "SEEK_HOLE"):
        return
    at = holes = 0
    try:
        for _ in range(_MOST_HOLES):
            start = os.lseek(descriptor, at, os.SEEK_HOLE)
            if start >= size:
                break
            try:
                at = os.lseek(descriptor, start, os.SEEK_DATA)
            except OSError:  # there are no more data
                at = size
            holes += at - start
            if at >= size:
                break
    except OSError:  # a disk that does not report holes
        return
    finally:
        os.lseek(descriptor, 0, os.SEEK_SET)
    if holes > LARGEST_HOLES:
        raise UserError(
            f"{path} is not on the disk but for a part ({holes:,} of {size:,} bytes are missing): restore or recreate "
            "it."
        )


def open_own(path: Path, flags: int) -> int:
    """Open a file of our own to be written in place, made if need be, and return its descriptor.

    Args:
        flags: of `os.open`, like os.O_APPEND.

    Raises:
        OSError: it cannot be opened.
        UserError: a link is there, or something else than a regular file, which is not written into. Of a file with
            another name elsewhere (a hard link), nothing but the end is written.
    """
    check_no_link(path)  # also where there is no O_NOFOLLOW, and for the sentence
    with contextlib.suppress(FileNotFoundError):  # it may go at any moment, like the file of a lock
        _check_regular(path, path.stat())  # a pipe that nobody reads could not even be opened
    descriptor = os.open(path, flags | os.O_CREAT | _PLAIN | _NO_LINK, 0o666)
    try:
        status = os.fstat(descriptor)
        _check_regular(path, status)
        if status.st_nlink > 1 and not flags & os.O_APPEND:
            raise UserError(f"{path} has another name elsewhere, whose content would be lost: remove {path}.")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def append_own(path: Path, text: str) -> None:
    """Add to the end of a file of our own, and of no other: one with another name elsewhere is copied first."""
    check_no_link(path)
    with contextlib.suppress(FileNotFoundError):
        status = path.stat()
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:  # as backups by hard links leave it
            aside = aside_of(path)
            shutil.copyfile(path, aside)
            os.replace(aside, path)
    descriptor = open_own(path, os.O_WRONLY | os.O_APPEND)
    with open(descriptor, "a", encoding="utf-8", newline="\n") as file:
        file.write(text)


def make_own_folder(path: Path) -> None:
    """Make a folder in one of ours, if it does not exist.

    Raises:
        UserError: a link is in its place, which could lead anywhere, or a file.
    """
    check_no_link(path)
    try:
        path.mkdir(exist_ok=True)
    except FileExistsError:
        raise UserError(f"{path} is not a folder: move it elsewhere.") from None


def check_no_link(path: Path) -> None:
    """Refuse to write through a link.

    Raises:
        UserError: the path is a link.
    """
    if path.is_symlink():
        raise UserError(f"{path} is a link, which is not followed to write there: put what it leads to in its place.")


def _check_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _not_regular(path)


def _not_regular(path: Path) -> UserError:
    return UserError(f"{path} is not a regular file: restore it.")
