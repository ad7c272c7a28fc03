"""Rules for the keys of dialogues: which are obeyed, which are refused, and which are counted.

A key whose value is null or empty says nothing. Of the others, some say what is to be learned, and are obeyed; some
hold a part of the dialogue that cannot be learned here, without which the rest would teach something wrong, and are
refused; all others are left out and counted, so that nothing is left out silently.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from llada.data.rows import Repeated

# Keys that say whether an answer is learned: 0 or false, 1 or true. OpenAI and Mistral have `weight`, axolotl `train`
# and `training`, ms-swift `loss`, others `trainable`.
MESSAGE_FLAGS = ("weight", "train", "trainable", "training", "loss")
ROW_FLAGS = ("weight", "train", "trainable")
REFUSED_IN_MESSAGES = {
    "tool_calls": "calls of tools",
    "function_call": "a call of a function",
    "train_detail": "an answer that is learned in part",
    "training_detail": "an answer that is learned in part",
}
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
LONGEST_KEY = 40  # characters of a key that are shown
SHOWN_KEYS = 8


class Keys:
    """A judge of the keys in a file.

    With `obey` false no key is obeyed or refused, but all are counted: only the text is learned, as before keys were
    judged.
    """

    def __init__(self, obey: bool) -> None:
        self.obey = obey
        self._unused: Counter[str] = Counter()
        self._in_row: dict[str, None] = {}  # an ordered set

    def begin_row(self) -> None:
        """Start to count keys for another row."""
        self._unused.update(self._in_row.keys())
        self._in_row = {}

    def forget_row(self) -> None:
        """Drop the counts of a row that is not used."""
        self._in_row = {}

    def judge_row(self, row: Mapping[str, Any], used: Collection[str], has_one_answer: bool) -> bool:
        """Decide whether the answers of a row may be learned.

        Args:
            used: keys that the row was read by.
            has_one_answer: the row is a prompt and a completion.

        Raises:
            ValueError: the row has a key that is refused.
        """
        self._check_repeated(row)
        self._refuse(row, dict.fromkeys(MEDIA, "media"))
        if self.obey and has_one_answer and isinstance(row.get("label"), bool):
            raise ValueError('it is an unpaired preference ("label"), and not every answer of such is to be learned')
        return self._judge(row, used, ROW_FLAGS, " of the row")

    def judge_message(self, message: Mapping[str, Any], used: Collection[str], is_answer: bool, number: int) -> bool:
        """Decide whether a message, if it is an answer, is to be learned.

        Raises:
            ValueError: the message has a key that is refused.
        """
        self._check_repeated(message)
        self._refuse(message, {**REFUSED_IN_MESSAGES, **dict.fromkeys(MEDIA, "media")}, f"message {number}")
        is_learned = self._judge(message, used, MESSAGE_FLAGS, f" of message {number}")
        if not is_answer and self.obey:
            for key in MESSAGE_FLAGS:
                if key not in used and message.get(key):
                    self._in_row[f"{key} of messages that are not answers"] = None
        return is_learned

    def judge_part(self, part: Mapping[str, Any], used: Collection[str]) -> None:
        """Judge the keys of a part of a content that is a list."""
        self._check_repeated(part)
        self._judge(part, used, (), "")

    def count(self, what: str) -> None:
        """Note something else that is left out of this row."""
        self._in_row[what] = None

    def describe(self, unit: str) -> str | None:
        """Describe what was left out, and in how many rows; None if nothing was."""
        self.begin_row()
        if not self._unused:
            return None
        ordered = self._unused.most_common()
        shown = [f"{name} ({n:,} {unit}{'s' if n > 1 else ''})" for name, n in ordered[:SHOWN_KEYS]]
        more = f" and {len(ordered) - SHOWN_KEYS:,} more" if len(ordered) > SHOWN_KEYS else ""
        return ", ".join(shown) + more

    def _judge(self, item: Mapping[str, Any], used: Collection[str], flags: Collection[str], of: str) -> bool:
        is_learned = True
        for key, value in item.items():
            if key in used or _says_nothing(value):
                continue
            if self.obey and key in flags:
                if not isinstance(value, int | float) or value not in (0, 1):
                    raise ValueError(f'the "{key}"{of} is {_shown(value)}, neither 0 nor 1')
                is_learned = is_learned and bool(value)
            else:
                self._in_row[_shown_key(key)] = None
        return is_learned

    def _refuse(self, item: Mapping[str, Any], refused: Mapping[str, str], where: str = "it") -> None:
        for key, what in refused.items():
            if self.obey and not _says_nothing(item.get(key)):
                raise ValueError(f'{where} has "{key}", {what}, which cannot be learned here')

    def _check_repeated(self, item: Mapping[str, Any]) -> None:
        if isinstance(item, Repeated):
            if self.obey:
                raise ValueError(f"it has the key {_shown(item.key)} twice")
            self._in_row[f"{_shown_key(item.key)} twice"] = None


def _says_nothing(value: object) -> bool:
    return value is None or (isinstance(value, str | list | dict) and not value)


def _shown_key(key: str) -> str:
    return key if key.isprintable() and len(key) <= LONGEST_KEY else _shown(key)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_KEY else f"{text[:LONGEST_KEY]}..."
