"""Lines of boxes: where each place of a text stands on a grid of characters.

A film lays out its last frame, and every frame before it uses these boxes, so that nothing moves; a live view lays out
each frame anew, because nobody knows the text yet.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size

from llada.films.frames import Frame, Place
from llada.system.terminal import visible

MASK, LINE_END, NOTHING = "░", "⏎", "·"  # the last for a token without text, as the end of an answer is
_TAB = "    "
_JOINERS = ("\u200d", "\ufe0e", "\ufe0f")  # join emoji, or say how the character before is drawn


@dataclass(frozen=True)
class Box:
    """Neighbouring columns of one line that belong to one place."""

    at: int
    """Number of the place."""
    line: int
    column: int
    width: int
    """Number of columns, at least 1."""
    text: str
    """Text that the box was laid out for: a part of its place's."""
    is_first: bool
    """Whether it is the first box of its place."""


@dataclass(frozen=True)
class Layout:
    """The boxes of a text by lines."""

    lines: tuple[tuple[Box, ...], ...]
    texts: tuple[str | None, ...]
    """Texts of the places that the boxes were laid out for."""

    @property
    def width(self) -> int:
        """Number of columns of the widest line."""
        return max((line[-1].column + line[-1].width for line in self.lines if line), default=0)

    def fill(self, box: Box, place: Place) -> str:
        """Return what a box shows of a place, in exactly as many columns, whichever text it was laid out for."""
        if place.text is None:
            return MASK * box.width
        if place.text == self.texts[box.at]:
            return set_cell_size(box.text.replace("\n", " "), box.width)
        return set_cell_size(shown(place).replace("\n", LINE_END) if box.is_first else "", box.width)


def shown(place: Place) -> str:
    """Return the text of a place as it is drawn: a mask as a sign, and no character that a terminal would obey."""
    if place.text is None:
        return MASK
    return visible(place.text.replace("\t", _TAB)) or NOTHING


def lay_out(frame: Frame, columns: int, by_words: bool = False) -> Layout:
    """Lay a text out in lines of at most `columns`.

    A line end takes a column, in which its mask stands; it may be the one after the last, as may a space at which a
    line is broken.

    Args:
        by_words: break lines after spaces, where there are any.
    """
    cells = [cell for at, place in enumerate(frame.places) for cell in _cells(at, shown(place))]
    lines = _break(cells, max(2, columns), by_words)  # a wide character needs two
    boxes = tuple(tuple(_boxes(line, number)) for number, line in enumerate(lines))
    return Layout(boxes, tuple(place.text for place in frame.places))


class _Cell(NamedTuple):
    """A character with those that are drawn onto it."""

    at: int
    text: str
    width: int
    is_first: bool


def _cells(at: int, text: str) -> Iterator[_Cell]:
    for number, (piece, width) in enumerate(characters_of(text)):
        yield _Cell(at, piece, width, number == 0)


def characters_of(text: str) -> Iterator[tuple[str, int]]:
    """Yield each character with those that are drawn onto it, and the columns that it takes, at least 1."""
    start = 0
    for end in range(1, len(text) + 1):
        following = text[end : end + 1]
        if following and following != "\n" and (following in _JOINERS or not cell_len(following)):
            continue
        piece = text[start:end]
        yield piece, max(1, cell_len(piece))
        start = end


def _break(cells: Sequence[_Cell], columns: int, by_words: bool) -> list[list[_Cell]]:
    """Return the cells by lines."""
    lines: list[list[_Cell]] = [[]]
    width = 0
    for cell in cells:
        may_hang = cell.text == "\n" or (by_words and cell.text == " ")
        if width + cell.width > columns + may_hang:
            line = lines[-1]
            spaces = [number for number, before in enumerate(line, 1) if before.text == " "] if by_words else []
            first = spaces[-1] if spaces else len(line)
            lines.append(line[first:])
            del line[first:]
            width = sum(moved.width for moved in lines[-1])
        lines[-1].append(cell)
        width += cell.width
        if cell.text == "\n":
            lines.append([])
            width = 0
    return lines if lines[-1] or len(lines) == 1 else lines[:-1]


def _boxes(cells: Sequence[_Cell], line: int) -> Iterator[Box]:
    """Yield the boxes of a line: neighbouring cells of one place are one."""
    column = 0
    for at, group in groupby(cells, key=lambda cell: cell.at):
        run = list(group)
        width = sum(cell.width for cell in run)
        yield Box(at, line, column, width, "".join(cell.text for cell in run), run[0].is_first)
        column += width
