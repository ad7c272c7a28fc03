"""Letters: F folders, I rows that are asked for."""

import random

import numpy as np
import pytest

from llada.data.interleaving import LONGEST_PERIOD, Interleaving, whole_parts


@pytest.mark.parametrize(
    ("weights", "period"),
    [
        ((3, 1, 1), [0, 0, 1, 0, 2]),
        ((1, 1, 1), [0, 1, 2]),
        ((0.5, 0.25, 0.25), [0, 1, 0, 2]),
        ((4, 4), [0, 1]),
        ((1, 4), [1, 1, 1, 0, 1]),
        ((7,), [0]),
    ],
)
def test_a_period_by_hand(weights: tuple[float, ...], period: list[int]) -> None:
    """By releases and deadlines, the earlier folder first where these are equal: of (3, 1, 1), those of folder 0 come
    at places 0 to 1, 1 to 3 and 3 to 4, and those of the others at 0 to 4."""
    folder, _ = Interleaving(weights).at(np.arange(3 * len(period)))
    assert folder.tolist() == 3 * period


def some_weights() -> list[tuple[float, ...]]:
    draw = random.Random(7)
    choices = [1, 2, 3, 10, 0.5, 100, 0.25, 37]
    return [tuple(draw.choice(choices) for _ in range(draw.randint(1, 9))) for _ in range(60)]


@pytest.mark.parametrize(
    "weights", [*some_weights(), (1000, 100, 10, 1), (1, 1, 1, 1, 1, 1, 1, 1, 0.001), (2, 1, 1, 0.01)]
)
def test_every_folder_has_its_share_to_within_a_row_at_any_time(weights: tuple[float, ...]) -> None:
    """By enumeration, and the numbers are those of counting."""
    interleaving = Interleaving(weights)
    rows = np.arange(min(20_000, 2 * sum(interleaving.parts) + 3))
    folder, number = interleaving.at(rows)
    count = np.cumsum(folder[:, None] == np.arange(len(weights)), axis=0)  # (I, F)
    fair = (rows[:, None] + 1) * np.array(weights) / sum(weights)
    assert np.abs(count - fair).max() < 1 + 1e-9
    assert number.tolist() == (count[rows, folder] - 1).tolist()


def test_a_row_far_away_costs_nothing_and_any_order_is_the_same() -> None:
    interleaving = Interleaving((3, 1, 1))
    folder, number = interleaving.at(np.array([5 * 10**15 + 3, 7, 2, 7]))
    assert folder.tolist() == [0, 1, 1, 1]
    assert number.tolist() == [3 * 10**15 + 2, 1, 0, 1]
    assert interleaving.shares == (0.6, 0.2, 0.2)


def test_weights_are_whole_parts() -> None:
    assert whole_parts((0.7, 0.2, 0.1)) == (7, 2, 1)  # as they are written, not as binary fractions
    assert whole_parts((6, 2, 2)) == (3, 1, 1)
    assert whole_parts((1, 1e-3)) == (1000, 1)
    assert whole_parts((1e30, 1e30)) == (1, 1)
    assert whole_parts((2**15, 2**15)) == (1, 1)


def test_a_proportion_that_needs_a_long_period_is_rounded() -> None:
    sizes = (1_003_854, 38_123_457, 12)
    parts = whole_parts(sizes)
    assert parts[2] == 1
    assert abs(sum(parts) - LONGEST_PERIOD) <= len(sizes)
    for part, size in zip(parts, sizes, strict=True):
        assert abs(part / sum(parts) - size / sum(sizes)) < 2 / LONGEST_PERIOD
