"""A model's answers in a dialogue, step by step.

Shape letters: A tokens of the answer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator

from llada.models.predictor import PredictAt
from llada.sampling.config import SamplerConfig
from llada.sampling.guidance import Predict, suppress
from llada.sampling.unmask import unmask
from llada.system.errors import UserError
from llada.tokenizers.base import Tokenizer, speechless_rows
from llada.tokenizers.chat_template import ChatFormat, fitting_prompt
from llada.tokenizers.message import Message


@dataclass(frozen=True)
class Answer:
    """The state of an answer after a step."""

    ids: list[int]
    """(A,) ids, MASK where nothing is decided."""
    nfe: int
    """Number of function evaluations of the mask predictor so far."""
    n_forgotten: int
    """Number of messages at the beginning of the dialogue that no longer fitted together with the answer."""
    nfe_saved: int = 0
    """Evaluations that the end of the answer made needless, at most."""


@dataclass(frozen=True)
class Assistant:
    """A model with a chat format: what answers a dialogue."""

    predict: Predict | PredictAt
    tokenizer: Tokenizer
    form: ChatFormat
    max_sequence_length: int
    """Tokens that the dialogue and its answer may have together."""
    device: torch.device
    further_end_ids: frozenset[int] = frozenset()
    """Tokens that end an answer, besides those of the chat format."""

    @property
    def end_ids(self) -> frozenset[int]:
        return self.form.end_ids | self.further_end_ids

    @property
    def speechless_rows(self) -> tuple[int, ...]:
        """The columns of the logits that no answer may contain: what is not text and does not end it."""
        return speechless_rows(self.tokenizer, self.end_ids)

    def prompt(self, messages: Sequence[Message], gen_length: int) -> tuple[list[int], int]:
        """Return the ids that precede the answer to the last message, and the number of messages that were left out.

        Args:
            messages: the dialogue; its oldest turns are left out if it does not fit `max_sequence_length` with the
                answer.
            gen_length: tokens of the answer at most.

        Raises:
            UserError: the last message alone does not fit, or holds what the vocabulary has not.
        """
        longest = self.max_sequence_length
        if gen_length >= longest:
            raise UserError(
                f"An answer of {gen_length} tokens leaves no room for a question in the {longest} of this model: "
                "lower `gen_length`."
            )
        prompt = fitting_prompt(self.form, messages, longest - gen_length)
        if prompt is None:
            raise UserError(
                f"The message does not fit the {longest} tokens of this model with an answer of {gen_length}: "
                "shorten it, or lower `gen_length`."
            )
        ids, kept = prompt
        return ids, len(messages) - len(kept)

    def answer(
        self, messages: Sequence[Message], gen_length: int, config: SamplerConfig, generator: Generator | None = None
    ) -> Iterator[Answer]:
        """Answer the last message, yielding the state after each step; it ends early when the answer has its end.

        The first two arguments and the errors are those of `prompt`.
        """
        ids, n_forgotten = self.prompt(messages, gen_length)
        mask_id = self.tokenizer.mask_id
        canvas = torch.tensor([ids + [mask_id] * gen_length], device=self.device)
        predict = suppress(self.predict, self.speechless_rows)
        for state in unmask(predict, canvas, mask_id, config, generator, end_ids=self.end_ids):
            written = state.x_t[0, len(ids) :].tolist()
            yield Answer(written, state.nfe, n_forgotten, state.nfe_saved)
