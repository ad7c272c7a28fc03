"""Messages, and the order in which they form a dialogue."""

from collections.abc import Sequence
from dataclasses import dataclass

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn of a dialogue."""

    role: str
    """The role: "system", "user" or "assistant"."""
    content: str


def check_turns(messages: Sequence[Message]) -> None:
    """Refuse messages that are not a dialogue: questions and answers in turns, after one system message at most.

    Raises:
        ValueError: they are not a dialogue.
    """
    expected = "user"
    for number, message in enumerate(messages, 1):
        if not isinstance(message.content, str):
            raise ValueError(f"the content of message {number} is not text")
        if not is_unicode(message.content):
            raise ValueError(f"message {number} has half a character, a lone surrogate")
        if message.role not in ROLES:
            raise ValueError(f"message {number} has the role {message.role!r:.60}, not one of {', '.join(ROLES)}")
        if message.role == "system" and number == 1:
            continue
        if message.role != expected:
            raise ValueError(f"message {number} is of the {message.role}, where the {expected} has the turn")
        if message.role == "assistant" and not message.content.strip():
            raise ValueError(f"message {number}, an answer, is empty")
        expected = "assistant" if expected == "user" else "user"


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8, which a string with half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
