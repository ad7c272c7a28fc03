"""Shape letters: B batch, L length, V vocabulary rows."""

import torch
from torch import Generator

from llada.sampling.config import SamplerConfig
from llada.sampling.guidance import guide, suppress
from llada.sampling.unmask import infill
from tests.support.toys import MASK, table_predictor, uniform


def test_guidance_extrapolates_from_the_canvas_without_given_tokens() -> None:
    predict = table_predictor(length=3, seed=8)
    x_t = torch.tensor([[1, MASK, 0]])
    conditional, unconditional = predict(x_t), predict(torch.tensor([[MASK, MASK, MASK]]))
    guided = guide(predict, x_t != MASK, MASK, cfg_scale=1.5)(x_t)
    assert torch.allclose(guided, unconditional + 2.5 * (conditional - unconditional))


def test_guidance_doubles_the_evaluations_and_keeps_suppressed_tokens_suppressed() -> None:
    predict = suppress(table_predictor(length=4, seed=9), [0])
    canvas = infill(predict, torch.tensor([[1, MASK, MASK, 2]]), MASK, SamplerConfig(steps=2, cfg_scale=2.0))
    assert canvas.nfe == 4
    assert 0 not in canvas.x_t.tolist()[0]


def test_suppressed_tokens_are_never_produced() -> None:
    template = torch.full((50, 5), MASK)
    config = SamplerConfig(steps=5, temperature=5.0, remasking="random")
    canvas = infill(suppress(uniform, [0, 2]), template, MASK, config, Generator().manual_seed(10))
    assert (canvas.x_t == 1).all()
