"""The film as a recording of a terminal, replayed by a small model of one."""

import json
import re

from llada.films.cast import cast
from llada.films.frames import frames_of
from tests.support.film_events import HOSTILE, film_of, tokens_film

VERSE = "ROMEO:\nWhat light through yonder window breaks?\nIt is the east, and Juliet is the sun."
CODES = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])")


def replay(recording: str) -> tuple[dict[str, object], list[float], list[list[str]]]:
    """The header, the times, and the rows of the screen after each event."""
    header, *events = map(json.loads, recording.splitlines())
    rows = [""] * header["height"]
    times, screens = [], []
    row = 0
    for time, kind, output in events:
        assert kind == "o"
        times.append(time)
        position = 0
        for code in [*CODES.finditer(output), None]:
            text = output[position : code.start() if code else None]
            assert all(ord(character) >= 32 for character in text)
            rows[row] += text
            if code is None:
                break
            position = code.end()
            if code[2] == "H":
                row = int(code[1].split(";")[0]) - 1
                rows[row] = ""  # every row that changes is written whole
            assert code[2] in "HKhlm"
        screens.append([line.rstrip() for line in rows])
    return header, times, screens


def test_a_recording_ends_with_the_text_and_has_the_real_times() -> None:
    frames = frames_of(film_of(VERSE, 6), most=1000)
    header, times, screens = replay(cast(frames, "confidence", "demo · seed 7"))
    assert header["version"] == 2
    assert (header["width"], header["height"]) == (52, 3 + 4)
    assert header["title"] == "demo · seed 7"
    assert times == [number / 2 for number in range(81)]
    assert screens[0][0] == "ROMEO:░"
    assert sum(line.count("░") for line in screens[40]) == 80 - 40
    assert screens[-1] == [
        *VERSE.split("\n"), "", "finished · 80 evaluations · 40.0 s", "12.5 nats in all",
        "p below 0.2 · 0.45 · 0.7 · 0.9",
    ]  # fmt: skip


def test_only_rows_that_change_are_sent_again() -> None:
    *_, last = cast(frames_of(film_of(VERSE, 6), most=1000), "confidence", "").splitlines()
    assert "Juliet" not in last
    assert "ROMEO" in last  # whose line end is the last to appear


def test_nothing_of_a_token_is_sent_raw() -> None:
    recording = cast(frames_of(tokens_film(HOSTILE)), "age", "demo")
    _, _, screens = replay(recording)
    assert "␛]0;title␇" in screens[-1][0]
    recording.encode()
