"""Shape letters: B batch, L length, N open positions, V vocabulary rows."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from llada.sampling.policies import POLICIES, PolicyName, PolicyOptions, StepState, make_policy

# One row of six positions, of which the second is given; probabilities of three tokens at the five open ones.
IS_OPEN = torch.tensor([[True, False, True, True, True, True]])
P = torch.tensor(
    [[0.90, 0.09, 0.01], [0.50, 0.49, 0.01], [0.60, 0.20, 0.20], [0.96, 0.02, 0.02], [1.0, 0.0, 0.0]]
)  # at 0, 2, 3, 4, 5
ENTROPY = [-sum(p * math.log(p) for p in row if p) for row in P.tolist()]


def state(budget: int = 1, priority: Tensor | None = None) -> StepState:
    return StepState(torch.tensor([budget]), torch.zeros(1, 6) if priority is None else priority)


def revealed(name: PolicyName, budget: int = 1, **options: float | str) -> list[int]:
    choose = make_policy(name, PolicyOptions(**options)).choose  # type: ignore[arg-type]
    return choose(P.log(), IS_OPEN, state(budget)).nonzero()[:, 1].tolist()


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("left_to_right", [0, 2, 3, 4, 5]),
        ("confidence", [5, 4, 0, 3, 2]),
        ("margin", [5, 4, 0, 3, 2]),  # 1, 0.94, 0.81, 0.40, 0.01
        ("entropy", [5, 4, 0, 2, 3]),  # 0, 0.196, 0.358, 0.742, 0.950
    ],
)
def test_a_budget_takes_the_first_of_the_order(name: PolicyName, order: list[int]) -> None:
    for budget in range(1, 6):
        assert revealed(name, budget) == sorted(order[:budget])


def test_random_order_is_the_one_that_was_drawn() -> None:
    priority = torch.tensor([[0.3, 0.9, 0.1, 0.5, 0.2, 0.4]])
    choose = make_policy("random").choose
    for budget, expected in ((1, [3]), (2, [3, 5]), (4, [0, 3, 4, 5])):
        assert choose(P.log(), IS_OPEN, state(budget, priority)).nonzero()[:, 1].tolist() == expected


def test_threshold_takes_all_that_reach_it_and_the_best_if_none_does() -> None:
    assert revealed("threshold", threshold=0.9) == [0, 4, 5]
    assert revealed("threshold", threshold=0.6) == [0, 3, 4, 5]
    assert revealed("threshold", threshold=0.97) == [5]
    choose = make_policy("threshold", PolicyOptions(threshold=0.99)).choose
    assert choose(P[:4].log(), IS_OPEN & (torch.arange(6) < 5), state()).nonzero()[:, 1].tolist() == [4]


def test_factor_weighs_the_doubt_by_how_many_are_drawn_together() -> None:
    """Doubts 0, 0.04, 0.1, 0.4, 0.5 of the first, second, ... make 0, 0.12, 0.4, 2.0, 3.0."""
    assert revealed("factor", factor=0.1) == [5]
    assert revealed("factor", factor=0.3) == [4, 5]
    assert revealed("factor", factor=1.0) == [0, 4, 5]
    assert revealed("factor", factor=2.5) == [0, 3, 4, 5]


def test_entropy_bound_leaves_out_the_greatest_entropy() -> None:
    """By entropy, the sums without the greatest are 0, 0, 0.196, 0.554, 1.296."""
    assert [round(value, 3) for value in ENTROPY] == [0.358, 0.742, 0.95, 0.196, 0.0]
    assert revealed("entropy_bound", entropy_bound=0.0) == [4, 5]  # the first is certain
    assert revealed("entropy_bound", entropy_bound=0.19) == [4, 5]
    assert revealed("entropy_bound", entropy_bound=0.2) == [0, 4, 5]
    assert revealed("entropy_bound", entropy_bound=0.56) == [0, 2, 4, 5]
    assert revealed("entropy_bound", entropy_bound=2.0) == [0, 2, 3, 4, 5]


def test_bounds_apply_along_another_order_too() -> None:
    """From left to right: entropies 0.358, 0.742, 0.950, 0.196, 0; without the greatest 0, 0.358, 1.1, 1.296, 1.296."""
    assert revealed("entropy_bound", entropy_bound=0.3, order="left_to_right") == [0]
    assert revealed("entropy_bound", entropy_bound=0.4, order="left_to_right") == [0, 2]
    assert revealed("entropy_bound", entropy_bound=1.2, order="left_to_right") == [0, 2, 3]
    assert revealed("threshold", threshold=0.5, order="left_to_right") == [0, 2, 3, 4, 5]
    assert revealed("threshold", threshold=0.55, order="left_to_right") == [0]


def test_runs_give_their_best_and_all_that_are_certain() -> None:
    """The runs are {0} and {2, 3, 4, 5}."""
    assert revealed("runs", threshold=1.0, run_threshold=0.5) == [0, 5]
    assert revealed("runs", threshold=1.0, run_threshold=0.95) == [5]
    assert revealed("runs", threshold=0.96, run_threshold=0.5) == [0, 4, 5]


@pytest.mark.parametrize("name", POLICIES)
def test_rows_are_apart_and_every_row_with_an_open_position_reveals_one(name: PolicyName) -> None:
    generator = torch.Generator().manual_seed(1)
    is_open = torch.rand(5, 7, generator=generator) < 0.5
    is_open[2] = False
    log_p = torch.randn(int(is_open.sum()), 4, generator=generator).mul(3).log_softmax(-1)
    whole = StepState(torch.tensor([1, 2, 1, 3, 9]), torch.rand(5, 7, generator=generator))
    choose = make_policy(name).choose
    together = choose(log_p, is_open, whole)
    assert not (together & ~is_open).any()
    assert together.any(1).tolist() == is_open.any(1).tolist()
    first = 0
    for b in range(5):
        n = int(is_open[b].sum())
        alone = StepState(whole.budget[b : b + 1], whole.priority[b : b + 1])
        assert torch.equal(choose(log_p[first : first + n], is_open[b : b + 1], alone)[0], together[b])
        first += n


@pytest.mark.parametrize("name", POLICIES)
def test_what_is_foreseen_is_what_is_chosen(name: PolicyName) -> None:
    policy, drawn = make_policy(name), torch.arange(6.0).flip(0)[None]
    assert (policy.foresee is not None) == (name in ("left_to_right", "random"))
    if policy.foresee:
        for budget in (1, 2, 9):
            now = state(budget, drawn)
            assert torch.equal(policy.foresee(IS_OPEN, now), policy.choose(P.log(), IS_OPEN, now))


def test_orders_of_a_tie_are_from_left_to_right() -> None:
    even = torch.full((6, 3), 1 / 3).log()
    is_open = torch.ones(1, 6, dtype=torch.bool)
    for name, budget in itertools.product(("confidence", "margin", "entropy"), (1, 4)):
        chosen = make_policy(name).choose(even, is_open, state(budget))  # type: ignore[arg-type]
        assert chosen.nonzero()[:, 1].tolist() == list(range(budget))


@pytest.mark.parametrize(
    "options",
    [{"threshold": 1.5}, {"threshold": math.nan}, {"factor": -1.0}, {"entropy_bound": math.inf}, {"order": "runs"}],
)
def test_impossible_numbers_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        PolicyOptions(**options)  # type: ignore[arg-type]


def test_a_policy_that_does_not_exist_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"policy must be one of left_to_right, random, .*, not 'entropie'"):
        make_policy("entropie")  # type: ignore[arg-type]
