"""Reads a metrics.jsonl that a run may be writing, again and again, each time only what is new.

The kinds of lines are those of metrics.py. Nothing is written or locked, and torch is not needed. A half-written last
line is left for the next time. A run that resumes or goes back replaces the file by a shorter one; then it is read from
its beginning again.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from llada.checkpoints.run_layout import LONGEST_LINE
from llada.system.errors import UserError
from llada.system.regular_files import open_regular

BYTES_AT_ONCE = 8 << 20  # some 20,000 lines, which take a fraction of a second
LARGEST_STEP = 2**53  # a double counts no further
_TAIL_BYTES = 64


@dataclass(frozen=True)
class Fresh:
    """What a reading found."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    starts_again: bool = False
    """Whether the rows that were read before are void, because the file is another one now, or gone."""
    has_more: bool = False
    """Whether there is more to read at once."""


class MetricsFollower:
    """A position in a metrics.jsonl, which moves on with the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_bad_lines = 0
        """Complete lines that are not rows, since the file was begun; they are left out."""
        self.offset = self.size = 0
        """Bytes that were read, and bytes that there are."""
        self._identity: tuple[int, int] | None = None
        self._tail = b""  # what is before the offset, to recognise a file that was rewritten in place
        self._is_in_long_line = False

    @property
    def version(self) -> tuple[Any, ...]:
        """A value that changes with every row that was read."""
        return (self._identity, self.offset)

    def read(self, most_bytes: int = BYTES_AT_ONCE) -> Fresh:
        """Read on from where the last reading ended, at most so many bytes. A file that cannot be read counts as
        gone."""
        try:
            with open_regular(self.path) as file:
                return self._read(file, most_bytes)
        except (OSError, UserError):
            had_some = self.offset > 0
            self._begin(None)
            return Fresh(starts_again=had_some)

    def _begin(self, identity: tuple[int, int] | None) -> None:
        self._identity, self._tail, self._is_in_long_line = identity, b"", False
        self.offset = self.size = self.n_bad_lines = 0

    def _read(self, file: BinaryIO, most_bytes: int) -> Fresh:
        status = os.fstat(file.fileno())
        identity, starts_again = (status.st_dev, status.st_ino), False
        if identity != self._identity or status.st_size < self.offset or not self._has_tail(file):
            starts_again = self.offset > 0
            self._begin(identity)
        self.size = status.st_size
        file.seek(self.offset)
        chunk = file.read(most_bytes)
        end = chunk.rfind(b"\n") + 1
        if not end and len(chunk) >= min(LONGEST_LINE, most_bytes):  # of a line longer than any of ours
            end, is_in_long_line = len(chunk), True
        else:
            is_in_long_line = self._is_in_long_line and not end
        rows = [] if is_in_long_line else self._rows(chunk[:end])
        self._is_in_long_line = is_in_long_line
        self.offset += end
        self._tail = (self._tail + chunk[:end])[-_TAIL_BYTES:]
        return Fresh(rows, starts_again, has_more=len(chunk) == most_bytes)

    def _has_tail(self, file: BinaryIO) -> bool:
        file.seek(self.offset - len(self._tail))
        return file.read(len(self._tail)) == self._tail

    def _rows(self, chunk: bytes) -> list[dict[str, Any]]:
        lines = chunk.split(b"\n")[:-1]
        if self._is_in_long_line:
            lines, self.n_bad_lines = lines[1:], self.n_bad_lines + bool(lines)
        rows = [row_of(line) for line in lines if line.strip()]
        self.n_bad_lines += rows.count(None)
        return [row for row in rows if row is not None]


def row_of(line: bytes) -> dict[str, Any] | None:
    """Return the object in a line of metrics.jsonl; None if it is not one, or has no step."""
    try:
        row = json.loads(line.decode("utf-8", errors="replace"))
        step = row["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    is_step = isinstance(row, dict) and type(step) is int and 0 <= step < LARGEST_STEP
    return row if is_step else None
