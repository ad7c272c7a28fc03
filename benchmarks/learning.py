"""Result of a preset after so many minutes: `llada train` and `llada evaluate`, as a user would run them.

    python benchmarks/learning.py [--preset laptop] [--minutes 3 5 10] [--data_dir data/shakespeare]

Each row is a run of its own, whose schedule ends with its time; its minutes are those of training with the evaluations
in it, without compiling. The bound is over all validation windows, 16 masks each.
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from llada.system.device import choose_precision, describe_device, matmul_flops_per_second

NEVER = "100000000"  # steps; the time ends the run
LLADA = [sys.executable, "-m", "llada"]


def train(preset: str, minutes: float, data: Path, folder: Path, more: list[str]) -> dict[str, Any]:
    """Train a run and return its last logged step."""
    limits = ["--steps", NEVER, "--minutes", str(minutes)]
    subprocess.run(
        [*LLADA, "train", "--preset", preset, *limits, "--data_dir", str(data), "--output_dir", str(folder), *more],
        check=True,
    )
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last: dict[str, Any] = [row for row in rows if "loss" in row][-1]
    return last


def evaluate(data: Path, folder: Path) -> dict[str, Any]:
    command = [*LLADA, "evaluate", "--checkpoint", str(folder), "--data_dir", str(data)]
    finished = subprocess.run(
        [*command, "--masks_per_window", "16", "--json"], stdout=subprocess.PIPE, text=True, check=True
    )
    result: dict[str, Any] = json.loads(finished.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--preset", default="laptop")
    parser.add_argument("--minutes", type=float, nargs="+", default=[3, 5, 10])
    parser.add_argument("--data_dir", type=Path, default=Path("data/shakespeare"))
    options, more = parser.parse_known_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    device = torch.device("cpu")
    peak = matmul_flops_per_second(device, choose_precision("auto", device).dtype) / 1e9
    title = f"{datetime.date.today()} · {describe_device(device)}, matmuls at {peak:.0f} GFLOP/s"
    table = Table(title=f"{title} · torch {torch.__version__} · {' '.join([options.preset, *more])}")
    for column in ("minutes", "NELBO, nats per token", "steps", "tokens", "tokens/s"):
        table.add_column(column, justify="right")
    for minutes in options.minutes:
        with tempfile.TemporaryDirectory() as name:
            last = train(options.preset, minutes, options.data_dir, Path(name, "run"), more)
            result = evaluate(options.data_dir, Path(name, "run"))
        table.add_row(
            f"{minutes:g}",
            f"{result['nelbo_nats_per_token']:.3f} ± {result['nelbo_stderr']:.3f}",
            f"{last['step']:,}",
            f"{last['tokens']:,}",
            f"{last['tokens_per_second']:,}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
