"""Memory and bytes read of two processes that fine-tune a large checkpoint, next to what the formula says.

    python benchmarks/large_checkpoint.py --folder DIR [--billions 1] [--weights bf16] [--only "all weights"]

The checkpoint is a random one in LLaDA's layout, in bf16, with LLaDA-8B's ratio of widths. Two processes, connected by
gloo, train all weights of it for two steps (`--parallel fsdp`, AdamW), which ends with a checkpoint of weights and
moments; they read that to go on, and find the run complete; and they train an adapter for a step. Reported of each
process: the peak of its resident memory (VmHWM of /proc/self/status, so Linux only); the formula,
`run_memory.host_memory`, with what torch itself takes; and the bytes that it read of weights and of moments, counted
where they are mapped. Sequences are short, and evaluations have no sample, since activations are not the point. The
folder needs 16 bytes a parameter.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from llada.checkpoints.dummy import write_random_checkpoint
from llada.data.corpus import Corpus
from llada.data.prepared import prepare
from llada.system.environment import set_defaults
from processes import in_a_process, status_bytes

WIDTH, HIDDEN, HEADS, ROWS = 2048, 6144, 16, 32_768
TEXT = "to be or not to be that is the question " * 200
PROCESSES = 2
SHORT = [
    "--windows", "random", "--sequence_length", "32", "--batch_size", "2", "--evaluation_windows", "2",
    "--evaluate_every", "1000", "--log_every", "1", "--epochs", "None", "--warmup_steps", "0",
]  # fmt: skip
FULL = ["--parallel", "fsdp", "--optimizer", "adamw", "--ema", "0", "--activation_checkpointing"]


def commands(folder: Path, weights: str) -> dict[str, list[str]]:
    """Each stage, by its name; the second goes on where the first ended."""
    start = ["finetune", "--checkpoint", str(folder / "checkpoint"), "--data_dir", str(folder / "data"), *SHORT]
    return {
        "all weights": [*start, *FULL, "--weights", weights, "--steps", "2", "--output_dir", str(folder / "full")],
        "read again": ["finetune", "--resume", str(folder / "full"), "--steps", "2"],
        "adapter": [
            *start,
            "--method",
            "lora",
            "--parallel",
            "fsdp",
            "--steps",
            "1",
            "--output_dir",
            str(folder / "lora"),
        ],
    }


def write(folder: str, billions: float) -> dict[str, Any]:
    """Write the checkpoint and the data, in this process."""
    per_layer = 4 * WIDTH**2 + 3 * WIDTH * HIDDEN
    n_layers = max(1, round((billions * 1e9 - 2 * ROWS * WIDTH) / per_layer))
    write_random_checkpoint(
        Path(folder, "checkpoint"),
        TEXT,
        d_model=WIDTH,
        n_heads=HEADS,
        n_layers=n_layers,
        mlp_hidden_size=HIDDEN,
        vocab_size=ROWS,
    )
    prepare(Corpus(TEXT, "benchmark", "the question"), Path(folder, "data"), 100)
    return {"parameters": n_layers * per_layer + 2 * ROWS * WIDTH + (2 * n_layers + 1) * WIDTH}


def train(rank: int, port: int, command: list[str]) -> dict[str, Any]:
    """Carry out a stage in this process, one of two; returns what it took, in bytes."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    os.environ.update({name: str(value) for name, value in {**ranks, **address}.items()})
    from llada.checkpoints import safetensors
    from llada.cli import run_command
    from llada.cli import train as module
    from llada.training import data_source, state
    from llada.training.run_memory import TORCH_BYTES, host_memory
    from llada.training.trainer import Trainer

    counted, found = {"weights": 0, "moments": 0}, {}
    map_entry, give_back = safetensors._map, vars(state)["give_back"]

    class Watched(Trainer):
        def __init__(self, plan: Any, *arguments: Any, **options: Any) -> None:
            found["formula"] = host_memory(plan) + TORCH_BYTES
            super().__init__(plan, *arguments, **options)
            found["peak at start"] = status_bytes("VmHWM")

    def map_and_count(entry: Any) -> Any:
        counted["weights"] += entry.n_bytes
        return map_entry(entry)

    def count_and_give_back(tensor: Any) -> None:
        counted["moments"] += tensor.nbytes
        give_back(tensor)

    vars(module)["Trainer"] = Watched
    data_source.TextSource.sample = lambda self, model: data_source.Sample("")  # type: ignore[method-assign]
    vars(safetensors)["_map"], vars(state)["give_back"] = map_and_count, count_and_give_back
    start = time.perf_counter()
    try:
        run_command(command[0], command[1:])
    except SystemExit as end:
        if end.code:
            raise
    seconds = time.perf_counter() - start
    return {**found, "peak": status_bytes("VmHWM"), "seconds": seconds, **counted}


def in_processes(command: list[str]) -> list[dict[str, Any]]:
    """Carry out a stage in all processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for rank in range(PROCESSES):
        case = json.dumps({"rank": rank, "port": port, "command": command})
        words = [sys.executable, __file__, "--case", case]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        started.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment))
    outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit("a process failed")
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def main() -> None:
    set_defaults()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where checkpoints are written; removed first, if it is there")
    parser.add_argument("--billions", type=float, default=1.0, help="parameters of the checkpoint")
    parser.add_argument("--weights", choices=("fp32", "bf16"), default="fp32", help="type of the trained weights")
    parser.add_argument("--only", help="a stage; the folder then stays as it is")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        case = json.loads(options.case)
        print(json.dumps(train(**case) if "rank" in case else write(**case)))
        return
    if options.only is None:
        shutil.rmtree(options.folder, ignore_errors=True)
    if not options.folder.exists():
        options.folder.mkdir(parents=True)
        case = {"folder": str(options.folder), "billions": options.billions}
        print(f"{in_a_process(__file__, case)['parameters']:,} parameters")
    table = Table(title=f"GB, in each of {PROCESSES} processes of one thread")
    for title in ("", "process", "peak", "formula", "peak after reading", "weights read", "moments read", "seconds"):
        table.add_column(title, justify="left" if not title else "right")
    for name, command in commands(options.folder, options.weights).items():
        if options.only in (None, name):
            for rank, found in enumerate(in_processes(command)):
                keys = ("peak", "formula", "peak at start", "weights", "moments")
                numbers = [f"{found[key] / 1e9:.2f}" for key in keys]
                table.add_row(name, str(rank), *numbers, f"{found['seconds']:.0f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
