"""A model's answers in a dialogue, step by step.

Shape letters: A tokens of the answer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator

from llada.checkpoint import Checkpoint
from llada.errors import UserError
from llada.sampler import SamplerConfig, suppress, unmask
from llada.text.chat import ChatFormat, cut_at_end, fitting_prompt
from llada.text.dialogues import Message
from llada.text.vocabulary import speechless_rows


@dataclass(frozen=True)
class Answer:
    """The state of an answer after a step."""

    ids: list[int]
    """(A,) ids, MASK where nothing is decided."""
    nfe: int
    """Number of function evaluations of the mask predictor so far."""
    n_forgotten: int
    """Messages at the beginning of the dialogue that no longer fitted beside the answer."""


def answer(
    checkpoint: Checkpoint,
    form: ChatFormat,
    messages: Sequence[Message],
    gen_length: int,
    config: SamplerConfig,
    generator: Generator | None = None,
) -> Iterator[Answer]:
    """Answer the last message, yielding the state after each step; it ends early when the answer has its end.

    Args:
        messages: the dialogue; its oldest turns are left out if it does not fit the model's length with the answer.
        gen_length: tokens of the answer at most.

    Raises:
        UserError: the last message alone does not fit, or holds what the vocabulary has not.
    """
    tokenizer, longest = checkpoint.tokenizer, checkpoint.config.max_sequence_length
    if gen_length >= longest:
        raise UserError(
            f"An answer of {gen_length} tokens leaves no room for a question in the {longest} of this model: "
            "lower --gen_length."
        )
    prompt = fitting_prompt(form, messages, longest - gen_length)
    if prompt is None:
        raise UserError(
            f"The message does not fit the {longest} tokens of this model beside an answer of {gen_length}: "
            "shorten it, or lower --gen_length."
        )
    ids, kept = prompt
    device = next(checkpoint.model.parameters()).device
    canvas = torch.tensor([ids + [tokenizer.mask_id] * gen_length], device=device)
    end_ids = form.end_ids | checkpoint.further_end_ids
    predict = suppress(checkpoint.model, speechless_rows(tokenizer, end_ids))
    for state in unmask(predict, canvas, tokenizer.mask_id, config, generator):
        written = state.x_t[0, len(ids) :].tolist()
        yield Answer(written, state.nfe, len(messages) - len(kept))
        if has_ended(written, end_ids, tokenizer.mask_id):
            return


def has_ended(ids: Sequence[int], end_ids: frozenset[int], mask_id: int) -> bool:
    """Whether all is decided up to a sign of the end, so that what follows does not matter."""
    text = cut_at_end(ids, end_ids)
    return len(text) < len(ids) and mask_id not in text
