"""Whether a model that is taught to answer still does: how long its answers are, and whether they end.

Answers are padded with EOS, and that padding is learned, so a model can learn to say nothing else. The share of EOS
among its predictions rises first, then its answers shrink to nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llada.data.sft import Answers, Pair
from llada.models import MaskPredictor
from llada.sampling.config import SamplerConfig
from llada.sampling.guidance import suppress
from llada.sampling.unmask import infill
from llada.tokenizers.base import speechless_rows
from llada.tokenizers.chat_template import cut_at_end

N_ANSWERS = 8
LONGEST_ANSWER = 64  # written for the check; a longer reference counts as this long
STEPS = 32
BLOCK_LENGTH = 32  # as LLaDA's own evaluation of its fine-tuned models (EVAL.md)
N_SHOWN = 3

COLLAPSED_SHARE = 0.25  # of the length of the reference answers
EMPTY_SHARE = 0.5


class EosShare:
    """The share of EOS among the likeliest tokens at masked positions, and among the true ones."""

    def __init__(self, eos_id: int, device: torch.device) -> None:
        self.eos_id = eos_id
        self._counts = torch.zeros(3, dtype=torch.int64, device=device)  # predicted, true, all

    def add(self, likeliest: Tensor, targets: Tensor) -> None:
        """Add the (N,) likeliest and true tokens at the masked positions of a batch."""
        is_eos = [(tokens == self.eos_id).sum() for tokens in (likeliest, targets)]
        self._counts += torch.stack([*is_eos, torch.full_like(is_eos[0], len(targets))])

    @property
    def sums(self) -> Mapping[str, Tensor]:
        return {"counts": self._counts}

    def take(self) -> dict[str, float | None]:
        """Both since the last call, None where nothing was masked."""
        predicted, true, n = self._counts.tolist()
        self._counts.zero_()
        return {"eos_predicted": predicted / n if n else None, "eos_true": true / n if n else None}


@dataclass(frozen=True)
class AnswerCheck:
    """Some prompts, what the model answered, and what the dialogue has."""

    prompts: list[str]
    answers: list[str]
    lengths: list[int]
    """Tokens of the answers, what ends them not counted."""
    reference_lengths: list[int]
    has_ended: list[bool]
    """Whether there was a sign of the end in it."""
    is_equal: list[bool]
    """Whether it is the reference, token by token."""

    def to_json(self) -> dict[str, float]:
        n = len(self.lengths)
        return {
            "answer_length": sum(self.lengths) / n,
            "reference_length": sum(self.reference_lengths) / n,
            "answers_ended": sum(self.has_ended) / n,
            "answers_empty": self.lengths.count(0) / n,
            "answers_exact": sum(self.is_equal) / n,
        }

    def show(self) -> str:
        """Some of them for people, and the counts."""
        shown = [f"{prompt}\n→ {answer}" for prompt, answer in zip(self.prompts, self.answers, strict=True)]
        counts = self.to_json()
        return "\n\n".join(shown[:N_SHOWN]) + (
            f"\n\n{len(self.lengths)} answers: {counts['answer_length']:.0f} tokens on average "
            f"(theirs: {counts['reference_length']:.0f}), {counts['answers_ended']:.0%} with an end, "
            f"{counts['answers_exact']:.0%} exact"
        )

    def warning(self, batch_size: int, sequences_per_step: int) -> str | None:
        """A warning if the answers collapse, or None."""
        counts = self.to_json()
        is_short = counts["answer_length"] < COLLAPSED_SHARE * counts["reference_length"]
        if not is_short and counts["answers_empty"] < EMPTY_SHARE:
            return None
        remedy = "a lower `learning_rate`"
        if batch_size > 1:
            remedy = f"`batch_size=1` `accumulate={sequences_per_step}`, which pads less, or {remedy}"
        return (
            f"The answers collapse: {counts['answer_length']:.1f} tokens on average where the dialogues have "
            f"{counts['reference_length']:.1f}, {counts['answers_empty']:.0%} of them empty. The model learns to say "
            f"EOS; try {remedy}."
        )


def check_answers(
    model: MaskPredictor,
    data: Answers,
    pairs: Sequence[Pair],
    device: torch.device,
    longest: int,
    batch_size: int = N_ANSWERS,
    at_most: int = N_ANSWERS,
) -> AnswerCheck:
    """Let the model answer the prompts of so many of the pairs, with the likeliest tokens.

    Prompts of one length are answered together, so that nothing needs padding.

    Args:
        longest: tokens of a prompt and its answer that the model is made for.
        batch_size: prompts that are answered together, at most.
    """
    tokenizer, end_ids = data.tokenizer, end_ids_of(model, data)
    pairs = list(pairs[:at_most])
    references = [cut_at_end(pair.answer, end_ids)[:LONGEST_ANSWER] for pair in pairs]
    n_masks = min(LONGEST_ANSWER, max(len(pair.answer) for pair in pairs))
    written: dict[int, list[int]] = {}
    for n_given in sorted({pair.n_given for pair in pairs}):
        same = [i for i, pair in enumerate(pairs) if pair.n_given == n_given]
        for first in range(0, len(same), batch_size):
            index = same[first : first + batch_size]
            # Of integers also where a template writes nothing ahead of an answer.
            prompts = torch.tensor([pairs[i].ids[:n_given] for i in index], dtype=torch.long, device=device)
            ids = write_answers(model, data, prompts, min(n_masks, longest - n_given))
            written.update(zip(index, ids.tolist(), strict=True))
    cut = [cut_at_end(written[i], end_ids) for i in range(len(pairs))]
    return AnswerCheck(
        prompts=[pair.messages[-1].content for pair in pairs],
        answers=[tokenizer.decode(ids) for ids in cut],
        lengths=list(map(len, cut)),
        reference_lengths=list(map(len, references)),
        has_ended=[len(ids) < len(written[i]) for i, ids in enumerate(cut)],
        is_equal=[ids == reference for ids, reference in zip(cut, references, strict=True)],
    )


def write_answers(model: MaskPredictor, data: Answers, prompts: Tensor, n_masks: int) -> Tensor:
    """Answers (B, n_masks) to prompts (B, P), by the likeliest tokens, the most confident ones first."""
    tokenizer = data.tokenizer
    masks = torch.full((len(prompts), n_masks), tokenizer.mask_id, device=prompts.device)
    config = SamplerConfig(steps=min(STEPS, n_masks), block_length=BLOCK_LENGTH)
    predict = suppress(model, speechless_rows(tokenizer, end_ids_of(model, data)))
    return infill(predict, torch.cat((prompts, masks), dim=1), tokenizer.mask_id, config).x_t[:, prompts.shape[1] :]


def end_ids_of(model: MaskPredictor, data: Answers) -> frozenset[int]:
    """What ends an answer: EOS, what the chat template ends it with, and what else config.json names."""
    return data.form.end_ids | frozenset(getattr(model.network.config, "further_eos_ids", ()))
