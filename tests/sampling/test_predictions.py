"""Numbers by position, from logits: those of the log-probabilities, whatever the size of the vocabulary.

Shape letters: N positions, V vocabulary rows.
"""

import math

import pytest
import torch
from torch import Generator, Tensor

from llada.sampling import predictions as module
from llada.sampling.predictions import SEGMENT, Predictions, predictions
from tests.support.networks import assert_near


def some_logits(n_columns: int, n: int = 7) -> Tensor:
    """Logits (N, V), the first columns suppressed in one row; the greatest is in the last column of another."""
    logits = 3 * torch.randn(n, n_columns, generator=Generator().manual_seed(n_columns))
    logits[1, : n_columns // 2] = -torch.inf
    logits[2, -1] = 30.0
    return logits


@pytest.mark.parametrize("n_columns", [2, 5, SEGMENT - 1, SEGMENT, SEGMENT + 1, 5 * SEGMENT, 5 * SEGMENT + 3])
@pytest.mark.parametrize("at_once", [1, 2**19], ids=["row by row", "all at once"])
def test_numbers_are_those_of_fp64(n_columns: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE_ON_CPU", at_once)
    logits = some_logits(n_columns)
    log_p, found = logits.double().log_softmax(-1), Predictions(logits)
    p = log_p.exp()
    two = p.topk(2, dim=-1).values
    assert found.best.token.tolist() == log_p.argmax(-1).tolist()
    assert_near(found.confidence.double(), log_p.amax(-1))
    assert_near(found.margin.double(), two[:, 0] - two[:, 1])
    assert_near(found.entropy.double(), torch.special.entr(p).sum(-1))
    assert_near(found.log_p.double(), log_p)
    tokens = torch.arange(len(logits)) % n_columns
    expected = log_p.gather(1, tokens[:, None])[:, 0]
    assert_near(found.log_p_of(tokens).double(), expected)
    in_fp64 = found.p_of_in_fp64(tokens[2:4], torch.tensor([2, 3]))
    torch.testing.assert_close(in_fp64, expected[2:4].exp(), atol=0, rtol=1e-12)
    some = torch.tensor([True, False, True, False, False, True, False])
    assert torch.equal(found.at(some), found.log_p[some])
    places = torch.tensor([6, 2, 3])
    assert Predictions(logits).likeliest_at(places).tolist() == found.likeliest_at(places).tolist()
    assert found.likeliest_at(places).tolist() == log_p[places].argmax(-1).tolist()
    assert len(found) == 7
    assert found.is_finite


def test_the_first_of_several_likeliest_tokens_is_taken() -> None:
    logits = torch.zeros(4, 3 * SEGMENT + 1)
    logits[1, [5, 7, SEGMENT]] = logits[2, [SEGMENT, 2 * SEGMENT]] = logits[3, [2 * SEGMENT + 9, 3 * SEGMENT]] = 1.0
    assert Predictions(logits).best.token.tolist() == [0, 5, SEGMENT, 2 * SEGMENT + 9]


def test_certainty_is_exact() -> None:
    """An entropy bound of 0 reveals what is certain."""
    certain = torch.tensor([[-torch.inf, 4.5, -torch.inf], [-200.0, 17.3, -300.0]])
    found = Predictions(certain)
    assert found.entropy.tolist() == found.confidence.tolist() == [0, 0]
    assert found.margin.tolist() == [1, 1]
    uniform = Predictions(torch.full((1, 1000), 5.0))
    assert float(uniform.entropy) == pytest.approx(math.log(1000))
    assert float(uniform.margin) == 0


def test_bf16_is_computed_in_fp32() -> None:
    logits = some_logits(50).bfloat16()
    for name in ("confidence", "margin", "entropy", "log_p"):
        assert torch.equal(getattr(Predictions(logits), name), getattr(Predictions(logits.float()), name))


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_broken_prediction_is_seen(broken: float) -> None:
    logits = some_logits(9)
    logits[3, 4] = broken
    assert not Predictions(logits).is_finite
    assert not Predictions(torch.full((1, 4), -torch.inf)).is_finite


def test_nothing_asked_is_nothing() -> None:
    found = Predictions(torch.zeros(0, 9))
    assert len(found.confidence) == len(found.entropy) == len(found.margin) == 0
    assert found.is_finite
    assert predictions(found) is found
