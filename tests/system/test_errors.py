"""A sentence for people is one line, whatever it quotes."""

from llada.system.errors import UserError


def test_control_characters_are_shown_not_obeyed() -> None:
    assert str(UserError("a\nb\x1b[31mc\ud800 \u2028d ä世.")) == "a\\nb\\x1b[31mc\\ud800 \\u2028d ä世."
    assert str(UserError("It is plain: do nothing.")) == "It is plain: do nothing."
