"""Time of a training step: what `llada train` forecasts compared with what it takes.

    python benchmarks/forecast.py [--gives_back]

With --gives_back, freed memory goes back to the system at once, as in runs whose memory is tight; compared with the
seconds of a call without it, that shows what it costs.
"""

import argparse
import datetime
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from llada.costs.flops import attention_flops_per_token, training_flops_per_token, training_seconds
from llada.data.corpus import Corpus
from llada.data.prepared import PreparedText, prepare
from llada.system.device import describe_device, give_back_freed_memory, matmul_flops_per_second
from llada.system.environment import set_defaults
from llada.training.config import DataOptions, NetworkOptions, NoiseOptions, OptimizerOptions, TrainConfig
from llada.training.metrics import LossByTime
from llada.training.plan import RunPlan
from llada.training.run_folder import RunFolder
from llada.training.trainer import Trainer

REPEATS = 2
N_LAYERS = 4
CASES = [
    (network, dropout, width, length, precision)
    for network, dropout in (("llada", 0.0), ("encoder", 0.0), ("encoder", 0.1))
    for width, length in ((384, 256), (384, 1024), (384, 4096), (768, 1024))
    for precision in ("bf16", "fp32")
]


def make_trainer(case: tuple[str, float, int, int, str], data: PreparedText, folder: Path) -> Trainer:
    network, dropout, width, length, precision = case
    config = TrainConfig(
        network=NetworkOptions(network, width, width // 64, N_LAYERS, dropout=dropout),  # type: ignore[arg-type]
        data=DataOptions(sequence_length=length),
        noise=NoiseOptions(random_length=0.0),
        optimizer=OptimizerOptions(optimizer="adamw", ema=0.0),
        batch_size=max(1, 2048 // length),
        device="cpu",
        precision=precision,  # type: ignore[arg-type]
    )
    return Trainer(RunPlan.of(config, data), RunFolder(folder / "run"))


def seconds_of_a_step(trainer: Trainer) -> float:
    by_time, seconds = LossByTime(trainer.device), []
    for _ in range(REPEATS + 1):  # the first one warms up
        start = time.perf_counter()
        trainer.train_step(by_time)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def main() -> None:
    set_defaults()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--gives_back", action="store_true")
    if parser.parse_args().gives_back:
        give_back_freed_memory()
    console = Console()
    table = Table(title=f"{datetime.date.today()} · {describe_device(torch.device('cpu'))} · torch {torch.__version__}")
    for column in ("network", "length", "matmuls", "attention", "foreseen s", "measured s", "ratio"):
        table.add_column(column, justify="left" if column == "network" else "right")
    with tempfile.TemporaryDirectory() as name:
        codes = torch.randint(33, 98, (200_000,), generator=torch.Generator().manual_seed(0))
        data = prepare(Corpus(bytes(codes.tolist()).decode(), "file", "random"), Path(name, "data"), 4096)
        for case in CASES:
            network, dropout, width, length, precision = case
            with console.status(f"{network} {width}, {length}, {precision}"):
                trainer = make_trainer(case, data, Path(name))
                measured = seconds_of_a_step(trainer)
                plan = trainer.plan
                speed = matmul_flops_per_second(plan.device, plan.precision.dtype)
                foreseen = training_seconds(plan.network_config, length, plan.tokens_per_step, speed, on_cpu=True)
            share = attention_flops_per_token(plan.network_config, length) / training_flops_per_token(
                plan.network_config, length
            )
            label = f"{network} {N_LAYERS} x {width}" + (f", dropout {dropout}" if dropout else "")
            row = (f"{length}", precision, f"{share:.0%}", f"{foreseen:.2f}", f"{measured:.2f}")
            table.add_row(label, *row, f"{foreseen / measured:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
