"""Files and folders that are either whole or absent."""

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

from llada.system.errors import UserError
from llada.system.regular_files import check_holes, open_regular, read_bounded
from llada.system.temporary_names import aside_of, asides_in, folder_aside, put_back, remove_asides

IS_WINDOWS = os.name == "nt"
LARGEST_JSON = 16_000_000  # bytes: the index of 100,000 tensors, the ends of a million documents
Result = TypeVar("Result")
_CHUNK_BYTES = 1 << 20
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2(2)
_TRIES, _PAUSE_SECONDS = 20, 0.05
# Errors of systems that cannot open or flush a folder: Windows, and some network and user-space file systems.
_NO_FLUSH = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.EBADF, errno.EISDIR, errno.ENOSYS, errno.EOPNOTSUPP)


def resolved(path: Path) -> Path:
    """A path without links, as far as there are any to follow: a link that leads to itself stays, for others to refuse.

    `Path.resolve` raises RuntimeError for such a link in Python 3.11 and 3.12.
    """
    return Path(os.path.realpath(path))


def sha256_of(path: Path) -> str:
    """Compute the hexadecimal SHA-256 of a file, read in pieces.

    Raises:
        UserError: it is not a regular file, or hardly any of it is on the disk.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        check_holes(path, file)
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def patiently(do: Callable[[], Result]) -> Result:
    """Do something to a file; on Windows retry for a second, since whoever reads the file blocks it there."""
    for _ in range(_TRIES if IS_WINDOWS else 0):
        try:
            return do()
        except PermissionError:
            time.sleep(_PAUSE_SECONDS)
    return do()


@contextlib.contextmanager
def file_written_whole(path: Path) -> Iterator[Path]:
    """Give a name to write a file to, which takes the place of `path` when the block ends well, and vanishes otherwise.

    The content is on the disk before the rename: a reader sees the old file or the new, also after a loss of power.
    """
    aside = aside_of(path)
    try:
        yield aside
        flush_to_disk(aside)
        patiently(lambda: os.replace(aside, path))
    finally:
        aside.unlink(missing_ok=True)


def write_text_whole(path: Path, text: str) -> None:
    """Write a text file whole, with the same line endings on all systems, since checksums cover these files."""
    with file_written_whole(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as a JSON file, whole.

    Halves of surrogate pairs, as in the names of files that are not UTF-8, are read back as they were.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    # UTF-8 cannot hold them. They are within strings, where JSON reads Python's escape of them.
    write_text_whole(path, text.encode("utf-8", errors="backslashreplace").decode("utf-8"))


def read_json(path: Path, most: int = LARGEST_JSON) -> dict[str, Any]:
    """Read the object in a JSON file of at most `most` bytes.

    Raises:
        UserError: the file is missing, is not JSON or not a regular file, is larger, or does not hold an
            object.
    """
    try:
        content = json.loads(read_bounded(path, most).decode("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: check the path.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): restore or recreate it.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object: restore or recreate it.")
    return content


@contextlib.contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """Make a new folder to write into, which takes the place of `folder` if the block ends well, and vanishes
    otherwise.

    The files are on the disk before the rename, and the rename is before this returns. Where the system can swap two
    folders in one step, there is no moment without one at `folder`. Elsewhere a kill between two renames leaves the
    old one next to it (temporary_names.py), and the next call puts it back first.
    """
    folder = resolved(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder_aside(folder) as aside:
        yield aside
        for path in aside.rglob("*"):
            flush_to_disk(path)
        flush_to_disk(aside)
        _put_in_place(aside, folder)
        flush_to_disk(folder.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers of `folder` left next to it, and put the old folder back if they took it away.

    Only the holder of the folder's lock may call this (locks.py): a running writer's files look the same.
    """
    folder = resolved(folder)
    remove_asides(folder.parent, folder.name)


def _put_in_place(new: Path, folder: Path) -> None:
    for old in asides_in(folder.parent, folder.name, "old"):
        put_back(old)
    if not folder.exists():
        os.rename(new, folder)
        return
    if _swap(new, folder):
        return  # the old folder now has the temporary name, and vanishes with it
    old = aside_of(folder, "old")
    os.rename(folder, old)
    try:
        os.rename(new, folder)
    except BaseException:
        os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _swap(one: Path, other: Path) -> bool:
    """Swap the names of two paths in one step; returns False where the system or the disk cannot.

    Python has no call for it, and two plain renames do not suffice: a kill between them leaves no folder, and a run
    that reads a text which is prepared anew finds none for a moment.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux
        return False
    if rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(number, os.strerror(number), str(other))


def flush_to_disk(path: Path) -> None:
    """Return when a file's content, or a folder's list of names, would survive a loss of power.

    A system that cannot flush a folder, as Windows cannot, is left to do so in its own time.
    """
    is_folder = path.is_dir()
    try:
        # Windows flushes only what is opened for writing.
        descriptor = os.open(path, os.O_RDWR if IS_WINDOWS and not is_folder else os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not is_folder or error.errno not in _NO_FLUSH:
            raise


def hush(stream: IO[str]) -> None:
    """Discard what is written to a stream from now on, because nobody reads it any more."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a file needs nothing
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written or made, found out by trying: permissions alone do not show it.

    Raises:
        UserError: it cannot be written or made.
    """
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        if place.name == "..":
            raise UserError(f"{folder} leads through {place.parent}, which is not there: name the folder without it.")
        place = place.parent
    if not place.is_dir():
        raise UserError(f"{folder} cannot be written, since {place} is a file: choose another folder.")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror or error}): choose another folder, or see to its permissions "
            "and its disk."
        ) from error
