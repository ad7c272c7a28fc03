"""A film as an SVG picture that moves by CSS alone: it plays where scripts may not run, such as in a README.

Where nothing moves, in a print or for people who prefer less motion, it shows the finished text. Its text can be
selected. Colours follow the viewer's light or dark scheme.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate

from llada.films.colours import BOLD, DARK, LEGENDS, LIGHT, UNDERLINED, Palette
from llada.films.frames import ColourBy, Frame, Place, shade_of, status_of
from llada.films.layout import Box, Layout, lay_out
from llada.films.timing import durations_of

COLUMNS, FEWEST_COLUMNS = 64, 44
CELL, LINE, MARGIN, FONT = 8.4, 20, 16, 14
SMALL_CELL, SMALL_FONT = 7.2, 12
FLASH_MS = 600  # for which what is new has the colour of the new
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def svg(frames: Sequence[Frame], by: ColourBy) -> str:
    """Return the picture."""
    layout, clock = lay_out(frames[-1], COLUMNS, by_words=True), Clock(durations_of(len(frames)))
    columns = max(FEWEST_COLUMNS, layout.width)
    width, bottom = round(columns * CELL + 2 * MARGIN), MARGIN + LINE * len(layout.lines)
    body = [f'<rect class="card" x=".5" y=".5" width="{width - 1}" height="{bottom + 3 * LINE - 1}" rx="8"/>']
    for boxes in layout.lines:
        body += _masks(boxes, frames, clock)
        body += _line(boxes, layout, frames, clock, by)
    body += _foot(frames, by, clock, bottom, width)
    written = escape(_plain("".join(place.text or "" for place in frames[-1].places)))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + 3 * LINE}" width="{width}">',
            f"<title>A text un-masks itself</title><desc>{written}</desc>",
            f"<style>{_style(clock)}</style>",
            *body,
            "</svg>",
            "",
        ]
    )


@dataclass
class Clock:
    """The times of the frames as percentages of the film, and the keyframes that are used."""

    durations: list[int]
    """Milliseconds of each frame."""

    def __post_init__(self) -> None:
        self.total = sum(self.durations)
        self.starts = [0, *accumulate(self.durations)]  # the last is the end
        self.keyframes: dict[str, str] = {}

    def percent(self, ms: float) -> str:
        return f"{min(100.0, 100 * ms / self.total):.2f}".rstrip("0").rstrip(".") + "%"

    def name(self, kind: str, intervals: Sequence[tuple[int, int]]) -> str:
        """Return the name of keyframes that show something in these frames, from the first up to the second.

        Args:
            kind: "m" for a mask, "c" for a line below the text, "t" for text, which flashes as it appears.
        """
        name = kind + "-".join(f"{start}_{end}" for start, end in intervals)
        on, off = ("fill:var(--new)", "fill:transparent") if kind == "t" else ("opacity:1", "opacity:0")
        frames: dict[str, str] = {"0%": off}
        for start, end in intervals:
            frames[self.percent(self.starts[start])] = on
            if kind == "t":
                later = min(self.starts[start] + FLASH_MS, self.starts[end])
                frames[self.percent(later)] = "fill:var(--c)"
            if end < len(self.durations):
                frames[self.percent(self.starts[end])] = off
        if "100%" not in frames:
            frames["100%"] = on if kind != "t" else "fill:var(--c)"
            if intervals[-1][1] < len(self.durations):
                frames["100%"] = off
        self.keyframes[name] = "".join(f"{at}{{{what}}}" for at, what in frames.items())
        return name


def _plain(text: str) -> str:
    """Return a text without the characters that XML does not allow."""
    return _NOT_XML.sub("\ufffd", text)


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _spans(at: int, frames: Sequence[Frame]) -> Iterator[tuple[int, int, Place]]:
    """Yield what a place shows, from which frame on and up to which."""
    start = 0
    for number in range(1, len(frames) + 1):
        if number == len(frames) or frames[number].places[at] != frames[start].places[at]:
            yield start, number, frames[start].places[at]
            start = number


def _masks(boxes: Sequence[Box], frames: Sequence[Frame], clock: Clock) -> Iterator[str]:
    """Yield the masks of a line; those that remain at the end are seen where nothing moves, too."""
    for box in boxes:
        masked = [(start, end) for start, end, place in _spans(box.at, frames) if place.text is None]
        if not masked:
            continue
        moves = "" if masked == [(0, len(frames))] else f' style="animation-name:{clock.name("m", masked)}"'
        kind = "m left" if masked[-1][1] == len(frames) else "m"
        x, y = MARGIN + CELL * box.column + 0.7, MARGIN + LINE * box.line + 3
        yield (
            f'<rect class="{kind}" x="{_number(x)}" y="{y}" width="{_number(CELL * box.width - 1.4)}" height="14" '
            f'rx="2"{moves}/>'
        )


def _line(boxes: Sequence[Box], layout: Layout, frames: Sequence[Frame], clock: Clock, by: ColourBy) -> Iterator[str]:
    """Yield a line of text, and, of the places that were masked again, what they showed before."""
    finished, earlier = [], []
    for box in boxes:
        for start, end, place in _spans(box.at, frames):
            if place.text is None:
                continue
            step = frames[-1].step if end == len(frames) else frames[end - 1].step
            moves = "" if start == 0 else f' style="animation-name:{clock.name("t", [(start, end)])}"'
            wide = f' textLength="{_number(CELL * box.width)}"' if box.width > 1 else ""
            text = escape(_plain(layout.fill(box, place)), quote=False)
            piece = (
                f'<tspan class="{shade_of(place, step, by)}" x="{_number(MARGIN + CELL * box.column)}"{wide}{moves}>'
                f"{text}</tspan>"
            )
            (finished if end == len(frames) else earlier).append(piece)
    if boxes:
        y = MARGIN + LINE * boxes[0].line + 14.5
        for pieces, kind in ((earlier, ' class="gone" aria-hidden="true"'), (finished, "")):
            if pieces:
                yield f'<text y="{_number(y)}" xml:space="preserve"{kind}>{"".join(pieces)}</text>'


def _foot(frames: Sequence[Frame], by: ColourBy, clock: Clock, top: int, width: int) -> Iterator[str]:
    """Yield the bar of how much is filled, the status of each frame, and what the colours mean."""
    length = width - 2 * MARGIN
    yield f'<rect class="rail" x="{MARGIN}" y="{top + 8}" width="{length}" height="2"/>'
    yield f'<rect class="bar" x="{MARGIN}" y="{top + 8}" width="{length}" height="2"/>'
    n_written = max(1, sum(not place.is_given for place in frames[-1].places))
    filled = [f"{1 - frame.n_open / n_written:.3f}".rstrip("0").rstrip(".") for frame in frames]
    at = {clock.percent(start): f"transform:scaleX({part})" for start, part in zip(clock.starts, filled, strict=False)}
    clock.keyframes["bar"] = "".join(f"{when}{{{what}}}" for when, what in {**at, "100%": at[max(at, key=_value)]}.items())
    for number, frame in enumerate(frames):
        is_last = number == len(frames) - 1
        kind, name = "s last" if is_last else "s", clock.name("c", [(number, number + 1)])
        moves = f' style="animation-name:{name}"' if len(frames) > 1 else ""
        hidden = "" if is_last else ' aria-hidden="true"'
        yield f'<text class="{kind}" x="{MARGIN}" y="{top + 27}"{moves}{hidden}>{escape(status_of(frame))}</text>'
    x = float(MARGIN)
    for shade, words in LEGENDS[by]:
        yield f'<text class="small {shade}" x="{_number(x)}" y="{top + 46}">{escape(words)}</text>'
        x += SMALL_CELL * (len(words) + 3)


def _value(percent: str) -> float:
    return float(percent.removesuffix("%"))


def _style(clock: Clock) -> str:
    fonts = 'ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace'
    moving = f"animation-duration:{clock.total}ms;animation-iteration-count:infinite;animation-timing-function:step-end"
    keyframes = "\n".join(f"@keyframes {name}{{{frames}}}" for name, frames in clock.keyframes.items())
    return f"""
text{{font:{FONT}px {fonts};white-space:pre}}.s,.small{{font-size:{SMALL_FONT}px}}
{_colours(LIGHT)}
{_bold_and_underlined()}
.m,.s,.gone tspan{{opacity:0}}.left,.last{{opacity:1}}.bar{{transform-origin:{MARGIN}px 0}}
@media(prefers-color-scheme:dark){{
{_colours(DARK)}
}}
@media(prefers-reduced-motion:no-preference){{
.m,.s,tspan,.bar{{{moving}}}.gone tspan{{opacity:1}}.bar{{animation-name:bar}}
}}
{keyframes}
"""


def _colours(palette: Palette) -> str:
    shades = ("given", "sure", "likely", "unsure", "guess", "new", "young", "settled", "old")
    rules = [f".{shade}{{fill:{palette.of(shade)};--c:{palette.of(shade)}}}" for shade in shades]
    return (
        f"svg{{--new:{palette.vermilion}}}.card{{fill:{palette.background};stroke:{palette.border}}}"
        f".m{{fill:{palette.mask}}}.s{{fill:{palette.caption}}}.rail{{fill:{palette.border}}}.bar{{fill:{palette.blue}}}"
        + "".join(rules)
    )


def _bold_and_underlined() -> str:
    bold, underlined = ",".join(f".{shade}" for shade in BOLD), ",".join(f".{shade}" for shade in UNDERLINED)
    return f"{bold}{{font-weight:bold}}{underlined}{{text-decoration:underline}}"
