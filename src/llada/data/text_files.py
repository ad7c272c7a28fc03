"""Files of plain text, each a document, or several if it is long."""

from collections.abc import Iterator
from typing import BinaryIO

from llada.data.pieces import Bad, Piece, opened

LONGEST_TEXT = 1 << 18
"""Largest number of bytes of a text file that are one document; a longer file is cut at ends of lines."""
NEWLINE_WITHIN = 1 << 16
"""Number of bytes behind the edge of a piece in which the end of a line is looked for."""


def text_documents(piece: Piece) -> Iterator[str | Bad]:
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
    with opened(piece) as file:
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
    near = file.read(NEWLINE_WITHIN)
    return place - 1 + edge_in(near, 1)


def edge_in(near: bytes, at_least: int) -> int:
    """Return the edge in the bytes around it: behind the first end of a line, or else before a character."""
    newline = near.find(b"\n", at_least - 1)
    return newline + 1 if newline >= 0 else character_edge(near, at_least)


def character_edge(data: bytes, place: int) -> int:
    """Return the first place from `place` on at which a character of UTF-8 begins, or the end of the data."""
    for at in range(place, place + 4):
        if at >= len(data):
            return len(data)
        if data[at] & 0xC0 != 0x80:
            return at
    return place  # this is not UTF-8
