"""Multiple choice: which of several answers a model finds likeliest, and how often it is the right one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from llada.evaluation.answer_likelihood import Item, LogLikelihood


@dataclass(frozen=True)
class Question:
    """A prompt with its choices, in ids."""

    prompt: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]
    """Characters of each choice, by which `accuracy_norm` divides its log-likelihood."""
    right: int
    """Number of the right choice, from 0."""

    @property
    def items(self) -> list[Item]:
        """What is to be scored; choices of one length are masked alike (`conditional.log_likelihoods`)."""
        return [Item(self.prompt, choice) for choice in self.choices]


@dataclass(frozen=True)
class ChoiceAccuracy:
    """The share of the questions that are answered rightly, and its standard error over them."""

    accuracy: float
    """The choice of the highest log-likelihood is taken ("acc" of lm-evaluation-harness)."""
    stderr: float | None
    accuracy_norm: float
    """The one of the highest log-likelihood per character is ("acc_norm")."""
    norm_stderr: float | None
    chosen: tuple[int, ...]
    chosen_norm: tuple[int, ...]


def choice_accuracy(questions: Sequence[Question], likelihoods: Sequence[LogLikelihood]) -> ChoiceAccuracy:
    """Accuracy from the log-likelihoods of all choices of all questions, in their order.

    Of choices that are equally likely the first is taken. A standard error is None for one question.

    Raises:
        ValueError: no question, or not one log-likelihood for each choice.
    """
    if not questions or len(likelihoods) != sum(len(question.choices) for question in questions):
        raise ValueError("there must be questions, and a log-likelihood for each of their choices")
    remaining = iter(likelihoods)
    by_sum, by_length = [], []
    for question in questions:
        nats = [likelihood.nats for likelihood in islice(remaining, len(question.choices))]
        by_sum.append(_largest(nats))
        by_length.append(_largest([value / length for value, length in zip(nats, question.lengths, strict=True)]))
    right = [question.right for question in questions]
    return ChoiceAccuracy(
        *_share_and_error([a == b for a, b in zip(by_sum, right, strict=True)]),
        *_share_and_error([a == b for a, b in zip(by_length, right, strict=True)]),
        tuple(by_sum),
        tuple(by_length),
    )


def _largest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def _share_and_error(is_right: Sequence[bool]) -> tuple[float, float | None]:
    n, share = len(is_right), sum(is_right) / len(is_right)
    return share, math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else None
