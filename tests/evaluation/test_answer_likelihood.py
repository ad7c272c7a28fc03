"""Shape letters: B batch, L length, V vocabulary rows, N masked positions."""

import itertools
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llada.checkpoints.folder import make_predictor
from llada.evaluation.answer_likelihood import (
    Item,
    all_masks,
    log_likelihoods,
    predict_by_model,
)
from llada.evaluation.causal import causal_log_likelihoods
from llada.evaluation.greedy import are_greedy
from llada.models import EncoderConfig, LLaDAConfig, MaskPredictor, PredictAt, block_length_of
from llada.sampling.config import SamplerConfig
from llada.sampling.guidance import Predict, at_positions, guide, suppress
from llada.sampling.unmask import generate
from llada.system.device import Precision
from llada.system.errors import UserError
from llada.tokenizers.char import CharTokenizer
from tests.support.toys import MASK, N_TOKENS, enumerated_nelbo, joint_predictor, table_predictor

FP32 = Precision(torch.float32, "")
TOKENIZER = CharTokenizer("abcdefgh ")


def at(predict: Predict, length: int = 4) -> PredictAt:
    """Of a predictor over whole rows of one length; shorter ones may not come, longer ones do not exist."""

    def checked(x_t: Tensor) -> Tensor:
        assert x_t.shape[1] == length
        return predict(x_t)

    return at_positions(checked)


def enumerated(predict: Predict, item: Item) -> float:
    """-sum over k and sets of (1/n) (1/C(n, k)) (n/k) sum of cross-entropies, the prompt given: by its definition."""
    given, n, total = len(item.prompt), len(item.answer), 0.0
    x_0 = torch.tensor([*item.prompt, *item.answer])
    for k in range(1, n + 1):
        for positions in itertools.combinations(range(given, given + n), k):
            x_t = x_0.clone()
            x_t[list(positions)] = MASK
            log_p = predict(x_t[None])[0].double().log_softmax(-1)
            total += sum(float(log_p[i, x_0[i]]) for i in positions) / k / math.comb(n, k)
    return total


def everywhere(predict_at: PredictAt, x_t: Tensor) -> Tensor:
    return predict_at(x_t, positions=torch.ones_like(x_t, dtype=torch.bool)).view(*x_t.shape, -1)


def random_items(n_items: int, vocabulary: range = range(3, 12)) -> list[Item]:
    """Prompts of 0 to 5 tokens with answers of 1 to 9."""
    random = np.random.default_rng(0)
    sizes = random.integers([0, 1], [6, 10], (n_items, 2))
    return [Item(*(tuple(random.choice(vocabulary, size).tolist()) for size in pair)) for pair in sizes]


@pytest.fixture(scope="module")
def networks() -> dict[str, PredictAt]:
    torch.manual_seed(0)
    rows: dict[str, Any] = {"vocab_size": TOKENIZER.vocab_size, "mask_token_id": TOKENIZER.mask_row}
    sizes: dict[str, Any] = {"d_model": 16, "n_heads": 2, "n_layers": 2, "max_sequence_length": 16}
    ids: dict[str, Any] = {"pad_token_id": TOKENIZER.pad_id, "eos_token_id": TOKENIZER.eos_id}
    made = {
        "llada": make_predictor(LLaDAConfig(**rows, **sizes, **ids, n_kv_heads=2, mlp_hidden_size=32), TOKENIZER),
        "encoder": make_predictor(EncoderConfig(**rows, **sizes), TOKENIZER),
    }
    for model in made.values():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return {name: predict_by_model(model.eval(), FP32) for name, model in made.items()}


@pytest.fixture(scope="module")
def causal() -> MaskPredictor:
    torch.manual_seed(1)
    rows: dict[str, Any] = {"vocab_size": TOKENIZER.vocab_size, "mask_token_id": TOKENIZER.mask_row}
    config = EncoderConfig(**rows, max_sequence_length=16, d_model=16, n_heads=2, n_layers=2, is_causal=True)
    model = make_predictor(config, TOKENIZER).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


# -- exactness --------------------------------------------------------------------------------------------------------


def test_masks_are_all_that_there_are_and_their_counts_uniform() -> None:
    is_masked, probability = all_masks(3)
    assert {tuple(row) for row in is_masked.int().tolist()} == set(itertools.product((0, 1), repeat=3)) - {(0, 0, 0)}
    for k in (1, 2, 3):
        assert float(probability[is_masked.sum(1) == k].sum()) == pytest.approx(1 / 3, abs=1e-12)


@pytest.mark.parametrize("n_given", [0, 1, 2, 3])
@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
def test_short_answers_are_exact(n_given: int, cfg_scale: float) -> None:
    predict, ids = table_predictor(length=4, seed=1), (2, 0, 1, 1)
    item = Item(ids[:n_given], ids[n_given:])
    is_given = torch.arange(4)[None] < n_given
    expected = enumerated(guide(predict, is_given, MASK, cfg_scale), item)
    (result,) = log_likelihoods(at(predict), [item], MASK, mc_num=16, cfg_scale=cfg_scale)
    assert result.nats == pytest.approx(expected, rel=1e-6)
    assert (result.stderr, result.rows) == (0.0, 2 ** (4 - n_given) - 1)
    if not n_given:  # the bound of the whole sequence, by the other test's own enumeration
        assert expected == pytest.approx(-4 * enumerated_nelbo(predict, torch.tensor(ids)), rel=1e-6)


def test_one_token_is_its_probability() -> None:
    """The bound is tight for a predictor that knows the joint distribution: log p(answer | prompt) itself."""
    joint = torch.rand(N_TOKENS, N_TOKENS, N_TOKENS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    joint /= joint.sum()
    predict = at(joint_predictor(joint), length=3)
    one, two = log_likelihoods(predict, [Item((0, 2), (1,)), Item((0,), (2, 1))], MASK)
    assert one.nats == pytest.approx(math.log(joint[0, 2, 1] / joint[0, 2].sum()), rel=1e-6)
    # Any order of a consistent predictor gives the same product, and so does their mean, except that masking both at
    # once predicts them apart: k = 1 gives 2 (ln p(a|b) + ln p(b|a)) / 2, k = 2 gives ln p(a) + ln p(b).
    p = joint[0] / joint[0].sum()
    apart = math.log(p[2].sum()) + math.log(p[:, 1].sum())
    each = math.log(p[2, 1] / p[:, 1].sum()) + math.log(p[2, 1] / p[2].sum())
    assert two.nats == pytest.approx((apart + each) / 2, rel=1e-6)


def test_draws_agree_with_enumeration_in_the_mean() -> None:
    predict, item = table_predictor(length=4, seed=3), Item((), (0, 2, 1, 1))
    expected = enumerated(predict, item)
    draws = [log_likelihoods(at(predict), [item], MASK, mc_num=8, seed=seed)[0] for seed in range(600)]
    assert {(draw.rows, draw.stderr == 0) for draw in draws} == {(8, False)}
    nats = np.array([draw.nats for draw in draws])
    stderr = float(nats.std(ddof=1)) / len(nats) ** 0.5
    assert abs(float(nats.mean()) - expected) < 4 * stderr
    assert 0 < stderr < 0.01 * abs(expected)  # the test can see an error of 4 %


def test_stated_errors_cover_the_truth() -> None:
    """At the default number of draws; 255 masks can still be enumerated, but are more than the draws."""
    covered = []
    for table in range(8):
        predict, item = table_predictor(length=8, seed=table), Item((), (2, 0, 2, 1, 1, 0, 0, 2))
        (truth,) = log_likelihoods(at(predict, 8), [item], MASK, mc_num=256, batch_size=256)
        assert (truth.stderr, truth.rows) == (0, 255)
        for seed in range(1000 * table, 1000 * table + 150):
            (draw,) = log_likelihoods(at(predict, 8), [item], MASK, batch_size=128, seed=seed)
            assert draw.stderr
            covered.append(abs(draw.nats - truth.nats) < 1.96 * draw.stderr)
    assert 0.93 <= float(np.mean(covered)) <= 0.97


def test_one_pair_of_draws_has_no_error() -> None:
    (result,) = log_likelihoods(at(table_predictor(4, 0)), [Item((), (0, 1, 2, 0))], MASK, mc_num=2)
    assert (result.stderr, result.rows) == (None, 2)


# -- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llada", "encoder"])
@pytest.mark.parametrize("cfg_scale", [0.0, 0.7])
def test_neither_batch_nor_company_nor_order_matters(
    networks: dict[str, PredictAt], name: str, cfg_scale: float
) -> None:
    items = random_items(12)
    common: dict[str, Any] = {"mask_id": TOKENIZER.mask_id, "mc_num": 6, "cfg_scale": cfg_scale, "seed": 4}
    alone = [log_likelihoods(networks[name], [item], batch_size=1, **common)[0] for item in items]
    for order, batch_size in ((range(12), 7), (range(11, -1, -1), 100)):
        together = log_likelihoods(networks[name], [items[i] for i in order], batch_size=batch_size, **common)
        for i, result in zip(order, together, strict=True):
            assert result.nats == pytest.approx(alone[i].nats, rel=2e-5)
            assert result.stderr == pytest.approx(alone[i].stderr, abs=2e-5)
    assert log_likelihoods(networks[name], items, **common) == log_likelihoods(networks[name], items, **common)
    other = log_likelihoods(networks[name], items, **{**common, "seed": 5})
    is_same = [o.nats == pytest.approx(a.nats, rel=1e-4) for o, a in zip(other, alone, strict=True)]
    assert all(same for same, item in zip(is_same, items, strict=True) if len(item.answer) <= 2)  # nothing is drawn
    assert not any(same for same, item in zip(is_same, items, strict=True) if len(item.answer) >= 6)


def test_answers_of_one_length_are_masked_alike() -> None:
    masked: list[Tensor] = []

    def predict_at(x_t: Tensor, *, attention_mask: Tensor | None = None, positions: Tensor) -> Tensor:
        masked.append(positions)
        return torch.zeros(int(positions.sum()), N_TOKENS)

    prompt = (1, 2)
    items = [Item(prompt, (0, 0, 1, 2, 0)), Item(prompt, (2, 2, 2, 1, 1)), Item((2, 1), (2, 2, 2, 1, 1))]
    log_likelihoods(predict_at, items, MASK, mc_num=16, batch_size=16)
    assert torch.equal(masked[0], masked[1])
    assert not torch.equal(masked[0], masked[2])


def test_an_empty_answer_is_certain(networks: dict[str, PredictAt]) -> None:
    items = [Item((3, 4), ()), Item((3,), (4,))]
    results = log_likelihoods(networks["llada"], items, TOKENIZER.mask_id)
    assert (results[0].nats, results[0].rows) == (0.0, 0)
    assert results[1].nats < 0
    assert are_greedy(networks["llada"], items[:1], TOKENIZER.mask_id) == [True]


def test_progress_ends_at_one() -> None:
    fractions: list[float] = []
    log_likelihoods(
        at(table_predictor(4, 0)), [Item((0,), (1, 2, 0))] * 3, MASK, batch_size=4, on_progress=fractions.append
    )
    assert fractions == [4 / 21, 8 / 21, 12 / 21, 16 / 21, 20 / 21, 1.0]


# -- greedy decoding --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg_scale", [0.0, 2.0])
@pytest.mark.parametrize("forbidden", [(), (1,)])
def test_greedy_is_what_the_sampler_writes(cfg_scale: float, forbidden: tuple[int, ...]) -> None:
    n_changed = 0
    for seed in range(6):
        predict, prompt = table_predictor(length=6, seed=seed), (1, 2)
        config = SamplerConfig(steps=4, cfg_scale=cfg_scale)
        canvas = generate(suppress(predict, forbidden), torch.tensor([prompt]), 4, MASK, config)
        written = tuple(canvas.x_t[0, 2:].tolist())
        answers = [*itertools.product(range(N_TOKENS), repeat=4)]
        items = [Item(prompt, answer) for answer in answers]
        found = are_greedy(at(predict, 6), items, MASK, forbidden=forbidden, cfg_scale=cfg_scale, batch_size=40)
        assert [answer for answer, is_greedy in zip(answers, found, strict=True) if is_greedy] == [written]
        left_to_right = (*prompt, *[MASK] * 4)
        n_changed += written != tuple(predict(torch.tensor([left_to_right]))[0, 2:].argmax(-1).tolist())
    assert n_changed  # predicting all at once would not do


def test_greedy_does_not_depend_on_the_batch(networks: dict[str, PredictAt]) -> None:
    for predict_at in networks.values():
        items = random_items(6)
        written = []
        for item in items:
            length = len(item.answer)
            x = torch.tensor([item.prompt], dtype=torch.long)
            predict = partial(everywhere, predict_at)
            canvas = generate(predict, x, length, TOKENIZER.mask_id, SamplerConfig(steps=length))
            written.append(Item(item.prompt, tuple(canvas.x_t[0, len(item.prompt) :].tolist())))
        mixed = [item for pair in zip(items, written, strict=True) for item in pair]
        found = are_greedy(predict_at, mixed, TOKENIZER.mask_id, batch_size=5)
        assert found == [a == b for item, own in zip(items, written, strict=True) for a, b in ((item, own), (own, own))]
        assert sum(found) >= 6


# -- the yardstick ----------------------------------------------------------------------------------------------------


def test_a_causal_model_is_scored_token_by_token(causal: MaskPredictor) -> None:
    """Against the chain rule written out: each token by a pass over what is before it alone."""
    items = [*random_items(9), Item((3, 4), ())]
    results = causal_log_likelihoods(predict_by_model(causal, FP32), items, batch_size=4, forbidden=[0, 1])
    for item, (found, is_greedy) in zip(items, results, strict=True):
        ids, nats, greedy = [*item.prompt, *item.answer], 0.0, True
        for i in range(len(item.prompt), len(item)):
            with torch.no_grad():
                logits = causal(torch.tensor([[*ids[:i], TOKENIZER.mask_id]]))[0, -1].double()
            nats += float(logits.log_softmax(-1)[ids[i]])
            greedy &= int(logits[2:].argmax()) + 2 == ids[i]
        assert found.nats == pytest.approx(nats, rel=1e-5)
        assert (found.stderr, found.rows) == (0.0, min(1, len(item.answer)))
        assert is_greedy == greedy


def test_a_causal_model_knows_its_own_text(causal: MaskPredictor) -> None:
    config = SamplerConfig(steps=6, block_length=block_length_of(causal, None))
    written = generate(causal, torch.tensor([[3, 5], [7, 4]]), 6, TOKENIZER.mask_id, config).x_t.tolist()
    items = [Item(tuple(row[:2]), tuple(row[2:])) for row in written]
    changed = [Item(item.prompt, (*item.answer[:-1], 3 + (item.answer[-1] == 3))) for item in items]
    results = causal_log_likelihoods(predict_by_model(causal, FP32), [*items, *changed])
    assert [is_greedy for _, is_greedy in results] == [True, True, False, False]


# -- bad input --------------------------------------------------------------------------------------------------------


def test_a_prompt_gives_way_and_an_answer_does_not() -> None:
    assert Item((1, 2, 3), (4, 5)).fitted(4) == Item((2, 3), (4, 5))
    assert Item((1, 2, 3), (4, 5)).fitted(2) == Item((), (4, 5))
    assert Item((1,), (4, 5)).fitted(3) == Item((1,), (4, 5))
    with pytest.raises(UserError, match="answer of 2 tokens is longer than the 1 of this model"):
        Item((1, 2, 3), (4, 5)).fitted(1)


def test_a_broken_model_is_named() -> None:
    broken = at_positions(lambda x_t: torch.full((*x_t.shape, 3), math.nan))
    with pytest.raises(UserError, match="not finite numbers"):
        log_likelihoods(broken, [Item((), (0, 1))], MASK)
    with pytest.raises(UserError, match="not finite numbers"):
        are_greedy(broken, [Item((), (0, 1))], MASK)
    with pytest.raises(UserError, match="not finite numbers"):
        causal_log_likelihoods(broken, [Item((), (0, 1))])


def test_odd_draws_and_empty_batches_are_refused() -> None:
    predict_at, item = at(table_predictor(4, 0)), Item((), (0, 1, 2, 0))
    with pytest.raises(ValueError, match="take an even mc_num, not 5"):
        log_likelihoods(predict_at, [item], MASK, mc_num=5)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        log_likelihoods(predict_at, [item], MASK, batch_size=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        are_greedy(predict_at, [item], MASK, batch_size=0)
