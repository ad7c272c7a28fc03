"""Shape letters: B batch, L length."""

import math
from collections.abc import Callable
from statistics import NormalDist

import pytest
import torch
from torch import Generator

from llada.forward_process import (
    LINEAR,
    MIN_MASK_PROBABILITY,
    SCHEDULES,
    TIME_SAMPLINGS,
    Cosine,
    NoisyBatch,
    Polynomial,
    choose_positions,
    mask_bernoulli,
    mask_exact_count,
    schedule_by_name,
    time_sampling_by_name,
    truncate_randomly,
)
from tests.support.toys import SCHEDULE_NAMES, TIME_NAMES

MASK = 126336


def ids(rows: int, length: int) -> torch.Tensor:
    return torch.arange(rows * length).reshape(rows, length) % 60 + 3


def test_the_names_that_are_tested_are_all_that_there_are() -> None:
    assert {name.split(":")[0] for name in SCHEDULE_NAMES} == set(SCHEDULES)
    assert {name.split(":")[0] for name in TIME_NAMES} == set(TIME_SAMPLINGS)


def test_the_linear_schedule_is_lladas() -> None:
    t = torch.tensor([0.0, 0.5, 1.0])
    assert torch.allclose(LINEAR.p_mask(t), torch.tensor([0.001, 0.5005, 1.0]))


def test_schedules_have_the_values_of_their_formulas() -> None:
    t = torch.tensor([0.0, 1 / 3, 0.5, 1.0])
    assert torch.allclose(Cosine().fraction(t), torch.tensor([0.0, 0.5, 0.5**0.5, 1.0]))  # cos 90, 60, 45, 0 degrees
    assert torch.allclose(Polynomial(2.0).fraction(t), torch.tensor([0.0, 1 / 9, 0.25, 1.0]))
    assert float(Polynomial(2.0).p_mask(torch.tensor(0.5))) == pytest.approx(0.001 + 0.999 / 4)


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_a_schedule_has_its_own_slope_and_inverse(name: str) -> None:
    schedule = schedule_by_name(name)
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(schedule.fraction(t).sum(), t)
    assert torch.allclose(schedule.slope(t), slope)
    assert torch.allclose(schedule.time_at(schedule.fraction(t)), t)
    ends = torch.tensor([0.0, 1.0])
    assert schedule.fraction(ends).tolist() == ends.tolist()
    assert schedule.slope(ends).isfinite().all()
    assert (schedule.slope(ends) >= 0).all()


@pytest.mark.parametrize("name", TIME_NAMES)
def test_a_density_of_times_is_the_derivative_of_its_quantiles_inverse(name: str) -> None:
    times = time_sampling_by_name(name)
    t = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    below = torch.cumulative_trapezoid(times.density(t), t)
    assert float(below[-1]) == pytest.approx(1, rel=1e-6)
    assert torch.allclose(times.cumulative(t)[1:], below, atol=1e-6)
    assert torch.allclose(times.quantile(times.cumulative(t)), t)
    ends = torch.tensor([0.0, 1.0])
    assert times.quantile(ends).tolist() == pytest.approx(ends.tolist())


def test_a_bell_is_a_normal_distribution_between_0_and_1() -> None:
    normal, t = NormalDist(0.3, 0.2), 0.55
    inside = normal.cdf(1) - normal.cdf(0)
    bell, at = time_sampling_by_name("bell:0.3:0.2"), torch.tensor(t, dtype=torch.float64)
    assert float(bell.density(at)) == pytest.approx(normal.pdf(t) / inside)
    assert float(bell.cumulative(at)) == pytest.approx((normal.cdf(t) - normal.cdf(0)) / inside)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("cos", "mask_schedule must be one of linear, cosine, polynomial:POWER, not 'cos'"),
        ("", "not ''"),
        ("linear:2", "must be one of linear, cosine, polynomial:POWER, not 'linear:2'"),
        ("polynomial:0.5", r"'polynomial:0.5' cannot be used \(the power .* must be above 0.5, not 0.5\)"),
        ("polynomial:nan", "must be above 0.5, not nan"),
        ("polynomial:many", "cannot be used .*'many'"),
    ],
)
def test_schedules_that_do_not_exist_are_refused(name: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        schedule_by_name(name)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("normal", "time_sampling must be one of uniform, bell:CENTER:WIDTH, not 'normal'"),
        ("bell:1.5", "center of a bell must be from 0 to 1"),
        ("bell:0.5:0", "its width above 0"),
        ("bell:0.5:0.05", "so rare that they weigh more than 1000"),
    ],
)
def test_times_that_do_not_exist_are_refused(name: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        time_sampling_by_name(name)


def test_the_default_noise_is_lladas_to_the_bit() -> None:
    """Times, then masks, as its pre-training code draws them; and all of it weighs the same."""
    noisy = mask_bernoulli(ids(8, 30), MASK, Generator().manual_seed(14))
    generator = Generator().manual_seed(14)
    t = torch.rand(8, generator=generator)
    p_mask = (1 - 1e-3) * t[:, None] + 1e-3
    assert torch.equal(noisy.t, t)
    assert torch.equal(noisy.p_mask, p_mask)
    assert torch.equal(noisy.is_masked, torch.rand(8, 30, generator=generator) < p_mask)
    for draw in (mask_bernoulli, mask_exact_count):
        assert (draw(ids(300, 7), MASK, Generator().manual_seed(15)).importance == 1).all()


@pytest.mark.parametrize("times", TIME_NAMES)
@pytest.mark.parametrize("schedule", SCHEDULE_NAMES)
def test_importance_makes_all_counts_count_the_same(schedule: str, times: str) -> None:
    """Rows of a count, times their importance: with so many rows, stratified, each count has its share of them."""
    n, n_rows = 7, 40_000
    noisy = mask_exact_count(
        ids(n_rows, n), MASK, Generator().manual_seed(16),
        schedule=schedule_by_name(schedule), times=time_sampling_by_name(times),
    )  # fmt: skip
    counts = noisy.is_masked.sum(1)
    weighed = torch.zeros(n + 1).index_add(0, counts, noisy.importance[:, 0])
    assert torch.allclose(weighed[1:] / n_rows, torch.full((n,), 1 / n), rtol=5e-3)
    assert torch.allclose(schedule_by_name(schedule).fraction(noisy.t), counts / n, atol=1e-5)


def test_other_times_and_schedules_are_drawn() -> None:
    bell = mask_bernoulli(
        ids(4000, 2), MASK, Generator().manual_seed(17), schedule=Cosine(), times=time_sampling_by_name("bell:0.4:0.2")
    )
    normal = NormalDist(0.4, 0.2)
    for t in (0.2, 0.4, 0.7):
        part = (normal.cdf(t) - normal.cdf(0)) / (normal.cdf(1) - normal.cdf(0))
        assert abs(float((bell.t < t).float().mean()) - part) < 4 * math.sqrt(part * (1 - part) / 4000)
    assert torch.allclose(bell.p_mask[:, 0], 0.001 + 0.999 * torch.cos(math.pi / 2 * (1 - bell.t)), atol=1e-6)


def test_bernoulli_masks_follow_their_probability() -> None:
    noisy = mask_bernoulli(ids(500, 400), MASK, Generator().manual_seed(0))
    assert torch.allclose(noisy.p_mask[:, 0], (1 - MIN_MASK_PROBABILITY) * noisy.t + MIN_MASK_PROBABILITY)
    share = noisy.is_masked.float().mean(1)
    deviation = (share - noisy.p_mask[:, 0]) / (noisy.p_mask[:, 0] * (1 - noisy.p_mask[:, 0]) / 400).sqrt()
    assert abs(float(deviation.mean())) < 4 / 500**0.5
    assert 0.8 < float(deviation.std()) < 1.2
    assert abs(float(noisy.t.mean()) - 0.5) < 4 * (1 / 12 / 500) ** 0.5


@pytest.mark.parametrize("draw", [mask_bernoulli, mask_exact_count])
def test_tokens_change_only_where_masked(draw: Callable[..., NoisyBatch]) -> None:
    x_0 = ids(16, 50)
    noisy = draw(x_0, MASK, Generator().manual_seed(1))
    assert torch.equal(noisy.x_t == MASK, noisy.is_masked)
    assert torch.equal(noisy.x_t[~noisy.is_masked], x_0[~noisy.is_masked])
    assert torch.equal(noisy.n_maskable, torch.full((16, 1), 50.0))


@pytest.mark.parametrize("draw", [mask_bernoulli, mask_exact_count])
def test_given_tokens_are_never_masked(draw: Callable[..., NoisyBatch]) -> None:
    x_0 = ids(16, 50)
    maskable = torch.rand(16, 50, generator=Generator().manual_seed(2)) < 0.5
    noisy = draw(x_0, MASK, Generator().manual_seed(3), maskable)
    assert not (noisy.is_masked & ~maskable).any()
    assert torch.equal(noisy.n_maskable[:, 0], maskable.sum(1).float())


def test_exact_counts_are_stratified_over_the_rows() -> None:
    """With as many rows as tokens, every count from 1 to L comes up exactly once."""
    noisy = mask_exact_count(ids(50, 50), MASK, Generator().manual_seed(4))
    counts = noisy.is_masked.sum(1)
    assert sorted(counts.tolist()) == list(range(1, 51))
    assert torch.allclose(noisy.p_mask[:, 0], counts / 50)
    assert torch.equal(noisy.t, noisy.p_mask[:, 0])


def test_exact_counts_are_uniform_in_the_long_run() -> None:
    generator = Generator().manual_seed(5)
    counts = torch.cat([mask_exact_count(ids(3, 4), MASK, generator).is_masked.sum(1) for _ in range(2000)])
    observed = counts.bincount(minlength=5)[1:].float()
    expected = 6000 / 4
    assert float(((observed - expected) ** 2 / expected).sum()) < 16.3  # chi-square, 3 degrees of freedom, p = 0.001


def test_every_set_of_positions_is_equally_likely() -> None:
    candidates = torch.tensor([[True, True, False, True, True]]).expand(6000, 5)
    chosen = choose_positions(candidates, torch.full((6000,), 2), Generator().manual_seed(6))
    code = (chosen.long() * torch.tensor([1, 2, 4, 8, 16])).sum(1)
    values, observed = code.unique(return_counts=True)
    assert len(values) == 6  # two of four
    assert float(((observed - 1000.0) ** 2 / 1000).sum()) < 20.5  # 5 degrees of freedom, p = 0.001


def test_complementary_pairs_mask_each_token_once() -> None:
    x_0 = ids(8, 40).repeat(2, 1)
    noisy = mask_exact_count(x_0, MASK, Generator().manual_seed(7), complementary=True)
    first, second = noisy.is_masked.chunk(2)
    is_full = first.all(1)
    assert torch.equal(first[~is_full], ~second[~is_full])
    assert torch.allclose(noisy.p_mask[:, 0], noisy.is_masked.sum(1) / 40)


def test_the_complement_of_a_full_mask_is_full() -> None:
    """So that a count of L is as likely as any other, in both halves."""
    generator = Generator().manual_seed(8)
    counts = []
    for _ in range(3000):
        noisy = mask_exact_count(ids(2, 3).repeat(2, 1), MASK, generator, complementary=True)
        counts.append(noisy.is_masked.sum(1))
    observed = torch.cat(counts).bincount(minlength=4).float()
    assert observed[0] == 0
    # The halves of a pair depend on each other, so the tolerance is that of the 6000 pairs, not of the 12000 rows.
    assert torch.allclose(observed[1:] / 12000, torch.full((3,), 1 / 3), atol=4 * (2 / 9 / 6000) ** 0.5)


def test_complementary_pairs_leave_given_tokens_alone() -> None:
    x_0 = ids(4, 10).repeat(2, 1)
    maskable = (torch.arange(10) >= 4).expand(8, 10)
    noisy = mask_exact_count(x_0, MASK, Generator().manual_seed(9), maskable, complementary=True)
    first, second = noisy.is_masked.chunk(2)
    assert not noisy.is_masked[:, :4].any()
    assert (first | second)[:, 4:].all()


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="even batch, not 3"):
        mask_exact_count(ids(3, 4), MASK, Generator(), complementary=True)
    with pytest.raises(ValueError, match="no maskable token"):
        mask_exact_count(ids(2, 4), MASK, Generator(), torch.tensor([[True] * 4, [False] * 4]))


def test_one_batch_in_a_hundred_is_cut() -> None:
    generator = Generator().manual_seed(10)
    lengths = torch.tensor([truncate_randomly(ids(1, 20), generator).shape[1] for _ in range(5000)])
    cut = lengths[lengths < 20]
    assert 25 < len(cut) < 75  # 47.5 expected: a cut to the full length, 1 in 20, does not show
    always = torch.tensor([truncate_randomly(ids(1, 4), generator, 1.0).shape[1] for _ in range(4000)])
    observed = always.bincount(minlength=5)[1:].float()
    assert float(((observed - 1000) ** 2 / 1000).sum()) < 16.3


def test_the_same_seed_gives_the_same_noise() -> None:
    first, second = (mask_exact_count(ids(4, 9), MASK, Generator().manual_seed(11)) for _ in range(2))
    assert torch.equal(first.x_t, second.x_t)


@pytest.mark.parametrize("draw", [mask_bernoulli, mask_exact_count])
def test_the_noise_of_a_row_does_not_depend_on_the_others(draw: Callable[..., NoisyBatch]) -> None:
    """Neither on what they say nor on what of them may be masked, only on the seed, its place, and their number."""
    some = torch.rand(8, 30, generator=Generator().manual_seed(12)) < 0.6
    mine, others = draw(ids(8, 30), MASK, Generator().manual_seed(13), some), ~some
    others[5] = some[5]
    x_0 = ids(8, 30).flip(0)
    x_0[5] = ids(8, 30)[5]
    theirs = draw(x_0, MASK, Generator().manual_seed(13), others)
    assert torch.equal(mine.x_t[5], theirs.x_t[5])
    assert mine.t[5] == theirs.t[5]
    assert not torch.equal(mine.is_masked[4], theirs.is_masked[4])
