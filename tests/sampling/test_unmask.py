"""Shape letters: B batch, L length, V vocabulary rows."""

import itertools
import math

import pytest
import torch
from torch import Generator, Tensor

from llada.models.predictor import PredictAt
from llada.sampling.config import SamplerConfig
from llada.sampling.guidance import suppress
from llada.sampling.policies import PolicyName, most_confident, on_canvas
from llada.sampling.predictions import Predictions
from llada.sampling.steps import confidence_near_cut
from llada.sampling.unmask import generate, infill, unmask
from llada.system.errors import UserError
from tests.support.toys import (
    MASK,
    N_TOKENS,
    joint_predictor,
    padding_predictor,
    table_predictor,
    uniform,
)

PAD = 0  # a token that texts have, too: only the attention mask says that it is padding


def test_the_loop_follows_the_schedule() -> None:
    template = torch.full((1, 8), MASK)
    config = SamplerConfig(steps=2, mask_schedule="polynomial:2")
    states = unmask(table_predictor(8, 2), template, MASK, config)
    assert [int((state.x_t == MASK).sum()) for state in states] == [2, 0]  # 8 (1/2)^2


def test_no_number_of_steps_is_one_for_each_token() -> None:
    canvas = infill(table_predictor(8, 2), torch.tensor([[0, 1] + [MASK] * 6]), MASK, SamplerConfig(steps=None))
    assert canvas.nfe == 6


def published_generate(
    predict: PredictAt,
    prompt: list[int],
    padding: int,
    steps: int,
    block_length: int,
    cfg_scale: float,
) -> list[int]:
    """LLaDA's greedy semi-autoregressive sampler for one row, position by position, from its description.

    The prompt is padded on the left. Blocks go from left to right, and each has an equal share of the steps; in each of
    them predict everything, keep the most confident predictions within the block, as many as the step's share of the
    block, where the first steps get one more if it is not even, and mask the others again. With guidance the logits are
    u + (cfg_scale + 1) (c - u), where u is predicted without the prompt (arXiv 2502.09992, algorithm 5 and appendix A).
    """
    given, gen_length = padding + len(prompt), 6
    row = [*[PAD] * padding, *prompt, *[MASK] * gen_length]
    attention_mask = torch.tensor([[False] * padding + [True] * (len(row) - padding)])
    everywhere = torch.ones_like(attention_mask)
    n_blocks = gen_length // block_length
    n_steps = steps // n_blocks
    for block in range(n_blocks):
        start = given + block * block_length
        for step in range(n_steps):
            logits = predict(torch.tensor([row]), attention_mask=attention_mask, positions=everywhere)
            if cfg_scale:
                nothing = torch.tensor([[MASK] * given + row[given:]])
                without = predict(nothing, attention_mask=attention_mask, positions=everywhere)
                logits = without + (cfg_scale + 1) * (logits - without)
            probability = logits.double().softmax(-1)
            candidates = []
            for i in range(start, start + block_length):
                if row[i] == MASK:
                    token = int(probability[i].argmax())
                    candidates.append((-float(probability[i, token]), i, token))
            n_now = block_length // n_steps + (step < block_length % n_steps)
            for _, i, token in sorted(candidates)[:n_now]:
                row[i] = token
    return row


@pytest.mark.parametrize(("steps", "block_length"), [(6, 6), (4, 6), (1, 6), (2, 3), (6, 2), (3, 2)])
@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
def test_greedy_decoding_equals_the_published_algorithm(steps: int, block_length: int, cfg_scale: float) -> None:
    """Token for token, prompts of unequal lengths in one batch included, as many evaluations included."""
    prompts = [[1, 2], [0], []]
    attention_mask = torch.tensor([[i >= 2 - len(prompt) for i in range(2)] for prompt in prompts])
    padded = torch.tensor([[PAD] * (2 - len(prompt)) + prompt for prompt in prompts])
    config = SamplerConfig(steps=steps, block_length=block_length, cfg_scale=cfg_scale)
    for seed in range(2):
        predict = padding_predictor(seed)
        canvas = generate(predict, padded, 6, MASK, config, attention_mask=attention_mask)
        assert canvas.x_t.tolist() == [
            published_generate(predict, prompt, 2 - len(prompt), steps, block_length, cfg_scale) for prompt in prompts
        ]
        assert canvas.nfe == steps * (2 if cfg_scale else 1)


@pytest.mark.parametrize(("scale", "dtype"), [(1.0, torch.float32), (60.0, torch.float32), (30.0, torch.bfloat16)])
def test_most_confident_tokens_are_those_in_fp64_even_where_fp32_knows_no_difference(
    scale: float, dtype: torch.dtype
) -> None:
    """With logits so far apart that most probabilities are 1 in fp32, and in bf16 with ties."""
    generator = Generator().manual_seed(0)
    is_open = torch.rand(3, 40, generator=generator) < 0.8
    logits = (scale * torch.randn(int(is_open.sum()), 7, generator=generator)).to(dtype)
    token = logits.argmax(-1)
    exact = on_canvas(logits.double().softmax(-1).amax(-1), is_open)
    for n_now in torch.tensor([[1, 0, 5], [2, 20, 40], [31, 30, 3]]):
        near = confidence_near_cut(Predictions(logits), token, is_open, n_now)
        chosen = most_confident(near, n_now) & is_open
        assert torch.equal(chosen, most_confident(exact, n_now) & is_open)


def test_rows_of_a_batch_do_not_influence_each_other() -> None:
    predict = table_predictor(length=8, seed=1)
    templates = torch.tensor([[1, 2] + [MASK] * 6, [MASK] * 8, [0, MASK, 1, MASK, 2, MASK, 0, 0]])
    config = SamplerConfig(steps=8)
    together = infill(predict, templates, MASK, config).x_t
    for row in range(3):
        alone = infill(predict, templates[row : row + 1], MASK, config).x_t
        assert torch.equal(together[row], alone[0])


@pytest.mark.parametrize("remasking", ["low_confidence", "random"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("block_length", [None, 3])
def test_given_tokens_stay_and_every_mask_is_filled(remasking, temperature, block_length) -> None:  # type: ignore[no-untyped-def]
    template = torch.randint(0, N_TOKENS, (4, 8), generator=Generator().manual_seed(0))
    template[torch.rand(4, 8, generator=Generator().manual_seed(1)) < 0.6] = MASK
    config = SamplerConfig(steps=5, remasking=remasking, temperature=temperature, block_length=block_length)
    states = list(unmask(table_predictor(8, 2), template, MASK, config, Generator().manual_seed(3)))
    given = template != MASK
    n_open = [(template == MASK).sum()]
    for state in states:
        assert torch.equal(state.x_t[given], template[given])
        n_open.append((state.x_t == MASK).sum())
    assert n_open[-1] == 0
    assert all(later < earlier for earlier, later in itertools.pairwise(n_open))
    decided_before = template
    for state in states:  # what is decided is never changed
        decided = decided_before != MASK
        assert torch.equal(state.x_t[decided], decided_before[decided])
        decided_before = state.x_t


def test_template_without_masks_costs_nothing() -> None:
    template = torch.tensor([[0, 1, 2]])
    canvas = infill(uniform, template, MASK, SamplerConfig())
    assert torch.equal(canvas.x_t, template)
    assert canvas.nfe == 0


def test_inputs_are_not_modified() -> None:
    template = torch.tensor([[0, MASK, MASK]])
    infill(uniform, template, MASK, SamplerConfig(steps=2))
    assert template.tolist() == [[0, MASK, MASK]]


def test_one_token_a_step_samples_the_joint_distribution() -> None:
    """With exact conditionals, temperature 1 and random order, samples follow the joint distribution they come from."""
    joint = torch.rand(3, 3, generator=Generator().manual_seed(4), dtype=torch.float64) ** 3
    joint /= joint.sum()
    n = 4000
    config = SamplerConfig(steps=2, temperature=1.0, remasking="random")
    template = torch.full((n, 2), MASK)
    x_0 = infill(joint_predictor(joint), template, MASK, config, Generator().manual_seed(5)).x_t
    observed = (x_0[:, 0] * 3 + x_0[:, 1]).bincount(minlength=9)
    expected = n * joint.reshape(-1)
    assert float(((observed - expected) ** 2 / expected).sum()) < 26.1  # chi-square, 8 degrees of freedom, p = 0.001


def test_temperature_divides_the_logits() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0])
    template = torch.full((6000, 1), MASK)
    config = SamplerConfig(steps=1, temperature=0.5)
    x_0 = infill(lambda x_t: logits.expand(*x_t.shape, 3), template, MASK, config, Generator().manual_seed(6)).x_t
    expected = 6000 * (logits / 0.5).softmax(0)
    observed = x_0[:, 0].bincount(minlength=3)
    assert float(((observed - expected) ** 2 / expected).sum()) < 13.8  # 2 degrees of freedom, p = 0.001


def test_random_remasking_ignores_confidence() -> None:
    """A predictor that is surest of the first position: random order still fills each place first equally often."""
    logits = torch.zeros(6000, 3, N_TOKENS)
    logits[:, 0, 0] = 50.0
    config = SamplerConfig(steps=3, remasking="random")
    first = next(
        iter(unmask(lambda x_t: logits, torch.full((6000, 3), MASK), MASK, config, Generator().manual_seed(7)))
    )
    observed = (first.x_t != MASK).sum(0)
    assert float(((observed - 2000.0) ** 2 / 2000).sum()) < 13.8
    sure = next(iter(unmask(lambda x_t: logits, torch.full((6000, 3), MASK), MASK, SamplerConfig(steps=3))))
    assert (sure.x_t[:, 0] == 0).all()


def test_the_same_seed_gives_the_same_text() -> None:
    config = SamplerConfig(steps=3, temperature=1.0, remasking="random")
    first, second = (
        infill(uniform, torch.full((2, 9), MASK), MASK, config, Generator().manual_seed(11)).x_t for _ in range(2)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("config", [SamplerConfig(), SamplerConfig(temperature=1.0, remasking="random", cfg_scale=1.0)])
def test_predictions_that_are_not_finite_end_in_a_sentence(broken: float, config: SamplerConfig) -> None:
    def predict(x_t: Tensor) -> Tensor:
        logits = uniform(x_t)
        logits[:, 1] = broken  # at one position; a single NaN there is enough
        return logits

    with pytest.raises(UserError, match="predictions are not finite numbers: it is broken"):
        infill(predict, torch.full((1, 3), MASK), MASK, config, Generator().manual_seed(0))


def test_one_nan_among_finite_logits_is_found_and_a_suppressed_one_does_no_harm() -> None:
    def predict(x_t: Tensor) -> Tensor:
        logits = uniform(x_t)
        logits[..., 2] = math.nan
        return logits

    with pytest.raises(UserError, match="not finite"):
        infill(predict, torch.full((1, 3), MASK), MASK, SamplerConfig())
    assert infill(suppress(predict, [2]), torch.full((1, 3), MASK), MASK, SamplerConfig()).x_t.max() < 2


@pytest.mark.parametrize("ids", [torch.tensor([1, MASK]), torch.tensor(MASK), torch.full((1, 1, 2), MASK)])
def test_ids_that_are_no_batch_are_refused(ids: Tensor) -> None:
    for write in (
        lambda: infill(uniform, ids, MASK, SamplerConfig()),
        lambda: generate(uniform, ids, 2, MASK, SamplerConfig()),
    ):
        with pytest.raises(ValueError, match=r"must have the shape \(B, L\), not .* ids\[None\]"):
            write()


@pytest.mark.parametrize(
    ("steps", "block_length", "nfe"),
    [(7, 3, 6), (1, 3, 3), (2, 3, 3), (100, 3, 7), (3, 100, 3), (100, None, 7), (5, 7, 5), (4, 2, 4)],
)
def test_blocks_and_steps_that_do_not_divide_fill_all_the_same(steps: int, block_length: int, nfe: int) -> None:
    """7 tokens: at least one step a block, at most one a token, and a last block that is shorter."""
    config = SamplerConfig(steps=steps, block_length=block_length)
    canvas = generate(table_predictor(length=8, seed=3), torch.tensor([[1]]), 7, MASK, config)
    assert canvas.nfe == nfe
    assert MASK not in canvas.x_t.tolist()[0]


@pytest.mark.parametrize("policy", [None, "entropy"])
def test_stable_predictions_are_filled_in(policy: PolicyName | None) -> None:
    """Sure from the beginning: the second step has the likeliest tokens of the first, and fills in the rest.

    The other row has an entropy of ln 3 in the mean, which is not below the bound, and goes on one by one.
    """

    def predict(x_t: Tensor) -> Tensor:
        logits = torch.zeros(*x_t.shape, N_TOKENS)
        logits[0, :, 2] = 50.0
        return logits

    config = SamplerConfig(steps=None, policy=policy, stable_entropy=0.005)
    states = list(unmask(predict, torch.full((2, 6), MASK), MASK, config))
    assert [(state.x_t == MASK).sum(1).tolist() for state in states] == [[5, 5], [0, 4], [0, 3], [0, 2], [0, 1], [0, 0]]
    assert states[-1].x_t[0].tolist() == [2] * 6
    assert [state.nfe for state in states] == [1, 2, 3, 4, 5, 6]
    alone = list(unmask(lambda x_t: predict(x_t)[:1], torch.full((1, 6), MASK), MASK, config))
    assert [state.nfe for state in alone] == [1, 2]


def test_predictions_that_change_are_not_stable() -> None:
    """As sure as can be, but of another token at each step."""

    def predict(x_t: Tensor) -> Tensor:
        return torch.nn.functional.one_hot((x_t == MASK).sum(1, keepdim=True).expand_as(x_t) % 2, 3) * 50.0

    config = SamplerConfig(steps=None, stable_entropy=0.005)
    canvas = infill(predict, torch.full((1, 4), MASK), MASK, config)
    assert canvas.x_t.tolist() == [[0, 1, 0, 1]]
    assert canvas.nfe == 4


def test_text_of_masks_only_and_of_nothing() -> None:
    """An empty prompt is a canvas of masks; no tokens to write cost no evaluation."""
    empty = torch.zeros(2, 0, dtype=torch.long)
    assert generate(table_predictor(4, 1), empty, 4, MASK, SamplerConfig()).x_t.shape == (2, 4)
    canvas = generate(uniform, empty, 0, MASK, SamplerConfig())
    assert (canvas.x_t.shape, canvas.nfe) == ((2, 0), 0)
