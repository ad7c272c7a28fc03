"""Memory of a training step: the forecast compared with the measured peak of a process.

    python benchmarks/memory.py [--quick | --fine_tuning]

Each row is a process of its own, which trains a small network first, so that what torch itself takes does not count,
and then three steps of the configuration. The peak is that of resident memory (VmHWM of /proc/self/status, so Linux
only), once with freed memory given back at once, as runs do whose memory is tight
(`system.device.give_back_freed_memory`), and once with the C library's own heap, whose gaps come on top.
"""

import argparse
import datetime
import gc
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from llada.checkpoints.dummy import write_random_checkpoint
from llada.checkpoints.folder import read_config, read_tokenizer
from llada.data.corpus import Corpus
from llada.data.prepared import PreparedText, prepare, text_for
from llada.system.device import describe_device, give_back_freed_memory
from llada.system.environment import set_defaults
from llada.training.config import DataOptions, NetworkOptions, NoiseOptions, OptimizerOptions, TrainConfig
from llada.training.metrics import LossByTime
from llada.training.plan import RunPlan
from llada.training.run_folder import RunFolder
from llada.training.run_memory import expected_memory
from llada.training.trainer import Trainer
from processes import begin_peak_anew, in_a_process, status_bytes

STEPS = 3
TOLERANCE = 0.15

SHAPES: list[dict[str, Any]] = [
    {
        "network": network,
        "sequence_length": length,
        "batch_size": 4096 // length,
        "precision": precision,
        "recompute": r,
    }
    for network in ("llada", "encoder")
    for length in (256, 1024, 4096)
    for precision in ("fp32", "bf16")
    for r in (False, True)
]
DROPOUT = {"network": "encoder", "dropout": 0.1}
WIDE_MUON = {"network": "llada", "d_model": 768, "batch_size": 2, "optimizer": "muon", "ema": 0.98}
OTHERS: list[dict[str, Any]] = [
    {**DROPOUT, "sequence_length": 512, "batch_size": 8, "precision": "fp32"},
    {**DROPOUT, "sequence_length": 512, "batch_size": 8, "precision": "bf16"},
    {**DROPOUT, "sequence_length": 2048, "batch_size": 1, "precision": "bf16", "recompute": True},
    {**WIDE_MUON, "precision": "fp32"},
    {**WIDE_MUON, "precision": "bf16"},
    {"network": "llada", "sequence_length": 1024, "batch_size": 2, "precision": "fp32", "accumulate": 2},
]
# Random checkpoints with a vocabulary large enough for the logits to be made in pieces, trained further.
BASE = {"network": "llada", "d_model": 768, "vocab_size": 32_000, "sequence_length": 1024, "batch_size": 2}
FINE_TUNING: list[dict[str, Any]] = [
    {**BASE, "method": method, "precision": precision, "recompute": recompute, **more}
    for method, precision, more in (
        ("full", "bf16", {}),
        ("full", "bf16", {"weights": "bf16"}),
        ("full", "bf16", {"weights": "bf16", "optimizer_state": "8bit"}),
        ("lora", "bf16", {}),
        ("lora", "fp32", {}),
        ("qlora", "bf16", {}),
    )
    for recompute in (False, True)
]


def make_config(case: dict[str, Any]) -> TrainConfig:
    width = case.get("d_model", 384)
    network = NetworkOptions(
        case["network"], width, width // 64, case.get("n_layers", 6), dropout=case.get("dropout", 0.0)
    )
    return TrainConfig(
        network=NetworkOptions() if "method" in case else network,
        base="random" if "method" in case else None,
        method=case.get("method", "full"),
        weights=case.get("weights", "fp32"),
        data=DataOptions(sequence_length=case.get("sequence_length", 256)),
        noise=NoiseOptions(random_length=0.0),
        optimizer=OptimizerOptions(
            optimizer=case.get("optimizer", "adamw"),
            optimizer_state=case.get("optimizer_state", "fp32"),
            ema=case.get("ema", 0.0),
        ),
        batch_size=case["batch_size"],
        accumulate=case.get("accumulate", 1),
        precision=case["precision"],
        activation_checkpointing=case.get("recompute", False),
        device="cpu",
        compile=False,
    )


def make_trainer(case: dict[str, Any], data: PreparedText, folder: Path) -> Trainer:
    config = make_config(case)
    if config.base is None:
        return Trainer(RunPlan.of(config, data), RunFolder(folder / "run"))
    base = folder / f"base-{case['d_model']}"
    if not base.exists():
        write_random_checkpoint(
            base, "to be or not to be", d_model=case["d_model"], n_layers=case.get("n_layers", 6),
            n_heads=case["d_model"] // 64, vocab_size=case["vocab_size"], max_sequence_length=case["sequence_length"],
        )  # fmt: skip
    plan = RunPlan.of(config, text_for(read_tokenizer(base), data), read_config(base))
    return Trainer(plan, RunFolder(folder / "run"), start=base)


def measure(case: dict[str, Any]) -> dict[str, int]:
    """Return predicted and measured bytes, in this process."""
    if case["gives_back"]:
        give_back_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        codes = torch.randint(33, 98, (50_000,), generator=torch.Generator().manual_seed(0))
        data = prepare(Corpus(bytes(codes.tolist()).decode(), "file", "random"), Path(name, "data"), 4096)
        small = {**case, "d_model": 64, "n_layers": 1, "batch_size": 2, "sequence_length": 64}
        warm = make_trainer(small, data, Path(name))
        for _ in range(2):
            warm.train_step(LossByTime(warm.device))
        del warm
        gc.collect()
        before = status_bytes("VmRSS")
        trainer = make_trainer(case, data, Path(name))
        begin_peak_anew()
        for _ in range(STEPS):
            trainer.train_step(LossByTime(trainer.device))
        return {"predicted": expected_memory(trainer.plan).total, "measured": status_bytes("VmHWM") - before}


def main() -> None:
    set_defaults()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="every fifth configuration")
    parser.add_argument("--fine_tuning", action="store_true", help="checkpoints trained further, only")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(json.loads(options.case))))
        return
    console = Console(width=None if sys.stdout.isatty() else 120)
    device = describe_device(torch.device("cpu"))
    table = Table(title=f"{datetime.date.today()} · {device} · torch {torch.__version__} · MB", padding=(0, 1))
    for column in ("network", "batch", "matmuls", "checkpointing", "predicted", "measured", "ratio", "own heap"):
        table.add_column(column, justify="left" if column == "network" else "right")
    ratios = []
    cases = FINE_TUNING if options.fine_tuning else [*SHAPES, *OTHERS, *FINE_TUNING]
    for number, case in enumerate(cases[::5] if options.quick else cases, 1):
        with console.status(f"configuration {number}"):
            tight, own = (in_a_process(__file__, {**case, "gives_back": gives_back}) for gives_back in (True, False))
        config = make_config(case)
        ratio = tight["predicted"] / tight["measured"]
        ratios.append(ratio)
        extras = [case["method"]] if "method" in case else []
        extras += [f"weights {config.weights}"] if config.weights == "bf16" else []
        extras += ["8-bit moments"] if config.optimizer.optimizer_state == "8bit" else []
        extras += [f"dropout {config.network.dropout}"] if config.network.dropout else []
        extras += [f"{config.optimizer.optimizer}, average"] if config.optimizer.ema else []
        extras += [f"accumulates {config.accumulate}"] if config.accumulate > 1 else []
        shape = f"{case['network']} {case.get('n_layers', 6)} x {case.get('d_model', 384)}"
        table.add_row(
            ", ".join([shape, *extras]),
            f"{config.batch_size} x {config.data.sequence_length}",
            config.precision,
            "yes" if config.activation_checkpointing else "no",
            f"{tight['predicted'] / 1e6:,.0f}",
            f"{tight['measured'] / 1e6:,.0f}",
            f"{ratio:.3f}",
            f"{own['measured'] / tight['measured']:.2f} x",
        )
    console.print(table)
    worst = max(abs(ratio - 1) for ratio in ratios)
    console.print(f"{len(ratios)} configurations: median {statistics.median(ratios):.3f}, worst off by {worst:.1%}.")
    sys.exit(0 if worst <= TOLERANCE else 1)


if __name__ == "__main__":
    main()
