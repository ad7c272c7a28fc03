"""Shape letters: B batch, L length, V vocabulary rows."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Generator

from llada.forward_process import (
    LINEAR,
    MIN_MASK_PROBABILITY,
    SCHEDULES,
    MaskSchedule,
    NoisyBatch,
    mask_bernoulli,
    mask_exact_count,
    schedule_by_name,
    time_sampling_by_name,
)
from llada.models.head import nll_of_features
from llada.objective import loss_weights, masked_nll, sequence_bounds, token_nll, weighted_loss
from llada.sampling.config import SamplerConfig
from llada.sampling.unmask import unmask
from tests.support.toys import (
    MASK,
    N_TOKENS,
    SCHEDULE_NAMES,
    TIME_NAMES,
    enumerated_nelbo,
    joint_predictor,
    table_predictor,
    uniform,
)

X_0 = torch.tensor([2, 0, 1, 1])
TABLE = table_predictor(length=4, seed=0)


def exact_batch(x_0: torch.Tensor, sets: list[tuple[int, ...]]) -> NoisyBatch:
    """The rows of x_0 (L,) masked at these positions, as if by exact counts."""
    is_masked = torch.zeros(len(sets), len(x_0), dtype=torch.bool)
    for row, positions in enumerate(sets):
        is_masked[row, list(positions)] = True
    share = is_masked.sum(1, keepdim=True) / len(x_0)
    full = torch.full_like(share, len(x_0))
    return NoisyBatch(torch.where(is_masked, MASK, x_0), is_masked, share, share[:, 0], full, torch.ones_like(share))


def bounds(predict: Callable[[torch.Tensor], torch.Tensor], x_0: torch.Tensor, noisy: NoisyBatch) -> torch.Tensor:
    return sequence_bounds(masked_nll(predict(noisy.x_t), x_0, noisy), noisy)


def test_uniform_predictor_has_a_bound_of_log_v_for_every_mask() -> None:
    x_0 = torch.randint(0, N_TOKENS, (64, 32), generator=Generator().manual_seed(0))
    noisy = mask_exact_count(x_0, MASK, Generator().manual_seed(1))
    assert torch.allclose(bounds(uniform, x_0, noisy), torch.full((64,), math.log(N_TOKENS)))


def test_perfect_predictor_has_a_bound_of_zero() -> None:
    x_0 = torch.randint(0, N_TOKENS, (8, 6), generator=Generator().manual_seed(2))
    noisy = mask_exact_count(x_0, MASK, Generator().manual_seed(3))
    logits = F.one_hot(x_0, N_TOKENS) * 100.0
    assert torch.allclose(bounds(lambda _: logits, x_0, noisy), torch.zeros(8), atol=1e-6)


def test_enumerating_all_masks_gives_the_enumerated_expectation_exactly() -> None:
    by_count = [list(itertools.combinations(range(4), k)) for k in range(1, 5)]
    means = []
    for sets in by_count:
        noisy = exact_batch(X_0, sets)
        means.append(bounds(TABLE, X_0.expand(len(sets), 4), noisy).mean())
    assert float(torch.stack(means).mean()) == pytest.approx(enumerated_nelbo(TABLE, X_0), rel=1e-6)


@pytest.mark.parametrize("complementary", [False, True])
def test_exact_count_estimator_is_unbiased(complementary: bool) -> None:
    generator, draws = Generator().manual_seed(4), []
    for _ in range(1500):
        x_0 = X_0.expand(8, 4)
        noisy = mask_exact_count(x_0, MASK, generator, complementary=complementary)
        draws.append(bounds(TABLE, x_0, noisy).mean())
    estimates = torch.stack(draws)
    stderr = float(estimates.std()) / len(draws) ** 0.5
    assert abs(float(estimates.mean()) - enumerated_nelbo(TABLE, X_0)) < 4 * stderr
    assert stderr < 0.01  # else the line above would say little


def time_integral(schedule: MaskSchedule) -> float:
    """The bound in continuous time: of -alpha'(t) / (1 - alpha(t)) times the expected sum of the cross-entropies.

    Over t from 0 to 1, with alpha and its derivative taken from the probability of a mask alone, divided by L, and by
    1 - eps, for the range that p has.
    """
    t = (torch.linspace(0, 1, 20_001, dtype=torch.float64) ** 2).requires_grad_()  # fine where p is small
    alpha = 1 - schedule.p_mask(t)
    (slope,) = torch.autograd.grad(alpha.sum(), t)
    alpha, time, total = alpha.detach(), t.detach()[1:], 0.0
    for k in range(1, 5):
        for positions in itertools.combinations(range(4), k):
            noisy = exact_batch(X_0, [positions])
            nll = float(masked_nll(TABLE(noisy.x_t), X_0[None], noisy).sum())
            chance = (1 - alpha) ** k * alpha ** (4 - k)
            total += nll * float(torch.trapezoid((-slope / (1 - alpha) * chance)[1:], time))
    return total / 4 / (1 - MIN_MASK_PROBABILITY)


def test_the_bound_does_not_depend_on_the_schedule() -> None:
    """One predictor, one number: that of the enumerated masks, but for eps."""
    expected = time_integral(LINEAR)
    assert expected == pytest.approx(enumerated_nelbo(TABLE, X_0), rel=2e-3)
    for name in SCHEDULE_NAMES:
        assert time_integral(schedule_by_name(name)) == pytest.approx(expected, rel=1e-3), name


@pytest.mark.parametrize("times", TIME_NAMES)
@pytest.mark.parametrize("schedule", SCHEDULE_NAMES)
def test_bernoulli_estimator_is_unbiased_for_its_own_range_of_p(schedule: str, times: str) -> None:
    generator = Generator().manual_seed(5)
    x_0 = X_0.expand(60_000, 4)
    noisy = mask_bernoulli(
        x_0, MASK, generator, schedule=schedule_by_name(schedule), times=time_sampling_by_name(times)
    )
    draws = bounds(TABLE, x_0, noisy)
    stderr = float(draws.std()) / len(draws) ** 0.5
    assert abs(float(draws.mean()) - time_integral(LINEAR)) < 4 * stderr
    assert stderr < 0.05


@pytest.mark.parametrize("times", TIME_NAMES)
@pytest.mark.parametrize("schedule", SCHEDULE_NAMES)
def test_exact_counts_drawn_unequally_are_weighed_back(schedule: str, times: str) -> None:
    """Rows of a batch depend on each other, by strata and complements; batches do not."""
    how, when, draws = schedule_by_name(schedule), time_sampling_by_name(times), []
    generator, x_0 = Generator().manual_seed(18), X_0.expand(32, 4)
    for _ in range(300):
        noisy = mask_exact_count(x_0, MASK, generator, complementary=True, schedule=how, times=when)
        draws.append(bounds(TABLE, x_0, noisy).mean())
    estimates = torch.stack(draws)
    stderr = float(estimates.std()) / len(draws) ** 0.5
    assert abs(float(estimates.mean()) - enumerated_nelbo(TABLE, X_0)) < 4 * stderr
    assert stderr < 0.05


@dataclass(frozen=True)
class Logarithmic(MaskSchedule):
    """m(t) = log(1 + a t) / log(1 + a)."""

    a: float = 4.0

    def fraction(self, t: torch.Tensor) -> torch.Tensor:
        return (1 + self.a * t).log() / math.log(1 + self.a)

    def slope(self, t: torch.Tensor) -> torch.Tensor:
        return self.a / (1 + self.a * t) / math.log(1 + self.a)

    def time_at(self, fraction: torch.Tensor) -> torch.Tensor:
        return ((1 + self.a) ** fraction - 1) / self.a


def test_a_new_schedule_is_a_class_and_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise, loss and sampler then have it."""
    monkeypatch.setitem(SCHEDULES, "logarithmic", Logarithmic)
    schedule = schedule_by_name("logarithmic:9")
    assert schedule == Logarithmic(9.0)
    x_0 = X_0.expand(20_000, 4)
    draws = bounds(TABLE, x_0, mask_bernoulli(x_0, MASK, Generator().manual_seed(20), schedule=schedule))
    assert abs(float(draws.mean()) - time_integral(LINEAR)) < 4 * float(draws.std()) / len(draws) ** 0.5
    config = SamplerConfig(steps=2, mask_schedule="logarithmic:9")
    states = unmask(TABLE, torch.full((1, 4), MASK), MASK, config)
    n_open = [int((state.x_t == MASK).sum()) for state in states]
    assert n_open == [3, 0]  # of 4, log(5.5) / log(10) = 0.74 are masked half-way


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_a_loss_that_is_no_bound_weighs_amounts_of_noise_as_without_a_schedule(power: float) -> None:
    """With one cross-entropy for each count, the weighted mean is the same, however often the counts are drawn."""
    x_0, losses = torch.zeros(40_000, 5, dtype=torch.long), []
    for schedule, times in (("linear", "uniform"), ("cosine", "bell")):
        noisy = mask_exact_count(
            x_0, MASK, Generator().manual_seed(19),
            schedule=schedule_by_name(schedule), times=time_sampling_by_name(times),
        )  # fmt: skip
        weights = noisy.at_masked(loss_weights(noisy, power))
        losses.append(float(weighted_loss(noisy.at_masked(noisy.p_mask), weights)))
    counts = range(1, 6)
    expected = sum((k / 5) ** (1 - power) * k for k in counts) / sum((k / 5) ** -power * k for k in counts)
    assert losses == pytest.approx([expected, expected], rel=1e-3)


def test_bound_is_above_the_likelihood_and_touches_it_for_exact_conditionals() -> None:
    """With the conditionals of one joint distribution every order gives its likelihood, and so does the bound."""
    joint = torch.rand(3, 3, 3, generator=Generator().manual_seed(6), dtype=torch.float64)
    joint /= joint.sum()
    x_0 = torch.tensor([0, 2, 1])
    exact = -math.log(float(joint[0, 2, 1])) / 3
    assert enumerated_nelbo(joint_predictor(joint), x_0) == pytest.approx(exact, rel=1e-9)


def test_pretraining_loss_is_that_of_the_guidelines() -> None:
    """sum(CE[masked] / p[masked]) / (B L), written out token by token."""
    x_0 = torch.randint(0, N_TOKENS, (5, 4), generator=Generator().manual_seed(7))
    noisy = mask_bernoulli(x_0, MASK, Generator().manual_seed(8))
    logits = TABLE(noisy.x_t)
    by_hand = 0.0
    for b in range(5):
        for i in range(4):
            if noisy.x_t[b, i] == MASK:
                by_hand += -float(logits[b, i].log_softmax(-1)[x_0[b, i]]) / float(noisy.p_mask[b, 0])
    loss = weighted_loss(masked_nll(logits, x_0, noisy), noisy.at_masked(loss_weights(noisy)))
    assert float(loss) == pytest.approx(by_hand / 20, rel=1e-5)


def test_finetuning_loss_is_that_of_the_guidelines() -> None:
    """Each answer's sum of CE / p divided by its length, then the mean over the batch; prompts are never masked."""
    x_0 = torch.randint(0, N_TOKENS, (3, 4), generator=Generator().manual_seed(9))
    is_answer = torch.tensor([[False, True, True, True], [False, False, True, True], [False, False, False, True]])
    noisy = mask_bernoulli(x_0, MASK, Generator().manual_seed(12), is_answer)
    logits = TABLE(noisy.x_t)
    by_hand = 0.0
    for b in range(3):
        terms = [
            -float(logits[b, i].log_softmax(-1)[x_0[b, i]]) / float(noisy.p_mask[b, 0])
            for i in range(4)
            if noisy.x_t[b, i] == MASK
        ]
        by_hand += sum(terms) / (3 - b) / 3
    loss = weighted_loss(masked_nll(logits, x_0, noisy), noisy.at_masked(loss_weights(noisy, average="sequences")))
    assert by_hand > 0
    assert float(loss) == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_power_weights_cross_entropies_by_p(power: float) -> None:
    """A mean under weights 1 / p^power: for 0 the plain mean, and with exact counts for 1 the bound."""
    x_0 = torch.randint(0, N_TOKENS, (5, 4), generator=Generator().manual_seed(10))
    noisy = mask_exact_count(x_0, MASK, Generator().manual_seed(11))
    nll = masked_nll(TABLE(noisy.x_t), x_0, noisy)
    p = noisy.p_mask[noisy.is_masked.nonzero()[:, 0], 0]
    expected = float((nll / p**power).sum() / (1 / p**power).sum())
    assert float(weighted_loss(nll, noisy.at_masked(loss_weights(noisy, power)))) == pytest.approx(expected, rel=1e-5)


def test_rows_without_masks_weigh_nothing() -> None:
    noisy = exact_batch(X_0, [(), (1, 2)])
    nll = masked_nll(TABLE(noisy.x_t), X_0.expand(2, 4), noisy)
    assert float(weighted_loss(nll, noisy.at_masked(loss_weights(noisy, 0.5)))) == pytest.approx(float(nll.mean()))


def test_losses_of_pieces_add_up_to_the_loss_of_the_batch() -> None:
    x_0 = torch.randint(0, N_TOKENS, (6, 4), generator=Generator().manual_seed(13))
    maskable = torch.ones(6, 4, dtype=torch.bool)
    maskable[0, 2:] = False
    noisy = mask_exact_count(x_0, MASK, Generator().manual_seed(14), maskable)
    weights = loss_weights(noisy)
    whole = weighted_loss(masked_nll(TABLE(noisy.x_t), x_0, noisy), noisy.at_masked(weights))
    pieces = 0.0
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        part = noisy.rows(rows)
        pieces += float(weighted_loss(masked_nll(TABLE(part.x_t), x_0[rows], part), part.at_masked(weights[rows])))
    assert pieces == pytest.approx(float(whole), rel=1e-6)


def test_logits_at_masked_positions_alone_give_the_same_loss() -> None:
    x_0 = torch.randint(0, N_TOKENS, (6, 4), generator=Generator().manual_seed(15))
    noisy = mask_bernoulli(x_0, MASK, Generator().manual_seed(16))
    logits = TABLE(noisy.x_t)
    assert torch.equal(masked_nll(logits, x_0, noisy), masked_nll(logits[noisy.is_masked], x_0, noisy))


@pytest.mark.parametrize("n", [0, 1, 5, 23])
def test_a_head_in_pieces_equals_the_whole(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses, likeliest tokens and gradients, whether or not the positions divide evenly into pieces of 5."""
    generator = Generator().manual_seed(0)
    head = torch.nn.Linear(8, 31, dtype=torch.float64)
    features = torch.randn(n, 8, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 31, (n,), generator=generator)
    weights = torch.rand(n, generator=generator)
    results = []
    for logits_at_once in (10_000, 5 * 31):
        monkeypatch.setattr("llada.models.head.LOGITS_AT_ONCE", logits_at_once)
        head.zero_grad()
        into = features.clone().requires_grad_()
        nll, likeliest = nll_of_features(head, into, targets, vocab_size=31)
        assert torch.equal(nll, token_nll(head(into), targets))
        assert torch.equal(likeliest, head(into).argmax(-1))
        (nll * weights).sum().backward()
        gradients = (into.grad, head.weight.grad, head.bias.grad)
        results.append([gradient.clone() for gradient in gradients if gradient is not None])
    for whole, in_pieces in zip(*results, strict=True):
        assert torch.allclose(whole, in_pieces, atol=1e-6)


def test_a_head_in_pieces_never_makes_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llada.models.head.LOGITS_AT_ONCE", 5 * 31)
    sizes = []

    def head(features: torch.Tensor) -> torch.Tensor:
        sizes.append(len(features))
        return features @ torch.ones(8, 31)

    into = torch.randn(23, 8).requires_grad_()
    nll_of_features(head, into, torch.zeros(23, dtype=torch.long), vocab_size=31)[0].sum().backward()
    assert sizes == [5] * 10  # forward, then backward; the last 3 have rows of zeros behind them


def test_a_head_meets_few_shapes_on_a_cpu_and_gives_what_it_would_for_each() -> None:
    sizes = set()
    head = torch.nn.Linear(8, 31)

    def spy(features: torch.Tensor) -> torch.Tensor:
        sizes.add(len(features))
        return head(features)

    for n in (1, 100, 128, 129, 300):
        plain, ours = (torch.randn(n, 8, generator=torch.Generator().manual_seed(n)).requires_grad_() for _ in range(2))
        targets = torch.arange(n) % 31
        expected = token_nll(head(plain), targets)
        nll, likeliest = nll_of_features(spy, ours, targets, vocab_size=31)
        expected.sum().backward()
        nll.sum().backward()
        assert nll.shape == likeliest.shape == (n,)
        assert torch.allclose(nll, expected, atol=1e-6)
        assert plain.grad is not None
        assert ours.grad is not None
        assert torch.allclose(ours.grad, plain.grad, atol=1e-6)
    assert sizes == {128, 256, 384}
    assert nll_of_features(head, torch.zeros(0, 8), torch.zeros(0, dtype=torch.long), 31)[0].shape == (0,)
