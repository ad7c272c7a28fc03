"""Comparison of two models: their difference on the same windows under the same masks.

Most of the error of a bound is common to both, so that the difference is known far better than either bound.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from llada.evaluation.nelbo import Bounds
from llada.evaluation.standard_errors import FEW_WINDOWS, Estimate, estimate_mean, mean_stderr


@dataclass(frozen=True)
class Difference:
    """The first model's bound less the second's, in nats per token; below 0, the first is better."""

    first: Estimate
    second: Estimate
    difference: float
    stderr: float | None
    """Standard error over windows, of their differences as they are; None if there is a single window."""
    mask_stderr: float | None
    p_value: float | None
    """Two-sided p-value: the probability of so large a difference if there were none over texts of this kind. It is
    Student's, and None for fewer windows than the mean takes to be about normal."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(first: Bounds, second: Bounds) -> Difference:
    """Compare two models whose bounds were drawn with the same windows, masks and seed.

    A causal network has one value per window, which is compared with the mean of the other's draws.

    Raises:
        ValueError: the windows or the masks differ.
    """
    if len(first.values) != len(second.values):
        raise ValueError("bounds of different windows cannot be compared")
    values = first.values - second.values
    mask_ratio = second.mask_ratio if first.values.shape[1:] == (1, 1) else first.mask_ratio
    if first.values.shape == second.values.shape and not first.mask_ratio.equal(second.mask_ratio):
        raise ValueError("bounds under different masks cannot be compared")
    estimate = estimate_mean(values, mask_ratio, first.same_counts)
    # This is not the error of `estimate`, from which the mean of each level is taken out: here that gains little, since
    # most of what the counts do is common to both models, and costs degrees of freedom that nobody counts.
    stderr, p_value = mean_stderr(values.mean((1, 2))), None
    if stderr is not None and len(values) >= FEW_WINDOWS:
        p_value = two_sided(estimate.mean / stderr, len(values) - 1) if stderr else float(estimate.mean == 0)
    return Difference(
        first.estimate(),
        second.estimate(),
        estimate.mean,
        stderr,
        estimate.mask_stderr,
        p_value,
    )


def two_sided(t: float, degrees: int) -> float:
    """The probability that a number of Student's distribution is further from 0 than t, to about 13 decimals.

    It is computed by the finite series for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    angle = math.atan(abs(t) / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = degrees % 2
    term, total = (cosine, 0.0) if is_odd else (1.0, 0.0)
    for k in range(degrees // 2):
        total += term
        term *= cosine**2 * ((2 * k + 2) / (2 * k + 3) if is_odd else (2 * k + 1) / (2 * k + 2))
    within = 2 / math.pi * (angle + sine * total) if is_odd else sine * total
    return min(1.0, max(0.0, 1 - within))
