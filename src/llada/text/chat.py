"""Dialogues in tokens, as prompt and answer.

A checkpoint that brings a chat template is spoken to by it. Other vocabularies, that of single characters above all,
have a plain form: BOS, then each message with EOS behind it, by turns.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NoReturn, Protocol

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llada.errors import UserError
from llada.text.bpe import BPETokenizer
from llada.text.dialogues import Message
from llada.text.templates import LLADA_ROWS, LLADA_TEMPLATE, LLADA_TOKENS
from llada.text.tokenizer import BOS, EOS
from llada.text.vocabulary import Tokenizer

PRIVATE_USE = range(0xE000, 0xF900)  # characters that stand for nothing


class ChatFormat(Protocol):
    """Messages to ids."""

    name: str
    """For people."""
    specials: Mapping[str, int]
    """Names and ids of the tokens that a prompt may hold and no text does."""

    @property
    def end_ids(self) -> frozenset[int]:
        """The ids at which an answer ends."""

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of all that comes before the answer to the last message."""

    def answer(self, messages: Sequence[Message], text: str) -> list[int]:
        """Ids of the answer to the last of these messages, with the sign that ends it, without EOS."""


def chat_format(tokenizer: Tokenizer) -> ChatFormat:
    """The form in which a checkpoint with this tokenizer is spoken to.

    Raises:
        UserError: its chat template cannot be used.
    """
    if isinstance(tokenizer, BPETokenizer):
        specials = dict(tokenizer.special_tokens)
        if tokenizer.vocab_size == LLADA_ROWS:  # LLaDA-8B-Base has the rows, and may not name them
            specials = {**LLADA_TOKENS, **specials}
        template = tokenizer.template
        if template is not None:
            return TemplateFormat(tokenizer, template, specials)
        if set(LLADA_TOKENS) <= set(specials):
            return TemplateFormat(tokenizer, LLADA_TEMPLATE, specials, "by LLaDA's chat template")
    return PlainFormat(tokenizer)


class PlainFormat:
    """BOS, then each message with EOS behind it; a system message goes before the first question, on a line of its own.

    Roles need no sign, since they take turns.
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
    """The chat template of a checkpoint, in Jinja's sandbox: it can compute strings and reach nothing else.

    Only the template makes special tokens; a message that says "<|eot_id|>" is text. Apart from that, the ids are those
    of `apply_chat_template` of the transformers library.
    """

    def __init__(
        self,
        tokenizer: BPETokenizer,
        template: str,
        specials: Mapping[str, int],
        name: str = "by the checkpoint's chat template",
    ) -> None:
        """
        Args:
            specials: names and ids of the tokens that the template may make.

        Raises:
            UserError: the template is broken.
        """
        self.tokenizer, self.specials, self.name = tokenizer, specials, name
        self._names = {"bos_token": tokenizer.bos_token or "", "eos_token": tokenizer.eos_token or ""}
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _raise
        longest_first = sorted(specials, key=len, reverse=True)
        self._special = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
        try:
            self._template = environment.from_string(template)
            probe = (Message("user", "?"),)
            self._spurious_header = self._find_spurious_header(probe)
            ending = [id_ for id_ in self.answer(probe, "!") if id_ in specials.values()]
        except TemplateError as error:
            raise UserError(f"The chat template of the checkpoint cannot be used ({error}): mend it.") from error
        self.end_ids = frozenset({tokenizer.eos_id, *ending})

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        return self._encode(messages, lambda protected: self._render(protected, True))

    def answer(self, messages: Sequence[Message], text: str) -> list[int]:
        def render(protected: Sequence[Message]) -> str:
            before, whole = self._render(protected[:-1], True), self._render(protected, False)
            if not whole.startswith(before):
                raise UserError("The chat template of the checkpoint writes a prompt anew with its answer: mend it.")
            return whole.removesuffix(self._spurious_header)[len(before) :]

        return self._encode((*messages, Message("assistant", text)), render)

    def _find_spurious_header(self, probe: Sequence[Message]) -> str:
        """LLaDA's template ends in the assistant's header, asked for or not; behind an answer it does not belong.

        The header by itself is what such a template makes of no messages.
        """
        always = self._render(probe, True) == self._render(probe, False)
        return self._render((), False) if always else ""

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._template.render(messages=turns, add_generation_prompt=add_generation_prompt, **self._names)
        except Exception as error:  # a template can fail in any way that an expression can
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            raise UserError(
                f"The chat template of the checkpoint does not take this dialogue ({reason}): change the dialogue, or "
                "mend the template."
            ) from error

    def _encode(self, messages: Sequence[Message], render: Callable[[Sequence[Message]], str]) -> list[int]:
        """Ids of what `render` makes of the messages; special tokens of the messages themselves are broken up for it
        by a character that they do not have, which is taken out again."""
        used = set().union(*(message.content for message in messages))
        spacer = next(chr(code) for code in PRIVATE_USE if chr(code) not in used)

        def protect(found: re.Match[str]) -> str:
            return found[0][0] + spacer + found[0][1:]

        protected = [Message(message.role, self._special.sub(protect, message.content)) for message in messages]
        ids: list[int] = []
        for piece in self._special.split(render(protected)):
            if piece in self.specials:
                ids.append(self.specials[piece])
            else:
                ids += self.tokenizer.encode(piece.replace(spacer, ""))
        return ids


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


# -- lengths ----------------------------------------------------------------------------------------------------------


def shortened(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """A dialogue that ends in a question, and again with its oldest question and answer left out, one after the other.

    The system message and the last question always stay.
    """
    system = [message for message in messages[:1] if message.role == "system"]
    turns = list(messages[len(system) :])
    while turns:
        yield [*system, *turns]
        del turns[:2]


def fitting_prompt(
    form: ChatFormat, messages: Sequence[Message], room: int
) -> tuple[list[int], Sequence[Message]] | None:
    """The prompt of at most `room` ids that keeps most of the dialogue, and its messages; None if there is none."""
    for kept in shortened(messages):
        ids = form.prompt(kept)
        if len(ids) <= room:
            return ids, kept
    return None


def cut_at_end(ids: Sequence[int], end_ids: frozenset[int]) -> list[int]:
    """An answer up to the first sign of its end."""
    return list(ids[: next((i for i, id_ in enumerate(ids) if id_ in end_ids), len(ids))])
