"""Which of two models is better: their difference on the same windows under the same masks.

Most of the error of a bound is common to both, so that a difference is known far better than either.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from llada.evaluation.errors import FEW_WINDOWS, Estimate, estimate_mean
from llada.evaluation.nelbo import Bounds


@dataclass(frozen=True)
class Difference:
    """The first model's bound less the second's, in nats per token; below 0, the first is better."""

    first: Estimate
    second: Estimate
    difference: float
    stderr: float | None
    """Over windows; None if there is one."""
    mask_stderr: float | None
    p_value: float | None
    """Two-sided: the chance of a difference as large if, over texts of this kind, there were none. By the normal
    distribution, and None for fewer windows than that takes."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(first: Bounds, second: Bounds) -> Difference:
    """Two models, whose bounds were drawn with the same windows, masks and seed.

    A causal network has one value a window, which stands beside the mean of the other's draws.

    Raises:
        ValueError: the windows are not the same, or the masks differ.
    """
    if len(first.values) != len(second.values):
        raise ValueError("bounds of different windows cannot be compared")
    values, share = first.values - second.values, second.share if first.values.shape[1:] == (1, 1) else first.share
    if first.values.shape == second.values.shape and not first.share.equal(second.share):
        raise ValueError("bounds under different masks cannot be compared")
    estimate = estimate_mean(values, share, first.same_counts)
    p_value = None
    if estimate.stderr is not None and len(values) >= FEW_WINDOWS:
        p_value = two_sided(estimate.mean / estimate.stderr) if estimate.stderr else float(estimate.mean == 0)
    return Difference(
        first.estimate(),
        second.estimate(),
        estimate.mean,
        estimate.stderr,
        estimate.mask_stderr,
        p_value,
    )


def two_sided(z: float) -> float:
    """The chance that a standard normal number is further from 0 than z."""
    return math.erfc(abs(z) / math.sqrt(2))
