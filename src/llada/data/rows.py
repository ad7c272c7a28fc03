"""Rows of a data file, in any layout: JSON objects one a line, over several lines or in an array, or Parquet.

A row is a JSON value with the number of the line where it begins. No more than a row of JSON is in memory.
"""

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from llada.data.given import PARQUET, GivenFile
from llada.system.errors import UserError, first_line

LONGEST_ROW = 1 << 24  # characters
PARQUET_ROWS = 256  # rows that are read from a Parquet file at a time
_CHUNK = 1 << 16
_SPACE, _MARK = " \t\r\n", "\ufeff"
_LONGEST_WORD = 16  # longest JSON token that must not be cut: -Infinity, a pair of escapes
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # what Python decodes a byte to that is not UTF-8


@dataclass(frozen=True)
class Row:
    """An object of a file, or what is wrong with it."""

    number: int
    """Number of the line where it begins, from 1; in Parquet, of the row."""
    content: Any = None
    problem: str | None = None
    """The reason that it cannot be read, as the end of a sentence: "is not valid JSON (...)"."""


@dataclass(frozen=True)
class Rows:
    """The rows of an open file, to be iterated over once."""

    unit: str
    """The unit that a row's number counts: "line" or "row"."""
    rows: Iterator[Row]


class Repeated(dict[str, Any]):
    """A JSON object in which a key stands twice; the last value is kept."""

    key = ""


def rows_of(given: GivenFile) -> Rows:
    """Iterate over the rows of a file, which are read as they are asked for.

    A broken line is a row with a problem, and reading goes on with the next line. Where rows extend over lines nobody
    can say where the next one begins, so there a broken row is an error.

    Raises:
        UserError: it is not text, or no rows are found in it; the latter also while it is read.
    """
    if given.kind == PARQUET:
        return Rows("row", _parquet_rows(given))
    if given.kind is not None:
        is_text = given.kind.startswith("UTF")
        raise UserError(
            f"{given.path} is {given.kind}, {'not UTF-8 text' if is_text else 'not JSON'}: "
            f"{'convert it' if is_text else 'unpack or convert it'}."
        )
    # A byte that is not UTF-8 is kept until its line is known. A "\r" ends a line as well.
    text = io.TextIOWrapper(given.stream, encoding="utf-8", errors="surrogateescape", newline=None)
    return Rows("line", _json_rows(_Text(given.path, text), json.JSONDecoder(object_pairs_hook=_to_object)))


def _to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) == len(pairs):
        return content
    repeated, seen = Repeated(content), set[str]()
    for key, _ in pairs:
        if key in seen:
            repeated.key = key
        seen.add(key)
    return repeated


class _Text:
    """A text that is read in lines, or in growing pieces, and knows the number of the current line."""

    def __init__(self, path: Path, file: io.TextIOWrapper) -> None:
        self.path = path
        self.line = 1
        """Number of the line of the next character."""
        self.piece, self.at = "", 0
        """The piece that has been read, and the index of the next character in it."""
        self._file = file

    def read_line(self) -> str:
        """Read the next line with its end, "" at the end of the text; of a longer line, `LONGEST_ROW` characters and
        one more."""
        end = self.piece.find("\n", self.at) + 1
        if end:
            line, self.at = self.piece[self.at : end], end
            return line
        line, self.piece, self.at = self.piece[self.at :], "", 0
        return line + self._file.readline(max(0, LONGEST_ROW + 1 - len(line)))

    def skip_line(self) -> None:
        """Skip the rest of a line that is too long."""
        while (rest := self._file.readline(_CHUNK)) and not rest.endswith("\n"):
            pass

    def put_back(self, line: str) -> None:
        self.piece, self.at = line + self.piece[self.at :], 0

    def grow(self) -> bool:
        """Read as much again as there is, so that the end of a value is found in linear time; returns False at the
        end."""
        rest = self.piece[self.at :]
        more = self._file.read(max(_CHUNK, len(rest)))
        self.piece, self.at = rest + more, 0
        return bool(more)

    def go_on(self, end: int) -> None:
        """Advance to this place in the piece."""
        self.line += self.piece.count("\n", self.at, end)
        self.at = end

    def skip(self, characters: str) -> str:
        """Advance to the first character that is none of these, and return it, or "" at the end."""
        while True:
            found = re.compile(f"[^{re.escape(characters)}]").search(self.piece, self.at)
            self.go_on(found.start() if found else len(self.piece))
            if found or not self.grow():
                return found[0] if found else ""

    def fail(self, place: int, what: str) -> NoReturn:
        """Raise the error for a problem at a place in the piece."""
        line = self.line + self.piece.count("\n", self.at, place)
        raise UserError(f"Line {line} of {self.path} {what}: correct or remove it.")


def _json_rows(text: _Text, decoder: json.JSONDecoder) -> Iterator[Row]:
    first = text.read_line().lstrip("\ufeff")
    while first and not first.strip():
        text.line += 1
        first = text.read_line()
    text.put_back(first)
    if first.lstrip().startswith("["):
        return _array_rows(text, decoder)
    is_whole = _row_of_line(0, first, decoder).problem is None
    return _line_rows(text, decoder) if is_whole or not _spans_lines(text, decoder) else _spanning_rows(text, decoder)


# -- a row a line -----------------------------------------------------------------------------------------------------


def _line_rows(text: _Text, decoder: json.JSONDecoder) -> Iterator[Row]:
    while line := text.read_line():
        if len(line) > LONGEST_ROW:
            yield Row(text.line, problem=f"is longer than {LONGEST_ROW:,} characters")
            if not line.endswith("\n"):
                text.skip_line()
        elif line.strip():
            yield _row_of_line(text.line, line, decoder)
        text.line += 1


def _row_of_line(number: int, line: str, decoder: json.JSONDecoder) -> Row:
    wrong = _NOT_UTF8.search(line)
    if wrong:
        return Row(number, problem=_bad_byte(wrong))
    try:
        return Row(number, decoder.decode(line.strip(f" \t\n{_MARK}").removesuffix(",")))
    except (ValueError, RecursionError) as error:
        return Row(number, problem=_problem_of(error))


def _problem_of(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"is not valid JSON ({error.msg})"
    if isinstance(error, RecursionError):
        return "is not valid JSON (it is too deep)"
    return f"cannot be used ({error})"


def _bad_byte(found: re.Match[str]) -> str:
    return f"is not UTF-8 text (byte 0x{ord(found[0]) - 0xDC00:02x})"


# -- rows over several lines ------------------------------------------------------------------------------------------


def _spans_lines(text: _Text, decoder: json.JSONDecoder) -> bool:
    """Whether there is a first row that does not end within its line."""
    try:
        _, end = _find_value(text, decoder)
    except (ValueError, RecursionError):
        return False
    return "\n" in text.piece[text.at : end].lstrip()


def _spanning_rows(text: _Text, decoder: json.JSONDecoder) -> Iterator[Row]:
    """Iterate over values that follow each other, with or without commas between them."""
    while text.skip(f"{_SPACE},{_MARK}"):
        yield _take(text, decoder)


def _array_rows(text: _Text, decoder: json.JSONDecoder) -> Iterator[Row]:
    text.go_on(text.piece.index("[") + 1)
    following = text.skip(_SPACE)
    while following not in ("]", ""):
        yield _take(text, decoder)
        following = text.skip(_SPACE)
        if following == ",":
            text.go_on(text.at + 1)
            following = text.skip(_SPACE)
        elif following not in ("]", ""):
            text.fail(text.at, "is not valid JSON (a comma is missing in the array)")
    if not following:
        text.fail(text.at, "is not valid JSON (the array has no end)")
    text.go_on(text.at + 1)
    if text.skip(_SPACE):
        text.fail(text.at, "is not valid JSON (the file goes on behind its array)")


def _take(text: _Text, decoder: json.JSONDecoder) -> Row:
    """Read the value that begins here, and advance past it."""
    number = text.line
    try:
        value, end = _find_value(text, decoder)
    except json.JSONDecodeError as error:
        text.fail(error.pos, _problem_of(error))
    except (ValueError, RecursionError) as error:
        text.fail(text.at, _problem_of(error))
    wrong = _NOT_UTF8.search(text.piece, text.at, end)
    if wrong:
        text.fail(wrong.start(), _bad_byte(wrong))
    text.go_on(end)
    return Row(number, value)


def _find_value(text: _Text, decoder: json.JSONDecoder) -> tuple[Any, int]:
    """Decode the value that begins here, reading on as far as needed; returns it and where in the piece it ends.

    Raises:
        ValueError: there is no value, or it is longer than a row may be.
    """
    while True:
        try:
            value, end = decoder.raw_decode(text.piece, text.at)
            if end < len(text.piece) or not text.grow():  # a number may go on
                return value, end
        except json.JSONDecodeError as error:
            rest = len(text.piece) - error.pos
            is_cut = rest < _LONGEST_WORD or error.msg.startswith("Unterminated string")
            if is_cut and len(text.piece) - text.at > LONGEST_ROW:
                raise ValueError(f"it is longer than {LONGEST_ROW:,} characters") from None
            if not is_cut or not text.grow():
                raise


# -- Parquet ----------------------------------------------------------------------------------------------------------


def _parquet_rows(given: GivenFile) -> Iterator[Row]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"{given.path} is Parquet, which pyarrow reads: `pip install pyarrow` (the extra parquet), or convert "
            "the file to JSONL."
        ) from None
    while given.stream.read(1 << 20):  # read to its end, for the checksum
        pass
    if given.is_pipe:
        raise UserError(f"{given.path} is a pipe with Parquet, which cannot be read in order: name the file itself.")
    number = 0
    try:
        given.file.seek(0)
        for batch in parquet.ParquetFile(given.file).iter_batches(batch_size=PARQUET_ROWS):
            for content in batch.to_pylist():
                number += 1
                yield Row(number, content)
    except Exception as error:  # a damaged file makes its reader raise almost anything
        raise UserError(f"{given.path} is damaged behind row {number:,} ({first_line(error)}): restore it.") from error
