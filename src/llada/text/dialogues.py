"""Dialogues, and the files that hold them: JSONL, one dialogue a line."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llada.errors import UserError

ROLES = ("system", "user", "assistant")
PROMPT_KEY, ANSWER_KEYS = "prompt", ("answer", "response", "completion")


@dataclass(frozen=True)
class Message:
    """One turn of a dialogue."""

    role: str
    """"system", "user" or "assistant"."""
    content: str


Dialogue = tuple[Message, ...]


def read_dialogues(path: Path) -> list[Dialogue]:
    """The dialogues of a JSONL file: one object a line, `messages` with `role` and `content`, or `prompt` and `answer`,
    with `system` beside them or without.

    Raises:
        UserError: the file is missing or empty, or a line, which is named by its number, is no dialogue with an answer.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")  # other line breaks may be inside of strings
    except FileNotFoundError:
        raise UserError(f"{path} is missing: check the path.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): convert it.") from None
    dialogues = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                dialogues.append(_parse(json.loads(line)))
            except (ValueError, RecursionError) as error:
                what = "is not valid JSON" if isinstance(error, json.JSONDecodeError) else "is no dialogue to learn"
                raise UserError(
                    f"Line {number} of {path} {what} ({str(error) or 'it is too deep'}): correct or remove it."
                ) from None
    if not dialogues:
        raise UserError(f"{path} holds no dialogue: write one JSON object a line.")
    return dialogues


def characters_of(paths: Iterable[Path]) -> set[str]:
    """All characters that the dialogues of these files have, and the line break before a first question."""
    dialogues = [dialogue for path in paths for dialogue in read_dialogues(path)]
    return {"\n"}.union(*(message.content for dialogue in dialogues for message in dialogue))


def _parse(content: object) -> Dialogue:
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    if "messages" not in content:
        answers = [key for key in ANSWER_KEYS if key in content]
        if PROMPT_KEY not in content or not answers:
            raise ValueError('it has neither "messages" nor "prompt" and "answer"')
        messages = [Message("system", content["system"])] if "system" in content else []
        messages += [Message("user", content[PROMPT_KEY]), Message("assistant", content[answers[0]])]
    else:
        messages = [_parse_message(item) for item in _as_list(content["messages"])]
    check_turns(messages)
    if len(messages) < 2 or not any(message.role == "assistant" for message in messages):
        raise ValueError("it has no answer, a message of the assistant")
    return tuple(messages)


def _as_list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError('its "messages" are no list')
    return value


def _parse_message(item: object) -> Message:
    if not isinstance(item, dict) or "role" not in item or "content" not in item:
        raise ValueError('a message lacks "role" or "content"')
    return Message(item["role"], item["content"])


def check_turns(messages: Sequence[Message]) -> None:
    """Refuse what is no dialogue: questions and answers by turns, after one system message at most.

    Raises:
        ValueError: it is not.
    """
    expected = "user"
    for number, message in enumerate(messages, 1):
        if not isinstance(message.content, str):
            raise ValueError(f"the content of message {number} is no text")
        if not is_unicode(message.content):
            raise ValueError(f"message {number} has half a character, a lone surrogate")
        if message.role not in ROLES:
            raise ValueError(f"message {number} has the role {message.role!r}, not one of {', '.join(ROLES)}")
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
