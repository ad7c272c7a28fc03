"""Pieces of large sources: what is read of one file at a time, and what is wrong in it.

A piece is, of a file as it is on the disk, its bytes from one place to another; of a Parquet file, some of its row
groups; of what can only be read in order (gzip, zstd, a stream from a hub), a copy.

This module and those that read pieces do without torch, for the processes that read (corpus_work.py).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from llada.system.errors import UserError

Kind = Literal["text", "lines", "parquet"]


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
    breaks_off: bool = False
    """Whether the file ends behind the piece, in the middle of what was compressed."""

    @property
    def span(self) -> tuple[int, int]:
        """First byte, and one past the last, in the file that is read."""
        return (0, self.size) if self.copy else (self.start, self.end)


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
            number += lines_before(Path(path), self.piece.start)
        return f"{'Row' if self.piece.kind == 'parquet' else 'Line'} {number:,} of {path} {self.problem}"


def not_utf8(error: UnicodeDecodeError) -> str:
    """Say what is wrong, as `Bad.problem` does."""
    return f"is not UTF-8 text (byte 0x{error.object[error.start]:02x})"


def opened(piece: Piece) -> BinaryIO:
    try:
        return open(piece.copy or piece.path, "rb", buffering=1 << 18)
    except OSError as error:
        raise UserError(
            f"{piece.path} cannot be read ({error.strerror}): restore it, and repeat the command."
        ) from error


def start_of_line(file: BinaryIO, start: int) -> int:
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


def lines_before(path: Path, place: int) -> int:
    """Count the lines that begin before the first one that begins at `place` or behind it."""
    with open(path, "rb") as file:
        left, n = start_of_line(file, place), 0
        file.seek(0)
        while left and (chunk := file.read(min(left, 1 << 20))):
            n, left = n + chunk.count(b"\n"), left - len(chunk)
    return n
