"""Letters: N items, I numbers that are asked for, C columns."""

import itertools

import numpy as np
import pytest
import torch

from llada.data.order import integers, mix, permuted, shuffled, uniforms
from tests.support.toys import chi_square_p

LEAST_P = 1e-4


def test_mix_is_splitmix64() -> None:
    """The first numbers of the published generator from seed 1234567, as its reference code prints them."""
    gamma = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + k * gamma) % 2**64 for k in (1, 2, 3)], np.uint64)
    assert mix(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 31, 64, 65, 100, 127, 255, 256, 257, 1000, 4096, 65_537])
@pytest.mark.parametrize("key", [0, 1, 2**64 - 1])
def test_a_permutation_takes_every_item_once(n: int, key: int) -> None:
    assert sorted(permuted(key, np.arange(n), n).tolist()) == list(range(n))


def test_a_few_items_are_those_of_the_whole_order() -> None:
    """Of a corpus that no list of its rows would fit the memory of, too."""
    whole = permuted(5, np.arange(1000), 1000)
    assert permuted(5, np.array([999, 3, 3]), 1000).tolist() == [whole[999], whole[3], whole[3]]
    far = permuted(5, np.array([0, 10**15, 10**18 - 1]), 10**18)
    assert len(set(far.tolist())) == 3
    assert all(0 <= item < 10**18 for item in far.tolist())


def test_an_epoch_has_each_item_once_and_each_epoch_its_own_order() -> None:
    n = 97
    epochs = shuffled(3, np.arange(4 * n), n).reshape(4, n)
    assert all(sorted(epoch.tolist()) == list(range(n)) for epoch in epochs)
    for one, other in itertools.combinations(epochs, 2):
        assert (one == other).mean() < 0.1
    assert (shuffled(4, np.arange(n), n) == epochs[0]).mean() < 0.1
    batches = [shuffled(3, np.arange(first, first + 8), n) for first in range(0, 4 * n, 8)]  # across epochs
    assert np.concatenate(batches)[: 4 * n].tolist() == epochs.flatten().tolist()


@pytest.mark.parametrize("n", [2, 3, 4, 5, 16, 37])
def test_every_place_is_as_likely_for_every_item(n: int) -> None:
    epochs = shuffled(11, np.arange(2000 * n), n).reshape(2000, n)
    for item in range(0, n, max(1, n // 5)):
        places = torch.from_numpy(np.bincount((epochs == item).argmax(1), minlength=n))
        assert chi_square_p(places, torch.full((n,), 1 / n)) > LEAST_P


@pytest.mark.parametrize("n", [3, 4])
def test_every_order_is_as_likely(n: int) -> None:
    epochs = shuffled(12, np.arange(12_000 * n), n).reshape(12_000, n)
    orders = [list(order) for order in itertools.permutations(range(n))]
    counts = torch.tensor([int((epochs == order).all(1).sum()) for order in orders])
    assert chi_square_p(counts, torch.full((len(orders),), 1 / len(orders))) > LEAST_P


def test_neighbours_are_strewn() -> None:
    """What follows an item is as likely any other: no rows next to each other in the text come together more often."""
    n = 16
    epochs = shuffled(13, np.arange(4000 * n), n).reshape(4000, n)
    steps = torch.from_numpy(np.bincount(((epochs[:, 1:] - epochs[:, :-1]) % n).flatten(), minlength=n))
    assert int(steps[0]) == 0
    # Steps of one order depend on each other, hence a bound on their share and not a chi-square.
    assert (steps[1:].double() / steps.sum() - 1 / (n - 1)).abs().max() < 0.005


def test_uniforms_are_uniform_and_do_not_depend_on_what_else_is_asked_for() -> None:
    numbers = np.arange(2000)
    drawn = uniforms(7, numbers, 50)
    assert drawn.dtype == np.float32
    assert drawn.min() >= 0
    assert drawn.max() < 1
    for drawn_here in (drawn.flatten(), drawn[:, 0], drawn[:, 49]):
        tenths = torch.from_numpy(np.bincount((10 * drawn_here).astype(int), minlength=10))
        assert chi_square_p(tenths, torch.full((10,), 0.1)) > LEAST_P
    assert (uniforms(7, numbers[[5, 1]], 20) == drawn[[5, 1], :20]).all()
    assert not np.array_equal(uniforms(8, numbers, 50), drawn)
    assert abs(np.corrcoef(drawn[:-1].flatten(), drawn[1:].flatten())[0, 1]) < 0.02


def test_integers_are_uniform() -> None:
    drawn = integers(7, np.arange(70_000), 7)
    assert chi_square_p(torch.from_numpy(np.bincount(drawn, minlength=7)), torch.full((7,), 1 / 7)) > LEAST_P
    assert (integers(7, np.arange(100), 1) == 0).all()
    assert int(integers(7, np.arange(1000), 10**15).max()) > 10**14
