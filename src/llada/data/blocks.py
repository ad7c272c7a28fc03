"""Blocks: the pieces in which large sources are read, one block at a time and by any number of processes.

A block is a list of pieces: of a file as it is on the disk, its bytes from one place to another; of a Parquet file,
some of its row groups; of what can only be read in order (gzip, zstd, a stream from a hub), a copy. Which documents a
block holds depends on the files and on the size of a block alone, so that it does not matter who reads it.

This module and those that it imports do without torch, for the processes that read (corpus_work.py).
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from llada.system.errors import UserError, first_line

Kind = Literal["text", "lines", "parquet"]

LONGEST_TEXT = 1 << 18
"""Largest number of bytes of a text file that are one document; a longer file is cut at ends of lines."""
LONGEST_LINE = 1 << 26
"""Largest number of bytes of a line of JSON."""
_PARQUET_ROWS = 256
_NEWLINE_WITHIN = 1 << 16  # bytes behind the edge of a piece of text in which the end of a line is looked for
_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Piece:
    """Consecutive bytes of a file, or row groups of a Parquet file."""

    path: str
    kind: Kind
    start: int
    """First byte or row group; the documents that begin in the piece are its own."""
    end: int
    """One past the last byte or row group."""
    size: int
    """Number of bytes, of Parquet without its compression."""
    copy: str = ""
    """File that holds just these bytes, for a source that can only be read in order; it is removed after use."""
    first: int = 1
    """Number of the first line in a copy, or of the first row in Parquet."""

    @property
    def span(self) -> tuple[int, int]:
        """First byte, and one past the last, in the file that is read."""
        return (0, self.size) if self.copy else (self.start, self.end)


@dataclass(frozen=True)
class Block:
    """What one process reads at a time."""

    number: int
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        return sum(piece.size for piece in self.pieces)


@dataclass(frozen=True)
class Bad:
    """A part of a source that is not a document."""

    piece: Piece
    number: int
    """Number of the line or row, from 1 in the piece; in a text, the byte, from 0."""
    problem: str
    """The end of a sentence: "is not valid JSON (...)"."""

    def describe(self) -> str:
        """Say where it is and what is wrong. The lines before a piece are counted only here."""
        path, number = self.piece.path, self.number
        if self.piece.kind == "text":
            return f"{path} {self.problem} (byte {number:,})"
        if self.piece.kind == "parquet" or self.piece.copy:
            number += self.piece.first - 1
        else:
            number += _lines_before(Path(path), self.piece.start)
        return f"{'Row' if self.piece.kind == 'parquet' else 'Line'} {number:,} of {path} {self.problem}"


def blocks_of(pieces: Iterable[Piece], size: int) -> Iterator[Block]:
    """Gather pieces into blocks of at most `size` bytes; a larger piece is a block of its own."""
    gathered: list[Piece] = []
    filled = number = 0
    for piece in pieces:
        if gathered and filled + piece.size > size:
            yield Block(number, tuple(gathered))
            gathered, filled, number = [], 0, number + 1
        gathered.append(piece)
        filled += piece.size
    if gathered:
        yield Block(number, tuple(gathered))


def documents_of(block: Block, text_key: str) -> Iterator[str | Bad]:
    """Iterate over the documents of a block and what is broken in it, in the order of the source.

    Raises:
        UserError: a file cannot be read any more.
    """
    for piece in block.pieces:
        if piece.kind == "parquet":
            yield from _parquet_documents(piece, text_key)
        elif piece.kind == "lines":
            yield from _line_documents(piece, text_key)
        else:
            yield from _text_documents(piece)


# -- lines of JSON ----------------------------------------------------------------------------------------------------


def _line_documents(piece: Piece, text_key: str) -> Iterator[str | Bad]:
    for i, line in enumerate(_lines(piece)):
        if line is None:
            yield Bad(piece, i + 1, f"is longer than {LONGEST_LINE:,} bytes")
            continue
        try:
            found = _text_in(line, text_key)
        except (ValueError, RecursionError) as error:
            yield Bad(piece, i + 1, _json_problem(error))
            continue
        if found is not None:
            yield found if isinstance(found, str) else Bad(piece, i + 1, found[0])


def _text_in(line: bytes, text_key: str) -> str | tuple[str] | None:
    """Return the text of a line, a problem in a tuple, or None for a blank line."""
    line = line.strip(b" \t\r\n").removesuffix(b",")
    if not line:
        return None
    text = text_of(json.loads(line.decode("utf-8")), text_key)
    if isinstance(text, str) and b"\\u" in line:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            return ("holds half of a surrogate pair, which is not a character",)
    return text


def text_of(content: object, text_key: str) -> str | tuple[str]:
    """Return the text of a row, or a problem in a tuple; null is an empty text."""
    if not isinstance(content, dict):
        return (f"holds {_kind_of(content)}, not an object with a {text_key!r}",)
    if text_key not in content:
        keys = ", ".join(map(str, list(content)[:8])) or "none"
        return (f"has no {text_key!r} (its keys: {keys})",)
    text = content[text_key]
    if text is None:
        return ""
    return text if isinstance(text, str) else (f"has {_kind_of(text)} for {text_key!r}, not a text",)


def _kind_of(value: object) -> str:
    kinds = {dict: "an object", list: "an array", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _json_problem(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"is not valid JSON ({error.msg})"
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8 text (byte 0x{error.object[error.start]:02x})"
    return f"is not valid JSON ({'it is too deep' if isinstance(error, RecursionError) else first_line(error)})"


def _lines(piece: Piece) -> Iterator[bytes | None]:
    """Iterate over the lines that begin in a piece; None for one that is too long."""
    start, end = piece.span
    with _opened(piece) as file:
        at = _start_of_line(file, start)
        while at < end:
            line = file.readline(LONGEST_LINE + 1)
            if not line:
                return
            at += len(line)
            if len(line) > LONGEST_LINE:
                rest = line
                while rest and not rest.endswith(b"\n"):
                    rest = file.readline(LONGEST_LINE)
                    at += len(rest)
                yield None
            else:
                yield line.removeprefix(_MARK) if at == len(line) else line


def _start_of_line(file: BinaryIO, start: int) -> int:
    """Advance to the first line that begins at `start` or behind it, and return its place."""
    if start == 0:
        return 0
    file.seek(start - 1)
    at = start - 1
    while rest := file.readline(1 << 20):
        at += len(rest)
        if rest.endswith(b"\n"):
            break
    return at


def _lines_before(path: Path, place: int) -> int:
    """Count the lines that begin before the first one that begins at `place` or behind it."""
    with open(path, "rb") as file:
        left, n = _start_of_line(file, place), 0
        file.seek(0)
        while left and (chunk := file.read(min(left, 1 << 20))):
            n, left = n + chunk.count(b"\n"), left - len(chunk)
    return n


# -- text -------------------------------------------------------------------------------------------------------------


def _text_documents(piece: Piece) -> Iterator[str | Bad]:
    for at, part in _text_parts(piece):
        if b"\0" in part:
            yield Bad(piece, at + part.index(b"\0"), "is not text: it has a NUL")
            continue
        try:
            text = part.decode("utf-8")
        except UnicodeDecodeError as error:
            yield Bad(piece, at + error.start, "is not UTF-8 text")
            continue
        yield text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _text_parts(piece: Piece) -> Iterator[tuple[int, bytes]]:
    """Cut a piece of text into parts of at most `LONGEST_TEXT` bytes; yields the place of each in the file, and it."""
    start, end = piece.span
    with _opened(piece) as file:
        at, end = text_edge(file, start), text_edge(file, end)
        file.seek(at)
        rest = b""
        while at < end:
            rest += file.read(min(LONGEST_TEXT + 1, end - at) - len(rest))
            if not rest:
                return
            cut = text_cut(rest)
            yield at + (piece.start if piece.copy else 0), rest[:cut]
            at, rest = at + cut, rest[cut:]


def text_cut(data: bytes) -> int:
    """Return where a part of at most `LONGEST_TEXT` bytes ends: behind the last line, or else a character."""
    if len(data) <= LONGEST_TEXT:
        return len(data)
    newline = data.rfind(b"\n", LONGEST_TEXT // 2, LONGEST_TEXT)
    return newline + 1 if newline >= 0 else character_edge(data, LONGEST_TEXT - 3)


def text_edge(file: BinaryIO, place: int) -> int:
    """Return where the piece of a text file begins whose nominal start is `place`: behind the next end of a line if
    there is one nearby, and else at the next character."""
    if place == 0:
        return 0
    file.seek(place - 1)
    near = file.read(_NEWLINE_WITHIN)
    return place - 1 + edge_in(near, 1)


def edge_in(near: bytes, at_least: int) -> int:
    """Return the edge in the bytes around it: behind the first end of a line, or else before a character."""
    newline = near.find(b"\n", at_least - 1)
    return newline + 1 if newline >= 0 else min(len(near), character_edge(near, at_least))


def character_edge(data: bytes, place: int) -> int:
    """Return the first place from `place` on at which a character of UTF-8 begins."""
    for at in range(place, min(place + 4, len(data))):
        if data[at] & 0xC0 != 0x80:
            return at
    return min(place, len(data))


def _opened(piece: Piece) -> BinaryIO:
    try:
        return open(piece.copy or piece.path, "rb", buffering=1 << 18)
    except OSError as error:
        raise UserError(
            f"{piece.path} cannot be read ({error.strerror}): restore it, and repeat the command."
        ) from error


# -- Parquet ----------------------------------------------------------------------------------------------------------


def _parquet_documents(piece: Piece, text_key: str) -> Iterator[str | Bad]:
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(piece.path) as file:
            groups = list(range(piece.start, piece.end))
            for batch in file.iter_batches(_PARQUET_ROWS, row_groups=groups, columns=[text_key], use_threads=False):
                for text in batch.column(0).to_pylist():
                    number += 1
                    yield "" if text is None else text
    except Exception as error:  # a damaged file makes its reader raise almost anything
        row = piece.first + number
        raise UserError(f"{piece.path} is damaged near row {row:,} ({first_line(error)}): restore it.") from error
