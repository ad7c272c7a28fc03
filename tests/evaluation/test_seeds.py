"""Comparing recipes over the seeds of their runs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llada.checkpoints.folder import make_predictor, save_weights
from llada.data.prepared import PreparedText
from llada.evaluation.compare import Difference
from llada.evaluation.seeds import over_seeds
from llada.evaluation.standard_errors import Estimate
from llada.models import EncoderConfig
from tests.support.commands import assert_one_sentence


def differences(*values: float) -> list[Difference]:
    estimate = Estimate(2.0, 0.1, 0.01)
    return [Difference(estimate, estimate, value, 0.01, 0.001, 0.5) for value in values]


def test_mean_error_and_chance_by_hand() -> None:
    """1, 2, 3: mean 2, deviation 1, error 1/sqrt(3), t = sqrt(12); with 2 degrees P = 1 - t/sqrt(t^2 + 2)."""
    result = over_seeds(differences(1.0, 2.0, 3.0))
    assert result.difference == pytest.approx(2.0)
    assert result.stderr == pytest.approx(3**-0.5)
    assert result.p_value == pytest.approx(1 - (12 / 14) ** 0.5)
    two = over_seeds(differences(-0.5, 1.5))  # t = 1/2, error 1, one degree: 1 - 2 atan(1/2) / pi
    assert (two.difference, two.stderr) == pytest.approx((0.5, 1.0))
    assert two.p_value == pytest.approx(1 - 2 / torch.pi * float(torch.atan(torch.tensor(0.5).double())))


def test_seeds_that_agree_to_the_last_digit_have_no_chance() -> None:
    assert over_seeds(differences(0.0, 0.0)).p_value == 1.0
    assert over_seeds(differences(0.5, 0.5)).p_value == 0.0
    with pytest.raises(ValueError, match="two or more"):
        over_seeds(differences(1.0))


def test_the_command_pairs_the_runs_of_each_side(llada: Any, data: PreparedText, tmp_path: Path) -> None:
    tokenizer = data.tokenizer
    rows: dict[str, Any] = {"vocab_size": tokenizer.vocab_size, "mask_token_id": tokenizer.mask_row}
    config = EncoderConfig(**rows, max_sequence_length=24, d_model=16, n_heads=2, n_layers=1)
    a1, a2, b1, b2 = (tmp_path / name for name in ("a1", "a2", "b1", "b2"))
    for seed, folder in enumerate((a1, a2, b1, b2)):
        torch.manual_seed(seed)
        folder.mkdir()
        save_weights(folder, config, tokenizer, make_predictor(config, tokenizer).network.state_dict())
    few = ["--data_dir", data.folder, "--windows", 3, "--masks_per_window", 2, "--device", "cpu"]

    def difference(*arguments: object) -> dict[str, Any]:
        result = llada("compare", *arguments, *few, "--json")
        assert result.code == 0, result.err
        content: dict[str, Any] = json.loads(result.out)
        return content

    pairs = [difference(a1, b1), difference(a2, b2)]
    assert difference("--checkpoint", a1, "--against", b1) == pairs[0]  # one a side is what it was
    both = difference("--checkpoint", a1, a2, "--against", b1, b2)
    assert both["seeds"] == pairs
    first, second = (pair["difference"] for pair in pairs)
    assert both["difference"] == pytest.approx((first + second) / 2)
    assert both["stderr"] == pytest.approx(abs(first - second) / 2)

    words = llada("compare", "--checkpoint", a1, a2, "--against", b1, b2, *few).out
    assert f"A - B {both['difference']:+.4f} ± {both['stderr']:.4f} nats per character over 2 seeds, p = " in words
    assert_one_sentence(llada("compare", "--checkpoint", a1, a2, "--against", b1, *few), "as many runs a side")
    for arguments in ([a1], [a1, a2, b1], [a1, b1, "--checkpoint", a2, "--against", b2], []):
        assert_one_sentence(llada("compare", *arguments, *few), "Name two models")
