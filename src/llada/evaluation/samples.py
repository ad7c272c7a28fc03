"""Measures of the quality of samples without a reference, each next to its value on text that people wrote.

None of them says much alone. A likely text may repeat itself, which its entropy shows; a rich one may be copied from
the training text, which the share of its long n-grams that occur there shows. The likelihood of a text comes from a
judge: an autoregressive model, one trained here or any of the Hugging Face library.

Shape letters: B batch, L length, V vocabulary rows.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor

from llada.checkpoints.folder import Checkpoint
from llada.forward_process import score_all
from llada.objective import masked_nll, token_nll
from llada.system.device import Precision, to_fp64
from llada.system.errors import UserError, first_line

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
Judge = Callable[[str], float]
"""A function from a text to its negative log-likelihood in nats."""


@dataclass(frozen=True)
class Mean:
    """A mean over texts and its standard error, None for a single one."""

    mean: float
    stderr: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Self | None:
        """Compute the mean of values, or None if there are none."""
        n = len(values)
        if n == 0:
            return None
        mean = sum(values) / n
        variance = sum((value - mean) ** 2 for value in values) / (n - 1) if n > 1 else None
        return cls(mean, None if variance is None else (variance / n) ** 0.5)


@dataclass(frozen=True)
class Quality:
    """Measures of some texts; a measure that cannot be computed is None."""

    judge_nats_per_character: Mean | None
    """Negative log-likelihood under the judge, in nats per character."""
    entropy_nats: Mean | None
    """Entropy of the characters of each text, which grows with its length: compare texts of one length."""
    valid_words: Mean | None
    """Share of the words that occur in the training text."""
    copied: Mean | None
    """Share of the n-grams of characters that occur in the training text."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_quality(texts: Sequence[str], training_text: str, ngram: int, judge: Judge | None = None) -> Quality:
    """Measure texts against a training text.

    Args:
        training_text: what the model was trained on, whose words count as valid and whose n-grams as copied.
        ngram: number of characters of an n-gram.
    """
    words = set(words_of(training_text))
    return Quality(
        None if judge is None else Mean.of(judge_all(judge, texts)),
        Mean.of([entropy(text) for text in texts if text]),
        Mean.of([share for text in texts if (share := share_of(words_of(text), words)) is not None]),
        Mean.of(copied_shares(texts, training_text, ngram)),
    )


def words_of(text: str) -> list[str]:
    """Find the words of a text: runs of letters, in lower case, with apostrophes within them."""
    return WORD.findall(text.lower())


def share_of(items: Sequence[str], known: set[str]) -> float | None:
    """Compute the share of the items that are known; None if there are none."""
    return sum(item in known for item in items) / len(items) if items else None


def entropy(text: str) -> float:
    """Compute the entropy of the frequencies of a text's characters, in nats."""
    n = len(text)
    return -sum(count / n * math.log(count / n) for count in Counter(text).values())


def copied_shares(texts: Sequence[str], training_text: str, ngram: int) -> list[float]:
    """Compute, for each text that is long enough, the share of its n-grams that occur in the training text."""
    grams = [[text[i : i + ngram] for i in range(len(text) - ngram + 1)] for text in texts]
    wanted = {gram for of_text in grams for gram in of_text}
    # Only the wanted n-grams are kept, not those of the training text, which may be large.
    pieces = (training_text[i : i + ngram] for i in range(len(training_text) - ngram + 1))
    found = {piece for piece in pieces if piece in wanted}
    return [share for of_text in grams if (share := share_of(of_text, found)) is not None]


# -- judges ------------------------------------------------------------------------------------------------------------


def judge_all(judge: Judge, texts: Sequence[str]) -> list[float]:
    """Compute nats per character of each text that has characters."""
    return [judge(text) / len(text) for text in texts if text]


@dataclass(frozen=True)
class Piece:
    """A part of a text that fits a model, and the place from which on its tokens are scored."""

    begin: int
    end: int
    first_scored: int


def cut_pieces(n_tokens: int, longest: int) -> list[Piece]:
    """Cut pieces that score each token once, all but the first with half of `longest` or more as context."""
    pieces = [Piece(0, min(n_tokens, longest), 0)]
    stride = max(1, longest // 2)
    while pieces[-1].end < n_tokens:
        end = min(n_tokens, pieces[-1].end + stride)
        pieces.append(Piece(max(0, end - longest), end, pieces[-1].end))
    return pieces


def judge_by_checkpoint(judge: Checkpoint, precision: Precision, device: torch.device) -> Judge:
    """Make a judge from an autoregressive model that was trained here.

    Raises:
        UserError: the model is not autoregressive.
    """
    if not judge.model.is_causal:
        raise UserError(
            f"{judge.folder} gives a bound only: name an autoregressive model (`llada train` "
            'with `preset="autoregressive"`).'
        )

    @torch.inference_mode()
    def nll(text: str) -> float:
        ids, total = torch.tensor([judge.tokenizer.encode(text)], device=device), 0.0
        for piece in cut_pieces(ids.shape[1], judge.config.max_sequence_length):
            x_0 = ids[:, piece.begin : piece.end]
            places = torch.arange(piece.begin, piece.end, device=device)
            noisy = score_all(x_0, (places >= piece.first_scored)[None])
            with precision.autocast(device):
                logits = judge.model(x_0, positions=noisy.is_masked)
            total += float(to_fp64(masked_nll(logits, x_0, noisy)).sum())
        return total

    return nll


def judge_by_transformers(name: str, device: torch.device) -> Judge:
    """Make a judge from a causal language model of the Hugging Face library, a folder or a name on the hub, in fp32.

    The first token of a text is given if the model has no token for the beginning of a text.

    Raises:
        UserError: the library is not installed, or there is no such model.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        raise UserError("A judge of the Hugging Face library needs it: pip install transformers.") from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).to(device).eval()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{name} is not a causal language model that can be opened ({first_line(error)}).") from error
    longest = int(getattr(model.config, "max_position_embeddings", 1024))

    @torch.inference_mode()
    def nll(text: str) -> float:
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        ids = torch.tensor([start + tokenizer.encode(text, add_special_tokens=False)], device=device)
        total = 0.0
        for piece in cut_pieces(ids.shape[1], longest):
            x_0 = ids[:, piece.begin : piece.end]
            first = max(1, piece.first_scored - piece.begin)
            logits: Tensor = model(x_0).logits[:, first - 1 : -1]
            total += float(to_fp64(token_nll(logits.flatten(0, 1), x_0[0, first:])).sum())
        return total

    return nll
