"""A film as a recording of a terminal: asciicast v2 (https://docs.asciinema.org/manual/asciicast/v2/).

It plays in real time: each frame comes when its step was done.
"""

import json
from collections.abc import Sequence

from llada.films.frames import ColourBy, Frame
from llada.films.layout import lay_out
from llada.films.terminal import draw
from llada.system.console import as_terminal_codes

COLUMNS, FEWEST_COLUMNS = 80, 40
_HOME, _CLEAR_LINE, _CLEAR_BELOW, _HIDE_CURSOR, _SHOW_CURSOR = "\x1b[H", "\x1b[K", "\x1b[J", "\x1b[?25l", "\x1b[?25h"
_FOOT = 4  # rows below the text


def cast(frames: Sequence[Frame], by: ColourBy, title: str) -> str:
    """Return the recording: a line of JSON for the header, and one for each frame."""
    layout = lay_out(frames[-1], COLUMNS - 1, by_words=True)
    width = max(FEWEST_COLUMNS, layout.width)
    height = len(layout.lines) + _FOOT
    header = {"version": 2, "width": width, "height": height, "title": title, "env": {"TERM": "xterm-256color"}}
    rows: list[object] = [header]
    for number, frame in enumerate(frames):
        drawn = as_terminal_codes(draw(frame, layout, by, width, height, "256"), width)
        body = drawn.replace("\n", f"{_CLEAR_LINE}\r\n")
        text = f"{_HIDE_CURSOR if number == 0 else ''}{_HOME}{body}{_CLEAR_LINE}{_CLEAR_BELOW}"
        if number == len(frames) - 1:
            text += f"{_SHOW_CURSOR}\r\n"
        rows.append([round(frame.seconds, 6), "o", text])
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
