"""A sentence for people is one line, whatever it quotes."""

import pytest

from llada.system.errors import UserError, first_line


def test_control_characters_are_shown_not_obeyed() -> None:
    assert str(UserError("a\nb\x1b[31mc\ud800 \u2028d ä世.")) == "a\\nb\\x1b[31mc\\ud800 \\u2028d ä世."
    assert str(UserError("It is plain: do nothing.")) == "It is plain: do nothing."


@pytest.mark.parametrize(
    ("error", "clause"),
    [
        (ValueError("\n  no such thing.\nfurther lines"), "no such thing"),
        (ValueError(""), "ValueError"),
        ("", ""),
        (OSError("x" * 300), "x" * 200),
        (RuntimeError("when calling `create`:"), "when calling 'create'"),  # which is no option of ours
        (UserError("lower `gen_length`."), "lower `gen_length`"),
    ],
)
def test_an_error_is_quoted_by_its_first_line(error: BaseException | str, clause: str) -> None:
    assert first_line(error) == clause
