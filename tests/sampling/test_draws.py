"""Shape letters: R positions, V vocabulary rows."""

import math

import pytest
import torch

from llada.sampling.draws import draw, shaped, uniforms

P = torch.tensor([[0.1, 0.4, 0.0, 0.3, 0.2]])


def kept(**options: float) -> list[float]:
    return [round(value, 4) for value in shaped(P.log(), **options).exp()[0].tolist()]  # type: ignore[arg-type]


def test_temperature_is_a_power_of_the_probabilities() -> None:
    squares = [0.01, 0.16, 0.0, 0.09, 0.04]
    assert kept(temperature=0.5) == [round(value / 0.30, 4) for value in squares]
    assert kept(temperature=0) == [0, 1, 0, 0, 0]
    assert kept() == [0.1, 0.4, 0.0, 0.3, 0.2]


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
