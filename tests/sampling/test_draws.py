"""Shape letters: R positions, V vocabulary rows."""

import math

import pytest
import torch

from llada.sampling.draws import draw, draw_at, shaped, uniforms
from llada.sampling.predictions import Predictions

P = torch.tensor([[0.1, 0.4, 0.0, 0.3, 0.2]])


def kept(**options: float) -> list[float]:
    return [round(value, 4) for value in shaped(P.log(), **options).exp()[0].tolist()]  # type: ignore[arg-type]


def test_temperature_is_a_power_of_the_probabilities() -> None:
    squares = [0.01, 0.16, 0.0, 0.09, 0.04]
    assert kept(temperature=0.5) == [round(value / 0.30, 4) for value in squares]
    assert kept(temperature=0) == [0, 1, 0, 0, 0]
    assert kept() == [0.1, 0.4, 0.0, 0.3, 0.2]


@pytest.mark.parametrize("temperature", [1e-30, 1e-37, 1e-39, 5e-324])
def test_the_least_temperatures_leave_the_likeliest_tokens(temperature: float) -> None:
    assert kept(temperature=temperature) == [0, 1, 0, 0, 0]
    twice = torch.tensor([[0.0, 0.4, 0.2, 0.4]]).log()
    assert shaped(twice, temperature).exp().tolist() == [[0, 0.5, 0, 0.5]]


def test_top_k_and_top_p_keep_the_likeliest() -> None:
    assert kept(top_k=2) == [0, round(4 / 7, 4), 0, round(3 / 7, 4), 0]
    assert kept(top_k=9) == kept(top_p=1.0) == kept()
    assert kept(top_p=0.4) == [0, 1, 0, 0, 0]
    assert kept(top_p=0.41) == [0, round(4 / 7, 4), 0, round(3 / 7, 4), 0]
    assert kept(top_p=0.0) == [0, 1, 0, 0, 0]  # at least one
    assert kept(top_k=3, top_p=0.5) == [0, round(4 / 7, 4), 0, round(3 / 7, 4), 0]


def test_a_draw_is_the_inverse_of_the_cumulative_distribution() -> None:
    uniform = torch.tensor([0.0, 0.09, 0.11, 0.49, 0.51, 0.79, 0.81, 1 - 2**-53], dtype=torch.float64)
    assert draw(P.log().expand(8, 5), uniform).tolist() == [0, 0, 1, 1, 3, 3, 4, 4]


@pytest.mark.parametrize("n_columns", [513, 1024, 1500])
def test_a_large_vocabulary_is_drawn_from_in_two_steps(n_columns: int) -> None:
    """First a segment of it, then the token: those of the plain inverse, also at the edges of segments."""
    generator = torch.Generator().manual_seed(n_columns)
    log_p = (4 * torch.randn(50, n_columns, generator=generator)).log_softmax(-1)
    log_p[:, : n_columns // 4] = -math.inf
    log_p[10:20, 512:] = -math.inf  # whole segments without any probability
    log_p = log_p.log_softmax(-1)
    uniform = torch.rand(50, dtype=torch.float64, generator=generator)
    uniform[:2] = torch.tensor([0.0, 0.5])
    cumulative = log_p.double().exp().cumsum(-1)
    plain = [int((row <= u * row[-1]).sum()) for row, u in zip(cumulative, uniform, strict=True)]
    drawn = draw(log_p, uniform)
    assert drawn.tolist() == plain
    assert bool(log_p.gather(1, drawn[:, None]).isfinite().all())


def test_draws_at_some_positions_are_those_of_all_at_once() -> None:
    logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    predicted, places, uniform = Predictions(logits), torch.tensor([4, 0, 5]), torch.tensor([0.3, 0.9, 0.1]).double()
    expected = draw(shaped(logits[places].log_softmax(-1), 0.7, 10), uniform)
    assert torch.equal(draw_at(predicted, places, uniform, 0.7, 10), expected)
    assert torch.equal(draw_at(predicted, places, None, 0), logits[places].argmax(-1))
    assert draw_at(predicted, places[:0], uniform[:0]).tolist() == []


def test_rounding_never_draws_what_has_no_probability() -> None:
    log_p = torch.tensor([[-math.inf, 0.0, -math.inf], [0.0, -math.inf, -math.inf]])
    for uniform in (0.0, 0.5, 1.0):
        assert draw(log_p, torch.full((2,), uniform, dtype=torch.float64)).tolist() == [1, 0]


def test_frequencies_are_the_probabilities() -> None:
    generator, n = torch.Generator().manual_seed(0), 100_000
    counts = draw(P.log().expand(n, 5), uniforms([n], generator)).bincount(minlength=5)
    expected = P[0] * n
    chi_square = float(((counts - expected) ** 2 / expected)[expected > 0].sum())
    assert counts[2] == 0
    assert chi_square < 16.27  # 3 degrees of freedom, 0.1 %


def test_numbers_of_a_row_do_not_depend_on_the_others() -> None:
    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in (3, 4)]

    together = uniforms([2, 3], generators())
    assert together.tolist() == [*uniforms([2], generators()[:1]).tolist(), *uniforms([3], generators()[1:]).tolist()]
    assert uniforms([0, 0], generators()).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_types_are_kept(dtype: torch.dtype) -> None:
    assert draw(P.log().to(dtype), torch.zeros(1, dtype=torch.float64)).dtype == torch.long
