"""The mean of many single draws of a bound, and its standard errors.

A draw is a window masked once. What makes draws differ is the text, which tokens were masked, and how many. The last
of these is taken out when they are drawn, because the counts are spread evenly over the windows, and so it has to be
taken out of the error as well: each draw is compared with the mean of those with about as many masks as it has.

Shape letters: W windows, R rounds, P masks of a round (two that complement each other, or one).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

MOST_LEVELS = 20  # levels of counts, within which the bound is taken to be constant
DRAWS_PER_LEVEL = 16  # fewer would fit their own mean, and make the error too small

FEW_WINDOWS = 30


def mean_stderr(values: Tensor) -> float | None:
    """Compute the standard error of the mean of independent values (N,); None for a single one."""
    return float(values.std()) / len(values) ** 0.5 if len(values) > 1 else None


def in_words(mean: float, stderr: float | None, digits: int = 4) -> str:
    """Write a mean with its standard error for people."""
    return f"{mean:.{digits}f}" + ("" if stderr is None else f" ± {stderr:.{digits}f}")


def over_windows(mean: float, stderr: float | None, digits: int = 4) -> str:
    """Write a mean over windows as `in_words` does, and say so if there is a single window."""
    return in_words(mean, stderr, digits) + (" (one window, no error)" if stderr is None else "")


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard errors; an error is None where a single draw does not show it."""

    mean: float
    stderr: float | None
    """Standard error over windows: the spread over other texts of this kind, masked anew."""
    mask_stderr: float | None
    """Standard error over other masks of this very text; more masks make it smaller."""


def estimate_mean(values: Tensor, mask_ratio: Tensor, same_counts: bool = True) -> Estimate:
    """Estimate the mean of the draws `values` (W, R, P) fp64 with ratios of masked tokens `mask_ratio` (W, R, P).

    The rounds are independent of each other; within a round counts are stratified over the windows. With P = 2 the
    draws of a pair depend on each other, and count as one.

    Args:
        same_counts: whether all windows have equally many maskable tokens. If not, a ratio identifies its window, and
            nothing can be taken out; the errors are then a little too large.
    """
    n_windows, n_rounds, _ = values.shape
    pairs = (values - levels(values, mask_ratio) if same_counts else values).mean(2)
    mask_stderr = None
    if n_rounds > 1:
        mask_stderr = float(pairs.var(1).mean() / (n_rounds * n_windows)) ** 0.5
        if n_windows < FEW_WINDOWS:  # the counts' common offset is then much of the variance, and only rounds show it
            mask_stderr = max(mask_stderr, mean_stderr(values.mean((0, 2))) or 0.0)
    return Estimate(float(values.mean()), mean_stderr(pairs.mean(1)), mask_stderr)


def levels(values: Tensor, mask_ratio: Tensor) -> Tensor:
    """Compute for each draw the mean of those of a similar mask ratio, in the shape of `values`."""
    n_levels = max(1, min(MOST_LEVELS, values.numel() // DRAWS_PER_LEVEL))
    level = bins_of(mask_ratio, n_levels).flatten()
    total = torch.zeros(n_levels, dtype=values.dtype).index_add(0, level, values.flatten())
    count = torch.bincount(level, minlength=n_levels)
    return (total / count)[level].view_as(values)


def bins_of(mask_ratio: Tensor, n_bins: int) -> Tensor:
    """Find the bin, from 0, of each ratio in (0, 1]; bin b is (b / n, (b + 1) / n]."""
    return (torch.ceil(mask_ratio * n_bins - 1e-9).long() - 1).clamp(0, n_bins - 1)
