"""Opening files of text or dialogues that a person names, to be read once from beginning to end.

A file may be a regular file, or a pipe as `<(...)` makes one. Anything else is refused before a byte is read, and so is
a file that is larger than can be held here.
"""

import contextlib
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from llada.system.errors import UserError
from llada.system.format import bytes_in_words
from llada.system.regular_files import open_unwaiting

LARGEST_BYTES = 16 << 30
LEAST_LIMIT = 64 << 20  # this much is always tried, however full the memory is
HEAD_BYTES = 4096
_BUFFER_BYTES = 1 << 20
UTF8_MARK = b"\xef\xbb\xbf"
PARQUET, GZIP, ZSTD = "Parquet", "compressed by gzip", "compressed by zstd"
READ_IN_BLOCKS = (PARQUET, GZIP, ZSTD)  # by a preparation into shards
# First bytes of files that are not text. UTF-32 comes before UTF-16, whose two bytes begin those of UTF-32.
KINDS = (
    (b"PAR1", PARQUET),
    (b"\x1f\x8b", GZIP),
    (b"BZh", "compressed by bzip2"),
    (b"\xfd7zXZ\x00", "compressed by xz"),
    (b"\x28\xb5\x2f\xfd", ZSTD),
    (b"PK\x03\x04", "a zip archive"),
    (b"%PDF-", "a PDF"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"ARROW1", "an Arrow file"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


class GivenFile:
    """An open file or pipe, and what is known of it before it is read."""

    def __init__(self, path: Path, raw: "_Counted", is_pipe: bool, file: BinaryIO) -> None:
        self.path, self.is_pipe = path, is_pipe
        self.head = raw.head
        """The first bytes of the file."""
        self.stream = io.BufferedReader(raw, _BUFFER_BYTES)
        """A stream over the whole file, the head included."""
        self.file = file
        """The file without counting, for random access in a regular file after it was read."""
        self._raw = raw

    @property
    def kind(self) -> str | None:
        """The kind of file if it is not text, by its first bytes; None if it may be text."""
        return next((kind for magic, kind in KINDS if self.head.startswith(magic)), None)

    @property
    def sha256(self) -> str:
        """SHA-256 of what has been read so far."""
        return self._raw.digest.hexdigest()


@contextlib.contextmanager
def open_given(path: Path) -> Iterator[GivenFile]:
    """Open a file that a person named, for the time of the block.

    Raises:
        UserError: it is missing, neither a file nor a pipe, not readable, or too large; the last also while
            it is read, since a pipe does not say how much is in it.
    """
    at_most = largest_bytes()
    try:
        descriptor, status = open_unwaiting(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: check the path.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path and its permissions.") from None
    except ValueError as error:  # a path with a NUL
        raise UserError(f"{path} is not a path ({error}): correct it.") from None
    try:
        is_pipe = _check_kind(path, status, at_most)
        os.set_blocking(descriptor, True)
    except BaseException:
        os.close(descriptor)
        raise
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        yield GivenFile(path, _Counted(path, file, at_most), is_pipe, file)


def _check_kind(path: Path, status: os.stat_result, at_most: int) -> bool:
    """Return whether it is a pipe; refuse what is neither a pipe nor a file."""
    is_pipe = stat.S_ISFIFO(status.st_mode)
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{path} is a folder: name a file in it.")
    if not (stat.S_ISREG(status.st_mode) or is_pipe):
        raise UserError(f"{path} is neither a file nor a pipe: name one of these.")
    if status.st_size > at_most and not is_pipe:
        raise _too_large(path, at_most)
    return is_pipe


def read_given_text(path: Path) -> str:
    """Read the text of a file that a person named, with line breaks as "\\n" and without a byte order mark.

    Raises:
        UserError: it cannot be read, is not UTF-8, or is not text.
    """
    with open_given(path) as given:
        if given.kind is not None:
            raise UserError(f"{path} is {given.kind}, {_remedy(given.kind)}.")
        content = io.BytesIO()
        while chunk := given.stream.read(_BUFFER_BYTES):
            if b"\0" in chunk:
                place = content.tell() + chunk.index(b"\0")
                raise UserError(f"{path} is not text (byte {place} is NUL): leave it out.")
            content.write(chunk)
    data = content.getvalue()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}): convert it, or leave it out.") from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _remedy(kind: str) -> str:
    if kind.startswith("UTF"):
        return "not UTF-8 (byte 0): convert it, or leave it out"
    remedy = "not text: unpack it" if kind.startswith("compressed") else "not text: take the text out of it"
    return remedy + (', or choose `format="sharded"`' if kind in READ_IN_BLOCKS else "")


def largest_bytes() -> int:
    """Largest size in bytes of a file that can be read here: half of the free memory, if the system reports it."""
    from llada.system.device import free_memory_bytes  # imports torch, which preparing a corpus does without

    free = free_memory_bytes()
    return LARGEST_BYTES if free is None else min(LARGEST_BYTES, max(free // 2, LEAST_LIMIT))


def _too_large(path: Path, at_most: int) -> UserError:
    return UserError(f"{path} is larger than the {bytes_in_words(at_most)} that can be read here: use a part of it.")


class _Counted(io.RawIOBase):
    """A raw stream that counts and hashes what is read; the first bytes are known before."""

    def __init__(self, path: Path, file: BinaryIO, at_most: int) -> None:
        self.digest = hashlib.sha256()
        self._path, self._file, self._at_most, self._n_bytes = path, file, at_most, 0
        head = b""
        while len(head) < HEAD_BYTES and (piece := file.read(HEAD_BYTES - len(head))):
            head += piece  # a pipe gives what it has
        self.head, self._pending = head, head

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # the protocol's name is not in typeshed
        piece, self._pending = self._pending[: len(buffer)], self._pending[len(buffer) :]
        if not piece:
            piece = self._file.read(len(buffer))
        buffer[: len(piece)] = piece
        self.digest.update(piece)
        self._n_bytes += len(piece)
        if self._n_bytes > self._at_most:
            raise _too_large(self._path, self._at_most)
        return len(piece)
