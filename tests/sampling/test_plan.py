"""Windows and budgets."""

import pytest
import torch

from llada.forward_process import Cosine, Polynomial, schedule_by_name
from llada.sampling.config import SamplerConfig
from llada.sampling.plan import plans_of, unmask_budget
from tests.support.toys import SCHEDULE_NAMES


def test_plans_are_windows_with_their_budgets_and_end_in_nothing() -> None:
    """Five masks of the first row from 1 to 6 in blocks of 3, the only one of the second, none of the third."""
    is_masked = torch.tensor([[0, 1, 1, 0, 1, 1, 1, 0], [0, 0, 1, 0, 0, 0, 0, 0], [0] * 8]).bool()
    plans = plans_of(is_masked, SamplerConfig(steps=3, block_length=3))
    assert plans.tolist() == [
        [[1, 4, 1, 2], [1, 4, 1, 2], [4, 7, 3, 3], [0, 0, 0, 3]],
        [[2, 3, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]],
        [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
    ]
    assert plans_of(torch.zeros(2, 0, dtype=torch.bool), SamplerConfig()).tolist() == [[[0, 0, 0, 0]]] * 2


def test_budget_is_even_with_the_remainder_first() -> None:
    assert unmask_budget(torch.tensor([10, 3, 0]), 4).tolist() == [[3, 3, 2, 2], [1, 1, 1, 0], [0, 0, 0, 0]]


def test_budget_wastes_no_step() -> None:
    assert unmask_budget(torch.tensor([3, 2]), 100).tolist() == [[1, 1, 1], [1, 1, 0]]
    assert unmask_budget(torch.tensor([0]), 5).shape == (1, 0)


def test_budget_follows_the_schedule() -> None:
    """Of 100 tokens, t^2 leaves 81, 64, 49, ... after each of ten steps: odd numbers are revealed."""
    n = torch.tensor([100])
    assert unmask_budget(n, 10, Polynomial(2.0)).tolist() == [[19, 17, 15, 13, 11, 9, 7, 5, 3, 1]]
    # cos(45 degrees) of 1000 are masked after the first of two steps, cos(60) after two of three.
    assert unmask_budget(torch.tensor([1000]), 2, Cosine()).tolist() == [[293, 707]]
    assert unmask_budget(torch.tensor([1000]), 3, Cosine()).tolist() == [[134, 366, 500]]


def test_budget_of_a_schedule_reveals_something_at_each_step() -> None:
    """One token at least: of 20 that cos(pi/2 (1 - t)) spreads over 10 steps, the first two get less than that."""
    assert unmask_budget(torch.tensor([20]), 10, Cosine()).tolist() == [[1, 1, 1, 2, 2, 2, 2, 3, 3, 3]]
    assert unmask_budget(torch.tensor([10]), 10, Cosine()).tolist() == [[1] * 10]
    assert unmask_budget(torch.tensor([9, 2]), 100, Cosine()).tolist() == [[1] * 9, [0] * 7 + [1, 1]]


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_budgets_fill_everything_close_to_the_schedule(name: str) -> None:
    n, schedule = torch.arange(300), schedule_by_name(name)
    for steps in (1, 7, 64):
        budget = unmask_budget(n, steps, schedule)
        assert torch.equal(budget.sum(1), n)
        assert bool((budget[n >= steps] >= 1).all())
        masked = schedule.fraction(torch.arange(steps, -1, -1) / steps)
        exact = n[:, None] * (masked[:-1] - masked[1:])
        unlimited = (exact >= 1).all(1)  # no step is raised to one token
        assert bool(((budget - exact)[unlimited].abs() < 1).all())


def test_linear_budget_is_lladas_even_split() -> None:
    """Its get_num_transfer_tokens: the quotient for each step, and one more in the first ones for the remainder."""
    n = torch.arange(1, 400)
    for steps in (1, 3, 32, 100):
        for row, count in zip(unmask_budget(n, steps).tolist(), n.tolist(), strict=True):
            assert row == [count // steps + (step < count % steps) for step in range(len(row))]
