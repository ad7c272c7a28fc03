"""Comparing two models on the same windows and masks."""

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import llada.cli.compare as compare_command
from llada.checkpoints.folder import make_predictor, save_weights
from llada.checkpoints.load import open_to_measure
from llada.data.batches import TokenBatch
from llada.data.prepared import PreparedText
from llada.evaluation.compare import compare, two_sided
from llada.evaluation.nelbo import BoundOptions, Bounds, draw_bounds, nll_by_logits
from llada.models import EncoderConfig, MaskPredictor
from llada.sampling.guidance import at_positions
from tests.support.commands import RunCommand
from tests.support.toys import MASK, N_TOKENS, enumerated_nelbo, table_predictor

FIRST, SECOND = table_predictor(length=4, seed=3), table_predictor(length=4, seed=3)
NUDGE = 0.1 * torch.randn(N_TOKENS, generator=torch.Generator().manual_seed(1)).double()


def windows(n: int, seed: int = 0) -> Tensor:
    return torch.randint(0, N_TOKENS, (n, 4), generator=torch.Generator().manual_seed(seed))


def bounds_of(nudge: Tensor, text: Tensor, masks: int = 4, seed: int = 0) -> Bounds:
    nll = nll_by_logits(at_positions(lambda x_t: FIRST(x_t) + nudge), MASK)
    return draw_bounds(nll, TokenBatch(text), BoundOptions(masks, batch_size=1000, seed=seed))


def test_difference_is_that_of_the_bounds_and_known_better_than_they_are() -> None:
    text = windows(50)
    truth = float(
        np.mean([enumerated_nelbo(FIRST, row) - enumerated_nelbo(lambda x: FIRST(x) + NUDGE, row) for row in text])
    )
    result = compare(bounds_of(torch.zeros(3), text, masks=40), bounds_of(NUDGE, text, masks=40))
    assert result.mask_stderr is not None
    assert result.stderr is not None
    assert result.first.stderr is not None
    assert abs(result.difference - truth) < 4 * result.mask_stderr
    assert result.difference == pytest.approx(result.first.mean - result.second.mean)
    assert result.stderr < result.first.stderr / 3


def test_a_model_against_itself_is_no_better() -> None:
    result = compare(bounds_of(torch.zeros(3), windows(30)), bounds_of(torch.zeros(3), windows(30)))
    assert (result.difference, result.stderr, result.p_value) == (0.0, 0.0, 1.0)


def test_p_values_are_even_where_there_is_no_difference() -> None:
    """Two models of equal quality on texts drawn evenly: 5 % of the p-values are below 0.05."""
    turned = torch.tensor([1, 2, 0])  # the same table with its tokens renamed: equal on texts drawn evenly

    def renamed(x_t: Tensor) -> Tensor:
        names = torch.tensor([1, 2, 0] + [MASK] * 7)
        return FIRST(torch.where(x_t == MASK, MASK, names[x_t]))[..., turned]

    p_values = []
    for seed in range(400):
        text = windows(60, seed)
        options = BoundOptions(masks_per_window=2, batch_size=1000, seed=seed)
        first, second = (
            draw_bounds(nll_by_logits(at_positions(predict), MASK), TokenBatch(text), options)
            for predict in (FIRST, renamed)
        )
        p_values.append(compare(first, second).p_value or 0.0)
    assert 0.025 <= float(np.mean(np.array(p_values) < 0.05)) <= 0.085  # 4 standard errors of 400 draws


def test_false_alarms_are_as_many_as_they_should_be_at_the_fewest_windows() -> None:
    """Differences without any effect, of two draws a window: the normal distribution would have 0.060 of them."""
    generator = torch.Generator().manual_seed(0)
    mask_ratio = torch.linspace(0.01, 1, 60, dtype=torch.float64).view(30, 1, 2)
    nothing = Bounds(torch.zeros(30, 1, 2, dtype=torch.float64), mask_ratio)
    alarms, n = 0, 5000
    for _ in range(n):
        of_text = torch.randn(30, 1, 1, generator=generator, dtype=torch.float64)
        values = of_text + 0.5 * torch.randn(30, 1, 2, generator=generator, dtype=torch.float64)
        alarms += (compare(Bounds(values, mask_ratio), nothing).p_value or 0.0) < 0.05
    assert abs(alarms / n - 0.05) < 2.7 * (0.05 * 0.95 / n) ** 0.5


def test_two_sided_chance_of_students_distribution() -> None:
    """By hand for 1 and 2 degrees, by printed tables of its quantiles, and by the normal distribution at the end."""
    assert two_sided(0.0, 29) == 1.0
    assert two_sided(1.0, 1) == pytest.approx(0.5, abs=1e-14)
    assert two_sided(-1.0, 2) == pytest.approx(1 - 3**-0.5, abs=1e-14)
    for degrees, quantile, chance in (
        (29, 2.045230, 0.05),
        (10, 3.169273, 0.01),
        (5, 2.570582, 0.05),
        (60, 3.4602, 1e-3),
    ):
        assert two_sided(quantile, degrees) == pytest.approx(chance, rel=1e-4)
    assert two_sided(1.959964, 10**6) == pytest.approx(0.05, abs=1e-6)
    assert two_sided(40.0, 1741) == pytest.approx(0.0, abs=1e-12)


def test_a_likelihood_stands_beside_the_mean_of_the_draws() -> None:
    text = windows(30)
    bounds = bounds_of(torch.zeros(3), text)
    exact = Bounds(torch.ones(30, 1, 1, dtype=torch.float64), torch.ones(30, 1, 1, dtype=torch.float64))
    result = compare(exact, bounds)
    assert result.difference == pytest.approx(1 - float(bounds.values.mean()))
    assert compare(bounds, exact).difference == pytest.approx(-result.difference)
    assert compare(bounds, exact).stderr == pytest.approx(result.stderr)


def test_other_windows_or_masks_are_refused() -> None:
    text = windows(10)
    with pytest.raises(ValueError, match="different windows"):
        compare(bounds_of(NUDGE, text), bounds_of(NUDGE, windows(9)))
    with pytest.raises(ValueError, match="different masks"):
        compare(bounds_of(NUDGE, text), bounds_of(NUDGE, text, seed=1))


def test_few_windows_have_no_p_value() -> None:
    result = compare(bounds_of(NUDGE, windows(1)), bounds_of(torch.zeros(3), windows(1)))
    assert (result.stderr, result.p_value) == (None, None)
    assert compare(bounds_of(NUDGE, windows(29)), bounds_of(torch.zeros(3), windows(29))).p_value is None
    assert compare(bounds_of(NUDGE, windows(30)), bounds_of(torch.zeros(3), windows(30))).p_value is not None


def test_one_model_at_a_time_is_in_memory(
    llada: RunCommand, data: PreparedText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that each just fit can be compared."""
    tokenizer = data.tokenizer
    rows: dict[str, Any] = {"vocab_size": tokenizer.vocab_size, "mask_token_id": tokenizer.mask_row}
    config = EncoderConfig(**rows, max_sequence_length=24, d_model=16, n_heads=2, n_layers=1)
    folders = [tmp_path / name for name in "ab"]
    for seed, folder in enumerate(folders):
        torch.manual_seed(seed)
        folder.mkdir()
        save_weights(folder, config, tokenizer, make_predictor(config, tokenizer).network.state_dict())
    seen: list[weakref.ref[MaskPredictor]] = []
    real = open_to_measure

    def opened(*arguments: Any) -> Any:
        gc.collect()
        assert all(reference() is None for reference in seen)
        checkpoint = real(*arguments)
        seen.append(weakref.ref(checkpoint.model))
        return checkpoint

    monkeypatch.setattr(compare_command, "open_to_measure", opened)
    few = ["--data_dir", data.folder, "--windows", 3, "--masks_per_window", 2, "--device", "cpu", "--json"]
    result = llada("compare", *folders, *few)
    assert result.code == 0, result.err
    assert len(seen) == 2
    both = [
        json.loads(llada("evaluate", "--checkpoint", folder, *few).out)["nelbo_nats_per_token"] for folder in folders
    ]
    assert json.loads(result.out)["difference"] == pytest.approx(both[0] - both[1], abs=1e-6)
