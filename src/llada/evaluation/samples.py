"""How good samples are, without a reference: each measure beside its value on text that people wrote.

None of them says much alone. A likely text may say the same thing again and again, which its entropy shows; a rich one
may be copied from the training text, which the share of its long n-grams that are found there shows.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from llada.evaluation.judge import Judge, judge_all

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


@dataclass(frozen=True)
class Mean:
    """A mean over texts and its standard error, None for a single one."""

    mean: float
    stderr: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Self | None:
        """None if there are no values."""
        n = len(values)
        if n == 0:
            return None
        mean = sum(values) / n
        variance = sum((value - mean) ** 2 for value in values) / (n - 1) if n > 1 else None
        return cls(mean, None if variance is None else (variance / n) ** 0.5)


@dataclass(frozen=True)
class Quality:
    """Measures of some texts; None is one that could not be had."""

    judge_nats_per_character: Mean | None
    """Negative log-likelihood under the judge."""
    entropy_nats: Mean | None
    """Of the characters of each text, which grows with its length: compare texts of one length."""
    valid_words: Mean | None
    """Share of the words that the training text has."""
    copied: Mean | None
    """Share of the n-grams of characters that the training text has."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_quality(texts: Sequence[str], training_text: str, ngram: int, judge: Judge | None = None) -> Quality:
    """The measures of texts.

    Args:
        training_text: what the model was trained on, whose words count as valid and whose n-grams as copied.
        ngram: characters of an n-gram.
    """
    words = set(words_of(training_text))
    return Quality(
        None if judge is None else Mean.of(judge_all(judge, texts)),
        Mean.of([entropy(text) for text in texts if text]),
        Mean.of([share for text in texts if (share := share_of(words_of(text), words)) is not None]),
        Mean.of(copied_shares(texts, training_text, ngram)),
    )


def words_of(text: str) -> list[str]:
    """Runs of letters, in lower case, an apostrophe within them included."""
    return WORD.findall(text.lower())


def share_of(items: Sequence[str], known: set[str]) -> float | None:
    """How much of the items is known; None if there are none."""
    return sum(item in known for item in items) / len(items) if items else None


def entropy(text: str) -> float:
    """Of the frequencies of its characters, in nats."""
    n = len(text)
    return -sum(count / n * math.log(count / n) for count in Counter(text).values())


def copied_shares(texts: Sequence[str], training_text: str, ngram: int) -> list[float]:
    """For each text that is long enough, the share of its n-grams that the training text has."""
    grams = [[text[i : i + ngram] for i in range(len(text) - ngram + 1)] for text in texts]
    wanted = {gram for of_text in grams for gram in of_text}
    # What is looked for is kept, not what is looked through: a training text may be large.
    pieces = (training_text[i : i + ngram] for i in range(len(training_text) - ngram + 1))
    found = {piece for piece in pieces if piece in wanted}
    return [share for of_text in grams if (share := share_of(of_text, found)) is not None]
