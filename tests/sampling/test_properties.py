"""What holds for every template, option and seed.

Shape letters: L length.
"""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from llada.models.local_cache import with_cache
from llada.sampling.config import SamplerConfig
from llada.sampling.fills import Fill, advance, start
from llada.sampling.guidance import constrain, suppress
from llada.sampling.policies import POLICIES
from llada.sampling.unmask import Canvas, infill, unmask
from tests.models.test_local_cache import CONFIG, MASK_ID, predictor
from tests.support.toys import MASK, N_TOKENS, padding_predictor, table_predictor

LENGTH, PAD = 5, 0  # PAD is suppressed, as it is for every checkpoint
TABLE = table_predictor(LENGTH, seed=7)
PREDICT = suppress(TABLE, [PAD])
TOKENS = st.sampled_from([MASK, MASK, 1, 2])
ROWS = st.lists(st.lists(TOKENS, min_size=LENGTH, max_size=LENGTH), min_size=1, max_size=4)
SEEDS = st.integers(0, 2**63 - 1)
OPTIONS = st.fixed_dictionaries(
    {
        "steps": st.none() | st.integers(1, 8),
        "block_length": st.none() | st.integers(1, 7),
        "temperature": st.sampled_from([0.0, 0.7, 1.0, 3.0]),
        "cfg_scale": st.sampled_from([0.0, 1.0]),
        "top_k": st.none() | st.integers(1, 4),
        "top_p": st.none() | st.floats(0.1, 1.0),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "stable_entropy": st.none() | st.sampled_from([0.5, 1.0]),
        "remasking": st.sampled_from(["low_confidence", "random"]),
        "policy": st.none() | st.sampled_from(list(POLICIES)),
        "threshold": st.floats(0.0, 1.0),
        "factor": st.floats(0.0, 3.0),
        "entropy_bound": st.floats(0.0, 2.0),
        "order": st.none() | st.sampled_from(["left_to_right", "random", "margin"]),
        "mask_schedule": st.sampled_from(["linear", "cosine", "polynomial:2"]),
    }
)
many = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def generators(seed: int, n: int) -> list[Generator]:
    return [Generator().manual_seed((seed + i) % 2**63) for i in range(n)]


def write(rows: list[list[int]], options: dict[str, Any], seed: int, predict: Any = PREDICT) -> Canvas:
    config = SamplerConfig(**options)
    return infill(predict, torch.tensor(rows), MASK, config, generators(seed, len(rows)))


@many
@given(rows=ROWS, options=OPTIONS, seed=SEEDS)
def test_given_tokens_stay_and_the_others_are_text(rows: list[list[int]], options: dict[str, Any], seed: int) -> None:
    """Each step reveals something, and there are at most as many steps as asked for, or one for each block."""
    template = torch.tensor(rows)
    before: Tensor = template
    config, nfe = SamplerConfig(**options), 0
    for state in unmask(PREDICT, template, MASK, config, generators(seed, len(rows))):
        assert state.revealed is not None
        assert bool(state.revealed.any())
        assert torch.equal(before != state.x_t, state.revealed)
        assert bool((before[state.revealed] == MASK).all())
        before, nfe = state.x_t, state.nfe
    assert not bool(((before == MASK) | ((before == PAD) & (template != PAD))).any())
    n_blocks = -(-LENGTH // (options["block_length"] or LENGTH))
    most = max(LENGTH if options["steps"] is None else options["steps"], n_blocks)
    assert nfe <= min(most, LENGTH) * (2 if options["cfg_scale"] else 1)


@many
@given(rows=ROWS, options=OPTIONS, seed=SEEDS)
def test_a_batch_is_its_rows_and_a_seed_is_a_text(rows: list[list[int]], options: dict[str, Any], seed: int) -> None:
    together = write(rows, options, seed).x_t
    assert torch.equal(together, write(rows, options, seed).x_t)
    for i, row in enumerate(rows):
        assert torch.equal(together[i], write([row], options, (seed + i) % 2**63).x_t[0])


TEMPLATES = st.lists(st.lists(TOKENS, min_size=1, max_size=LENGTH), min_size=1, max_size=4)
PADDED = padding_predictor(seed=5)


@settings(many, max_examples=40)
@given(templates=TEMPLATES, options=st.lists(OPTIONS, min_size=4, max_size=4), seed=SEEDS, data=st.data())
def test_whoever_comes_and_goes_a_text_is_what_it_is_alone(
    templates: list[list[int]], options: list[dict[str, Any]], seed: int, data: st.DataObject
) -> None:
    """Of other lengths and settings, begun at other steps, in any places of the batch."""
    waiting = [
        start(template, MASK, SamplerConfig(**how), own)
        for template, how, own in zip(templates, options, generators(seed, len(templates)), strict=False)
    ]
    fills, running = list(waiting), list[Fill]()
    while waiting or running:
        if waiting and (not running or data.draw(st.booleans())):
            running.insert(data.draw(st.integers(0, len(running))), waiting.pop())
        advance(PADDED, running, PAD)
        running = [fill for fill in running if not fill.is_done]
    for fill, template, own in zip(fills, templates, generators(seed, len(fills)), strict=True):
        alone = infill(PADDED, torch.tensor([template]), MASK, fill.config, own)
        assert torch.equal(fill.ids, alone.x_t[0])
        assert fill.nfe == alone.nfe


AGAIN = st.sampled_from([{"remdm_eta": 0.3}, {"remdm_eta": 1.0}, {"p2_tokens": 1}, {"p2_tokens": 3}])


@many
@given(rows=ROWS, options=OPTIONS, again=AGAIN, seed=SEEDS)
def test_what_is_masked_again_is_written_anew(
    rows: list[list[int]], options: dict[str, Any], again: dict[str, Any], seed: int
) -> None:
    """Given tokens stay, no MASK is left, and each step leaves as many tokens as it says."""
    config = SamplerConfig(**{**options, "stable_entropy": None, "steps": (options["steps"] or 4) * 2, **again})
    template = torch.tensor(rows)
    before = template
    for state in unmask(PREDICT, template, MASK, config, generators(seed, len(rows))):
        assert state.revealed is not None
        assert bool(state.revealed.any())
        assert not bool((state.x_t != template)[template != MASK].any())
        assert bool((before[state.revealed] == MASK).all())
        assert bool((state.x_t != MASK)[state.revealed].all())
        assert bool(((state.x_t != MASK).sum(1) >= (before != MASK).sum(1)).all())
        before = state.x_t
    assert not bool((before == MASK).any())


@many
@given(rows=ROWS, options=OPTIONS, seed=SEEDS)
def test_up_to_its_end_a_text_is_what_it_is_without_one(
    rows: list[list[int]], options: dict[str, Any], seed: int
) -> None:
    template, config = torch.tensor(rows), SamplerConfig(**options)
    whole = write(rows, options, seed)
    ended = Canvas(template, 0)
    for state in unmask(PREDICT, template, MASK, config, generators(seed, len(rows)), end_ids=[2]):
        ended = state
    assert ended.nfe <= whole.nfe
    for row, text, stopped in zip(rows, whole.x_t.tolist(), ended.x_t.tolist(), strict=True):
        ends = [i for i, token in enumerate(stopped) if token == 2 and row[i] == MASK and MASK not in stopped[:i]]
        end = ends[0] + 1 if ends else LENGTH
        assert stopped[:end] == text[:end]
        assert MASK not in stopped[:end]


@settings(many, max_examples=10)
@given(share=st.floats(0.1, 1.0), options=OPTIONS, seed=SEEDS)
def test_a_cache_changes_no_text(share: float, options: dict[str, Any], seed: int) -> None:
    """On a machine whose matmuls give a row the same numbers among any others, which `with_cache` finds out."""
    model, drawn = predictor(), Generator().manual_seed(seed % 2**63)
    ids = torch.randint(1, CONFIG.vocab_size - 1, (2, 24), generator=drawn)
    template = torch.where(torch.rand(2, 24, generator=drawn) < share, MASK_ID, ids)
    config = SamplerConfig(**options)
    with_it, without = (
        infill(suppress(one, [CONFIG.mask_token_id]), template, MASK_ID, config, generators(seed, 2))
        for one in (with_cache(model), model)
    )
    assert torch.equal(with_it.x_t, without.x_t)


@many
@given(rows=ROWS, options=OPTIONS, seed=SEEDS, place=st.integers(0, LENGTH - 1), token=st.sampled_from([1, 2]))
def test_what_is_required_is_written(
    rows: list[list[int]], options: dict[str, Any], seed: int, place: int, token: int
) -> None:
    """Whatever it is that chooses; and a token that is banned elsewhere is not written there."""
    rows = [[*row[:place], MASK, *row[place + 1 :]] for row in rows]
    elsewhere = (place + 1) % LENGTH
    bound = constrain(PREDICT, torch.tensor(rows), MASK, required={place: [token]}, banned={elsewhere: [token]})
    for row, text in zip(rows, write(rows, options, seed, bound).x_t.tolist(), strict=True):
        assert text[place] == token
        assert row[elsewhere] != MASK or text[elsewhere] != token


@many
@given(rows=ROWS, options=OPTIONS, seed=SEEDS)
def test_one_block_of_the_whole_is_no_blocks(rows: list[list[int]], options: dict[str, Any], seed: int) -> None:
    whole = write(rows, {**options, "block_length": LENGTH}, seed)
    assert torch.equal(whole.x_t, write(rows, {**options, "block_length": None}, seed).x_t)


@many
@given(rows=ROWS, options=OPTIONS, seed=SEEDS)
def test_guidance_of_nothing_is_none(rows: list[list[int]], options: dict[str, Any], seed: int) -> None:
    """Of strength 0; and of any strength where nothing is given."""
    without = {**options, "cfg_scale": 0.0}
    tiny = write(rows, {**options, "cfg_scale": 1e-300}, seed, predict=dyadic)
    assert torch.equal(tiny.x_t, write(rows, without, seed, predict=dyadic).x_t)
    nothing = [[MASK] * LENGTH]
    strong = {**without, "cfg_scale": 3.0, "steps": 1, "policy": None, "block_length": None}
    assert torch.equal(
        write(nothing, strong, seed, predict=dyadic).x_t,
        write(nothing, {**strong, "cfg_scale": 0.0}, seed, predict=dyadic).x_t,
    )


def dyadic(x_t: Tensor) -> Tensor:
    """Logits that are multiples of 1/8, whose differences have no rounding."""
    return (TABLE(x_t) * 8).round() / 8


@many
@given(rows=ROWS, seed=SEEDS)
def test_no_entropy_allowed_is_one_a_step(rows: list[list[int]], seed: int) -> None:
    """Nothing is certain here, so that the text is that of the order itself."""
    options = {"steps": None, "temperature": 1.0}
    bound = write(rows, {**options, "policy": "entropy_bound", "entropy_bound": 0.0}, seed)
    single = write(rows, {**options, "policy": "entropy"}, seed)
    assert torch.equal(bound.x_t, single.x_t)
    assert bound.nfe == single.nfe == max(row.count(MASK) for row in rows)


@pytest.mark.parametrize("n_certain", [1, 3])
def test_what_is_certain_costs_no_step_of_its_own(n_certain: int) -> None:
    def predict(x_t: Tensor) -> Tensor:
        logits = torch.zeros(*x_t.shape, N_TOKENS)
        logits[:, :n_certain, 1:] = -torch.inf
        return logits

    config = SamplerConfig(steps=None, temperature=1.0, policy="entropy_bound", entropy_bound=0.0)
    canvas = infill(predict, torch.full((1, LENGTH), MASK), MASK, config, Generator().manual_seed(1))
    assert canvas.x_t[0, :n_certain].tolist() == [0] * n_certain
    # The first step takes all that is certain, and one more: together they have the entropy of that one alone.
    assert canvas.nfe == LENGTH - n_certain
