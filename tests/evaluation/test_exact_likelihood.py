"""Shape letters: B batch, L length, V vocabulary rows."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from llada.data.batches import TokenBatch
from llada.evaluation.exact_likelihood import exact_nll, measure_exact_nll
from llada.models import PredictAt
from llada.sampling.config import SamplerConfig
from llada.sampling.guidance import at_positions
from llada.sampling.policies import DEFAULTS, POLICIES, PolicyName, PolicyOptions, make_policy
from llada.system.errors import UserError
from tests.support.toys import MASK, N_TOKENS, joint_predictor, table_predictor

TABLE = table_predictor(length=4, seed=3)
ALL_TEXTS = torch.tensor(list(itertools.product(range(N_TOKENS), repeat=4)))


TABLE_AT = at_positions(TABLE)


BUDGETED: list[PolicyName] = ["left_to_right", "random", "confidence", "margin", "entropy"]
DRAWN = torch.tensor([0.2, 0.9, 0.1, 0.5])  # the order that "random" has drawn: 1, 3, 0, 2


def nll_of(
    predict_at: PredictAt,
    texts: Tensor,
    order: PolicyName,
    positions_per_step: int = 1,
    options: PolicyOptions = DEFAULTS,
) -> Tensor:
    policy, priority = make_policy(order, options), DRAWN[: texts.shape[1]].expand_as(texts)
    return exact_nll(
        predict_at, TokenBatch(texts), MASK, policy=policy, positions_per_step=positions_per_step, priority=priority
    ).nll


@pytest.mark.parametrize("order", POLICIES)
@pytest.mark.parametrize("positions_per_step", [1, 2, 3, 4])
def test_probabilities_of_all_texts_add_up_to_one(order: PolicyName, positions_per_step: int) -> None:
    """Whatever the model: each policy, one at a time or several, is the distribution of a sampler."""
    nll = nll_of(TABLE_AT, ALL_TEXTS, order, positions_per_step)
    assert float((-nll).exp().sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("order", "options"),
    [
        ("threshold", PolicyOptions(threshold=0.6)),
        ("threshold", PolicyOptions(threshold=0.5, order="left_to_right")),
        ("factor", PolicyOptions(factor=1.3)),
        ("entropy_bound", PolicyOptions(entropy_bound=0.8)),
        ("entropy_bound", PolicyOptions(entropy_bound=1.0, order="margin")),
        ("runs", PolicyOptions(threshold=0.8, run_threshold=0.5)),
    ],
)
def test_policies_that_decide_how_many_are_distributions_too(order: PolicyName, options: PolicyOptions) -> None:
    """With numbers for which texts need from one evaluation to four."""
    scored = exact_nll(TABLE_AT, TokenBatch(ALL_TEXTS), MASK, policy=make_policy(order, options))
    assert float((-scored.nll).exp().sum()) == pytest.approx(1.0, abs=1e-5)
    assert len(set(scored.nfe.tolist())) > 1
    assert set(scored.nfe.tolist()) <= {1, 2, 3, 4}


@pytest.mark.parametrize("order", BUDGETED)
def test_a_model_of_a_joint_distribution_has_its_likelihood_in_any_order(order: PolicyName) -> None:
    joint = torch.rand(N_TOKENS, N_TOKENS, N_TOKENS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    joint /= joint.sum()
    nll = nll_of(at_positions(joint_predictor(joint)), ALL_TEXTS[:27, 1:], order)
    assert nll.tolist() == pytest.approx((-joint.log()).flatten().tolist(), rel=1e-5)


def naive(x_0: list[int], order: PolicyName, at_once: int) -> float:
    """The chain rule for one text, position by position."""
    x_t, total = [MASK] * len(x_0), 0.0
    while MASK in x_t:
        p = TABLE(torch.tensor([x_t]))[0].softmax(-1)
        best, second = p.topk(2).values.T
        entropy = -(p * p.log()).sum(-1)
        score = {
            "left_to_right": -torch.arange(4.0), "random": DRAWN, "confidence": best, "margin": best - second,
            "entropy": -entropy,
        }  # fmt: skip
        left = sorted((i for i in range(4) if x_t[i] == MASK), key=lambda i: -float(score[order][i]))
        for i in left[:at_once]:
            total -= math.log(float(p[i, x_0[i]]))
        x_t = [x_0[i] if i in left[:at_once] else x_t[i] for i in range(4)]
    return total


@pytest.mark.parametrize("order", BUDGETED)
@pytest.mark.parametrize("at_once", [1, 3])
def test_equals_the_chain_rule_written_out(order: PolicyName, at_once: int) -> None:
    nll = nll_of(TABLE_AT, ALL_TEXTS[::9], order, at_once)
    assert nll.tolist() == pytest.approx([naive(row, order, at_once) for row in ALL_TEXTS[::9].tolist()], rel=1e-5)


def test_orders_differ() -> None:
    values = {order: round(float(nll_of(TABLE_AT, ALL_TEXTS[5:6], order)), 4) for order in BUDGETED}
    assert len(set(values.values())) > 1


def test_given_tokens_are_conditions() -> None:
    """p(x[2], x[3] | x[0], x[1]): over the last two, probabilities add up to one."""
    texts = ALL_TEXTS[:9]  # the first two tokens are the same in all
    maskable = torch.tensor([False, False, True, True]).expand(9, 4)
    scored = exact_nll(TABLE_AT, TokenBatch(texts, maskable), MASK, policy=make_policy("confidence"))
    assert scored.nfe.tolist() == [2] * 9
    assert float((-scored.nll).exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_mean_over_windows_does_not_depend_on_the_batch_size() -> None:
    windows = TokenBatch(ALL_TEXTS)
    results = [measure_exact_nll(TABLE_AT, windows, MASK, policy="margin", batch_size=size) for size in (1, 7, 100)]
    assert len({round(result.nll_nats_per_token, 6) for result in results}) == 1
    per_window = nll_of(TABLE_AT, ALL_TEXTS, "margin") / 4
    assert results[0].nll_nats_per_token == pytest.approx(float(per_window.mean()))
    assert results[0].nll_stderr == pytest.approx(float(per_window.std()) / 9)
    assert (results[0].windows, results[0].tokens_scored, results[0].nfe) == (81, 324, 4)


def test_broken_model_and_no_position_a_step_are_refused() -> None:
    with pytest.raises(UserError, match="not finite numbers"):
        nll_of(at_positions(lambda x_t: torch.full((*x_t.shape, 3), math.nan)), ALL_TEXTS, "left_to_right")
    with pytest.raises(ValueError, match="at least 1, not 0"):
        nll_of(TABLE_AT, ALL_TEXTS, "margin", positions_per_step=0)


@pytest.mark.parametrize("options", [{"block_length": 2}, {"cfg_scale": 1.0}, {"repetition_penalty": 1.2}], ids=str)
def test_options_that_the_likelihood_does_not_follow_are_refused(options: dict[str, Any]) -> None:
    """The sampler follows them: its texts would be scored as those of another one."""
    with pytest.raises(UserError, match=f"sampling without `{next(iter(options))}`: leave it out"):
        measure_exact_nll(TABLE_AT, TokenBatch(ALL_TEXTS), MASK, policy="margin", options=SamplerConfig(**options))
