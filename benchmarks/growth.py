"""Growth of time and memory with length and width, compared with what the formulas predict.

    python benchmarks/growth.py [--network local] [--quick]

Each row is a process of its own: 4 layers, which all attend, AdamW, bf16 where the processor has it, 4096 tokens a
step. Time for a token should grow like the FLOPs for a token (costs/parameters.py): 6 for each weight, so with the
square of the width, and 12 L D for each layer's attention, so by a line in the length. Memory should be what
costs/memory.py says. The first row is the yardstick.
"""

import argparse
import datetime
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from llada.costs.flops import training_flops_per_token
from llada.costs.parameters import total_parameters
from llada.data.corpus import Corpus
from llada.data.prepared import prepare
from llada.system.device import describe_device, give_back_freed_memory
from llada.system.environment import set_defaults
from llada.training.config import DataOptions, NetworkOptions, NoiseOptions, OptimizerOptions, TrainConfig
from llada.training.metrics import LossByTime
from llada.training.plan import RunPlan
from llada.training.run_folder import RunFolder
from llada.training.run_memory import expected_memory
from llada.training.trainer import Trainer
from processes import begin_peak_anew, in_a_process, status_bytes

TOKENS, N_LAYERS, HEAD_DIM, STEPS = 4096, 4, 128, 5
LENGTHS, WIDTHS = (256, 1024, 4096), (256, 384, 512, 768, 1024)


def make_config(network: str, length: int, width: int) -> TrainConfig:
    return TrainConfig(
        network=NetworkOptions(
            network,  # type: ignore[arg-type]
            width,
            width // HEAD_DIM,
            N_LAYERS,
            **({"attention_every": 1} if network == "local" else {}),
        ),
        data=DataOptions(sequence_length=length),
        noise=NoiseOptions(random_length=0.0),
        optimizer=OptimizerOptions(optimizer="adamw", ema=0.0),
        batch_size=TOKENS // length,
        device="cpu",
        compile=False,
    )


def measure(case: dict[str, Any]) -> dict[str, float]:
    """Measure this process: the median step, and the peak of memory above that of a process that did next to
    nothing."""
    if case["gives_back"]:  # measures tensors rather than the C library's heap, but costs time
        give_back_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        codes = torch.randint(33, 98, (100_000,), generator=torch.Generator().manual_seed(0))
        data = prepare(Corpus(bytes(codes.tolist()).decode(), "file", "random"), Path(name, "data"), 4096)
        small = Trainer(RunPlan.of(make_config(case["network"], 64, 128), data), RunFolder(Path(name, "run")))
        small.train_step(LossByTime(small.device))
        del small
        before = status_bytes("VmRSS")
        config = make_config(case["network"], case["length"], case["width"])
        trainer = Trainer(RunPlan.of(config, data), RunFolder(Path(name, "run")))
        begin_peak_anew()
        seconds = []
        for _ in range(STEPS):
            start = time.perf_counter()
            trainer.train_step(LossByTime(trainer.device))
            seconds.append(time.perf_counter() - start)
        network = trainer.plan.network_config
        return {
            "seconds": statistics.median(seconds[1:]),
            "memory": status_bytes("VmHWM") - before,
            "expected_memory": expected_memory(trainer.plan).total,
            "flops": TOKENS * training_flops_per_token(network, case["length"]),
            "parameters": total_parameters(network),
        }


def main() -> None:
    set_defaults()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--network", choices=["local", "llada", "encoder"], default="local")
    parser.add_argument("--quick", action="store_true", help="the two ends only")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(json.loads(options.case))))
        return
    console = Console(width=None if sys.stdout.isatty() else 120)
    shapes = [(length, 256) for length in LENGTHS] + [(256, width) for width in WIDTHS[1:]]
    if options.quick:
        shapes = [shapes[0], shapes[len(LENGTHS) - 1], shapes[-1]]
    title = f"{datetime.date.today()} · {describe_device(torch.device('cpu'))} · torch {torch.__version__}"
    table = Table(title=f"{title} · {options.network}, {N_LAYERS} layers, {TOKENS} tokens a step")
    for column in ("length", "width", "parameters", "tokens/s", "time x", "FLOPs x", "MB", "by formula", "ratio"):
        table.add_column(column, justify="right")
    first: dict[str, float] | None = None
    for length, width in shapes:
        case = {"network": options.network, "length": length, "width": width}
        with console.status(f"length {length}, width {width}"):
            fast, tight = (in_a_process(__file__, {**case, "gives_back": gives_back}) for gives_back in (False, True))
        first = first or fast
        table.add_row(
            f"{length}",
            f"{width}",
            f"{fast['parameters']:,.0f}",
            f"{TOKENS / fast['seconds']:,.0f}",
            f"{fast['seconds'] / first['seconds']:.2f}",
            f"{fast['flops'] / first['flops']:.2f}",
            f"{tight['memory'] / 1e6:,.0f}",
            f"{tight['expected_memory'] / 1e6:,.0f}",
            f"{tight['expected_memory'] / tight['memory']:.2f}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
