"""Frames in terminals: wide and narrow, high and low, with many colours, sixteen, and none."""

import pytest
from rich.text import Text

from llada.films.frames import ColourBy, frames_of
from llada.films.terminal import draw_live
from llada.system.console import as_terminal_codes
from tests.support.film_events import HOSTILE, film_of, start, step, tokens_film

VERSE = "ROMEO:\nWhat light through yonder window breaks?\nIt is the east, and Juliet is the sun."
FRAMES = frames_of(film_of(VERSE, 6))


def styles_of(text: Text, words: str) -> set[str]:
    """The styles of the characters of a part of a drawing."""
    first = text.plain.index(words)
    return {str(span.style) for span in text.spans if span.start <= first < span.end} - {""}


@pytest.mark.parametrize("columns", [20, 40, 80, 120])
@pytest.mark.parametrize("number", [0, 30, -1])
def test_no_line_is_wider_than_the_terminal(columns: int, number: int) -> None:
    drawn = draw_live(FRAMES[number], "age", columns, 40, "truecolor")
    assert max(line.cell_len for line in drawn.split("\n")) <= columns
    assert drawn.plain.count("░") == FRAMES[number].n_open


def test_the_end_has_the_text_its_cost_and_a_legend() -> None:
    lines = draw_live(FRAMES[-1], "confidence", 120, 40, "truecolor").plain.split("\n")
    assert [line.rstrip() for line in lines[:3]] == VERSE.split("\n")
    assert lines[3:] == ["", "finished · 80 evaluations · 40.0 s · 12.5 nats in all", "p below 0.2 · 0.45 · 0.7 · 0.9"]


def test_a_narrow_terminal_breaks_all_lines() -> None:
    lines = draw_live(FRAMES[-1], "confidence", 40, 40, "truecolor").plain.split("\n")
    assert [line.rstrip() for line in lines] == [
        "ROMEO:", "What light through yonder window breaks", "?", "It is the east, and Juliet is the sun.", "",
        "finished · 80 evaluations · 40.0 s", "12.5 nats in all", "p below 0.2 · 0.45 · 0.7 · 0.9",
    ]  # fmt: skip


def test_of_a_text_that_is_too_high_the_lines_are_shown_where_something_happens() -> None:
    frames = frames_of(tokens_film([f"{number}\n" for number in range(100)]), most=200)
    for frame in frames[20:-20]:
        lines = draw_live(frame, "confidence", 80, 24, "256").plain.split("\n")
        assert len(lines) == 24
        assert f"{frame.step - 1} " in lines
    assert "░" in draw_live(frames[0], "confidence", 80, 5, "256").plain
    assert draw_live(frames[0], "confidence", 80, 1, "256").plain.count("\n") == 3  # a line, however low it is


@pytest.mark.parametrize(
    ("colours", "by", "expected"),
    [
        ("truecolor", "confidence", "#000000 on #f0a43c"),
        ("256", "age", "#000000 on #6dbdec"),
        ("standard", "confidence", "black on yellow"),
        ("windows", "age", "black on cyan"),
        (None, "confidence", "reverse"),
        (None, "age", "reverse"),
    ],
)
def test_doubtful_and_new_tokens_stand_out_with_any_colours(colours: str | None, by: ColourBy, expected: str) -> None:
    (*_, frame) = frames_of([start(["a", None, None]), step(1, {1: "b"}, p=0.1, n_open=1)])
    drawn = draw_live(frame, by, 80, 24, colours)
    assert (styles_of(drawn, "a"), styles_of(drawn, "b")) == ({"bold"}, {expected})
    assert styles_of(drawn, "░") == {"dim"}


def test_without_colours_there_are_no_colour_codes() -> None:
    codes = as_terminal_codes(draw_live(FRAMES[40], "confidence", 80, 24, None), 80)
    assert "\x1b[7m" in codes
    assert "38;5;" not in codes
    assert "38;5;" in as_terminal_codes(draw_live(FRAMES[40], "confidence", 80, 24, "256"), 80)


def test_nothing_of_a_token_reaches_the_terminal_raw() -> None:
    frames = frames_of(tokens_film(HOSTILE))
    codes = as_terminal_codes(draw_live(frames[-1], "confidence", 200, 24, None), 200)
    for obeyed in ("\x1b]", "\x07", "\x9b", "\u202e", "\x00"):
        assert obeyed not in codes
