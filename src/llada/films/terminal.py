"""A frame as a terminal shows it: wide or narrow, with many colours, sixteen, or none."""

from collections.abc import Iterable, Mapping

from rich.text import Text

from llada.films.colours import LEGENDS
from llada.films.frames import AGES, ColourBy, Frame, Shade, shade_of, status_of
from llada.films.layout import Layout, lay_out

_DOT = " · "

# Each is readable on a light and on a dark background. Where there are no colours, rich leaves what remains: bold for
# what is given, dim masks, an underline for guesses.
_MANY: Mapping[Shade, str] = {
    "given": "bold", "mask": "dim", "sure": "", "likely": "#2f8fce", "unsure": "#d9691a", "guess": "underline #d9691a",
    "new": "bold #d9691a", "young": "#2f8fce", "settled": "", "old": "",
}  # fmt: skip
# Blue is hard to read on black in many terminals, yellow on white.
_SIXTEEN: Mapping[Shade, str] = {
    **_MANY, "likely": "cyan", "unsure": "red", "guess": "underline red", "new": "bold red", "young": "cyan",
}  # fmt: skip


def draw_live(frame: Frame, by: ColourBy, columns: int, rows: int, color_system: str | None) -> Text:
    """Draw a frame of a text whose end nobody knows yet, as large as a terminal of so many columns and rows at most.

    Args:
        color_system: rich's name of the colours that the terminal has.
    """
    return draw(frame, lay_out(frame, columns - 1), by, columns, rows, color_system)


def draw(frame: Frame, layout: Layout, by: ColourBy, columns: int, rows: int, color_system: str | None) -> Text:
    """Draw a frame, its status and what its colours mean.

    Of a text with more lines than there are rows, those around what appeared last are drawn.
    """
    styles = _SIXTEEN if color_system in ("standard", "windows") else _MANY
    status = [(part, "dim") for part in status_of(frame).split(_DOT)]
    legend = [(words, styles[shade]) for shade, words in LEGENDS[by]]
    foot = [Text(""), *_in_rows(status, columns), *_in_rows(legend, columns)]
    lines = _lines(frame, layout, by, styles)
    first = _first_line(frame, layout, max(1, rows - len(foot)))
    return Text("\n").join([*lines[first : first + max(1, rows - len(foot))], *foot])


def _lines(frame: Frame, layout: Layout, by: ColourBy, styles: Mapping[Shade, str]) -> list[Text]:
    lines = []
    for boxes in layout.lines:
        line = Text(no_wrap=True, end="")
        for box in boxes:
            place = frame.places[box.at]
            style = styles[shade_of(place, frame.step, by)]
            is_new = place.step == frame.step > 0 and frame.n_open > 0
            line.append(layout.fill(box, place), f"{style} reverse" if is_new else style)
        lines.append(line)
    return lines


def _first_line(frame: Frame, layout: Layout, n_shown: int) -> int:
    """Return the first of the lines to show: the middle of what appeared lately is in the middle of them."""
    latest = [
        number
        for number, boxes in enumerate(layout.lines)
        if any(frame.places[box.at].step > max(0, frame.step - AGES[-1]) for box in boxes)
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
