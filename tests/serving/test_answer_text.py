"""What of an answer may be sent while tokens are masked, over every order in which it can be decided."""

import itertools

import pytest

from llada.serving.answer_text import AnswerText

MASK, END = 99, 2
LETTERS = {id_: chr(ord("a") + id_ - 3) for id_ in range(3, 20)} | {20: " "}


def decode(ids: object) -> str:
    return "".join(LETTERS.get(id_, "") for id_ in ids)  # type: ignore[attr-defined]


def encode(text: str) -> list[int]:
    ids = {letter: id_ for id_, letter in LETTERS.items()} | {"_": MASK, "|": END}
    return [ids[letter] for letter in text]


def answer(*stops: str, strips: bool = False) -> AnswerText:
    return AnswerText(decode, MASK, frozenset({END}), stops, strips)


@pytest.mark.parametrize(
    ("text", "stops", "sendable", "reason", "n_tokens"),
    [
        ("ab_d", (), "ab", None, 2),
        ("____", (), "", None, 0),
        ("abcd", (), "abcd", "length", 4),
        ("ab|_", (), "ab", "stop", 3),  # what comes behind does not matter
        ("a_|d", (), "a", None, 1),
        ("abc_", ("cd",), "ab", None, 3),  # may become "cd"
        ("abc_", ("cd", "bce"), "a", None, 3),  # the longest possible beginning is held back
        ("abcd_", ("cd",), "ab", "stop", 4),
        ("abcab", ("cd",), "abcab", "length", 5),
        ("abcde_", ("d", "bc"), "a", "stop", 3),  # the first in the text counts
        ("abdd_", ("dd",), "ab", "stop", 4),
        ("ab_", ("b",), "a", "stop", 2),
    ],
)
def test_the_decided_prefix_by_hand(
    text: str, stops: tuple[str, ...], sendable: str, reason: str | None, n_tokens: int
) -> None:
    found = answer(*stops).decided(encode(text))
    assert (found.sendable, found.finish_reason, found.n_tokens) == (sendable, reason, n_tokens)
    if reason is not None:
        assert found.text == sendable


def test_space_at_the_ends_of_an_answer_is_not_part_of_it() -> None:
    dialogue = answer(strips=True)
    assert dialogue.decided(encode("  a _")).sendable == "a"  # the space may be the last
    assert dialogue.decided(encode("  a b")).text == "a b"
    assert dialogue.decided(encode("  a |_")).text == "a"


def test_half_a_character_is_held_back() -> None:
    whole = AnswerText(lambda ids: bytes(ids).decode(errors="replace"), MASK)
    euro = list("€".encode())
    assert whole.decided([97, *euro[:2], MASK]).sendable == "a"
    assert whole.decided([97, *euro, MASK]).sendable == "a€"
    assert whole.decided([97, *euro[:2]], is_final=True).text == "a\ufffd"


@pytest.mark.parametrize(
    ("text", "stops"), [("abcab", ("ca",)), (" a b ", ()), ("abab|", ("bb",)), ("aabaa", ("aaa",))]
)
@pytest.mark.parametrize("strips", [False, True])
def test_a_stream_is_the_answer_in_whatever_order_it_is_decided(
    text: str, stops: tuple[str, ...], strips: bool
) -> None:
    rule, ids = answer(*stops, strips=strips), encode(text)
    whole = rule.decided(ids, is_final=True)
    for order in itertools.permutations(range(len(ids))):
        canvas, sent = [MASK] * len(ids), ""
        for place in order:
            canvas[place] = ids[place]
            now = rule.decided(canvas)
            assert now.sendable.startswith(sent)  # it only appends
            sent = now.sendable
            if now.finish_reason is not None:
                break
        assert (sent, now.finish_reason, now.n_tokens) == (whole.text, whole.finish_reason, whole.n_tokens)
