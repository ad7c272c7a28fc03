"""Dialogues in tokens, as prompt and answer.

A checkpoint with a chat template is addressed by it. Other vocabularies, mainly those of single characters, have a
plain form: BOS, then each message followed by EOS, in turns.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from llada.system.errors import UserError
from llada.tokenizers.base import Tokenizer
from llada.tokenizers.bpe import BPETokenizer
from llada.tokenizers.char import BOS, EOS
from llada.tokenizers.message import Message
from llada.tokenizers.rendering import DialogueError, Template
from llada.tokenizers.templates import LLADA_ROWS, LLADA_TEMPLATE, LLADA_TOKENS

PRIVATE_USE = range(0xE000, 0xF900)  # characters that stand for nothing
CHARACTERS_PER_TOKEN = 16  # far more than any text has on average
_PROBE = "LLaDA"  # an answer that shows where a template puts it


class ChatFormat(Protocol):
    """A form in which messages are written as ids."""

    name: str
    """Name of the form, for people."""
    specials: Mapping[str, int]
    """Names and ids of the tokens that a prompt may hold and that no text has."""

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids at which an answer ends."""

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of all that precedes the answer to the last message."""

    def answer(self, messages: Sequence[Message], text: str) -> list[int]:
        """Return the ids of an answer to the last message, with the sign that ends it, without EOS."""


def chat_format(tokenizer: Tokenizer) -> ChatFormat:
    """Choose the form in which a checkpoint with this tokenizer is addressed.

    Raises:
        UserError: its chat template cannot be used.
    """
    if isinstance(tokenizer, BPETokenizer):
        specials = dict(tokenizer.special_tokens)
        if tokenizer.vocab_size == LLADA_ROWS:  # LLaDA-8B-Base has these rows, but may not name them
            specials = {**LLADA_TOKENS, **specials}
        template = tokenizer.template
        if template is not None:
            return TemplateFormat(tokenizer, template, specials)
        if set(LLADA_TOKENS) <= set(specials):
            return TemplateFormat(tokenizer, LLADA_TEMPLATE, specials, "by LLaDA's chat template")
    return PlainFormat(tokenizer)


class PlainFormat:
    """The plain form: BOS, then each message followed by EOS; a system message precedes the first question on its own
    line.

    Roles need no sign, since they alternate.
    """

    name = "in the plain form"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.end_ids = frozenset({tokenizer.eos_id})
        self._bos_id: int | None = getattr(tokenizer, "bos_id", None)
        begin = {} if self._bos_id is None else {BOS: self._bos_id}
        self.specials: Mapping[str, int] = {**begin, EOS: tokenizer.eos_id}

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        ids = [] if self._bos_id is None else [self._bos_id]
        for message in messages:
            end = self.tokenizer.encode("\n") if message.role == "system" else [self.tokenizer.eos_id]
            ids += self.tokenizer.encode(message.content) + end
        return ids

    def answer(self, messages: Sequence[Message], text: str) -> list[int]:
        return self.tokenizer.encode(text)


class TemplateFormat:
    """The form that a checkpoint's chat template writes.

    Only the template makes special tokens; a message that says "<|eot_id|>" is text. Apart from that, the ids are those
    of `apply_chat_template` of the transformers library, which however runs an untrusted template in this very process.

    An answer is learned from its first token to the sign of its end, also where the template marks a part of it by
    `{% generation %}`: a mark that leaves out the sign of the end would teach never to end.
    """

    def __init__(
        self,
        tokenizer: BPETokenizer,
        template: str,
        specials: Mapping[str, int],
        name: str = "by the checkpoint's chat template",
    ) -> None:
        """Compile the template and probe it for the signs around an answer.

        Args:
            specials: names and ids of the tokens that the template may write.

        Raises:
            UserError: the template is invalid. One that writes prompts, but answers that cannot be learned, is
                accepted, and `answer` refuses.
        """
        self.tokenizer, self.specials, self.name = tokenizer, specials, name
        self._template = Template.of(template)
        self._special = _pattern(specials)
        self._unknown = _pattern(specials.keys() - tokenizer.special_tokens.keys())
        rendered = self._probe(Message("user", "?"))
        if isinstance(rendered[0], DialogueError):  # it may want a system message
            rendered = self._probe(Message("system", "?"), Message("user", "?"))
        if isinstance(rendered[0], DialogueError):
            raise rendered[0]
        self._header = _find_header(*rendered)
        self.end_ids = frozenset({tokenizer.eos_id, *self._ids_of_end(rendered[2])})

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        return self._encode(messages, lambda protected: self._render((protected, True))[0])

    def answer(self, messages: Sequence[Message], text: str) -> list[int]:
        def render(protected: Sequence[Message]) -> str:
            before, whole = self._render((protected[:-1], True), (protected, False))
            if not whole.startswith(before):
                raise UserError(
                    "The chat template of the checkpoint writes a prompt in another way when its answer follows, so "
                    "that there is no answer to learn: use another template for training."
                )
            if self._header is None:
                raise UserError(
                    "The chat template of the checkpoint does not show where an answer ends, since it fails without "
                    "any message and begins the next answer unasked: use another template for training."
                )
            return whole.removesuffix(self._header)[len(before) :]

        return self._encode((*messages, Message("assistant", text)), render)

    def _probe(self, *question: Message) -> list[str | DialogueError]:
        whole = (*question, Message("assistant", _PROBE))
        return self._render_each([(question, True), (question, False), (whole, False), ((), False)])

    def _ids_of_end(self, whole: str | DialogueError) -> list[int]:
        """Find the special tokens after the answer of the probe; none where the template takes no answer."""
        if isinstance(whole, DialogueError):
            return []
        behind = whole.removesuffix(self._header or "").rpartition(_PROBE)[2]
        return [id_ for id_ in self._ids(behind) if id_ in self.specials.values()]

    def _render(self, *turns: tuple[Sequence[Message], bool]) -> list[str]:
        """Render dialogues, with or without a generation prompt, all at one moment.

        Raises:
            DialogueError: the template fails on a dialogue.
        """
        texts = []
        for text in self._render_each(turns):
            if isinstance(text, DialogueError):
                raise text
            texts.append(text)
        return texts

    def _render_each(self, turns: Sequence[tuple[Sequence[Message], bool]]) -> list[str | DialogueError]:
        return self._template.render(turns, self.tokenizer.named_tokens)

    def _encode(self, messages: Sequence[Message], render: Callable[[Sequence[Message]], str]) -> list[int]:
        """Encode what `render` makes of the messages.

        Names of special tokens in the messages are split for it by a character that the messages do not have, which is
        removed when they can no longer be taken for special tokens. A name of a single character, which cannot be
        split, is replaced by another character until then.
        """
        if not any(self._special.search(message.content) for message in messages):
            return self._ids(render(messages))
        used = set().union(*(message.content for message in messages))
        free = (chr(code) for code in PRIVATE_USE if chr(code) not in used)
        spacer = next(free)
        own = {name: next(free) for name in self.specials if len(name) == 1}

        def protect(found: re.Match[str]) -> str:
            return own.get(found[0]) or found[0][0] + spacer + found[0][1:]

        def protect_all(text: str) -> str:
            while self._special.search(text):  # names may overlap
                text = self._special.sub(protect, text)
            return text

        protected = [Message(message.role, protect_all(message.content)) for message in messages]
        return self._ids(render(protected), {spacer: "", **{character: name for name, character in own.items()}})

    def _ids(self, text: str, stand_ins: Mapping[str, str] = MappingProxyType({})) -> list[int]:
        """Encode a rendered text; special tokens that the tokenizer does not know are cut out for it."""
        pieces = self._unknown.split(text)  # text, name, text, name, ..., text
        encoded = iter(self.tokenizer.encode_rendered(pieces[::2], stand_ins))
        ids: list[int] = []
        for i, piece in enumerate(pieces):
            ids += [self.specials[piece]] if i % 2 else next(encoded)
        return ids


def _find_header(
    asked: str | DialogueError,
    unasked: str | DialogueError,
    whole: str | DialogueError,
    nothing: str | DialogueError,
) -> str | None:
    """Find what a template that always ends in the assistant's header, as LLaDA's does, writes after an answer in vain.

    The header by itself is what such a template makes of no messages. It is "" for other templates, and None if it
    cannot be determined.

    Args:
        asked: the probe's question, with a generation prompt.
        unasked: the same without a generation prompt.
        whole: the question and its answer.
        nothing: no messages.
    """
    if asked != unasked or not isinstance(asked, str) or not isinstance(whole, str):
        return ""
    if isinstance(nothing, str):
        return nothing if asked.endswith(nothing) and whole.endswith(nothing) else ""
    behind = whole.rpartition(_PROBE)[2].rstrip()
    return None if behind and asked.rstrip().endswith(behind[-1:]) else ""


def _pattern(names: Iterable[str]) -> re.Pattern[str]:
    """Make a pattern that finds any of the names, the longest first; without names, nothing."""
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})" if longest_first else "((?!))")


# -- lengths ----------------------------------------------------------------------------------------------------------


def _n_questions(messages: Sequence[Message]) -> int:
    return (len(messages) - _n_system(messages) + 1) // 2


def _last_questions(messages: Sequence[Message], n: int) -> Sequence[Message]:
    """The system message, and the last n questions with the answers between them; the last message is a question."""
    return [*messages[: _n_system(messages)], *messages[len(messages) - 2 * n + 1 :]]


def _n_system(messages: Sequence[Message]) -> int:
    return int(bool(messages) and messages[0].role == "system")


def fitting_prompt(
    form: ChatFormat, messages: Sequence[Message], room: int
) -> tuple[list[int], Sequence[Message]] | None:
    """The prompt of at most `room` ids that keeps most of the dialogue, and its messages; None if there is none.

    The system message and the last question always stay. More of a dialogue makes a longer prompt, so it is searched
    for by halves, since dialogues have thousands of turns; from the end of one that is too long by far, since a prompt
    of all of it takes long as well.
    """
    n = _n_questions(messages)
    fits, too_many, found = 0, n + 1, None  # in questions
    n_characters = sum(len(message.content) for message in messages)
    is_near = len(messages) <= room and n_characters <= CHARACTERS_PER_TOKEN * room
    tried = n if is_near else 1
    while too_many - fits > 1:
        kept = _last_questions(messages, tried)
        ids = form.prompt(kept)
        if len(ids) <= room:
            fits, found = tried, (ids, kept)
        else:
            too_many = tried
        tried = min(n, max(1, 2 * fits)) if too_many > n else (fits + too_many) // 2
    return found


def cut_at_end(ids: Sequence[int], end_ids: frozenset[int]) -> list[int]:
    """Cut an answer at the first sign of its end."""
    return list(ids[: next((i for i, id_ in enumerate(ids) if id_ in end_ids), len(ids))])
