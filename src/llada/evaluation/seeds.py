"""Comparison of two recipes: their difference over several runs a side, which differ by their seeds.

Runs of two models differ by chance alone, often by more than the recipes do; the error over windows of one pair of runs
does not include that. Here each pair is compared on the same windows and masks, and the pairs' differences scatter.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from llada.evaluation.compare import Difference, two_sided
from llada.evaluation.standard_errors import mean_stderr


@dataclass(frozen=True)
class SeedDifference:
    """The first side's bound less the second's, in nats per token; below 0, the first is better."""

    difference: float
    stderr: float
    """Standard error over seeds, on this text."""
    p_value: float
    """Two-sided p-value, by Student's t with one degree of freedom fewer than there are seeds."""
    seeds: tuple[Difference, ...]
    """Differences of each pair of runs; their errors are over windows."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def over_seeds(differences: Sequence[Difference]) -> SeedDifference:
    """Average the differences of pairs of runs, and estimate the error of the mean.

    Raises:
        ValueError: there are fewer than two pairs.
    """
    values = torch.tensor([one.difference for one in differences], dtype=torch.float64)
    stderr = mean_stderr(values)
    if stderr is None:
        raise ValueError("one pair of runs does not show how seeds differ: take two or more")
    mean = float(values.mean())
    p_value = two_sided(mean / stderr, len(values) - 1) if stderr else float(mean == 0)
    return SeedDifference(mean, stderr, p_value, tuple(differences))
