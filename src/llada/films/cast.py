"""A film as a recording of a terminal: asciicast v2 (https://docs.asciinema.org/manual/asciicast/v2/).

It plays in real time: each frame comes when its step was done.
"""

import json
from collections.abc import Sequence
from itertools import zip_longest

from llada.films.frames import ColourBy, Frame
from llada.films.layout import lay_out
from llada.films.terminal import draw
from llada.system.console import as_terminal_codes

COLUMNS, FEWEST_COLUMNS = 80, 52
_FOOT = 4  # rows below the text
_HIDE_CURSOR, _SHOW_CURSOR, _CLEAR_LINE = "\x1b[?25l", "\x1b[?25h", "\x1b[K"


def cast(frames: Sequence[Frame], by: ColourBy, title: str) -> str:
    """Return the recording: a line of JSON for the header, and one for each frame, with the rows that change."""
    layout = lay_out(frames[-1], COLUMNS - 1, by_words=True)
    width, height = max(FEWEST_COLUMNS, layout.width), len(layout.lines) + _FOOT
    header = {"version": 2, "width": width, "height": height, "title": title, "env": {"TERM": "xterm-256color"}}
    lines: list[object] = [header]
    before: list[str] = []
    for number, frame in enumerate(frames):
        rows = as_terminal_codes(draw(frame, layout, by, width, height, "256"), width).split("\n")
        output = "" if number else _HIDE_CURSOR
        for row, (old, new) in enumerate(zip_longest(before, rows, fillvalue=""), 1):
            output += f"\x1b[{row};1H{new}{_CLEAR_LINE}" if old != new else ""
        if number == len(frames) - 1:
            output += _SHOW_CURSOR
        lines.append([round(frame.seconds, 6), "o", output])
        before = rows
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
