"""AdamW for low memory: against torch's, by hand, and in the mean."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llada.optim import adamw
from llada.optim.adamw import SMALLEST_QUANTISED, AdamW16, round_stochastically
from llada.optim.parts import ROWS, Rows

SHAPES = ((70, 90), (5,), (300, 257))


def parameters(dtype: torch.dtype) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def train(
    make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer], dtype: torch.dtype, steps: int = 20
) -> list[torch.Tensor]:
    """Weights after steps whose gradients depend on nothing but the step."""
    weights = parameters(dtype)
    optimizer = make(weights)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator).to(dtype)
        optimizer.step()
    return [weight.detach().float() for weight in weights]


def test_in_fp32_it_is_torchs() -> None:
    ours = train(lambda p: AdamW16(p, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1), torch.float32)
    torchs = train(lambda p: torch.optim.AdamW(p, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1), torch.float32)
    for a, b in zip(ours, torchs, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_large_tensors_are_updated_in_pieces_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    for state in ("fp32", "8bit"):
        whole = train(lambda p: AdamW16(p, lr=1e-2, state=state), torch.float32)  # noqa: B023
        with monkeypatch.context() as patch:
            patch.setattr("llada.optim.adamw.AT_ONCE", 1024)
            pieces = train(lambda p: AdamW16(p, lr=1e-2, state=state), torch.float32)  # noqa: B023
        assert all(torch.equal(a, b) for a, b in zip(whole, pieces, strict=True))


def test_moments_in_8_bits_stay_near_those_in_fp32() -> None:
    """A step moves a weight by about the rate; after 20, the two differ by a fraction of what they moved."""
    exact = train(lambda p: AdamW16(p, lr=1e-2), torch.float32)
    coarse = train(lambda p: AdamW16(p, lr=1e-2, state="8bit"), torch.float32)
    for start, a, b in zip(parameters(torch.float32), exact, coarse, strict=True):
        assert (a - b).norm() < 0.05 * (a - start).norm()


def test_rounding_is_right_in_the_mean() -> None:
    """Between the neighbours 1 and 1 + 1/128 of bf16, a quarter of the way: a quarter goes up."""
    torch.manual_seed(0)
    for sign in (1, -1):
        rounded = round_stochastically(torch.full((40_000,), sign * (1 + 1 / 512))).float() * sign
        assert set(rounded.tolist()) == {1.0, 1 + 1 / 128}
        share = float((rounded > 1).float().mean())
        assert share == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 40_000) ** 0.5)
    exact = torch.tensor([0.0, -2.5, 1.0, 3e38]).bfloat16()
    assert torch.equal(round_stochastically(exact.float()), exact)


def test_steps_too_small_for_bf16_are_not_lost() -> None:
    """200 steps of 1e-5 on weights of 1, where bf16's next numbers are 2^-8 below and 2^-7 above."""

    def move(make: Callable[[torch.nn.Parameter], torch.optim.Optimizer]) -> float:
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.ones(50_000, dtype=torch.bfloat16))
        optimizer = make(weight)
        for _ in range(200):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        return float(1 - weight.detach().float().mean())

    assert move(lambda w: torch.optim.AdamW([w], lr=1e-5, weight_decay=0.0)) == 0.0
    # The spread: each weight has fallen by a step of 2^-8 with probability 0.002 * 2^8 = 0.51, or not at all.
    error = 2**-8 * (0.25 / 50_000) ** 0.5
    assert move(lambda w: AdamW16([w], lr=1e-5)) == pytest.approx(0.002, abs=5 * error)


@pytest.mark.parametrize("state", ["fp32", "8bit"])
def test_its_state_survives_being_saved(state: str) -> None:
    def one_more(weights: list[torch.nn.Parameter], optimizer: AdamW16) -> None:
        torch.manual_seed(5)
        for weight in weights:
            weight.grad = torch.full_like(weight, 0.3)
        optimizer.step()

    weights = parameters(torch.bfloat16)
    optimizer = AdamW16(weights, lr=1e-2, state=state)  # type: ignore[arg-type]
    one_more(weights, optimizer)
    again = [torch.nn.Parameter(weight.detach().clone()) for weight in weights]
    other = AdamW16(again, lr=1e-2, state=state)  # type: ignore[arg-type]
    other.load_state_dict(deepcopy(optimizer.state_dict()))
    one_more(weights, optimizer)
    one_more(again, other)
    assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
    moments = [optimizer.state[weight]["mean"] for weight in weights]
    is_quantised = [state == "8bit" and weight.numel() >= SMALLEST_QUANTISED for weight in weights]
    assert [("numbers" in moment) for moment in moments] == is_quantised


@pytest.mark.parametrize("at_once", [7, 1 << 22], ids=["in pieces", "at once"])
def test_rows_of_a_matrix_in_bf16_are_rounded_like_the_whole(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 7 rows, three processes have 3, 3 and 1, and a fourth none; they draw the same noise."""
    monkeypatch.setattr(adamw, "AT_ONCE", at_once)
    torch.manual_seed(0)
    whole, gradient = torch.randn(7, 5).bfloat16(), torch.randn(7, 5).bfloat16()
    no_mesh: Any = None

    def trained(rows: Rows | None) -> Tensor:
        take = slice(None) if rows is None else slice(rows.first, rows.last)
        parameter, after = nn.Parameter(whole[take].clone()), nn.Parameter(torch.ones(9).bfloat16())
        if rows is not None:
            setattr(parameter, ROWS, rows)
        parameter.grad, after.grad = gradient[take].clone(), torch.ones(9).bfloat16()
        optimizer = AdamW16([parameter, after], lr=1e-3)
        torch.manual_seed(1)
        for _ in range(3):
            optimizer.step()
        return torch.cat((parameter.detach().flatten(), after.detach()))

    parts = [trained(Rows(whole.shape, first, last, no_mesh)) for first, last in ((0, 3), (3, 6), (6, 7), (7, 7))]
    after = parts[0][-9:]
    assert all(torch.equal(part[-9:], after) for part in parts)
    assert torch.equal(torch.cat([*(part[:-9] for part in parts), after]), trained(None))
