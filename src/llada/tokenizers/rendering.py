"""Untrusted chat templates, rendered within limits."""

from collections.abc import Mapping, Sequence
from typing import ClassVar
from weakref import WeakValueDictionary

from llada.system.errors import UserError
from llada.system.limited_process import BoundedProcess, Limits, WorkError
from llada.tokenizers.bpe import LARGEST_FILE, STRANGER, TEMPLATE_FILE
from llada.tokenizers.message import Message

# Limits of a template. The longest public ones render in a millisecond, and write some thousand characters.
_SECONDS, _SECONDS_PER_CHARACTER = 0.8, 1e-6
_MEGABYTES, _CHARACTERS_PER_MEGABYTE = 250, 30_000
_LONGEST = 100_000  # characters beyond ten times those of the messages


class DialogueError(UserError):
    """An error for a dialogue that a chat template refuses, or fails on."""

    def __init__(self, reason: str, place: str = "this dialogue") -> None:
        super().__init__(
            f"The chat template of the checkpoint does not take {place} ({reason}): change the dialogue, or use "
            "another template."
        )
        self.reason = reason

    def at(self, place: str) -> "DialogueError":
        """Return the error for a dialogue that has a name, such as "line 17 of chat.jsonl"."""
        return DialogueError(self.reason, place)


class Template:
    """A chat template in Jinja, rendered in a process of its own (system/limited_process.py).

    It is set up as in the transformers library. In Jinja's sandbox it can compute strings and reach nothing else; its
    process limits its time, memory and output.
    """

    _living: ClassVar["WeakValueDictionary[str, Template]"] = WeakValueDictionary()

    def __init__(self, text: str) -> None:
        """Compile the template in its process.

        Raises:
            UserError: the template is invalid.
        """
        self._process = BoundedProcess(STRANGER, "template")
        try:
            if len(text) > LARGEST_FILE[TEMPLATE_FILE]:
                raise WorkError(f"it has more than {LARGEST_FILE[TEMPLATE_FILE]:,} characters")
            self._process.prepare({"name": "setup"}, Limits(_SECONDS, _MEGABYTES), text.encode())
        except (WorkError, UnicodeEncodeError) as error:
            raise UserError(
                f"The chat template of the checkpoint cannot be used ({error}): correct it, or use another template."
            ) from error

    @classmethod
    def of(cls, text: str) -> "Template":
        """Return the template of this text; all users of a text share a process."""
        template = cls._living.get(text)
        if template is None:
            template = cls._living[text] = cls(text)
        return template

    def render(
        self, turns: Sequence[tuple[Sequence[Message], bool]], names: Mapping[str, str]
    ) -> list[str | DialogueError]:
        """Render dialogues; where that fails, return the error instead.

        Args:
            turns: pairs of messages and whether to begin an answer after them.
            names: names of special tokens, as the template calls them.
        """
        dialogues = [([{"role": m.role, "content": m.content} for m in messages], asked) for messages, asked in turns]
        n_characters = sum(len(message.content) for messages, _ in turns for message in messages)
        question = {"name": "render", "turns": dialogues, "names": names, "longest": _LONGEST + 10 * n_characters}
        limits = Limits(
            _SECONDS + _SECONDS_PER_CHARACTER * n_characters, _MEGABYTES + n_characters // _CHARACTERS_PER_MEGABYTE
        )
        try:
            results: list[tuple[str | None, str]] = self._process.ask(question, limits)
        except WorkError as error:
            return [DialogueError(str(error)) for _ in turns]
        return [DialogueError(reason) if text is None else text for text, reason in results]
