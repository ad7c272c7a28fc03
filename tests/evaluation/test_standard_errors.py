"""Whether stated errors are as large as the errors that are made, where windows differ and where they are few.

Shape letters: W windows, L length.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from llada.data.batches import TokenBatch
from llada.evaluation.compare import compare
from llada.evaluation.nelbo import BoundOptions, Bounds, TokenNll, draw_bounds
from llada.evaluation.standard_errors import in_words, mean_stderr
from llada.forward_process import NoisyBatch

LENGTH, MASK = 50, 10_000
TRUTH = (2 + 1.3434) / 2


def texts(n_windows: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Windows (W, L) of their own number, what is maskable of them, one token or all, and how hard each is (W,)."""
    generator = Generator().manual_seed(seed)
    rows = torch.arange(n_windows)[:, None].expand(-1, LENGTH)
    lengths = torch.where(torch.rand(n_windows, generator=generator) < 0.5, 1, LENGTH)
    hardness = 1 + 0.3 * torch.randn(n_windows, generator=generator)
    return rows, torch.arange(LENGTH) < lengths[:, None], hardness


def model(hardness: Tensor) -> TokenNll:
    """Cross-entropies a (1 + (k / n)^2) of a window of hardness a with k of n tokens masked.

    Its bound is a (1 + (n + 1) (2 n + 1) / 6 n^2): 2 a where n is 1, 1.3434 a where it is 50, `TRUTH` over all texts.
    """

    def at_masked(noisy: NoisyBatch, batch: TokenBatch) -> Tensor:
        mask_ratio = noisy.p_mask[:, :1].expand(batch.x_0.shape)
        return (hardness[batch.x_0] * (1 + mask_ratio**2))[noisy.is_masked]

    return TokenNll(at_masked, MASK)


def drawn(n_windows: int, seed: int, easier: float = 0.0) -> Bounds:
    rows, maskable, hardness = texts(n_windows, seed)
    options = BoundOptions(masks_per_window=2, batch_size=1000, seed=seed)
    return draw_bounds(model(hardness - easier), TokenBatch(rows, maskable), options)


def coverage(results: list[tuple[float, float | None]], truth: float) -> float:
    """Share of the intervals of 95 % that hold the truth."""
    return float(np.mean([abs(mean - truth) < 1.96 * (error or 0.0) for mean, error in results]))


def test_windows_of_unequal_length_have_errors_that_hold() -> None:
    """A ratio of 1 is every draw of a short window: taking out what draws of a ratio have in common hides that."""
    bounds = [drawn(60, seed) for seed in range(500)]
    estimates = [each.estimate() for each in bounds]
    assert 0.93 <= coverage([(each.mean, each.stderr) for each in estimates], TRUTH) <= 0.98
    as_if_equal = [replace(each, same_counts=True).estimate() for each in bounds]
    assert coverage([(each.mean, each.stderr) for each in as_if_equal], TRUTH) < 0.93


def test_differences_on_windows_of_unequal_length_have_errors_that_hold() -> None:
    results = [compare(drawn(60, seed), drawn(60, seed, easier=0.1)) for seed in range(500)]
    assert 0.93 <= coverage([(each.difference, each.stderr) for each in results], 0.1 * TRUTH) <= 0.98


@pytest.mark.parametrize("n_windows", [1, 2, 5])
def test_the_masks_of_few_windows_have_errors_that_hold(n_windows: int) -> None:
    """Counts are spread over the windows, by one offset a round; of few windows, it is most of the chance."""
    rows, _, hardness = texts(n_windows, 0)
    means, variances = [], []
    for seed in range(500):
        options = BoundOptions(masks_per_window=32, batch_size=2000, seed=seed)
        estimate = draw_bounds(model(hardness), TokenBatch(rows), options).estimate()
        means.append(estimate.mean)
        variances.append((estimate.mask_stderr or 0.0) ** 2)
    assert np.mean(means) == pytest.approx(1.3434 * float(hardness.mean()), rel=3e-3)
    assert np.mean(variances) ** 0.5 == pytest.approx(np.std(means), rel=0.15)


def test_error_of_a_mean_is_the_scatter_by_the_root_of_the_number() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])  # variance (4 + 1 + 0 + 9) / 3
    assert mean_stderr(values) == pytest.approx((14 / 3 / 4) ** 0.5)
    assert mean_stderr(values[:1]) is None
    assert (in_words(1.23456, 0.004), in_words(1.23456, None, 2)) == ("1.2346 ± 0.0040", "1.23")
