"""Copies of what can only be read in order: files compressed by gzip or zstd, and texts that come one by one."""

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from llada.data.json_lines import LONGEST_LINE
from llada.data.pieces import Kind, Piece
from llada.data.text_files import NEWLINE_WITHIN, edge_in
from llada.system.errors import UserError, first_line
from llada.system.temporary_names import aside_of

Compression = Literal["gzip", "zstd"]
COPY = "copy"
_READ = 1 << 17
_MEASURED = 1 << 22  # bytes of content that show how much a file was compressed
_PACKED_READ = 1 << 16
_PACKED_AT_ONCE = 1 << 9  # 4 bytes of zstd can stand for 128 KiB: some 16 MB at a time then
_LARGEST_WINDOW = 1 << 31  # bytes: of `zstd --long=31`, the longest; by default the library refuses more than 128 MB


class _Stream(Protocol):
    """What is read in order."""

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes; there are none at the end only."""

    def readline(self, size: int) -> bytes:
        """Read to the end of a line, at most `size` bytes."""


def compressed_pieces(path: Path, kind: Kind, compression: Compression, size: int, folder: Path) -> Iterator[Piece]:
    """Unpack a file in order into copies, each of which ends with a line, or, in a text without lines, a character.

    Of a file that breaks off, the last piece ends with the last whole line, and says so.

    Raises:
        UserError: the file is damaged, so that what was unpacked may not be what was written.
    """
    at, line, held, breaks_off = 0, 1, b"", False
    with open(path, "rb") as raw:
        stream = _Unpacked(unpacked(raw, compression, path), path)
        while True:
            copy, n_lines = aside_of(folder / COPY), 0
            with open(copy, "w+b") as written:
                try:
                    if kind == "lines":
                        n_bytes, n_lines = _copy_lines(stream, written, size)
                    else:
                        n_bytes, held = _copy_text(stream, written, size, held)
                except EOFError:
                    n_bytes, breaks_off = _cut_to_lines(written), True
            if not n_bytes and not breaks_off:
                copy.unlink()
                return
            yield Piece(str(path), kind, at, at + n_bytes, n_bytes, str(copy), line, breaks_off)
            if breaks_off:
                return
            at, line = at + n_bytes, line + n_lines


def unpacked(raw: BinaryIO, compression: Compression, path: Path) -> BinaryIO:
    """Return the content of an opened file as a stream."""
    if compression == "gzip":
        import gzip

        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]  # as good as a BinaryIO here
    return io.BufferedReader(_Zstd(raw, load_zstandard(path)), _READ)


def measure(path: Path, compression: Compression) -> tuple[int, int]:
    """Unpack the beginning of a file; returns its number of bytes, and of how many compressed ones they were made."""
    n_bytes = n_packed = 0
    with contextlib.suppress(UserError, EOFError), open(path, "rb") as raw:  # damage is reported when the file is read
        stream = _Unpacked(unpacked(raw, compression, path), path)
        while n_bytes < _MEASURED and (chunk := stream.read(_READ)):
            n_bytes, n_packed = n_bytes + len(chunk), raw.tell()
    return n_bytes, n_packed


class _Unpacked:
    """A stream of unpacked content; it raises EOFError where the file breaks off, and UserError if it is damaged."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._stream: Any = stream
        self._path = path

    def read(self, size: int) -> bytes:
        with self._named():  # `read1` gives what comes before the file breaks off, which `read` would throw away
            content: bytes = self._stream.read1(size)
            return content

    def readline(self, size: int) -> bytes:
        with self._named():
            content: bytes = self._stream.readline(size)
            return content

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            is_of_disk = isinstance(error, OSError) and error.errno is not None
            is_known = isinstance(error, ValueError | OSError) and not is_of_disk
            if not is_known and type(error).__name__ not in ("ZstdError", "error"):  # of zstandard and zlib
                raise
            raise UserError(f"{self._path} cannot be unpacked ({first_line(error)}): restore it.") from error


def _cut_to_lines(written: BinaryIO) -> int:
    """Cut a copy off behind its last whole line; returns how many bytes are left."""
    written.seek(0)
    n_bytes = sum(len(line) for line in written if line.endswith(b"\n"))
    written.truncate(n_bytes)
    return n_bytes


def _copy_lines(stream: _Stream, written: BinaryIO, size: int) -> tuple[int, int]:
    """Copy `size` bytes and the rest of a line; returns the number of bytes of the copy, and of lines.

    If that line is too long, no more of it is copied than shows this, so that neither memory nor disk is filled by it.
    """
    n_bytes = n_lines = n_rest = 0
    end = b""
    while n_bytes < size and (chunk := stream.read(min(_READ, size - n_bytes))):
        n_bytes, n_lines, end = n_bytes + written.write(chunk), n_lines + chunk.count(b"\n"), chunk[-1:]
    while n_bytes >= size and end != b"\n" and (rest := stream.readline(_READ)):
        if n_rest <= LONGEST_LINE:
            n_bytes += written.write(rest)
        n_rest, n_lines, end = n_rest + len(rest), n_lines + rest.count(b"\n"), rest[-1:]
    return n_bytes, n_lines


def _copy_text(stream: _Stream, written: BinaryIO, size: int, held: bytes) -> tuple[int, bytes]:
    """Copy `size` bytes and what belongs to them; returns the number of bytes of the copy, and what was read ahead.

    Args:
        held: what was read ahead of the last copy.
    """
    n_bytes = 0
    while n_bytes < size and (chunk := held or stream.read(_READ)):
        room, held = size - n_bytes, b""
        if len(chunk) >= room:
            while len(chunk) < room + NEWLINE_WITHIN and (more := stream.read(NEWLINE_WITHIN)):
                chunk += more
            end = room - 1 + edge_in(chunk[room - 1 : room - 1 + NEWLINE_WITHIN], 1)
            chunk, held = chunk[:end], chunk[end:]
        n_bytes += written.write(chunk)
    return n_bytes, held


class _Zstd(io.RawIOBase):
    """The content of a zstd file, frame by frame; unlike the library's own reader, it finds out that a frame breaks
    off."""

    def __init__(self, raw: BinaryIO, library: Any) -> None:
        self._raw, self._library = raw, library
        self._frame: Any = None
        self._packed, self._held = memoryview(b""), memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # the protocol's name is not in typeshed
        while not self._held:
            self._packed = self._packed or memoryview(self._raw.read(_PACKED_READ))
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("it breaks off")
                return 0
            if self._frame is None:
                self._frame = self._library.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj()
            given, self._packed = self._packed[:_PACKED_AT_ONCE], self._packed[_PACKED_AT_ONCE:]
            self._held = memoryview(self._frame.decompress(given))
            if self._frame.eof:
                unused = self._frame.unused_data
                self._packed = memoryview(unused + bytes(self._packed)) if unused else self._packed
                self._frame = None
        part, self._held = self._held[: len(buffer)], self._held[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


def load_zstandard(path: Path) -> Any:
    try:
        import zstandard
    except ImportError:
        raise UserError(
            f"{path} is compressed by zstd: `pip install zstandard` (the extra corpora), or unpack it."
        ) from None
    return zstandard


def pieces_of_texts(name: str, texts: Iterator[str | None], text_key: str, size: int, folder: Path) -> Iterator[Piece]:
    """Write texts that come one by one into copies of about `size` bytes, a line of JSON each."""
    first = 1
    while True:
        copy, n_bytes, n_rows = aside_of(folder / COPY), 0, 0
        with open(copy, "wb") as written:
            for text in texts:
                line = json.dumps({text_key: text}).encode() + b"\n"
                n_bytes, n_rows = n_bytes + written.write(line), n_rows + 1
                if n_bytes >= size:
                    break
        if not n_bytes:
            copy.unlink()
            return
        yield Piece(name, "lines", 0, n_bytes, n_bytes, str(copy), first)
        first += n_rows
