"""Training throughput on this machine: tokens per second, as a share of the measured speed of matrix products.

    python benchmarks/throughput.py [--steps 20] [--repeats 5]

Every row is the median of several repeats that take turns with the others, so that a drift of the machine hits all of
them alike; the ratios hold where the seconds do not. The baselines are built here: the same network under torch's own
Muon, under AdamW, and the founding document's encoder in the same shape.
"""

import argparse
import dataclasses
import datetime
import statistics
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from llada.hardware import describe_device, matmul_flops_per_second
from llada.models.size import count_parameters, training_flops_per_token
from llada.text.corpus import Corpus
from llada.text.dataset import PreparedText, prepare
from llada.training.config import NetworkOptions, OptimizerOptions, TrainConfig
from llada.training.metrics import LossByTime
from llada.training.plan import RunPlan
from llada.training.presets import PRESETS
from llada.training.run_folder import RunFolder
from llada.training.trainer import Trainer

LAPTOP = PRESETS["laptop"]
SHAPE = LAPTOP.network
CASES: dict[str, TrainConfig] = {
    "laptop preset": LAPTOP,
    "laptop, torch's own Muon": LAPTOP,
    "laptop, AdamW": dataclasses.replace(LAPTOP, optimizer=OptimizerOptions(optimizer="adamw")),
    "laptop, compiled": dataclasses.replace(LAPTOP, compile=True),
    "encoder of this shape, AdamW": dataclasses.replace(
        LAPTOP,
        network=NetworkOptions("encoder", d_model=SHAPE.d_model, n_heads=SHAPE.n_heads, n_layers=SHAPE.n_layers),
        optimizer=OptimizerOptions(optimizer="adamw"),
    ),
    "encoder of this shape, AdamW, dropout 0.1": dataclasses.replace(
        LAPTOP,
        network=NetworkOptions(
            "encoder", d_model=SHAPE.d_model, n_heads=SHAPE.n_heads, n_layers=SHAPE.n_layers, dropout=0.1
        ),
        optimizer=OptimizerOptions(optimizer="adamw"),
    ),
}


def make_text(folder: Path) -> PreparedText:
    """As many characters as Tiny Shakespeare has, of as many kinds; speed does not depend on which."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(33, 98, (1_115_394,), generator=generator)
    return prepare(Corpus(bytes(codes.tolist()).decode(), "file", "random"), folder / "data", 4096)


def make_trainer(name: str, config: TrainConfig, data: PreparedText, folder: Path) -> Trainer:
    trainer = Trainer(RunPlan.of(config, data), RunFolder(folder / "run"))
    if "torch's own" in name:
        matrices = trainer.optimizers[1].param_groups[0]["params"]
        theirs = torch.optim.Muon(matrices, lr=config.optimizer.muon_learning_rate)
        theirs.param_groups[0]["peak_lr"] = config.optimizer.muon_learning_rate
        trainer.optimizers[1] = theirs
    return trainer


def tokens_per_second(trainer: Trainer, steps: int) -> float:
    by_time = LossByTime(trainer.device)
    start = time.perf_counter()
    for _ in range(steps):
        done = trainer.train_step(by_time)
    float(done.loss)  # waits for the device
    return steps * trainer.plan.tokens_per_step / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = make_text(folder)
        trainers = {case: make_trainer(case, config, data, folder) for case, config in CASES.items()}
        speeds: dict[str, list[float]] = {case: [] for case in CASES}
        peaks: list[float] = []
        for case, trainer in trainers.items():
            with console.status(f"warming up: {case}"):
                tokens_per_second(trainer, 3)
        for repeat in range(options.repeats):
            with console.status(f"repeat {repeat + 1} of {options.repeats}"):
                first = trainers["laptop preset"]
                peaks.append(matmul_flops_per_second(first.device, first.precision.dtype))
                for case, trainer in trainers.items():
                    speeds[case].append(tokens_per_second(trainer, options.steps))
    peak, base = statistics.median(peaks), statistics.median(speeds["laptop preset"])
    plan = trainers["laptop preset"].plan
    table = Table(title=f"{datetime.date.today()} · {describe_device(plan.device)} · torch {torch.__version__}")
    for column in ("", "parameters", "tokens/s", "relative", "GFLOP/s", "of matmul peak"):
        table.add_column(column, justify="left" if not column else "right")
    for case, trainer in trainers.items():
        speed = statistics.median(speeds[case])
        flops = speed * training_flops_per_token(trainer.plan.network_config, trainer.plan.length)
        n_parameters = sum(count_parameters(trainer.plan.network_config).values())
        table.add_row(
            case,
            f"{n_parameters:,}",
            f"{speed:,.0f}",
            f"{speed / base:.2f}",
            f"{flops / 1e9:.0f}",
            f"{flops / peak:.0%}",
        )
    console.print(table)
    console.print(f"Peak of products: {peak / 1e9:.0f} GFLOP/s in {plan.precision.dtype} ({plan.precision.reason}).")


if __name__ == "__main__":
    main()
