"""Training speed of small networks on a GPU: the laptop preset, and 6 layers of 384 next to nanoGPT's configuration.

Each case is measured once uncompiled and once compiled. The share of the peak is by the FLOPs of a token
(costs/parameters.py) and the speed of large matmuls, measured in the same process.
"""

import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from baby_gpt import VOCABULARY, BabyGPT, BabyTraining
from gpu_sections import Place, matmul_peak
from llada.costs.flops import training_flops_per_token
from llada.data.prepared import PreparedText
from llada.models import EncoderConfig, NetworkConfig
from llada.system.device import choose_precision
from llada.training.config import NetworkOptions, OptimizerOptions, TrainConfig
from llada.training.metrics import LossByTime
from llada.training.plan import RunPlan
from llada.training.presets import PRESETS
from llada.training.run_folder import RunFolder
from llada.training.trainer import Trainer
from throughput import make_text, of_shape, tokens_per_second

REPEATS = 5
REPEAT_SECONDS = 0.5  # for each at least
WARM_UP = 3  # steps
BABY = "nanoGPT's 6 x 384, 64 x 256"


def make_cases(place: Place) -> dict[str, TrainConfig | None]:
    """Return the cases by name, uncompiled; None stands for nanoGPT's network. The most important case comes first."""
    preset = replace(PRESETS["laptop"], device=place.device.type, compile=False)  # type: ignore[arg-type]
    recipe = of_shape(preset, "peers")
    # Attention's kernels on a GPU are optimised for heads of 64 and 128 channels; nanoGPT has 6 of 64.
    alike = NetworkOptions(n_layers=6, d_model=384, n_heads=6)
    cases: dict[str, TrainConfig | None] = {
        "preset laptop, 8 x 256": of_shape(preset, "laptop"),
        "LLaDA 6 x 384, AdamW, 64 x 256": replace(
            recipe, network=alike, optimizer=OptimizerOptions(optimizer="adamw", ema=0.0)
        ),
        BABY: None,
        "the preset's recipe, 6 x 384, 64 x 256": recipe,
    }
    if place.tiny:
        cases = {name: config and smaller(config) for name, config in cases.items()}
    return cases


def smaller(config: TrainConfig) -> TrainConfig:
    network = replace(config.network, d_model=32, n_heads=1, n_layers=1)
    if config.network.network == "local":
        network = replace(network, attention_every=1)
    return replace(config, network=network, batch_size=2, data=replace(config.data, sequence_length=32))


def speed(place: Place) -> None:
    """Measure training in tokens per second, case by case."""
    precision = choose_precision("auto", place.device)
    peak = matmul_peak(place.device, precision.dtype)
    with tempfile.TemporaryDirectory() as name:
        data = make_text(Path(name))
        for compiled in (False, True):
            for title, config in make_cases(place).items():
                row = f"{title}, {'compiled' if compiled else 'not compiled'}"
                with place.rows.case(row):
                    if config is None:
                        time_baby(place, row, compiled, peak)
                    else:
                        time_product(place, row, replace(config, compile=compiled), data, peak)
                tidy(place)


def time_product(place: Place, row: str, config: TrainConfig, data: PreparedText, peak: float) -> None:
    trainer = Trainer(RunPlan.of(config, data), RunFolder(data.folder.parent / "run"))
    start = time.perf_counter()
    said: list[str] = []
    trainer.say = said.append
    if trainer.is_compiled:
        trainer.compile()
    print(*said, sep="\n")
    by_time = LossByTime(trainer.device)
    for _ in range(WARM_UP):
        loss = float(trainer.train_step(by_time).loss)
    seconds = time.perf_counter() - start
    if bool(config.compile) != trainer.is_compiled:
        raise RuntimeError(f"the run was {'not ' if config.compile else ''}compiled: {' '.join(said)}")
    add_speed(place, row, lambda n: tokens_per_second(trainer, n), trainer.plan.network_config, trainer.plan.length,
              trainer.plan.tokens_per_step, peak, seconds, loss)  # fmt: skip


def time_baby(place: Place, row: str, compiled: bool, peak: float) -> None:
    torch.manual_seed(0)
    network = BabyGPT(1, 32, 1, 32) if place.tiny else BabyGPT()
    precision = choose_precision("auto", place.device)
    training = BabyTraining(place.device, precision, compiled, network, 2 if place.tiny else 64)
    start = time.perf_counter()
    for _ in range(WARM_UP):
        loss = float(training.step())
    seconds = time.perf_counter() - start

    def measure(steps: int) -> float:
        begin = time.perf_counter()
        for _ in range(steps):
            done = training.step()
        float(done)  # waits for the device
        return steps * training.tokens_per_step / (time.perf_counter() - begin)

    width, layers = network.tokens.embedding_dim, len(network.blocks)
    config = EncoderConfig(
        vocab_size=VOCABULARY, mask_token_id=VOCABULARY - 1, max_sequence_length=training.length, d_model=width,
        n_heads=network.blocks[0].heads, n_layers=layers, is_causal=True,  # type: ignore[arg-type]
    )  # fmt: skip
    add_speed(place, row, measure, config, training.length, training.tokens_per_step, peak, seconds, loss)


def add_speed(
    place: Place,
    row: str,
    measure: Callable[[int], float],
    config: NetworkConfig,
    length: int,
    tokens_per_step: int,
    peak: float,
    start_seconds: float,
    loss: float,
) -> None:
    """Add a row with the median of several measurements of some steps each.

    Args:
        measure: function from steps to tokens per second.
        start_seconds: seconds of the first steps, compilation included.
    """
    steps = 1 if place.tiny else max(3, round(REPEAT_SECONDS * measure(3) / tokens_per_step))
    speeds = [measure(steps) for _ in range(1 if place.tiny else REPEATS)]
    median = statistics.median(speeds)
    place.rows.add(
        row,
        tokens_per_second=median,
        slowest=min(speeds),
        fastest=max(speeds),
        steps=steps,
        ms_per_step=1000 * tokens_per_step / median,
        share_of_peak=median * training_flops_per_token(config, length) / peak,
        peak_tflops=peak / 1e12,
        start_seconds=start_seconds,
        loss=loss,
    )


def tidy(place: Place) -> None:
    """Free memory and compiled code of a case before the next one."""
    torch.compiler.reset()
    gc.collect()
    if place.device.type == "cuda":
        torch.cuda.empty_cache()
