"""Texts that are filled in together, step by step.

Shape letters: L length, N asked positions, V vocabulary rows.
"""

import math

import pytest
import torch
from torch import Generator, Tensor

from llada.data.batches import TokenBatch
from llada.evaluation.exact_likelihood import exact_nll
from llada.models.predictor import PredictAt
from llada.sampling.config import SamplerConfig
from llada.sampling.fills import Fill, advance, start
from llada.sampling.guidance import takes_positions
from llada.sampling.policies import POLICIES, PolicyName, make_policy
from llada.sampling.unmask import infill
from tests.support.toys import MASK, padding_predictor, table_predictor

PREDICT = padding_predictor(seed=0)
TEMPLATES = [
    [1, 2, MASK, MASK, MASK, MASK, MASK, MASK],
    [MASK, MASK, MASK],
    [0, MASK, 1, MASK, 2, MASK],
    [2, 1, 0, MASK, MASK, MASK, MASK],
    [MASK, MASK, MASK],
]
CONFIGS = [
    SamplerConfig(steps=None, temperature=1.0, policy="random"),
    SamplerConfig(steps=None, temperature=1.0, policy="entropy_bound", entropy_bound=0.5, cfg_scale=0.7),
    SamplerConfig(steps=4, block_length=2),
    SamplerConfig(steps=None, temperature=0.7, stable_entropy=1.0, repetition_penalty=1.2, cfg_scale=0.3),
    SamplerConfig(steps=None, temperature=1.0, policy="random"),
]


def begun(row: int) -> Fill:
    return start(TEMPLATES[row], MASK, CONFIGS[row], Generator().manual_seed(row))


def alone(row: int) -> list[int]:
    template = torch.tensor([TEMPLATES[row]])
    return list(infill(PREDICT, template, MASK, CONFIGS[row], Generator().manual_seed(row)).x_t[0].tolist())


def counting(predict: PredictAt, sizes: list[int]) -> PredictAt:
    @takes_positions
    def predict_at(x_t: Tensor, *, attention_mask: Tensor | None = None, positions: Tensor) -> Tensor:
        sizes.append(len(x_t))
        return predict(x_t, attention_mask=attention_mask, positions=positions)

    return predict_at


def test_texts_that_come_and_go_are_what_they_are_alone() -> None:
    """Five settings and four lengths; a new text every second step, and each leaves when it is done."""
    waiting, filled, running = [begun(row) for row in range(5)], dict[int, list[int]](), list[Fill]()
    rows = {id(fill): row for row, fill in enumerate(waiting)}
    sizes = list[int]()
    for n_calls in range(100):
        if waiting and n_calls % 2 == 0:
            running.insert(0, waiting.pop())
        if not running:
            break
        before = len(sizes)
        is_guided = [bool(fill.config.cfg_scale) for fill in running]
        advance(counting(PREDICT, sizes), running)
        assert sizes[before:] == [len(running), sum(is_guided)][: 1 + any(is_guided)]
        filled |= {rows[id(fill)]: fill.ids.tolist() for fill in running if fill.is_done}
        running = [fill for fill in running if not fill.is_done]
    assert [filled[row] for row in range(5)] == [alone(row) for row in range(5)]


def test_a_text_that_is_done_may_stay() -> None:
    """Nothing is asked for it, and nothing at all when all are done."""
    fills, sizes = [begun(0), begun(1)], list[int]()
    while not all(fill.is_done for fill in fills):
        results = advance(counting(PREDICT, sizes), fills)
    assert sizes == [2, 1, 2, 1, 2, 1, 2, 2, 2]  # the second text has guidance, and three tokens to fill
    assert len(results[1].positions) == len(results[1].asked) == 0
    assert [fill.n_steps for fill in fills] == [6, 3]
    assert [fill.ids.tolist() for fill in fills] == [alone(0), alone(1)]
    before = list(sizes)
    (result, _) = advance(counting(PREDICT, sizes), fills)
    assert len(result.positions) == len(result.asked_log_p) == 0
    assert sizes == before
    assert advance(PREDICT, []) == []


@pytest.mark.parametrize("policy", [None, *POLICIES])
@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_results_say_what_a_step_did(policy: PolicyName | None, temperature: float) -> None:
    """Positions, tokens and the model's own log-probabilities of them, at temperature 1 whatever they are drawn at."""
    config = SamplerConfig(steps=4, policy=policy, temperature=temperature, entropy_bound=0.6)
    fill = start([1, MASK, MASK, 0, MASK, MASK, MASK], MASK, config, Generator().manual_seed(3))
    limit = fill.limit
    assert (limit, fill.n_open, fill.given.tolist()) == (4, 5, [True, False, False, True, False, False, False])
    while not fill.is_done:
        before = fill.ids
        (result,) = advance(PREDICT, [fill])
        expected = table_predictor(7, 700)(before[None])[0].float().log_softmax(-1)
        assert torch.equal(result.asked_log_p, expected[result.asked])
        assert torch.equal(result.log_p, expected[result.positions, result.tokens])
        assert torch.equal((before != fill.ids).nonzero()[:, 0], result.positions)
        assert torch.equal(fill.ids[result.positions], result.tokens)
        assert (
            set(result.positions.tolist())
            <= set(result.asked.tolist())
            <= set((before == MASK).nonzero()[:, 0].tolist())
        )
        assert len(result.remasked) == 0
        assert fill.limit < limit
        limit = fill.limit
    assert fill.n_open == 0


@pytest.mark.parametrize(("places", "n_steps"), [([2, 0, 1, 3, 4], 3), ([3, 4, 2, 1, 0], 5), ([0, 4, 1, 2, 3], 4)])
def test_a_text_is_done_when_all_is_decided_up_to_its_end(places: list[int], n_steps: int) -> None:
    """The end is the token 2, at the third place; the order in which places are filled is given.

    An end behind a mask is not an end yet.
    """
    logits = torch.zeros(1, 5, 3)
    for surer, (place, token) in enumerate(zip(reversed(places), [0] * 5, strict=True), start=1):
        logits[0, place, 2 if place == 2 else token] = 4.0 * surer
    fill = start([MASK] * 5, MASK, SamplerConfig(steps=None), Generator(), end_ids=[2])
    while not fill.is_done:
        advance(lambda x_t: logits, [fill])
    text = fill.ids.tolist()
    assert text[:3] == [0, 0, 2]
    assert (fill.n_steps, fill.nfe_saved, text.count(MASK)) == (n_steps, 5 - n_steps, 5 - n_steps)


def test_a_given_end_ends_nothing() -> None:
    fill = start([2, MASK, 2, MASK], MASK, SamplerConfig(steps=None), Generator(), end_ids=[2])
    while not fill.is_done:
        advance(lambda x_t: torch.zeros(*x_t.shape, 3), [fill])
    assert fill.ids.tolist() == [2, 0, 2, 0]
    assert fill.nfe_saved == 0


@pytest.mark.parametrize("policy", [None, *POLICIES])
@pytest.mark.parametrize("options", [{"steps": None}, {"steps": 4, "block_length": 2}], ids=str)
def test_up_to_its_end_a_text_is_what_it_is_without_one(policy: PolicyName | None, options: dict[str, object]) -> None:
    """And the steps saved are those that it takes otherwise; some policies may have needed fewer."""
    config = SamplerConfig(**{"steps": None, "temperature": 1.0, "policy": policy, **options})  # type: ignore[arg-type]
    n_saved = 0
    for seed in range(20):
        made = []
        for end_ids in ([], [2]):
            fill = start([1, *[MASK] * 6], MASK, config, Generator().manual_seed(seed), end_ids=end_ids)
            while not fill.is_done:
                advance(PREDICT, [fill])
            made.append(fill)
        whole, ended = made
        text = ended.ids.tolist()
        end = text.index(2) + 1 if 2 in text and MASK not in text[: text.index(2)] else 7
        assert text[:end] == whole.ids.tolist()[:end]
        assert whole.nfe <= ended.nfe + ended.nfe_saved
        if policy is None or make_policy(policy).has_budget:
            assert whole.nfe == ended.nfe + ended.nfe_saved
        n_saved += ended.nfe_saved
    assert n_saved > 0


def test_entropy_and_likeliest_are_those_of_the_predictions() -> None:
    """Probabilities of 1/2, 1/4 and 1/4 have an entropy of 3/2 bits."""
    logits = torch.tensor([0.25, 0.5, 0.25]).log()
    config = SamplerConfig(steps=None, policy="confidence")
    fill = start([MASK, 0, MASK], MASK, config, Generator())
    (result,) = advance(lambda x_t: logits.expand(*x_t.shape, 3), [fill])
    assert torch.allclose(result.entropy(), torch.full((2,), 1.5 * math.log(2)))
    tokens, probabilities = result.likeliest(2)
    assert tokens.tolist() in ([[1, 0]] * 2, [[1, 2]] * 2)
    assert torch.allclose(probabilities, torch.tensor([[0.5, 0.25]] * 2))
    assert result.likeliest(9)[0].shape == (2, 3)
    assert torch.allclose(result.log_p.exp(), torch.tensor([0.5]))


@pytest.mark.parametrize("policy", POLICIES)
def test_log_probabilities_add_up_to_the_exact_likelihood(policy: PolicyName) -> None:
    config = SamplerConfig(steps=None, policy=policy, temperature=1.0, entropy_bound=0.6, threshold=0.5, factor=1.5)
    template = [1, MASK, MASK, MASK, 0, MASK, MASK]
    fill = start(template, MASK, config, Generator().manual_seed(5))
    priority, nats = fill.filling.priority, 0.0
    while not fill.is_done:
        (result,) = advance(PREDICT, [fill])
        nats -= float(result.log_p.double().sum())
    is_open = (torch.tensor(template) == MASK)[None]
    batch = TokenBatch(fill.ids[None], is_open)
    exact = exact_nll(PREDICT, batch, MASK, policy=make_policy(policy, config), priority=priority)
    assert nats == pytest.approx(float(exact.nll), abs=1e-5)
    assert fill.n_steps == int(exact.nfe)


def test_inputs_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must have the shape \(L,\), not \(1, 2\)"):
        start(torch.tensor([[1, MASK]]), MASK, SamplerConfig(), Generator())
    fills = [start([1, mask], mask, SamplerConfig(), Generator()) for mask in (MASK, MASK + 1)]
    with pytest.raises(ValueError, match="different MASKs"):
        advance(PREDICT, fills)
    config = SamplerConfig()
    unequal = [start(template, MASK, config, Generator()) for template in ([MASK, 1], [MASK])]
    with pytest.raises(ValueError, match="knows no padding"):
        advance(table_predictor(2, 2), unequal)
