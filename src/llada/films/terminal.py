"""A frame as a terminal shows it: wide or narrow, with many colours, sixteen, or none."""

from collections.abc import Iterable, Mapping
from itertools import groupby

from rich.text import Text

from llada.films.colours import LEGENDS
from llada.films.frames import ColourBy, Frame, Place, Shade, shade_of, status_of
from llada.films.layout import Layout, lay_out

_DOT = " · "
_LATELY = 16  # steps: what appeared in these is shown of a text that does not fit

# The terminal's background may be light or dark: these can be read on both. "plain" is the terminal's own.
_MANY: Mapping[Shade, str] = {
    "mask": "dim", "doubt-0": "#000000 on #f0a43c", "doubt-1": "#e08a1e", "doubt-2": "#c08a45", "doubt-3": "#a08f70",
    "age-0": "#000000 on #6dbdec", "age-1": "#3f9fd8", "age-2": "#5a8fb0", "age-3": "#7f93a0",
}  # fmt: skip
_SIXTEEN: Mapping[Shade, str] = {
    "mask": "dim", "doubt-0": "black on yellow", "doubt-1": "red", "age-0": "black on cyan", "age-1": "cyan",
}  # fmt: skip
_NONE: Mapping[Shade, str] = {
    "mask": "dim", "doubt-0": "reverse", "doubt-1": "underline", "age-0": "reverse", "age-1": "underline",
}  # fmt: skip


def draw_live(frame: Frame, by: ColourBy, columns: int, rows: int, color_system: str | None) -> Text:
    """Draw a frame of a text whose end nobody knows yet, as large as a terminal of so many columns and rows at most.

    Args:
        color_system: rich's name of the colours that the terminal has, None if it has none.
    """
    return draw(frame, lay_out(frame, columns - 1), by, columns, rows, color_system)


def draw(frame: Frame, layout: Layout, by: ColourBy, columns: int, rows: int, color_system: str | None) -> Text:
    """Draw a frame, its status and what its colours mean.

    Of a text with more lines than there are rows, those around what appeared last are drawn.
    """
    styles = {None: _NONE, "standard": _SIXTEEN, "windows": _SIXTEEN}.get(color_system, _MANY)
    status = [(part, "dim") for part in status_of(frame).split(_DOT)]
    legend = [(words, styles.get(shade, "")) for shade, words in LEGENDS[by]]
    foot = [Text(""), *_in_rows(status, columns), *_in_rows(legend, columns)]
    lines = _lines(frame, layout, by, styles)
    first = _first_line(frame, layout, max(1, rows - len(foot)))
    return Text("\n").join([*lines[first : first + max(1, rows - len(foot))], *foot])


def _lines(frame: Frame, layout: Layout, by: ColourBy, styles: Mapping[Shade, str]) -> list[Text]:
    """Return the lines of the text; neighbours of one style are one piece, which takes fewer codes."""
    lines = []
    for boxes in layout.lines:
        pieces = [(_style(frame.places[box.at], frame, by, styles), box) for box in boxes]
        line = Text(no_wrap=True, end="")
        for style, run in groupby(pieces, key=lambda piece: piece[0]):
            line.append("".join(layout.fill(box, frame.places[box.at]) for _, box in run), style)
        lines.append(line)
    return lines


def _style(place: Place, frame: Frame, by: ColourBy, styles: Mapping[Shade, str]) -> str:
    return "bold" if place.is_given else styles.get(shade_of(place, frame, by), "")


def _first_line(frame: Frame, layout: Layout, n_shown: int) -> int:
    """Return the first of the lines to show: the middle of what appeared lately is in the middle of them."""
    latest = [
        number
        for number, boxes in enumerate(layout.lines)
        if any(frame.places[box.at].step > max(0, frame.step - _LATELY) for box in boxes)
    ]
    middle = sum(latest) // len(latest) if latest else 0
    return max(0, min(middle - n_shown // 2, len(layout.lines) - n_shown))


def _in_rows(parts: Iterable[tuple[str, str]], columns: int) -> list[Text]:
    """Return parts with dots between them, in rows of at most `columns` where no part is longer."""
    rows: list[Text] = []
    for words, style in parts:
        if not rows or rows[-1].cell_len + len(_DOT) + len(words) > columns:
            rows.append(Text(no_wrap=True, end=""))
        else:
            rows[-1].append(_DOT, "dim")
        rows[-1].append(words, style)
    return rows
