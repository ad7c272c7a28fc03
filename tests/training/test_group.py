"""Several processes train what one does: the same losses and weights, to rounding, however a step is shared."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llada.data.prepared import PreparedText
from llada.training.metrics import read_metrics
from tests.support.commands import RunCommand
from tests.support.ranks import Ended, environment, finish, free_port, run_together, start
from tests.support.runs import losses_of

CLOSE = 1e-5  # the largest difference of a loss or a weight

# The rates are constant, so that a run of four steps that goes on to eight is one of eight.
SMALL = [
    "--network", "llada", "--d_model", "16", "--n_heads", "2", "--n_layers", "1", "--sequence_length", "24",
    "--batch_size", "4", "--warmup_steps", "2", "--decay", "1e-9", "--evaluate_every", "4", "--log_every", "1",
    "--evaluation_windows", "5", "--precision", "fp32", "--compile", "False",
]  # fmt: skip
ADAMW = ["--optimizer", "adamw", "--learning_rate", "1e-3"]
WAYS: dict[str, list[str]] = {
    "complementary pairs, muon": ["--complementary"],
    "accumulation, bernoulli": [*ADAMW, "--accumulate", "2", "--masking", "bernoulli", "--random_length", "0.5"],
    "stored sequences": [*ADAMW, "--windows", "stored", "--accumulate", "3", "--complementary"],
    "drawn by step": [*ADAMW, "--draws", "by_step", "--ema", "0"],
}
"""Flags of runs, by what is special about them."""


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dialogues") / "dialogues.jsonl"
    lines = [{"prompt": f"say {'a' * n}", "completion": "ab" * (1 + n % 5)} for n in range(20)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def flags(way: Sequence[str], data: PreparedText, run: Path, steps: int) -> list[object]:
    return ["train", *SMALL, "--data_dir", data.folder, "--output_dir", run, "--steps", steps, *way]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "last" / "model.safetensors")


def assert_alike(run: Path, other: Path) -> None:
    """Losses, bounds and weights, and what was counted."""
    assert losses_of(run) == pytest.approx(losses_of(other), abs=CLOSE)
    for name, weight in weights_of(run).items():
        assert torch.allclose(weight, weights_of(other)[name], rtol=0, atol=CLOSE), name
    for row, twin in zip(*(read_metrics(each / "metrics.jsonl") for each in (run, other)), strict=True):
        assert row.keys() == twin.keys()
        assert row["step"] == twin["step"]
        assert row.get("tokens") == twin.get("tokens")
        for key in ("nelbo", "nll", "grad_norm"):
            assert row.get(key) == pytest.approx(twin.get(key), abs=100 * CLOSE)


def test_two_processes_train_like_one_and_go_on_from_each_other(
    llada: RunCommand, data: PreparedText, dialogues: Path, tmp_path: Path
) -> None:
    """Both read the same checkpoint: that of one process, and that of two."""
    ways = {**WAYS, "answers": [*ADAMW, "--accumulate", "2", "--chat", str(dialogues), "--weight_power", "1"]}
    for number, way in enumerate(ways.values()):
        assert llada(*flags(way, data, tmp_path / f"{number}-alone", 8)).code == 0
        assert llada(*flags(way, data, tmp_path / f"{number}-more", 4)).code == 0
    commands = []
    for number, way in enumerate(ways.values()):
        commands += [flags(way, data, tmp_path / f"{number}-together", 8)]
        commands += [flags(way, data, tmp_path / f"{number}-fewer", 4)]
        commands += [["train", "--resume", tmp_path / f"{number}-more", "--steps", 8]]
    first, second = run_together(2, commands)
    assert [ended.code for ended in first] == [0] * len(commands), first
    for number in range(len(ways)):
        result = llada("train", "--resume", tmp_path / f"{number}-fewer", "--steps", 8)
        assert result.code == 0, result.err
        for kind in ("together", "more", "fewer"):
            assert_alike(tmp_path / f"{number}-{kind}", tmp_path / f"{number}-alone")
    assert [(ended.code, ended.out, ended.err) for ended in second] == [(0, "", "")] * len(commands)
