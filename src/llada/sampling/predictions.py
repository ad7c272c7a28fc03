"""What a network predicts at some positions, computed from its logits where it is asked for.

With a vocabulary of 126,464, the logits of 256 positions are 129 MB. A policy needs a number for each position, and a
step all log-probabilities of the few positions that it reveals. So nothing of the size of the logits is made of them: a
few rows at a time, which stay in a processor's cache, become numbers by position.

Shape letters: N positions, R some of them, V vocabulary rows, n rows taken at once.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from llada.system.device import to_fp64

AT_ONCE_ON_CPU = 2**19
"""Logits that are computed with at once, 2 MB in fp32: what fits a core's cache."""
AT_ONCE_ON_GPU = 2**26
SEGMENT = 256
"""Columns of which the greatest is found first; there, `argmax` is as fast as a maximum."""
LOWEST = -256.0
"""A power of 2 that is 0 in fp32."""
LN_2 = math.log(2)


class Best(NamedTuple):
    """The likeliest token of each position."""

    token: Tensor
    """(N,), the first of several."""
    logit: Tensor
    """(N,) fp32."""
    log_p: Tensor
    """(N,) fp32."""


class Predictions:
    """The distributions that logits (N, V) stand for, in fp32; log-probabilities will do as logits.

    The logits must not change while this is in use. What is computed once is kept.
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self._greatest: Tensor | None = None  # found on the way, whatever is computed first

    def __len__(self) -> int:
        return len(self.logits)

    @functools.cached_property
    def log_p(self) -> Tensor:
        """The log-probabilities of all tokens, (N, V): as much memory as the logits."""
        return self.logits.float().log_softmax(-1)

    def split(self, counts: Sequence[int]) -> "list[Predictions]":
        """Predictions of so many positions each, one after the other."""
        return [Predictions(part) for part in self.logits.split(list(counts))]

    def at(self, index: Tensor) -> Tensor:
        """The log-probabilities of all tokens at some positions, (R, V); `index` is (R,) or (N,) bool."""
        return self.logits[index].float().log_softmax(-1)

    def likeliest_at(self, places: Tensor) -> Tensor:
        """The likeliest tokens at some positions by their indices, (R,)."""
        is_few = len(places) <= self.rows_at_once and "best" not in self.__dict__
        return _argmax(self.logits[places]) if is_few else self.best.token[places]

    def log_p_of(self, token: Tensor) -> Tensor:
        """The log-probability of one token at each position, (N,)."""
        return self.logits.gather(-1, token[:, None])[:, 0].float() - self.best.logit + self.best.log_p

    def p_of_in_fp64(self, token: Tensor, places: Tensor) -> Tensor:
        """The probability of one token at each of R positions by their indices, (R,) fp64.

        It is on the CPU if the logits' device has no fp64.
        """
        found = []
        for some, wanted in zip(places.split(self.rows_at_once), token.split(self.rows_at_once), strict=True):
            p = to_fp64(self.logits[some]).softmax(-1)
            found.append(p.gather(1, wanted[:, None].to(p.device))[:, 0])
        return torch.cat(found)

    @functools.cached_property
    def best(self) -> Best:
        """The likeliest tokens."""
        best = Best(*self._by_rows(_best))
        self._greatest = best.logit
        return best

    @property
    def confidence(self) -> Tensor:
        """The log-probability of the likeliest token, (N,)."""
        return self.best.log_p

    @functools.cached_property
    def margin(self) -> Tensor:
        """The difference of the probabilities of the two likeliest tokens, (N,)."""
        (second,) = self._by_rows(_second)
        p = self.best.log_p.exp()
        return p - (second - self.best.logit + self.best.log_p).exp()

    @functools.cached_property
    def entropy(self) -> Tensor:
        """The entropy in nats, (N,)."""
        nats, self._greatest = self._by_rows(_entropy)
        return nats

    @functools.cached_property
    def is_finite(self) -> bool:
        """Whether each position has a distribution: no logit is NaN or infinite, one is above minus infinity."""
        greatest = self.logits.amax(-1) if self._greatest is None else self._greatest
        return bool(greatest.isfinite().all())  # minus infinity, of what is suppressed, is not the greatest

    @property
    def rows_at_once(self) -> int:
        """How many positions are computed with at once."""
        at_once = AT_ONCE_ON_CPU if self.logits.device.type == "cpu" else AT_ONCE_ON_GPU
        return max(1, at_once // self.logits.shape[-1])

    def _by_rows(self, compute: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]) -> list[Tensor]:
        """Numbers by position (N,), from a function of logits (n, V) in fp32 that returns such numbers (n,).

        It is given two tensors (n, V) to write to: to allocate them for each piece would take longer than to fill them.
        """
        logits, n_rows = self.logits, max(1, min(len(self.logits), self.rows_at_once))
        scratch = torch.empty(2, n_rows, logits.shape[-1], device=logits.device)
        parts = [compute(rows.float(), *scratch[:, : len(rows)]) for rows in logits.split(n_rows)]
        return [torch.cat(numbers) for numbers in zip(*parts, strict=True)]


def predictions(logits: Tensor | Predictions) -> Predictions:
    """Make predictions of logits or log-probabilities, unless they are predictions already."""
    return logits if isinstance(logits, Predictions) else Predictions(logits)


def _best(logits: Tensor, below: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    token = _argmax(logits)
    logit = logits.gather(1, token[:, None])
    return token, logit[:, 0], -_weights(logits, logit, below, weight).log()


def _second(logits: Tensor, others: Tensor, _: Tensor) -> tuple[Tensor]:
    """The second greatest logit, (n,)."""
    others.copy_(logits).scatter_(1, _argmax(logits)[:, None], -torch.inf)
    return (others.amax(1),)


def _entropy(logits: Tensor, below: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """H = log Z - sum of p times the logits, where these are relative to the greatest; and the greatest, both (n,)."""
    greatest = logits.amax(1, keepdim=True)
    total = _weights(logits, greatest, below, weight)
    below.clamp_(min=LOWEST)  # 0 times minus infinity is NaN
    return (total.log() - LN_2 * below.mul_(weight).sum(1) / total, greatest[:, 0])


def _weights(logits: Tensor, greatest: Tensor, below: Tensor, weight: Tensor) -> Tensor:
    """Write the logits relative to the greatest, in units of log 2, and their exponentials; return the sums, (n,).

    As a power of 2, because torch's `exp` takes three times as long on some processors.
    """
    torch.sub(logits, greatest, out=below)
    torch.exp2(below.mul_(1 / LN_2), out=weight)
    return weight.sum(1)


def _argmax(logits: Tensor) -> Tensor:
    """The first of the greatest columns, (n,): the first segment that has it, and there the first column."""
    whole = logits.shape[1] // SEGMENT * SEGMENT
    if whole == 0:
        return logits.argmax(1)
    segments = logits[:, :whole].unflatten(1, (-1, SEGMENT))
    place = segments.amax(-1).argmax(1)
    found = place * SEGMENT + segments[torch.arange(len(logits), device=logits.device), place].argmax(1)
    if whole == logits.shape[1]:
        return found
    rest = whole + logits[:, whole:].argmax(1)
    best, other = (logits.gather(1, column[:, None])[:, 0] for column in (found, rest))
    return torch.where(other > best, rest, found)
