"""The forward process q(x_t | x_0): tokens are replaced by MASK, independently of each other and of their neighbours.

Time runs as in LLaDA: t in (0, 1], and **t = 1 is fully masked**. Two ways to draw the masks are here, the published
one (`mask_bernoulli`) and one of lower variance with the same expectation (`mask_exact_count`). Both return a
`NoisyBatch`, which is all that the objective needs to know about them.

Shape letters: B batch, L length.
"""

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Generator, Tensor

MIN_MASK_PROBABILITY = 1e-3  # LLaDA's eps (GUIDELINES, "Pre-training"): bounds the weight 1/p by 1000


@dataclass(frozen=True)
class NoisyBatch:
    """A batch after the forward process."""

    x_t: Tensor
    """(B, L) token ids, MASK where `is_masked`."""
    is_masked: Tensor
    """(B, L) bool: the positions whose tokens are to be predicted."""
    p_mask: Tensor
    """(B, 1) fp32: the probability with which each maskable token of the row was masked."""
    t: Tensor
    """(B,) fp32: the time of each row."""
    n_maskable: Tensor
    """(B, 1) fp32: how many tokens of the row could have been masked; L unless some are given."""

    def rows(self, index: slice) -> Self:
        """Some rows, that follow each other."""
        return type(self)(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def take(self, rows: Tensor) -> Self:
        """Rows by their indices (n,)."""
        return type(self)(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def columns(self, length: int) -> Self:
        """The first columns, if nothing behind them is maskable."""
        return replace(self, x_t=self.x_t[:, :length], is_masked=self.is_masked[:, :length])

    def at_masked(self, of_rows: Tensor) -> Tensor:
        """Values of the rows (B, 1) as values of their masked tokens (N,), in row order."""
        return of_rows.expand_as(self.is_masked)[self.is_masked]

    def to(self, device: torch.device) -> Self:
        return type(self)(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def p_mask_at(t: Tensor) -> Tensor:
    """LLaDA's linear schedule, p = (1 - eps) t + eps (GUIDELINES, "Pre-training")."""
    return (1 - MIN_MASK_PROBABILITY) * t + MIN_MASK_PROBABILITY


def mask_bernoulli(x_0: Tensor, mask_id: int, generator: Generator, maskable: Tensor | None = None) -> NoisyBatch:
    """LLaDA's forward process: t ~ U(0, 1) for each row, then each token masked with probability p(t).

    Args:
        x_0: (B, L) clean token ids, on the CPU, where the generator is too.
        mask_id: the id that stands for MASK.
        maskable: (B, L) bool, False where a token is given (a prompt, padding); None means everywhere.

    Source: arXiv 2502.09992, eq. 1 and algorithm 1; with `maskable`, algorithm 2.
    """
    t = torch.rand(len(x_0), generator=generator)
    p_mask = p_mask_at(t)[:, None]
    is_masked = torch.rand(x_0.shape, generator=generator) < p_mask
    return _noisy_batch(x_0, mask_id, is_masked, p_mask, t, maskable)


def mask_exact_count(
    x_0: Tensor, mask_id: int, generator: Generator, maskable: Tensor | None = None, complementary: bool = False
) -> NoisyBatch:
    """Exactly k of a row's n maskable tokens are masked, with k uniform on 1..n and spread evenly over the rows.

    The objective then needs the weight n/k in place of 1/p, and its expectation is the same bound (RADD, arXiv
    2406.03736; LLaDA evaluates by it, arXiv 2502.09992, eq. 6 and appendix B.5). The counts are stratified: row b
    draws from the b-th of B equal slices of 1..n, with one offset shared by all, which takes their variance out of
    the loss.

    Args:
        x_0, mask_id, maskable: as in `mask_bernoulli`; every row needs a maskable token.
        complementary: rows b and b + B/2 are taken to be the same sequence, and the second masks exactly what the
            first leaves (arXiv 2505.18883), so that together they predict each token once. The complement of a
            fully masked row is fully masked again, which keeps k uniform.

    Raises:
        ValueError: a row without maskable tokens, or an odd B with `complementary`.
    """
    n_rows = len(x_0) // 2 if complementary else len(x_0)
    if complementary and len(x_0) % 2:
        raise ValueError(f"complementary masks need an even batch, not {len(x_0)}")
    free = torch.ones(x_0.shape, dtype=torch.bool) if maskable is None else maskable
    n_maskable = free[:n_rows].sum(1)
    if n_maskable.numel() and int(n_maskable.min()) == 0:
        raise ValueError("a row has no maskable token")

    u = (torch.arange(n_rows) + torch.rand((), generator=generator)) / n_rows  # stratified on (0, 1)
    count = (1 + (u * n_maskable).long()).clamp(max=n_maskable)
    is_masked = choose_positions(free[:n_rows], count, generator)
    if complementary:
        remaining = free[:n_rows] & ~is_masked
        remaining[count == n_maskable] = is_masked[count == n_maskable]
        is_masked = torch.cat((is_masked, remaining))
        n_maskable = torch.cat((n_maskable, n_maskable))
    p_mask = is_masked.sum(1, keepdim=True) / n_maskable[:, None]
    return _noisy_batch(x_0, mask_id, is_masked, p_mask, p_mask[:, 0], maskable)


def score_all(x_0: Tensor, maskable: Tensor | None = None) -> NoisyBatch:
    """No noise: every maskable token is there, and is to be predicted all the same.

    For a causal network, which sees only what is before a token. The objective is then the mean cross-entropy of the
    next token, that of autoregressive models.

    Args:
        x_0, maskable: as in `mask_bernoulli`.
    """
    is_scored = torch.ones_like(x_0, dtype=torch.bool) if maskable is None else maskable
    ones = torch.ones(len(x_0))
    return NoisyBatch(x_0, is_scored, ones[:, None], ones, is_scored.sum(1, keepdim=True).float())


def choose_positions(candidates: Tensor, count: Tensor, generator: Generator) -> Tensor:
    """For each row a uniformly random set of `count` (B,) among its `candidates` (B, L) bool; returns (B, L) bool."""
    score = torch.rand(candidates.shape, generator=generator).masked_fill(~candidates, torch.inf)
    is_early = torch.arange(score.shape[1]) < count[:, None]
    return torch.zeros_like(candidates).scatter_(1, score.argsort(dim=1), is_early)


def truncate_randomly(x_0: Tensor, generator: Generator, probability: float = 0.01) -> Tensor:
    """With the given probability, cut the whole batch to a length uniform on 1..L (GUIDELINES, "Pre-training")."""
    if float(torch.rand((), generator=generator)) >= probability:
        return x_0
    return x_0[:, : int(torch.randint(1, x_0.shape[1] + 1, (), generator=generator))]


def _noisy_batch(
    x_0: Tensor, mask_id: int, is_masked: Tensor, p_mask: Tensor, t: Tensor, maskable: Tensor | None
) -> NoisyBatch:
    if maskable is None:
        n_maskable = torch.full((len(x_0), 1), float(x_0.shape[1]))
    else:
        is_masked = is_masked & maskable
        n_maskable = maskable.sum(1, keepdim=True).float()
    return NoisyBatch(x_0.masked_fill(is_masked, mask_id), is_masked, p_mask, t, n_maskable)
