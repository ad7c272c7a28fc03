"""Tokens that are masked again.

Shape letters: B batch, L length, V vocabulary rows.
"""

import math
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from llada.data.batches import TokenBatch
from llada.evaluation.exact_likelihood import measure_exact_nll
from llada.sampling.config import SamplerConfig
from llada.sampling.fills import advance, start
from llada.sampling.policies import POLICIES
from llada.sampling.steps import has_likelihood
from llada.sampling.unmask import infill, unmask
from llada.system.errors import UserError
from tests.support.toys import MASK, N_TOKENS, table_predictor

P = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.6, 0.2, 0.2], [0.3, 0.3, 0.4]], dtype=torch.float64)


def independent(x_t: Tensor) -> Tensor:
    """The exact predictions of four tokens that do not depend on each other."""
    return P.log().expand(len(x_t), 4, N_TOKENS)


def expected_count(n_written: int, n_open: int, n_now: int, eta: float) -> float:
    """The mean number that ReMDM-cap masks again, by enumeration of the binomial distribution."""
    room = n_open - n_now
    sigma = min(eta, room / n_written) if n_written else 0.0
    weights = [math.comb(n_written, m) * sigma**m * (1 - sigma) ** (n_written - m) for m in range(n_written + 1)]
    return sum(w * min(max(m, int(n_now == 0)), room, n_written) for m, w in enumerate(weights))


@pytest.mark.parametrize("eta", [0.2, 1.0])
@pytest.mark.parametrize(("steps", "written"), [(4, [1, 2, 3, 4]), (7, [1, 2, 2, 3, 3, 4]), (2, [2, 4])])
def test_remdm_leaves_the_marginals_as_they_are(eta: float, steps: int, written: list[int]) -> None:
    """At each time a position is written with the probability alpha, and then has a token of its distribution."""
    n, before = 8000, 0
    config = SamplerConfig(steps=steps, temperature=1.0, policy="random", remdm_eta=eta)
    states = list(unmask(independent, torch.full((n, 4), MASK), MASK, config, Generator().manual_seed(1)))
    assert len(states) == len(written)
    last = torch.full((n, 4), MASK)
    for state, n_written in zip(states, written, strict=True):
        assert bool(((state.x_t != MASK).sum(1) == n_written).all())
        alpha = n_written / 4
        for place in range(4):
            expected = n * torch.tensor([*(alpha * P[place]).tolist(), 1 - alpha])
            observed = torch.stack([(state.x_t[:, place] == token).sum() for token in (*range(N_TOKENS), MASK)])
            kept = expected > 0
            chi_square = ((observed - expected)[kept] ** 2 / expected[kept]).sum()
            assert float(chi_square) < 21.1  # 3 degrees of freedom, p = 1e-4
        n_again = float(((last != MASK) & (state.x_t == MASK)).sum()) / n
        expected_mean = expected_count(before, 4 - before, n_written - before, eta)
        assert n_again == pytest.approx(expected_mean, abs=5 * 2 / math.sqrt(n))
        last, before = state.x_t, n_written


def test_p2_masks_the_least_likely_tokens_again() -> None:
    """Step by step as worked out by hand, of three places whose tokens have probabilities of 0.9, 0.7 and 0.5."""
    p = torch.tensor([0.9, 0.7, 0.5])
    logits = torch.stack((p, (1 - p) * 0.6, (1 - p) * 0.4), dim=1).log()
    fill = start([2, *[MASK] * 3], MASK, SamplerConfig(steps=6, policy="left_to_right", p2_tokens=1), Generator())
    did = []
    while not fill.is_done:
        (result,) = advance(lambda x_t: torch.cat((logits[:1], logits))[None], [fill])
        did.append((result.positions.tolist(), result.remasked.tolist()))
    # The plan writes 1, 1, 2, 2, 3, 3 of them; once all three are written nothing is left to do.
    assert did == [([1], []), ([2], [1]), ([1, 3], [2]), ([2], [3]), ([3], [])]
    assert fill.ids.tolist() == [2, 0, 0, 0]


@pytest.mark.parametrize("policy", [None, *POLICIES])
@pytest.mark.parametrize("how", [{"remdm_eta": 0.5}, {"p2_tokens": 2}], ids=str)
@pytest.mark.parametrize("options", [{"steps": None}, {"steps": 20, "block_length": 3, "cfg_scale": 0.5}, {"steps": 2}])
def test_given_tokens_stay_and_no_mask_is_left(policy: Any, how: dict[str, Any], options: dict[str, Any]) -> None:
    """Each step reveals something in some row, and a batch is its rows."""
    config = SamplerConfig(**{"temperature": 1.0, "policy": policy, **how, **options})
    template = torch.tensor([[1, *[MASK] * 5, 2], [MASK, 0, MASK, 1, MASK, MASK, MASK], [MASK] * 7])
    predict = table_predictor(7, 4)
    states = list(unmask(predict, template, MASK, config, [Generator().manual_seed(row) for row in range(3)]))
    given = template != MASK
    for state in states:
        assert bool((state.x_t[given] == template[given]).all())
        assert state.revealed is not None
        assert bool(state.revealed.any())
    assert MASK not in states[-1].x_t
    for row in range(3):
        alone = infill(predict, template[row : row + 1], MASK, config, [Generator().manual_seed(row)])
        assert torch.equal(alone.x_t[0], states[-1].x_t[row])


@pytest.mark.parametrize("how", [{"remdm_eta": 0.5}, {"p2_tokens": 1}], ids=str)
def test_up_to_its_end_a_text_is_what_it_is_without_one(how: dict[str, Any]) -> None:
    """An end that may be masked again ends nothing: steps are saved by windows only."""
    predict, template = table_predictor(6, 7), torch.full((1, 6), MASK)
    for block_length in (None, 2):
        config, n_saved = SamplerConfig(steps=12, temperature=1.0, block_length=block_length, **how), 0
        for seed in range(12):
            whole = infill(predict, template, MASK, config, Generator().manual_seed(seed)).x_t[0].tolist()
            *_, state = unmask(predict, template, MASK, config, Generator().manual_seed(seed), end_ids=[2])
            text = state.x_t[0].tolist()
            end = text.index(2) + 1 if 2 in text else 6
            assert text[:end] == whole[:end]
            n_saved += state.nfe_saved
        assert (n_saved > 0) == (block_length is not None)


@pytest.mark.parametrize("options", [{"remdm_eta": 0.1}, {"p2_tokens": 1}, {"stable_entropy": 0.1}], ids=str)
def test_texts_that_are_masked_again_have_no_exact_likelihood(options: dict[str, Any]) -> None:
    config = SamplerConfig(policy="entropy", **options)
    assert not has_likelihood(config)
    name = next(iter(options))
    with pytest.raises(UserError, match=f"Texts written with `{name}` have no exact likelihood: leave it out"):
        measure_exact_nll(independent, TokenBatch(torch.zeros(1, 4).long()), MASK, policy="entropy", options=config)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"remdm_eta": 1.5}, "remdm_eta must be a probability"),
        ({"remdm_eta": math.nan}, "remdm_eta must be a probability"),
        ({"p2_tokens": -1}, "p2_tokens must be at least 0"),
        ({"p2_tokens": 1, "remdm_eta": 0.1}, "exclude each other"),
        ({"p2_tokens": 1, "stable_entropy": 0.1}, "exclude each other"),
    ],
)
def test_settings_that_do_not_work_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SamplerConfig(**options)
