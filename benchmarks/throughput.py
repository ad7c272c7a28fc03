"""Training throughput on this machine: tokens per second, as a share of the measured speed of matmuls.

    python benchmarks/throughput.py [--shape laptop] [--peer-dir DIR] [--steps 3] [--repeats 3]

The shape is that of other trainers for Tiny Shakespeare (6 layers of 384, 64 sequences of 256) or the laptop preset's.
The first row is the network and recipe of that preset; each row below it changes one thing. A plain PyTorch encoder
(fp32, AdamW, dropout 0.2, not compiled) is the baseline; with `--peer-dir`, copies of nanoGPT and tiny-diffusion in
folders of those names under DIR are measured as well (peers.py).

Every row is the median of several repeats that take turns with the others, so that a drift of the machine hits all of
them alike; the ratios hold where the seconds do not. Below the table, where the time of a step goes.
"""

import argparse
import contextlib
import dataclasses
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from llada.costs.flops import training_flops_per_token
from llada.costs.parameters import total_parameters
from llada.data.batches import TokenBatch
from llada.data.corpus import Corpus
from llada.data.prepared import PreparedText, prepare
from llada.forward_process import NoisyBatch
from llada.system.device import describe_device, matmul_flops_per_second
from llada.system.environment import set_defaults
from llada.training.config import NetworkOptions, NoiseOptions, OptimizerOptions, TrainConfig
from llada.training.metrics import LossByTime
from llada.training.plan import RunPlan
from llada.training.presets import PRESETS
from llada.training.run_folder import RunFolder
from llada.training.trainer import Trainer

BATCHES = 50  # batches that are drawn to time drawing alone
PEERS = ("nanoGPT", "tiny-diffusion")
# Of a profile's events, those that are not element-wise work; the first pattern that a name starts with decides.
PARTS = {
    "matmuls": ("aten::mm", "aten::addmm", "mkldnn::_linear"),
    "attention": ("aten::bmm", "aten::baddbmm", "aten::_softmax", "aten::_scaled_dot_product"),
}


def of_shape(config: TrainConfig, shape: str) -> TrainConfig:
    """Return the configuration in this shape, and without batches cut to a random length, which would differ in
    speed."""
    noise = dataclasses.replace(config.noise, random_length=0.0)
    config = dataclasses.replace(config, noise=noise, data=dataclasses.replace(config.data, sequence_length=256))
    if shape == "laptop":
        return config
    # All layers attend, as the peers' do, with 3 wide heads: their 6 narrower ones, below, cost speed on a CPU.
    network = dataclasses.replace(config.network, n_layers=6, d_model=384, n_heads=3, attention_every=1)
    return dataclasses.replace(config, network=network, batch_size=64)


def make_cases(shape: str) -> dict[str, TrainConfig]:
    base = of_shape(dataclasses.replace(PRESETS["laptop"], compile=True), shape)
    network, adamw = base.network, OptimizerOptions(optimizer="adamw")
    heads = 2 * network.n_heads
    sparse = dataclasses.replace(network, attention_every=PRESETS["laptop"].network.attention_every)
    same_shape = NetworkOptions(n_layers=network.n_layers, d_model=network.d_model, n_heads=network.n_heads)
    plain = dataclasses.replace(same_shape, network="encoder", n_heads=heads, dropout=0.2)
    return {
        "laptop recipe": base,
        "not compiled": dataclasses.replace(base, compile=False),
        "AdamW instead of Muon": dataclasses.replace(base, optimizer=adamw),
        f"{heads} heads": dataclasses.replace(base, network=dataclasses.replace(network, n_heads=heads)),
        f"one layer in {sparse.attention_every} attends": dataclasses.replace(base, network=sparse),
        "llada network, compiled, AdamW": dataclasses.replace(base, network=same_shape, optimizer=adamw),
        "baseline: plain encoder, fp32": dataclasses.replace(
            base, network=plain, optimizer=adamw, precision="fp32", compile=False, noise=NoiseOptions(random_length=0.0)
        ),
    }


BASELINE = "baseline: plain encoder, fp32"


def make_text(folder: Path) -> PreparedText:
    """Prepare a random text with as many characters as Tiny Shakespeare, of as many kinds; speed does not depend on
    which."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(33, 98, (1_115_394,), generator=generator)
    return prepare(Corpus(bytes(codes.tolist()).decode(), "file", "random"), folder / "data", 4096)


def tokens_per_second(trainer: Trainer, steps: int) -> float:
    by_time = LossByTime(trainer.device)
    start = time.perf_counter()
    for _ in range(steps):
        done = trainer.train_step(by_time)
    float(done.loss)  # waits for the device
    return steps * trainer.plan.tokens_per_step / (time.perf_counter() - start)


def peer_tokens_per_second(name: str, folder: Path, steps: int) -> float:
    command = [sys.executable, str(Path(__file__).with_name("peers.py")), name, str(folder), "--steps", str(steps)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(result.stdout.splitlines()[-1])["tokens_per_second"])


def part_of(event: FunctionEvent) -> str:
    """Find the part of a step that an event of its profile belongs to, by its name and those of its callers."""
    above: FunctionEvent | None = event
    while above is not None:
        if above.name.startswith("Optimizer."):
            return "optimizer"
        if above.name == "batch":
            return "data and masks"
        above = above.cpu_parent
    return next((part for part, names in PARTS.items() if event.name.startswith(names)), "element-wise and the rest")


def where_time_goes(trainer: Trainer, steps: int) -> dict[str, float]:
    """Measure the shares of a step, from a profile of the CPU."""
    make_batch = trainer.steps.make_batch

    def recorded(step: int) -> tuple[TokenBatch, NoisyBatch]:
        with record_function("batch"):
            return make_batch(step)

    trainer.steps.make_batch = recorded  # type: ignore[method-assign]
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        tokens_per_second(trainer, steps)
    trainer.steps.make_batch = make_batch  # type: ignore[method-assign]
    times: dict[str, float] = {}
    for event in trace.events():
        part = part_of(event)
        times[part] = times.get(part, 0.0) + event.self_cpu_time_total
    total = sum(times.values())
    return {part: seconds / total for part, seconds in sorted(times.items(), key=lambda item: -item[1])}


def main() -> None:
    set_defaults()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--shape", choices=["peers", "laptop"], default="peers")
    parser.add_argument("--peer-dir", type=Path, help="folder with nanoGPT and tiny-diffusion in it")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        data = make_text(folder)
        trainers: dict[str, Trainer] = {}
        first_steps: dict[str, float] = {}
        for case, config in make_cases(options.shape).items():
            with console.status(f"warming up: {case}"):
                trainers[case] = Trainer(RunPlan.of(config, data), RunFolder(folder / "run"))
                start = time.perf_counter()
                if trainers[case].is_compiled:
                    trainers[case].compile()
                first_steps[case] = time.perf_counter() - start
                tokens_per_second(trainers[case], 2)
        peers = [peer for peer in PEERS if options.peer_dir and (options.peer_dir / peer).is_dir()]
        speeds: dict[str, list[float]] = {case: [] for case in [*trainers, *peers]}
        peaks: list[float] = []
        first = next(iter(trainers.values()))
        stack.enter_context(console.status("measuring"))
        for _ in range(options.repeats):
            peaks.append(matmul_flops_per_second(first.device, first.precision.dtype))
            for case, trainer in trainers.items():
                speeds[case].append(tokens_per_second(trainer, options.steps))
            for peer in peers:
                speeds[peer].append(peer_tokens_per_second(peer, options.peer_dir / peer, options.steps))
        parts = where_time_goes(first, max(2, options.steps))
        start = time.perf_counter()
        for step in range(BATCHES):
            first.steps.make_batch(step)
        batch_seconds = (time.perf_counter() - start) / BATCHES
    peak = statistics.median(peaks)
    median = {case: statistics.median(values) for case, values in speeds.items()}
    network = first.plan.network_config
    shape = f"{network.n_layers} layers of {network.d_model}, {first.config.batch_size} x {first.plan.length}"
    table = Table(
        title=f"{datetime.date.today()} · {describe_device(first.device)} · torch {torch.__version__} · {shape}"
    )
    for column in ("", "parameters", "tokens/s", "x baseline", "GFLOP/s", "of matmul peak", "compiled in"):
        table.add_column(column, justify="left" if not column else "right")
    for case, speed in median.items():
        row = [case, "", f"{speed:,.0f}", f"{speed / median[BASELINE]:.2f}", "", "", ""]
        if case in trainers:
            plan = trainers[case].plan
            flops = speed * training_flops_per_token(plan.network_config, plan.length)
            row[1] = f"{total_parameters(plan.network_config):,}"
            row[4:6] = f"{flops / 1e9:,.0f}", f"{flops / peak:.0%}"
            row[6] = f"{first_steps[case]:.0f} s" if trainers[case].is_compiled else ""
        table.add_row(*row)
    console.print(table)
    console.print(f"Peak of matmuls: {peak / 1e9:.0f} GFLOP/s in {first.precision.dtype} ({first.precision.reason}).")
    shares = ", ".join(f"{part} {share:.1%}" for part, share in parts.items())
    console.print(f"A step of the first row: {shares}.")
    share = batch_seconds * median["laptop recipe"] / first.plan.tokens_per_step
    console.print(f"Windows and masks of a step, timed alone: {1000 * batch_seconds:.2f} ms, {share:.2%} of it.")
    for peer in peers:
        console.print(f"{next(iter(trainers))}: {median[next(iter(trainers))] / median[peer]:.2f} x {peer}.")


if __name__ == "__main__":
    main()
