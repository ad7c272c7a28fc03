"""Rows of the report of `scripts/gpu-check`: written by its sections as they go, read and shown by the main process.

This needs nothing but the standard library, so that a machine that lacks the rest still gets a report.
"""

import json
import math
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

Outcome = Literal["ok", "skipped", "failed"]
LONGEST_SENTENCE = 160
# Title, key of the figure, and its format.
COLUMNS = (
    ("tokens/s", "tokens_per_second", "{:,.0f}"),
    ("NFE/s", "nfe_per_second", "{:,.1f}"),
    ("TFLOP/s", "tflops", "{:,.1f}"),
    ("of peak", "share_of_peak", "{:.1%}"),
    ("predicted GB", "predicted_gb", "{:.2f}"),
    ("peak GB", "peak_gb", "{:.2f}"),
    ("reserved GB", "reserved_gb", "{:.2f}"),
    ("peak/predicted", "peak_of_predicted", "{:.3f}"),
    ("s", "seconds", "{:.2f}"),
)


class LeftOutError(Exception):
    """A part that this machine cannot run; the message says why."""


@dataclass(frozen=True)
class Row:
    """A line of the report."""

    section: str
    name: str
    outcome: Outcome
    sentence: str = ""
    figures: dict[str, float] = field(default_factory=dict)


class Rows:
    """The rows of a section, each written to a file as soon as it is known."""

    def __init__(self, section: str, path: Path) -> None:
        self.section, self.path = section, path

    def add(self, name: str, outcome: Outcome = "ok", sentence: str = "", **figures: float) -> None:
        """Write a row; a non-finite figure makes it a failed one."""
        broken = [key for key, value in figures.items() if not math.isfinite(value)]
        if broken:
            outcome, sentence = "failed", f"{', '.join(broken)}: not a finite number"
            figures = {key: value for key, value in figures.items() if key not in broken}
        row = Row(self.section, name, outcome, sentence, {key: float(value) for key, value in figures.items()})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")

    @contextmanager
    def case(self, name: str) -> Iterator[None]:
        """Run a part of the section; its failure becomes a row of its own, and does not end the section."""
        try:
            yield
        except LeftOutError as reason:
            self.add(name, "skipped", str(reason))
        except Exception as error:
            traceback.print_exc()
            self.add(name, "failed", sentence_of(error))


def sentence_of(error: BaseException) -> str:
    """Return the type and first line of an error."""
    first = str(error).strip().splitlines()
    return shortened(f"{type(error).__name__}: {first[0]}" if first else type(error).__name__)


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST_SENTENCE else f"{text[: LONGEST_SENTENCE - 4]} ..."


def read_rows(path: Path) -> list[Row]:
    """Read what a section has written so far; a line that was cut off is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(Row(**json.loads(line)))
        except ValueError:
            continue
    return rows


def draw_table(rows: Sequence[Row]) -> str:
    """Draw all rows as a table in plain text; columns that no row fills are left out."""
    columns = [column for column in COLUMNS if any(column[1] in row.figures for row in rows)]
    lines = [["section", "what", "", *(title for title, _, _ in columns), ""]]
    for row in rows:
        figures = [form.format(row.figures[key]) if key in row.figures else "" for _, key, form in columns]
        lines.append([row.section, row.name, row.outcome, *figures, row.sentence])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    first_figure, last = 3, len(widths) - 1
    drawn = []
    for line in lines:
        cells = [
            cell.rjust(width) if first_figure <= i < last else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        drawn.append("  ".join(cells).rstrip())
    drawn.insert(1, "-" * max(map(len, drawn)))
    return "\n".join(drawn)
