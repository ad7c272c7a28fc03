"""A film as an SVG picture that moves by CSS alone: it plays where scripts may not run, such as in a README.

Where nothing moves, in a print or for people who prefer less motion, it shows the finished text. Its text can be
selected. Colours follow the viewer's light or dark scheme.
"""

import re
from collections.abc import Iterator, Sequence
from html import escape
from itertools import accumulate, groupby

from llada.films.colours import DARK, LEGENDS, LIGHT, Palette
from llada.films.frames import DOUBTS, NEWNESS, ColourBy, Frame, Place, shade_of, status_of
from llada.films.layout import Box, Layout, lay_out
from llada.films.timing import durations_of

COLUMNS, FEWEST_COLUMNS = 64, 52
CELL, LINE, MARGIN, FONT = 8.4, 20, 16, 14
SMALL_CELL, SMALL_FONT = 7.2, 12
FADE_MS = 280  # in which a mask becomes a token, as in the page's player
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def svg(frames: Sequence[Frame], by: ColourBy) -> str:
    """Return the picture."""
    layout, clock = lay_out(frames[-1], COLUMNS, by_words=True), Clock(durations_of(len(frames)))
    columns = max(FEWEST_COLUMNS, layout.width)
    width, bottom = round(columns * CELL + 2 * MARGIN), MARGIN + LINE * len(layout.lines)
    body = [f'<rect class="card" x=".5" y=".5" width="{width - 1}" height="{bottom + 3 * LINE - 1}" rx="8"/>']
    for boxes in layout.lines:
        body += _backs(boxes, frames, clock, by)
        body += _line(boxes, layout, frames, clock)
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


State = tuple[int, str]
"""The frame from which on something looks so, and how, in CSS."""


class Clock:
    """The times of the frames as percentages of the film, and the keyframes that are in use."""

    def __init__(self, durations: Sequence[int]) -> None:
        """
        Args:
            durations: milliseconds of each frame.
        """
        self.durations, self.total = durations, sum(durations)
        self.starts = [0, *accumulate(durations)]  # the last is the end
        self._names: dict[tuple[tuple[State, ...], int], str] = {}

    def moves(self, states: Sequence[State], fade_ms: int = FADE_MS) -> str:
        """Return the attribute that lets an element go through states, from frame 0 on; none if there is only one."""
        if len(states) == 1:
            return ""
        name = self._names.setdefault((tuple(states), fade_ms), f"k{len(self._names)}")
        return f' style="animation-name:{name}"'

    def keyframes(self) -> Iterator[str]:
        """Yield the rules of all that was asked for."""
        for (states, fade_ms), name in self._names.items():
            rule = f"0%{{{states[0][1]}}}"
            times = [*(self.starts[frame] for frame, _ in states), self.total]
            for (_, before), (_, after), start, end in zip(states, states[1:], times[1:], times[2:], strict=False):
                rule += f"{self._percent(start)}{{{before}}}"
                rule += f"{self._percent(start + 1 + min(fade_ms, end - start - 2))}{{{after}}}"
            yield f"@keyframes {name}{{{rule}100%{{{states[-1][1]}}}}}"

    def _percent(self, ms: float) -> str:
        return f"{100 * ms / self.total:.2f}".rstrip("0").rstrip(".") + "%"


def _plain(text: str) -> str:
    """Return a text without the characters that XML does not allow."""
    return _NOT_XML.sub("\ufffd", text)


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _spans(at: int, frames: Sequence[Frame]) -> Iterator[tuple[int, int, Place]]:
    """Yield what a place shows, from which frame on and up to which."""
    for place, group in groupby(range(len(frames)), key=lambda number: frames[number].places[at]):
        numbers = list(group)
        yield numbers[0], numbers[-1] + 1, place


def _while(start: int, end: int, n_frames: int, there: str, away: str) -> list[State]:
    """Return the states of something that is there from one frame on and up to another."""
    before = [(0, away)] if start else []
    after = [(end, away)] if end < n_frames else []
    return [*before, (start, there), *after]


def _backs(boxes: Sequence[Box], frames: Sequence[Frame], clock: Clock, by: ColourBy) -> Iterator[str]:
    """Yield what is behind the tokens of a line: masks, which become the shades of the tokens."""
    for box in boxes:
        shades = [shade_of(frame.places[box.at], frame, by) for frame in frames]
        if set(shades) == {"plain"}:
            continue
        changes = [number for number, shade in enumerate(shades) if number == 0 or shade != shades[number - 1]]
        moves = clock.moves([(number, f"fill:var(--{shades[number]})") for number in changes])
        x, y = MARGIN + CELL * box.column + 0.5, MARGIN + LINE * box.line + 1.5
        yield (
            f'<rect class="b {shades[-1]}" x="{_number(x)}" y="{y}" width="{_number(CELL * box.width - 1)}" '
            f'height="17" rx="2.5"{moves}/>'
        )


def _line(boxes: Sequence[Box], layout: Layout, frames: Sequence[Frame], clock: Clock) -> Iterator[str]:
    """Yield a line of text, and, of the places that were masked again, what they showed before."""
    finished: list[str] = []
    earlier: list[str] = []
    for box in boxes:
        for start, end, place in _spans(box.at, frames):
            if place.text is None:
                continue
            moves = clock.moves(_while(start, end, len(frames), "fill:var(--ink)", "fill:transparent"))
            wide = f' textLength="{_number(CELL * box.width)}"' if box.width > 1 else ""
            given = ' class="given"' if place.is_given else ""
            text = escape(_plain(layout.fill(box, place)), quote=False)
            piece = f'<tspan{given} x="{_number(MARGIN + CELL * box.column)}"{wide}{moves}>{text}</tspan>'
            (finished if end == len(frames) else earlier).append(piece)
    y = _number(MARGIN + LINE * boxes[0].line + 14.5) if boxes else ""
    if earlier:
        yield f'<text class="gone" y="{y}" aria-hidden="true">{"".join(earlier)}</text>'
    if finished:
        yield f'<text y="{y}">{"".join(finished)}</text>'


def _foot(frames: Sequence[Frame], by: ColourBy, clock: Clock, top: int, width: int) -> Iterator[str]:
    """Yield the bar of how much is filled, the status of each frame, and what the colours mean."""
    length = width - 2 * MARGIN
    yield f'<rect class="rail" x="{MARGIN}" y="{top + 8}" width="{length}" height="2"/>'
    n_written = max(1, sum(not place.is_given for place in frames[-1].places))
    filled = [f"{1 - frame.n_open / n_written:.3f}".rstrip("0").rstrip(".") for frame in frames]
    bar = clock.moves([(number, f"transform:scaleX({part})") for number, part in enumerate(filled)])
    yield f'<rect class="bar" x="{MARGIN}" y="{top + 8}" width="{length}" height="2"{bar}/>'
    for number, frame in enumerate(frames):
        is_last = number == len(frames) - 1
        moves = clock.moves(_while(number, number + 1, len(frames), "opacity:1", "opacity:0"), fade_ms=0)
        kind = 's"' if is_last else 's gone" aria-hidden="true"'
        yield f'<text class="{kind} x="{MARGIN}" y="{top + 27}"{moves}>{escape(status_of(frame))}</text>'
    x = MARGIN + 4.0
    for shade, words in LEGENDS[by]:
        wide = SMALL_CELL * len(words)
        where = f'x="{_number(x - 4)}" y="{top + 33.5}" width="{_number(wide + 8)}" height="17" rx="3"'
        yield f'<rect class="b {shade}" {where}/>'
        yield f'<text class="s legend" x="{_number(x)}" y="{top + 46}">{escape(words)}</text>'
        x += wide + 2 * SMALL_CELL


def _style(clock: Clock) -> str:
    fonts = 'ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace'
    keyframes = "\n".join(clock.keyframes())
    return f"""
text{{font:{FONT}px {fonts};white-space:pre}}.s{{font-size:{SMALL_FONT}px}}.given{{font-weight:bold}}
{_colours(LIGHT)}
@media(prefers-color-scheme:dark){{
{_colours(DARK)}
}}
.gone{{opacity:0}}.bar{{transform-origin:{MARGIN}px 0}}
@media(prefers-reduced-motion:no-preference){{
.b,.s,tspan,.bar{{animation:{clock.total}ms linear infinite}}text.gone{{opacity:1}}
}}
{keyframes}
"""


def _colours(palette: Palette) -> str:
    """Return the rules of a scheme. Variables are for keyframes only, since some readers of SVG know none."""
    shades = {shade: palette.of(shade) for shade in ("mask", *DOUBTS, *NEWNESS)}
    variables = "".join(f"--{shade}:{colour};" for shade, colour in shades.items())
    return (
        f"svg{{{variables}--plain:transparent;--ink:{palette.ink}}}text{{fill:{palette.ink}}}.s{{fill:{palette.quiet}}}"
        f".legend{{fill:{palette.ink}}}.card{{fill:{palette.sheet};stroke:{palette.line}}}.rail{{fill:{palette.line}}}"
        f".bar{{fill:{palette.accent}}}.plain{{fill:none}}"
        + "".join(f".{shade}{{fill:{colour}}}" for shade, colour in shades.items())
    )
