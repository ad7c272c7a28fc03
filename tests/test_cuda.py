"""What only a GPU can show: that it computes what the CPU does, waits for nothing, and keeps what must stay.

Run by `scripts/gpu-check`. With LLADA_CUDA_TESTS_ON=cpu the CPU stands in for the GPU, as a rehearsal of the tests.

Shape letters: B batch, L length.
"""

import copy
import gc
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llada.checkpoints.dummy import write_random_checkpoint
from llada.checkpoints.folder import read_config, read_tokenizer
from llada.checkpoints.lora import adapter_weights
from llada.data.batches import TokenBatch
from llada.data.prepared import PreparedText, text_for
from llada.evaluation.exact_likelihood import measure_exact_nll
from llada.evaluation.nelbo import BoundOptions, estimate_nelbo, nll_by_model
from llada.evaluation.windows import cut_windows
from llada.models import MaskPredictor
from llada.sampling.config import SamplerConfig
from llada.sampling.guidance import suppress
from llada.sampling.unmask import generate
from llada.system.device import Precision
from llada.training.config import NetworkOptions, NoiseOptions, OptimizerOptions, TrainConfig
from llada.training.log import StepResult
from llada.training.metrics import LossByTime
from llada.training.plan import RunPlan
from llada.training.run_folder import RunFolder
from llada.training.trainer import Trainer
from tests.support.runs import losses, train, weights

ON: Any = os.environ.get("LLADA_CUDA_TESTS_ON", "cuda")
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(ON == "cuda" and not torch.cuda.is_available(), reason="there is no GPU here"),
]
needs_gpu = pytest.mark.skipif(ON != "cuda", reason="this can be seen on a GPU only")
needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed here")
needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed here")

FP32, BF16 = Precision(torch.float32, ""), Precision(torch.bfloat16, "")
ADAMW = OptimizerOptions(optimizer="adamw", learning_rate=1e-3, warmup_steps=2)
BF16_WEIGHTS = {"weights": "bf16", "optimizer": replace(ADAMW, ema=0.0)}
EIGHT_BITS = {"weights": "bf16", "optimizer": replace(ADAMW, ema=0.0, optimizer_state="8bit")}
ENCODER = NetworkOptions("encoder", d_model=64, n_heads=2, n_layers=2)
LOCAL = NetworkOptions("local", d_model=64, n_heads=2, n_layers=2, attention_every=1)
BUSY_CYCLES = 2_000_000_000  # about a second of a GPU


@pytest.fixture
def config(small_run: TrainConfig) -> TrainConfig:
    """A run in fp32, not compiled."""
    return replace(
        small_run,
        network=NetworkOptions(d_model=64, n_heads=2, n_layers=2),
        data=replace(small_run.data, sequence_length=48),
        noise=NoiseOptions(complementary=True, random_length=0.0),
        batch_size=8,
        device=ON,
        compile=False,
    )


@pytest.fixture
def checkpoint(text: str, tmp_path: Path) -> Path:
    write_random_checkpoint(tmp_path / "base", text, max_sequence_length=64)
    return tmp_path / "base"


def make_trainer(config: TrainConfig, data: PreparedText) -> Trainer:
    return Trainer(RunPlan.of(config, data), RunFolder(config.output_dir))


def tuning(config: TrainConfig, data: PreparedText, checkpoint: Path, method: Any) -> Trainer:
    """An adapter with its checkpoint."""
    config = replace(
        config, network=NetworkOptions(), base=str(checkpoint), method=method, optimizer=replace(ADAMW, ema=0.0)
    )
    plan = RunPlan.of(config, text_for(read_tokenizer(checkpoint), data), read_config(checkpoint))
    return Trainer(plan, RunFolder(config.output_dir), start=checkpoint)


def take_steps(trainer: Trainer, n_steps: int) -> list[float]:
    """Loss and norm of the gradient of each, one after the other."""
    by_time = LossByTime(trainer.device)
    done = [trainer.train_step(by_time) for _ in range(n_steps)]
    return [float(number) for step in done for number in (step.loss, step.grad_norm)]


def difference(ours: list[float], theirs: list[float]) -> float:
    """The largest one, as a share."""
    assert all(map(math.isfinite, ours + theirs))
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


def trained(config: TrainConfig, data: PreparedText) -> MaskPredictor:
    """A model that knows a little."""
    trainer = make_trainer(replace(config, steps=40), data)
    take_steps(trainer, 40)
    return trainer.model.eval()


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"optimizer": ADAMW, "batch_size": 4, "accumulate": 2},
        {"network": LOCAL},
        {"network": ENCODER, "optimizer": ADAMW, "noise": NoiseOptions(masking="bernoulli", random_length=0.0)},
    ],
    ids=["llada, muon", "llada, adamw", "local, muon", "encoder, adamw"],
)
def test_steps_in_fp32_are_those_of_a_cpu(
    change: dict[str, Any], config: TrainConfig, data: PreparedText, record_property: Any
) -> None:
    config = replace(config, **change)
    gpu, cpu = (take_steps(make_trainer(replace(config, device=device), data), 6) for device in (ON, "cpu"))
    record_property("difference", difference(gpu, cpu))
    assert difference(gpu[:2], cpu[:2]) < 1e-4
    assert difference(gpu, cpu) < 1e-2  # rounding grows from step to step


@needs_peft
def test_steps_of_an_adapter_are_those_of_a_cpu(
    config: TrainConfig, data: PreparedText, checkpoint: Path, record_property: Any
) -> None:
    gpu, cpu = (
        take_steps(tuning(replace(config, device=device), data, checkpoint, "lora"), 6) for device in (ON, "cpu")
    )
    record_property("difference", difference(gpu, cpu))
    assert difference(gpu[:2], cpu[:2]) < 1e-4
    assert difference(gpu, cpu) < 1e-2


@needs_peft
@needs_bitsandbytes
def test_an_adapter_beside_four_bits_learns_and_leaves_them_alone(
    config: TrainConfig, data: PreparedText, checkpoint: Path
) -> None:
    config = replace(config, precision="bf16", steps=40)
    trainer = tuning(config, data, checkpoint, "qlora")
    frozen = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if not p.requires_grad}
    trainable = adapter_weights(trainer.model.network)
    before = {name: weight.detach().clone() for name, weight in trainable.items()}
    four_bits = take_steps(trainer, 40)[::2]
    sixteen_bits = take_steps(tuning(config, data, checkpoint, "lora"), 1)[0]
    assert four_bits[0] == pytest.approx(sixteen_bits, rel=0.1)  # 4 bits round, but not beyond recognition
    assert sum(four_bits[-10:]) < 0.95 * sum(four_bits[:10])
    parameters = dict(trainer.model.named_parameters())
    assert all(torch.equal(parameters[name].detach(), value) for name, value in frozen.items())
    assert not any(torch.equal(weight.detach(), before[name]) for name, weight in trainable.items())


@pytest.mark.parametrize(
    ("change", "tolerance"),
    [({}, 1e-2), ({"precision": "bf16", "activation_checkpointing": True, "optimizer": ADAMW}, 5e-2)],
    ids=["fp32", "bf16, activation checkpointing"],
)
def test_a_compiled_run_has_the_losses_of_one_that_is_not(
    change: dict[str, Any],
    tolerance: float,
    config: TrainConfig,
    data: PreparedText,
    tmp_path: Path,
    record_property: Any,
) -> None:
    torch.compiler.reset()
    plain = replace(config, **change, output_dir=tmp_path / "plain")
    compiled = replace(plain, compile=True, output_dir=tmp_path / "compiled")
    train(plain, data)
    assert train(compiled, data).is_compiled
    record_property("difference", difference(losses(compiled), losses(plain)))
    assert difference(losses(compiled)[:1], losses(plain)[:1]) < tolerance / 10
    assert difference(losses(compiled), losses(plain)) < tolerance


def parts_of(value: Any) -> Iterator[Tensor]:
    """All tensors of an optimizer's state but for the count of steps."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for key, part in value.items():
            if key != "step":
                yield from parts_of(part)


def everything(trainer: Trainer) -> list[Tensor]:
    """Copies of weights, moments and moving average."""
    average = list(trainer.average.weights.values()) if trainer.average else []
    moments = [part for optimizer in trainer.optimizers for part in parts_of(dict(optimizer.state))]
    return [part.detach().clone() for part in (*trainer.model.parameters(), *moments, *average)]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "change",
    [{}, {"optimizer": ADAMW}, BF16_WEIGHTS, pytest.param(EIGHT_BITS, marks=needs_bitsandbytes)],
    ids=["muon", "adamw", "weights in bf16", "moments in 8 bits"],
)
def test_a_gradient_that_is_not_finite_changes_nothing(
    change: dict[str, Any], value: float, config: TrainConfig, data: PreparedText
) -> None:
    trainer = make_trainer(replace(config, **change), data)
    take_steps(trainer, 2)
    before, loss = everything(trainer), trainer.steps.loss
    trainer.steps.loss = lambda *arguments: loss(*arguments) * value  # type: ignore[method-assign]
    trainer.train_step(LossByTime(trainer.device))
    after = everything(trainer)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    trainer.guard.take()
    assert (trainer.guard.skipped, trainer.guard.last_step, trainer.progress.step) == (1, 2, 3)
    trainer.steps.loss = loss  # type: ignore[method-assign]
    take_steps(trainer, 1)
    now = everything(trainer)
    assert all(bool(part.isfinite().all()) for part in now)
    assert not any(torch.equal(a, b) for a, b in zip(after, now, strict=True) if a.numel() > 1000)


STEPS = {
    "muon": {},
    "adamw, accumulation": {"optimizer": ADAMW, "batch_size": 4, "accumulate": 2},
    "bf16": {"precision": "bf16"},
    "weights in bf16": BF16_WEIGHTS,
    "activation checkpointing": {"activation_checkpointing": True},
    "local": {"network": LOCAL},
    "encoder with dropout": {"network": replace(ENCODER, dropout=0.1)},
}


def step_again(trainer: Trainer) -> StepResult:
    """The first step, whose tensors have the same sizes each time."""
    trainer.progress.step = 0
    return trainer.train_step(trainer.by_time)


def assert_waits_for_nothing(trainer: Trainer) -> None:
    """No call of a step asks the device for anything."""
    for _ in range(3):  # what is made once is made: kernels, states, page-locked memory
        step_again(trainer)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        done = step_again(trainer)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert math.isfinite(float(done.loss))


@needs_gpu
@pytest.mark.parametrize("change", STEPS.values(), ids=STEPS)
def test_a_step_waits_for_nothing(change: dict[str, Any], config: TrainConfig, data: PreparedText) -> None:
    assert_waits_for_nothing(make_trainer(replace(config, **change), data))


@needs_gpu
@needs_peft
def test_a_step_of_an_adapter_waits_for_nothing(config: TrainConfig, data: PreparedText, checkpoint: Path) -> None:
    assert_waits_for_nothing(tuning(replace(config, precision="bf16"), data, checkpoint, "lora"))


@needs_gpu
def test_the_host_is_through_with_a_step_before_the_device_begins(config: TrainConfig, data: PreparedText) -> None:
    """One layer: a GPU takes about a thousand kernels ahead, and makes the host wait then."""
    network = NetworkOptions(d_model=64, n_heads=2, n_layers=1)
    trainer = make_trainer(replace(config, network=network, optimizer=ADAMW), data)
    for _ in range(3):
        step_again(trainer)
    torch.cuda.synchronize()
    is_through = torch.cuda.Event()
    torch.cuda._sleep(BUSY_CYCLES)
    is_through.record()
    done = step_again(trainer)
    assert not is_through.query()
    assert math.isfinite(float(done.loss))


@torch.no_grad()
def test_bf16_is_fp32_up_to_rounding(config: TrainConfig, data: PreparedText, record_property: Any) -> None:
    with torch.enable_grad():
        model = trained(config, data)
    x_0 = torch.from_numpy(data.rows["val"][:4, :48].astype("int64"))
    x_t = x_0.masked_fill(torch.arange(48) % 3 == 0, data.tokenizer.mask_id).to(ON)  # (B, L)
    with BF16.autocast(x_t.device):
        rough = model.features(x_t).float()
    exact = model.features(x_t)
    error = float((rough - exact).norm() / exact.norm())
    bounds = [nelbo(model, data, precision, ON) for precision in (BF16, FP32)]
    record_property("features", error)
    record_property("nelbo", difference(bounds[:1], bounds[1:]))
    assert 0 < error < 0.03
    assert bounds[0] == pytest.approx(bounds[1], rel=0.01)


def nelbo(model: MaskPredictor, data: PreparedText, precision: Precision, device: str) -> float:
    windows = TokenBatch(cut_windows(data.tokens("val"), 48, 8))
    return estimate_nelbo(nll_by_model(model, precision), windows, BoundOptions(device=device)).nelbo_nats_per_token


def test_likelihoods_are_those_of_a_cpu(config: TrainConfig, data: PreparedText, record_property: Any) -> None:
    """The bound, and the exact likelihood from left to right, one at a time and four at a time."""
    model = trained(config, data)
    models = {ON: model, "cpu": copy.deepcopy(model).to("cpu")}
    bounds = [nelbo(models[device], data, FP32, device) for device in (ON, "cpu")]
    windows = TokenBatch(cut_windows(data.tokens("val"), 48, 4))
    exact = {
        device: [
            measure_exact_nll(
                models[device], windows, data.tokenizer.mask_id, policy="left_to_right", positions_per_step=at_once,
                device=device,
            ).nll_nats_per_token
            for at_once in (1, 4)
        ]
        for device in (ON, "cpu")
    }  # fmt: skip
    record_property("difference", difference([bounds[0], *exact[ON]], [bounds[1], *exact["cpu"]]))
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-4)
    assert exact[ON] == pytest.approx(exact["cpu"], rel=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("remasking", ["low_confidence", "random"])
def test_the_sampler_writes_what_it_writes_on_a_cpu(
    temperature: float, remasking: Any, config: TrainConfig, data: PreparedText
) -> None:
    """Token by token, the draws being the CPU's on either."""
    model = trained(config, data)
    prompt = torch.from_numpy(data.rows["val"][:2, :24].astype("int64"))
    sampler = SamplerConfig(steps=12, block_length=12, temperature=temperature, remasking=remasking)
    written = []
    for device in (ON, "cpu"):
        predict = suppress(copy.deepcopy(model).to(device), data.tokenizer.forbidden_rows)
        generator = torch.Generator().manual_seed(3)
        canvas = generate(predict, prompt.to(device), 24, data.tokenizer.mask_id, sampler, generator)
        written.append(canvas.x_t.cpu())
    assert torch.equal(*written)
    assert not bool((written[0] == data.tokenizer.mask_id).any())
    assert torch.equal(written[0][:, :24], prompt)


@pytest.fixture
def repeatable() -> Iterator[None]:
    """Kernels that add up in one order, where there are such; attention's do with so few keys."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def resumed_and_whole(config: TrainConfig, data: PreparedText, folder: Path) -> tuple[Trainer, Trainer]:
    whole, parts = (replace(config, output_dir=folder / name) for name in ("whole", "parts"))
    expected = train(whole, data)
    assert train(parts, data, stop_at=7).progress.step == 8
    return train(RunFolder.read_config(parts.output_dir), data, resume=True), expected


@pytest.mark.usefixtures("repeatable")
@pytest.mark.parametrize("change", [{}, {"optimizer": ADAMW, "precision": "bf16"}], ids=["muon, fp32", "adamw, bf16"])
def test_a_resumed_run_is_the_same_bit_for_bit(
    change: dict[str, Any], config: TrainConfig, data: PreparedText, tmp_path: Path
) -> None:
    resumed, whole = resumed_and_whole(replace(config, **change), data, tmp_path)
    assert losses(resumed.config) == losses(whole.config)
    assert torch.equal(weights(resumed), weights(whole))


def test_a_resumed_run_is_the_same_up_to_the_order_of_sums(
    config: TrainConfig, data: PreparedText, tmp_path: Path, record_property: Any
) -> None:
    """With the kernels that a run takes by itself; whether it is equal bit for bit is recorded."""
    config = replace(config, data=replace(config.data, sequence_length=256), precision="bf16")
    resumed, whole = resumed_and_whole(config, data, tmp_path)
    record_property("difference", difference(losses(resumed.config), losses(whole.config)))
    record_property("is_equal", float(torch.equal(weights(resumed), weights(whole))))
    assert difference(losses(resumed.config), losses(whole.config)) < 1e-2


@pytest.mark.parametrize("network", [NetworkOptions(d_model=64, n_heads=2, n_layers=2), LOCAL], ids=["llada", "local"])
def test_activation_checkpointing_changes_no_step(
    network: NetworkOptions, config: TrainConfig, data: PreparedText, record_property: Any
) -> None:
    config = replace(config, network=network)
    kept, computed_again = (
        take_steps(make_trainer(replace(config, activation_checkpointing=again), data), 6) for again in (False, True)
    )
    record_property("difference", difference(computed_again, kept))
    assert difference(computed_again, kept) < 1e-3


def test_weights_in_bf16_learn_like_those_in_fp32(config: TrainConfig, data: PreparedText) -> None:
    """Rounded to the nearest, most of these steps would change nothing."""
    config = replace(config, steps=60, optimizer=replace(ADAMW, ema=0.0), precision="bf16")
    fp32, bf16 = (take_steps(make_trainer(replace(config, weights=kind), data), 60)[::2] for kind in ("fp32", "bf16"))
    assert sum(fp32[-10:]) < 0.8 * 10 * fp32[0]
    assert sum(bf16[-10:]) == pytest.approx(sum(fp32[-10:]), rel=0.05)


@needs_gpu
def test_memory_does_not_grow_and_is_given_back(config: TrainConfig, data: PreparedText) -> None:
    take_steps(make_trainer(config, data), 2)  # from here on, the libraries have their workspaces
    gc.collect()
    before = torch.cuda.memory_allocated()
    trainer = make_trainer(config, data)
    take_steps(trainer, 10)
    after_ten = torch.cuda.memory_allocated()
    take_steps(trainer, 40)
    assert before < torch.cuda.memory_allocated() <= after_ten + 2**20
    del trainer
    gc.collect()
    assert torch.cuda.memory_allocated() <= before + 2**20
