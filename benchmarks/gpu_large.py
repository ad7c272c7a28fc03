"""Benchmarks of LLaDA-8B on one GPU: LoRA, QLoRA, training of all weights, and sampling, with memory next to the
forecast.

The network has the public checkpoints' shape and random weights, made on the device. Its vocabulary's first rows stand
for characters, since there is no tokenizer of 126,464 tokens here; no number depends on which tokens they are.
"""

import contextlib
import gc
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from gpu_rows import LeftOutError
from gpu_sections import Place
from llada.checkpoints.dummy import random_network
from llada.checkpoints.folder import make_predictor
from llada.checkpoints.hub import LLADA_8B
from llada.checkpoints.lora import LoraOptions
from llada.costs.flops import training_flops_per_token
from llada.costs.memory import inference_memory
from llada.data.prepared import PreparedText
from llada.models import LLaDAConfig, MaskPredictor, NetworkConfig
from llada.models.block_cache import BlockCachedPredictor
from llada.sampling.config import SamplerConfig
from llada.sampling.guidance import Predict, suppress
from llada.sampling.speculation import speculate
from llada.sampling.unmask import generate
from llada.system.device import memory_bytes
from llada.tokenizers.char import CharTokenizer
from llada.training.config import DataOptions, TrainConfig
from llada.training.metrics import LossByTime
from llada.training.plan import RunPlan
from llada.training.presets import PRESETS
from llada.training.run_folder import RunFolder
from llada.training.run_memory import expected_memory
from llada.training.trainer import Trainer
from processes import begin_peak_anew, status_bytes
from throughput import make_text, tokens_per_second

RANK = 16
STEPS = 6  # timed, after two that warm up
USABLE_SHARE = 0.8  # share of the memory that a forecast may fill, so that an underestimate still runs
GB = 1e9
# Sampling: tokens of the prompt, of the answer and of a block.
PROMPT, ANSWER, BLOCK = 128, 128, 32
GUESSES = 3  # of the next steps, in each evaluation


def large_config(tiny: bool) -> LLaDAConfig:
    """Return LLaDA-8B's configuration, or that of a small network with the same parts."""
    if not tiny:
        return LLADA_8B
    return replace(LLADA_8B, d_model=64, n_heads=2, n_kv_heads=2, n_layers=2, mlp_hidden_size=192, vocab_size=512,
                   mask_token_id=511, pad_token_id=0, eos_token_id=0, max_sequence_length=128)  # fmt: skip


def run_config(place: Place) -> TrainConfig:
    """Configure fine-tuning on one long sequence, as the preset of that name does."""
    preset = PRESETS["finetune"]
    return replace(
        preset,
        base="random",
        data=DataOptions(sequence_length=large_config(place.tiny).max_sequence_length),
        noise=replace(preset.noise, random_length=0.0),
        device=place.device.type,  # type: ignore[arg-type]
        precision="bf16",
        compile=False,
    )


def lora(place: Place) -> None:
    name = f"LoRA, rank {RANK}"
    with place.rows.case(name):
        need("peft")
        config = replace(run_config(place), method="lora", lora=LoraOptions(lora_rank=RANK))
        measure_training(place, name, config, large_config(place.tiny))


def qlora(place: Place) -> None:
    name = f"QLoRA, rank {RANK}"
    with place.rows.case(name):
        need("peft", "bitsandbytes")
        config = replace(run_config(place), method="qlora", lora=LoraOptions(lora_rank=RANK))
        measure_training(place, name, config, large_config(place.tiny))


def bf16(place: Place) -> None:
    """Train all weights in bf16: with 8-bit optimizer moments, and with fp32 moments and as many layers as fit."""
    config = replace(run_config(place), weights="bf16")
    eight = replace(config, optimizer=replace(config.optimizer, optimizer_state="8bit"))
    with place.rows.case("all weights in bf16, 8-bit moments"):
        need("bitsandbytes")
        network = fitting(place, eight, large_config(place.tiny))
        measure_training(place, f"all weights in bf16, 8-bit moments, {network.n_layers} layers", eight, network)
    tidy(place)
    with place.rows.case("all weights in bf16, fp32 moments"):
        network = fitting(place, config, large_config(place.tiny))
        measure_training(place, f"all weights in bf16, fp32 moments, {network.n_layers} layers", config, network)


def need(*packages: str) -> None:
    """Skip the case if a package is not installed.

    Raises:
        LeftOutError: a package is not installed.
    """
    for package in packages:
        if find_spec(package) is None:
            raise LeftOutError(f"{package} is not installed here")


def fitting(place: Place, config: TrainConfig, network: LLaDAConfig) -> LLaDAConfig:
    """Return the network with the most layers whose training fits into the memory by the forecast."""
    with tempfile.TemporaryDirectory() as name:
        plan = RunPlan.of(config, make_text(Path(name)), network)
    for n_layers in range(network.n_layers, 0, -1):
        fewer = replace(network, n_layers=n_layers)
        if expected_memory(replace(plan, network_config=fewer)).total < USABLE_SHARE * memory_bytes(place.device):
            return fewer
    raise LeftOutError("the memory does not hold the embedding and one layer")


@contextlib.contextmanager
def made_on_the_device(place: Place, config: TrainConfig) -> Iterator[None]:
    """Make a run's initial network on its device, in 4 bits if the run wants that."""

    def make(network_config: LLaDAConfig, tokenizer: CharTokenizer) -> MaskPredictor:
        network = random_network(network_config, place.device, torch.bfloat16)
        return MaskPredictor(network, tokenizer.mask_id, tokenizer.mask_row)

    with mock.patch("llada.training.build.make_predictor", make):
        yield


def measure_training(place: Place, row: str, config: TrainConfig, network: LLaDAConfig) -> None:
    """Measure some steps of a run: speed, and the peak of memory next to the forecast."""
    with tempfile.TemporaryDirectory() as name:
        data = make_text(Path(name))
        plan = RunPlan.of(config, data, network)
        with made_on_the_device(place, config):
            trainer = Trainer(plan, RunFolder(Path(name, "run")))
        begin_peak(place)
        by_time = LossByTime(trainer.device)
        losses = [float(trainer.train_step(by_time).loss) for _ in range(2)]
        speeds = [tokens_per_second(trainer, 1) for _ in range(1 if place.tiny else STEPS)]
        memory, median = expected_memory(plan), statistics.median(speeds)
        figures: dict[str, Any] = peak_figures(place, memory.total)
        per_token = training_flops_per_token(network, plan.length)
        place.rows.add(
            row,
            tokens_per_second=median,
            slowest=min(speeds),
            fastest=max(speeds),
            model_tflops=median * per_token / 1e12,
            sequence_length=plan.length,
            loss=losses[0],
            predicted_bytes=memory.total,
            predicted_gb=memory.total / GB,
            weights_gb=memory.weights / GB,
            **figures,
        )


def begin_peak(place: Place) -> None:
    """Restart the measurement of the peak of memory."""
    if place.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(place.device)
    else:
        with contextlib.suppress(OSError):
            begin_peak_anew()


def peak_figures(place: Place, predicted: float) -> dict[str, float]:
    """Report peaks: of the tensors and torch's allocator on a GPU; of the process on a CPU, where the system reports
    it."""
    if place.device.type == "cuda":
        allocated = torch.cuda.max_memory_allocated(place.device)
        reserved = torch.cuda.max_memory_reserved(place.device)
        return {"peak_gb": allocated / GB, "reserved_gb": reserved / GB, "peak_of_predicted": allocated / predicted}
    with contextlib.suppress(OSError):
        return {"process_peak_gb": status_bytes("VmHWM") / GB}
    return {}


def sampling(place: Place) -> None:
    """Measure tokens and network evaluations per second: LLaDA-8B's shape in bf16, and the laptop preset."""
    config, answer, block = large_config(place.tiny), ANSWER, BLOCK
    if place.tiny:
        answer, block = 16, 8
    with place.rows.case("LLaDA-8B in bf16"):
        network = random_network(config, place.device, torch.bfloat16).eval()
        model = MaskPredictor(network, config.mask_token_id, config.mask_token_id)
        predict = suppress(model, [config.mask_token_id])
        # Fewer steps where one takes long: the speed of a step does not depend on their number.
        for batch, steps, temperature in ((1, answer, 0.0), (16, answer // 4, 0.0), (1, answer // 4, 1.0)):
            row = f"LLaDA-8B in bf16, batch {batch}, {steps} steps, temperature {temperature:g}"
            with place.rows.case(row):
                settings = SamplerConfig(steps=steps, block_length=block, temperature=temperature)
                measure_sampling(place, row, predict, config, batch, answer, settings, config.mask_token_id)
        measure_ways(place, model, config, answer // 4, block)
        del network, model, predict
    tidy(place)
    with place.rows.case("preset laptop"), tempfile.TemporaryDirectory() as name:
        measure_preset(place, make_text(Path(name)))


def measure_ways(place: Place, model: MaskPredictor, config: LLaDAConfig, answer: int, block: int) -> None:
    """Measure the dual cache, and speculation: what a random network writes says nothing, the seconds of a pass do."""
    settings, mask_id = SamplerConfig(steps=answer, block_length=block), config.mask_token_id
    row = f"LLaDA-8B in bf16, batch 1, {answer} steps, dual cache"
    with place.rows.case(row):
        cached = suppress(BlockCachedPredictor(model, "dual", block), [mask_id])
        measure_sampling(place, row, cached, config, 1, answer, settings, mask_id)
    row = f"LLaDA-8B in bf16, {answer} steps, {GUESSES} guesses a pass"
    with place.rows.case(row):
        prompt = torch.arange(8 if place.tiny else PROMPT, device=place.device).remainder(60).add(3)
        template = torch.cat((prompt, prompt.new_full((answer,), mask_id)))[None]
        predict, start = suppress(model, [mask_id]), time.perf_counter()
        *_, last = speculate(predict, template, mask_id, settings, GUESSES)
        place.synchronise()
        seconds = time.perf_counter() - start
        place.rows.add(
            row, tokens_per_second=answer / seconds, nfe_per_second=last.nfe / seconds, nfe=last.nfe, texts=last.rows,
            seconds=seconds,
        )  # fmt: skip


def measure_preset(place: Place, data: PreparedText) -> None:
    """Measure sampling as `llada sample` does it: fp32, all masks at once, random places, temperature 1."""
    preset = PRESETS["laptop"]
    config = preset.network.build_config(data.tokenizer, preset.data.sequence_length)
    model = make_predictor(config, data.tokenizer).to(place.device).eval()
    predict = suppress(model, data.tokenizer.forbidden_rows)
    answer = 16 if place.tiny else ANSWER
    for batch in (1, 16):
        row = f"preset laptop in fp32, batch {batch}, {answer} steps, temperature 1"
        with place.rows.case(row):
            settings = SamplerConfig(steps=answer, temperature=1.0, remasking="random")
            measure_sampling(place, row, predict, config, batch, answer, settings, data.tokenizer.mask_id, 4)


def measure_sampling(
    place: Place,
    row: str,
    predict: Predict,
    config: NetworkConfig,
    batch: int,
    answer: int,
    settings: SamplerConfig,
    mask_id: int,
    weight_bytes: int = 2,
) -> None:
    """Write an answer to a prompt twice, first to warm up."""
    prompt = torch.arange(8 if place.tiny else PROMPT, device=place.device).remainder(60).add(3).expand(batch, -1)

    def write(steps: int) -> tuple[int, float]:
        start = time.perf_counter()
        shorter = replace(settings, steps=steps)
        canvas = generate(predict, prompt, answer, mask_id, shorter, torch.Generator().manual_seed(0))
        if bool((canvas.x_t == mask_id).any()):
            raise RuntimeError("something is masked still")
        return canvas.nfe, time.perf_counter() - start

    assert settings.steps is not None
    write(max(1, settings.steps // 8))
    begin_peak(place)
    nfe, seconds = write(settings.steps)
    predicted = inference_memory(config, batch, prompt.shape[1] + answer, weight_bytes)
    figures: dict[str, Any] = peak_figures(place, predicted)
    place.rows.add(
        row,
        tokens_per_second=batch * answer / seconds,
        nfe_per_second=nfe / seconds,
        nfe=nfe,
        seconds=seconds,
        predicted_gb=predicted / GB,
        **figures,
    )


def tidy(place: Place) -> None:
    """Free what a case has left on the device before the next one."""
    gc.collect()
    if place.device.type == "cuda":
        torch.cuda.empty_cache()
