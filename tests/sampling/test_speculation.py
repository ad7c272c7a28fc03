"""Speculation: token for token what one evaluation a step writes, in fewer evaluations where the guesses are right."""

import pytest
import torch
from torch import Generator, Tensor

from llada.sampling.config import SamplerConfig
from llada.sampling.guidance import Predict, suppress
from llada.sampling.speculation import SpeculatedCanvas, check_lossless, speculate
from llada.sampling.unmask import Canvas, infill
from tests.support.toys import MASK, N_TOKENS, table_predictor

TEMPLATE = torch.tensor([[MASK, MASK, 0, MASK, MASK, MASK, MASK]])
SETTINGS = {
    "low_confidence": {},
    "confidence": {"policy": "confidence"},
    "margin": {"policy": "margin"},
    "entropy": {"policy": "entropy"},
    "left to right": {"policy": "left_to_right"},
    "random": {"policy": "random"},
    "entropy bound": {"policy": "entropy_bound", "entropy_bound": 0.5},
    "threshold": {"policy": "threshold", "threshold": 0.9},
    "blocks": {"policy": "confidence", "block_length": 3},
    "two a step": {"steps": 3},
    "guidance": {"cfg_scale": 1.5},
    "penalty": {"policy": "confidence", "repetition_penalty": 1.7},
}


def counted(predict: Predict) -> tuple[Predict, list[int]]:
    """The predictor, and how many texts each of its calls had."""
    rows: list[int] = []

    def call(x_t: Tensor) -> Tensor:
        rows.append(len(x_t))
        return predict(x_t)

    return call, rows


def both(predict: Predict, config: SamplerConfig, n_guesses: int) -> tuple[Canvas, SpeculatedCanvas]:
    """What is written one evaluation a step, and with guesses."""
    plain = infill(predict, TEMPLATE, MASK, config, Generator().manual_seed(5))
    states = list(speculate(predict, TEMPLATE, MASK, config, n_guesses, Generator().manual_seed(5)))
    return plain, states[-1]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("n_guesses", [1, 3])
def test_the_text_is_the_same(settings: dict[str, object], n_guesses: int) -> None:
    """For predictors that are any function of the text, whose guesses are often wrong."""
    config = SamplerConfig(**{"steps": None, **settings})  # type: ignore[arg-type]
    calls_a_pass = 2 if config.cfg_scale else 1
    fewer = 0
    for seed in range(10):
        predict, rows = counted(suppress(table_predictor(length=7, seed=seed), [1]))
        plain = infill(predict, TEMPLATE, MASK, config, Generator().manual_seed(5))
        rows.clear()
        states = list(speculate(predict, TEMPLATE, MASK, config, n_guesses, Generator().manual_seed(5)))
        assert torch.equal(states[-1].x_t, plain.x_t)
        assert states[-1].nfe == len(rows) == len(states) * calls_a_pass
        assert states[-1].rows * calls_a_pass == sum(rows)
        assert max(rows) <= n_guesses + 1
        assert states[-1].steps * calls_a_pass == plain.nfe
        assert states[-1].nfe <= plain.nfe
        fewer += plain.nfe - states[-1].nfe
    if config.steps is None and config.policy not in ("entropy_bound", "threshold"):  # these need few steps anyway
        assert fewer > 0


@pytest.mark.parametrize(("n_guesses", "nfe"), [(1, 4), (2, 3), (5, 2), (50, 2)])
def test_where_the_text_does_not_matter_all_guesses_are_right(n_guesses: int, nfe: int) -> None:
    """Of 6 steps, the first evaluation has nothing to guess by; the others take n + 1 each."""
    fixed = torch.randn(7, N_TOKENS, generator=Generator().manual_seed(0))
    plain, found = both(lambda x_t: fixed.expand(len(x_t), 7, N_TOKENS), SamplerConfig(steps=None), n_guesses)
    assert torch.equal(found.x_t, plain.x_t)
    assert (plain.nfe, found.nfe, found.steps) == (6, nfe, 6)


def test_where_every_guess_is_wrong_an_evaluation_is_a_step() -> None:
    """The likeliest token depends on how many masks are left."""

    def predict(x_t: Tensor) -> Tensor:
        n_open = (x_t == MASK).sum(1)
        return 9.0 * torch.nn.functional.one_hot(n_open % N_TOKENS, N_TOKENS)[:, None].expand(-1, 7, -1).float()

    plain, found = both(predict, SamplerConfig(steps=None), 3)
    assert torch.equal(found.x_t, plain.x_t)
    assert found.nfe == plain.nfe == 6
    assert found.rows == 1 + 4 + 4 + 3 + 2 + 1  # nothing to guess by, three guesses, and no more than are left


def test_settings_under_which_a_text_could_change_are_refused() -> None:
    for config, words in (
        (SamplerConfig(temperature=1.0), "at temperature 0 only"),
        (SamplerConfig(stable_entropy=0.005), "stable_entropy"),
        (SamplerConfig(remdm_eta=0.1), "mask written tokens again"),
        (SamplerConfig(p2_tokens=2), "mask written tokens again"),
    ):
        with pytest.raises(ValueError, match=words):
            check_lossless(config, 3)
    with pytest.raises(ValueError, match="speculate must be at least 1, not 0"):
        check_lossless(SamplerConfig(), 0)
    predict = table_predictor(length=7, seed=0)
    with pytest.raises(ValueError, match="one text at a time, not 2"):
        next(speculate(predict, TEMPLATE.expand(2, 7), MASK, SamplerConfig(), 3))
    assert list(speculate(predict, torch.zeros(1, 7, dtype=torch.long), MASK, SamplerConfig(), 3)) == []
