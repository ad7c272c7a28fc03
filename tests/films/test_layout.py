"""Where the places of a text stand: lines, words, wide and combining characters."""

import pytest
from rich.cells import cell_len

from llada.films.frames import Frame, Place, frames_of
from llada.films.layout import Layout, lay_out
from tests.support.film_events import HOSTILE, start, step, tokens_film


def last_of(*texts: str | None) -> Frame:
    return frames_of([start(texts)])[-1]


def drawn(layout: Layout, frame: Frame) -> list[str]:
    return ["".join(layout.fill(box, frame.places[box.at]) for box in line) for line in layout.lines]


@pytest.mark.parametrize(
    ("text", "columns", "by_words", "expected"),
    [
        ("to be", 9, False, ["to be"]),
        ("to be", 3, False, ["to ", "be"]),
        ("to be", 4, False, ["to b", "e"]),
        ("to be", 4, True, ["to ", "be"]),
        ("to be", 2, True, ["to ", "be"]),  # the space hangs over the edge
        ("a\nb\n", 9, True, ["a ", "b "]),  # a line end has a column of its own
        ("ab\n\nc", 2, True, ["ab ", " ", "c"]),
        ("toooo be", 4, True, ["tooo", "o be"]),  # a word that is longer than a line
        ("a bb cc", 4, True, ["a bb ", "cc"]),
        ("", 4, True, []),
    ],
)
def test_lines_are_broken(text: str, columns: int, by_words: bool, expected: list[str]) -> None:
    frame = last_of(*text)
    assert drawn(lay_out(frame, columns, by_words), frame) == (expected or [""])


def test_masks_stand_where_the_tokens_will() -> None:
    frames = frames_of(tokens_film(["to", " be", ",\n", "or"]))
    layout = lay_out(frames[-1], 20)
    assert [drawn(layout, frame) for frame in frames] == [
        ["░░░░░░░", "░░"],
        ["to░░░░░", "░░"],
        ["to be░░", "░░"],
        ["to be, ", "░░"],
        ["to be, ", "or"],
    ]


def test_wide_characters_take_two_columns() -> None:
    frame = last_of("天", "地", "玄", "a", "黄")
    layout = lay_out(frame, 5)
    assert [(box.line, box.column, box.width) for line in layout.lines for box in line] == [
        (0, 0, 2), (0, 2, 2), (1, 0, 2), (1, 2, 1), (1, 3, 2),
    ]  # fmt: skip
    assert layout.width == 5
    assert lay_out(frame, 1).width == 2  # at least one of them fits on a line


def test_combining_characters_stay_with_their_letter() -> None:
    frame = last_of("e\u0301t", "e\u0301")
    layout = lay_out(frame, 2)
    assert drawn(layout, frame) == ["e\u0301t", "e\u0301"]
    assert [(box.line, box.width) for line in layout.lines for box in line] == [(0, 2), (1, 1)]


def test_a_combining_character_alone_and_a_token_without_text_have_a_column() -> None:
    frame = last_of("e", "\u0301", "")
    layout = lay_out(frame, 9)
    assert [box.width for box in layout.lines[0]] == [1, 1, 1]
    assert drawn(layout, frame) == ["e\u0301 ·"]


def test_another_token_than_the_last_one_is_fitted_into_its_place() -> None:
    frames = frames_of([start([None, "!"]), step(1, {0: "later\n"}), step(2, {0: "now"})])
    layout = lay_out(frames[-1], 20)
    assert [drawn(layout, frame) for frame in frames] == [["░░░!"], ["lat!"], ["now!"]]
    frames = frames_of([start([None, None]), step(1, {0: "\n", 1: "x"}), step(2, {0: "y"})])
    assert drawn(lay_out(frames[-1], 20), frames[1]) == ["⏎x"]


def test_a_token_that_is_broken_over_lines_is_masked_on_both() -> None:
    frames = frames_of(tokens_film(["abcd"]))
    layout = lay_out(frames[-1], 3)
    assert [drawn(layout, frame) for frame in frames] == [["░░░", "░"], ["abc", "d"]]


def test_what_a_terminal_would_obey_is_a_sign() -> None:
    frame = Frame(0, 0, 0.0, None, 0, tuple(Place(text, True) for text in ("\t", *HOSTILE[:6])), limit=1)
    for line in drawn(lay_out(frame, 30), frame):
        assert not any(ord(character) < 32 or 0x7F <= ord(character) < 0xA0 for character in line)
        assert "\u202e" not in line
        assert cell_len(line) <= 30
