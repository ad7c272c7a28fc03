"""What the sampler writes, compared with distributions that are known exactly: samples are counted over all texts.

A test that draws fails for one seed of a thousand, and its seed is fixed.

Shape letters: B batch, L length, V vocabulary rows.
"""

import itertools
import math

import pytest
import torch
from torch import Generator, Tensor

from llada.data.batches import TokenBatch
from llada.evaluation.exact_likelihood import exact_nll
from llada.sampling.config import SamplerConfig
from llada.sampling.guidance import Predict, at_positions
from llada.sampling.policies import POLICIES, PolicyName, make_policy
from llada.sampling.unmask import infill
from tests.support.toys import (
    MASK,
    MarkovChain,
    all_texts,
    chi_square_p,
    joint_predictor,
    table_predictor,
    tabulated,
    text_numbers,
)

N_SAMPLES = 100_000
BUDGETED: list[PolicyName] = ["left_to_right", "random", "confidence", "margin", "entropy"]
CHAIN = MarkovChain.drawn(seed=5)
CHAIN_LENGTH = 8
CHAIN_TABLE = tabulated(CHAIN.predict, CHAIN_LENGTH)


def counts(predict: Predict, template: list[int], config: SamplerConfig, seed: int = 1) -> Tensor:
    """How often each text is written, (V^L,)."""
    rows = torch.tensor([template]).expand(N_SAMPLES, -1)
    x_0 = infill(predict, rows, MASK, config, Generator().manual_seed(seed)).x_t
    return text_numbers(x_0).bincount(minlength=len(all_texts(len(template))))


def probabilities(predict: Predict, length: int, config: SamplerConfig, per_step: int = 1) -> Tensor:
    """The exact probability of each text under the policy of the configuration, the mean over all random orders."""
    assert config.policy
    texts, policy = all_texts(length), make_policy(config.policy, config)
    orders = itertools.permutations(range(length)) if config.policy == "random" else [range(length)]
    p = []
    for order in orders:
        priority = torch.tensor([float(i) for i in order]).expand(len(texts), -1)
        scored = exact_nll(
            at_positions(predict), TokenBatch(texts), MASK, policy=policy, positions_per_step=per_step,
            priority=priority,
        )  # fmt: skip
        p.append((-scored.nll).exp())
    return torch.stack(p).mean(0)


# -- one position a step is the model ---------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [*BUDGETED, "entropy_bound"])
def test_one_a_step_is_the_distribution_of_the_model(policy: PolicyName) -> None:
    """With exact conditionals any order gives the joint distribution (chain rule)."""
    joint = torch.rand(3, 3, 3, generator=Generator().manual_seed(4), dtype=torch.float64) ** 3
    joint /= joint.sum()
    config = SamplerConfig(steps=None, temperature=1.0, policy=policy, entropy_bound=0.0)
    observed = counts(tabulated(joint_predictor(joint), 3), [MASK] * 3, config)
    assert chi_square_p(observed, joint.flatten()) > 0.001


def test_given_tokens_are_conditions() -> None:
    joint = torch.rand(3, 3, 3, generator=Generator().manual_seed(6), dtype=torch.float64) ** 3
    conditional = torch.zeros_like(joint)
    conditional[:, 2] = joint[:, 2] / joint[:, 2].sum()
    config = SamplerConfig(steps=None, temperature=1.0, policy="margin")
    observed = counts(tabulated(joint_predictor(joint), 3), [MASK, 2, MASK], config)
    assert chi_square_p(observed, conditional.flatten()) > 0.001


def test_lladas_own_choice_after_the_draw_is_another_distribution() -> None:
    """Keeping the draws of which the model was surest favours likely tokens: it acts like a lower temperature."""
    joint = torch.rand(3, 3, 3, generator=Generator().manual_seed(4), dtype=torch.float64) ** 3
    joint /= joint.sum()
    config = SamplerConfig(steps=None, temperature=1.0, remasking="low_confidence")
    observed = counts(tabulated(joint_predictor(joint), 3), [MASK] * 3, config)
    assert chi_square_p(observed, joint.flatten()) < 1e-9


# -- the sampler is what exact_nll scores -----------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("per_step", [1, 2])
def test_frequencies_are_the_exact_likelihoods(policy: PolicyName, per_step: int) -> None:
    """For a predictor whose conditionals contradict each other, so that each policy has a distribution of its own."""
    predict = table_predictor(length=4, seed=3)
    config = SamplerConfig(
        steps=4 // per_step, temperature=1.0, policy=policy, threshold=0.6, factor=1.3, entropy_bound=0.8,
        run_threshold=0.5,
    )  # fmt: skip
    expected = probabilities(predict, 4, config, per_step)
    assert float(expected.sum()) == pytest.approx(1.0, abs=1e-5)
    assert chi_square_p(counts(predict, [MASK] * 4, config), expected) > 0.001


def test_policies_differ_so_that_the_test_above_can_fail() -> None:
    predict = table_predictor(length=4, seed=3)
    config = SamplerConfig(steps=4, temperature=1.0, policy="margin")
    other = probabilities(predict, 4, SamplerConfig(steps=4, policy="left_to_right"))
    assert chi_square_p(counts(predict, [MASK] * 4, config), other) < 1e-9


# -- a Markov chain of order 2 ----------------------------------------------------------------------------------------


def test_forward_backward_gives_the_enumerated_conditionals() -> None:
    x_t = torch.tensor([[MASK] * 4, [1, MASK, MASK, 2], [MASK, 0, MASK, 1], [MASK, MASK, 2, MASK], [0, 1, 2, MASK]])
    enumerated = joint_predictor(CHAIN.joint(4))(x_t)
    assert torch.allclose(CHAIN.predict(x_t).exp(), enumerated.exp(), atol=1e-12)


@pytest.mark.parametrize("policy", ["random", "entropy"])
def test_one_a_step_is_the_chain(policy: PolicyName) -> None:
    config = SamplerConfig(steps=None, temperature=1.0, policy=policy)
    observed = counts(CHAIN_TABLE, [MASK] * CHAIN_LENGTH, config)
    assert chi_square_p(observed, CHAIN.joint(CHAIN_LENGTH).flatten()) > 0.001


@pytest.mark.parametrize("policy", ["left_to_right", "entropy"])
def test_a_quarter_of_the_steps_is_not_the_chain(policy: PolicyName) -> None:
    """Four tokens of a step are drawn independently of each other: the price in nats is exact, and it is high."""
    config = SamplerConfig(steps=CHAIN_LENGTH // 4, temperature=1.0, policy=policy)
    chain, observed = CHAIN.joint(CHAIN_LENGTH).flatten(), counts(CHAIN_TABLE, [MASK] * CHAIN_LENGTH, config)
    assert chi_square_p(observed, chain) < 1e-9
    written = probabilities(CHAIN_TABLE, CHAIN_LENGTH, config, per_step=4)
    assert chi_square_p(observed, written) > 0.001
    assert float((chain * (chain / written).log()).sum()) > 0.5


def test_the_entropy_bound_keeps_its_promise() -> None:
    """With exact conditionals a step costs at most the bound, and so the text at most the bound for each step."""
    texts, chain = all_texts(CHAIN_LENGTH), CHAIN.joint(CHAIN_LENGTH).flatten()
    prices, nfes = [], []
    for bound in (0.0, 0.1, 0.5):
        policy = make_policy("entropy_bound", SamplerConfig(entropy_bound=bound))
        scored = exact_nll(at_positions(CHAIN_TABLE), TokenBatch(texts), MASK, policy=policy)
        prices.append(float((chain * (chain.log() + scored.nll)).sum()))
        nfes.append(float((chain * scored.nfe).sum()))
        assert prices[-1] <= bound * nfes[-1] + 1e-6
    assert prices[0] == pytest.approx(0.0, abs=1e-6)
    assert 0 < prices[1] < prices[2]
    assert nfes[2] < nfes[1] < nfes[0] <= CHAIN_LENGTH
    assert not math.isclose(nfes[2], CHAIN_LENGTH)
