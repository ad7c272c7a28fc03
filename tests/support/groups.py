"""Small runs of several processes, and how they compare with those of one."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llada.data.prepared import PreparedText
from llada.training.metrics import read_metrics
from tests.support.commands import PATIENCE
from tests.support.ranks import ROOT, environment
from tests.support.runs import losses_of

CLOSE = 1e-5  # the largest difference of a loss or a weight

# The rates are constant, so that a run of four steps that goes on to eight is one of eight.
SMALL = [
    "--network", "llada", "--d_model", "16", "--n_heads", "2", "--n_layers", "1", "--sequence_length", "24",
    "--batch_size", "4", "--warmup_steps", "2", "--decay", "1e-9", "--evaluate_every", "4", "--log_every", "1",
    "--evaluation_windows", "5", "--precision", "fp32", "--compile", "False",
]  # fmt: skip
ADAMW = ["--optimizer", "adamw", "--learning_rate", "1e-3"]
FSDP = ["--parallel", "fsdp"]


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


def torchrun_words(processes: int, command: Sequence[object], *options: str) -> list[str]:
    """What to type to have a command carried out by several processes of this machine."""
    words = [f"--nproc-per-node={processes}", *options, "-m", "llada", *map(str, command)]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", *words]


def torchrun(processes: int, command: Sequence[object], *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        torchrun_words(processes, command, *options),
        capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=PATIENCE,
    )  # fmt: skip


def start_torchrun(processes: int, command: Sequence[object], *options: str) -> subprocess.Popen[str]:
    """Start it, with both of its streams in one."""
    return subprocess.Popen(
        torchrun_words(processes, command, *options),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(), cwd=ROOT,
    )  # fmt: skip
