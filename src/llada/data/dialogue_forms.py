"""Forms in which a row of a file can hold a dialogue, each turned into messages.

    messages, conversations     a list of messages: role and content, or ShareGPT's from and value
    prompt, completion          TRL's, a text or messages each; also answer or response in the place of completion
    instruction, input, output  Alpaca's, with history or without

`system`, a text, may precede any of them. A content is a text, or a list of text parts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llada.data.dialogue_keys import Keys
from llada.tokenizers.message import Message

LIST_KEYS = ("messages", "conversations", "conversation")
SYSTEM_KEY = "system"
PROMPT_KEY, ANSWER_KEYS = "prompt", ("answer", "response", "completion")
INSTRUCTION_KEY, INPUT_KEYS, OUTPUT_KEY, HISTORY_KEY = "instruction", ("input", "context"), "output", "history"
PREFERENCE_KEYS = ("chosen", "rejected")
ROLES_OF = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "chatgpt": "assistant", "bot": "assistant",
}  # fmt: skip
TOOL_ROLES = ("tool", "function", "function_call", "observation", "ipython")


@dataclass(frozen=True)
class Turn:
    """A message of a row, and whether it is to be learned if it is an answer."""

    message: Message
    is_learned: bool = True


def turns_of(row: object, keys: Keys) -> list[Turn]:
    """Read the messages of a row, in whichever form it is.

    Raises:
        ValueError: the row has none of the forms, or has a key that is refused.
    """
    if not isinstance(row, dict):
        raise ValueError("it is not a JSON object")
    has = {key for key, value in row.items() if value is not None}
    list_key = next((key for key in LIST_KEYS if key in has), None)
    used: set[str] = set()
    if list_key is not None:
        used.add(list_key)
        turns = _turns_of_list(row[list_key], list_key, keys)
    elif PROMPT_KEY in has and has & set(ANSWER_KEYS):
        turns = _completion(row, PROMPT_KEY, _answer_key(row, ANSWER_KEYS, keys), keys, used)
    elif INSTRUCTION_KEY in has and has & {OUTPUT_KEY, *ANSWER_KEYS}:
        turns = _alpaca(row, keys, used)
    elif PROMPT_KEY in has and OUTPUT_KEY in has:
        turns = _completion(row, PROMPT_KEY, OUTPUT_KEY, keys, used)
    else:
        raise ValueError(_what_else(has))
    if keys.obey or list_key != "messages":  # before keys were judged, a system message next to these was ignored
        used.add(SYSTEM_KEY)
        turns = _with_system(row, turns, keys)
    said = {turn.message.content for turn in turns}
    used |= {key for key, value in row.items() if isinstance(value, str) and value in said}  # a copy of a message
    if not keys.judge_row(row, used, has_one_answer=list_key is None):
        turns = [Turn(turn.message, False) for turn in turns]
    return turns


def _what_else(has: set[str]) -> str:
    if has & set(PREFERENCE_KEYS):
        return 'it is a preference ("chosen", "rejected"): put what is to be learned under "completion"'
    keys = ", ".join(sorted(str(key)[:40] for key in has)[:8]) or "no keys"
    return f'it has neither "messages" nor "prompt" and "answer", nor another form that is known, but {keys}'


def _with_system(row: Mapping[str, Any], turns: list[Turn], keys: Keys) -> list[Turn]:
    """Put the row's own system message before the other messages, unless they have it."""
    if row.get(SYSTEM_KEY) is None:
        return turns
    system = _text_of(row[SYSTEM_KEY], 'its "system"', keys)
    if not system.strip() and keys.obey:
        return turns
    if turns and turns[0].message.role == "system":
        if system.strip() != turns[0].message.content.strip():
            raise ValueError('it has two system messages, one of them under "system"')
        return turns
    return [Turn(Message("system", system)), *turns]


# -- forms ------------------------------------------------------------------------------------------------------------


def _completion(row: Mapping[str, Any], prompt: str, answer: str, keys: Keys, used: set[str]) -> list[Turn]:
    """Read a prompt and its completion, a text or messages each; assistant messages of the prompt are not learned."""
    used |= {prompt, answer}
    before = _one_or_list(row[prompt], prompt, "user", keys)
    return [*(Turn(turn.message, False) for turn in before), *_one_or_list(row[answer], answer, "assistant", keys)]


def _alpaca(row: Mapping[str, Any], keys: Keys, used: set[str]) -> list[Turn]:
    answer = _answer_key(row, (OUTPUT_KEY, *ANSWER_KEYS), keys)
    used |= {INSTRUCTION_KEY, answer, HISTORY_KEY}
    parts = [_text_of(row[INSTRUCTION_KEY], f'its "{INSTRUCTION_KEY}"', keys)]
    for key in INPUT_KEYS:
        if row.get(key):
            used.add(key)
            parts.append(_text_of(row[key], f'its "{key}"', keys))
            break
    turns = []
    history = row.get(HISTORY_KEY) or []
    if not isinstance(history, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in history):
        raise ValueError('its "history" is not a list of questions and answers')
    for pair in history:
        for role, text in zip(("user", "assistant"), pair, strict=True):
            turns.append(Turn(Message(role, _text_of(text, 'its "history"', keys))))
    return [
        *turns,
        Turn(Message("user", "\n".join(parts))),
        Turn(Message("assistant", _text_of(row[answer], f'its "{answer}"', keys))),
    ]


def _answer_key(row: Mapping[str, Any], candidates: tuple[str, ...], keys: Keys) -> str:
    """Choose the key of the answer; of two that say the same, the first."""
    found = [key for key in candidates if row.get(key) is not None]
    others = [key for key in found[1:] if row[key] != row[found[0]]]
    if keys.obey and others:
        raise ValueError(f'it has both "{found[0]}" and "{others[0]}", and one answer is meant')
    return found[0]


def _one_or_list(value: object, key: str, role: str, keys: Keys) -> list[Turn]:
    if isinstance(value, list):
        return _turns_of_list(value, key, keys)
    return [Turn(Message(role, _text_of(value, f'its "{key}"', keys)))]


# -- messages ---------------------------------------------------------------------------------------------------------


def _turns_of_list(value: object, key: str, keys: Keys) -> list[Turn]:
    if not isinstance(value, list):
        raise ValueError(f'its "{key}" is not a list')
    return [_turn_of(item, number, keys) for number, item in enumerate(value, 1)]


def _turn_of(item: object, number: int, keys: Keys) -> Turn:
    if not isinstance(item, dict):
        raise ValueError(f"message {number} is not a JSON object")
    role_key = next((key for key in ("role", "from") if item.get(key) is not None), None)
    content_key = next((key for key in ("content", "value") if item.get(key) is not None), None)
    if role_key is None or (content_key is None and not {"content", "value"} & item.keys()):
        raise ValueError('a message lacks "role" or "content"')
    role = item[role_key]
    if role in TOOL_ROLES:
        raise ValueError(f"message {number} has the role {role!r}, that of a tool, which cannot be learned here")
    role = ROLES_OF.get(role, role) if isinstance(role, str) else role
    is_learned = keys.judge_message(item, {role_key, content_key or "content"}, role == "assistant", number)
    content = _text_of(item.get(content_key or "content"), f"the content of message {number}", keys)
    return Turn(Message(role, content), is_learned)


def _text_of(value: object, what: str, keys: Keys) -> str:
    """Read a text, or join its parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError(f"{what} is not text")
    texts = []
    for part in value:
        if isinstance(part, dict):
            kind = part.get("type", "text")
            if kind != "text" or not isinstance(part.get("text"), str):
                raise ValueError(f"{what} has a part of the type {kind!r:.40}, which is not text")
            keys.judge_part(part, {"type", "text"})
            part = part["text"]
        if not isinstance(part, str):
            raise ValueError(f"{what} has a part that is not text")
        texts.append(part)
    return "".join(texts)
