"""Devices, precisions and memory: the choice and its reason, also on machines that are not at hand.

A GPU of Apple's is pretended (pretend_gpu.py): none took part.
"""

import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from rich.console import Console
from torch import Generator

from llada.data.batches import TokenBatch
from llada.data.prepared import PreparedText
from llada.evaluation.answer_likelihood import Item, log_likelihoods, predict_by_model
from llada.evaluation.causal import causal_log_likelihoods
from llada.evaluation.exact_likelihood import exact_nll
from llada.evaluation.greedy import are_greedy
from llada.evaluation.nelbo import BoundOptions, estimate_nelbo, nll_by_model
from llada.models import LLaDAConfig, MaskPredictor, build_network
from llada.optim.optimizers import make_optimizers
from llada.sampling.config import SamplerConfig
from llada.sampling.policies import POLICIES, PolicyOptions
from llada.sampling.unmask import infill
from llada.system import device as hardware
from llada.system.device import Precision, choose_device, choose_precision, describe_device, memory_bytes, to_fp64
from llada.system.errors import UserError
from llada.training.config import NetworkOptions, OptimizerOptions, TrainConfig
from llada.training.plan import RunPlan
from llada.training.progress_bar import Display
from llada.training.run_folder import RunFolder
from llada.training.trainer import Trainer
from tests.support.pretend_gpu import MPS, OnGpu, pretend_gpu
from tests.support.sentences import assert_one_sentence

MASK = 9
NETWORK = LLaDAConfig(
    d_model=16, n_heads=2, n_layers=2, vocab_size=10, mask_token_id=MASK, pad_token_id=0, eos_token_id=2,
    mlp_hidden_size=24, max_sequence_length=16,
)  # fmt: skip


@pytest.fixture
def _gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with pretend_gpu(monkeypatch):
        yield


def models() -> tuple[MaskPredictor, MaskPredictor]:
    """The same network on the CPU and on the GPU."""
    both = []
    for device in ("cpu", "mps"):
        torch.manual_seed(0)
        both.append(MaskPredictor(build_network(NETWORK), MASK, MASK).eval().to(device))
    return both[0], both[1]


# Which device


@pytest.mark.parametrize(
    ("name", "cuda", "mps", "expected"),
    [
        ("auto", True, True, "cuda"), ("auto", True, False, "cuda"), ("auto", False, True, "mps"),
        ("auto", False, False, "cpu"), ("cpu", True, True, "cpu"), ("mps", True, True, "mps"),
    ],
)  # fmt: skip
def test_the_gpu_comes_before_the_processor_unless_one_is_named(
    monkeypatch: pytest.MonkeyPatch, name: Any, cuda: bool, mps: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device(name) == torch.device(expected)


@pytest.mark.parametrize(("name", "kind"), [("mps", "Apple GPU"), ("cuda", "CUDA device")])
def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, name: Any, kind: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"No {kind} is available") as caught:
        choose_device(name)
    assert_one_sentence(caught.value)


@pytest.mark.usefixtures("_gpu")
def test_an_apple_gpu_has_a_name_a_precision_and_its_part_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert describe_device(MPS) == "GPU of Apple M9"
    assert choose_precision("auto", MPS).dtype == torch.float32
    assert choose_precision("bf16", MPS).dtype == torch.bfloat16
    monkeypatch.setattr(hardware, "CONTAINER_LIMITS", ())
    monkeypatch.setattr(hardware, "_process_limits", list)
    for installed, expected in ((16e9, 5_000_000_000), (4e9, 4_000_000_000)):
        monkeypatch.setattr(psutil, "virtual_memory", lambda n=installed: SimpleNamespace(total=int(n)))
        assert memory_bytes(MPS) == expected


def test_a_limit_of_the_process_counts_as_its_memory() -> None:
    program = "import torch; from llada.system.device import memory_bytes; print(memory_bytes(torch.device('cpu')))"
    limit = 3 * 2**30

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))

    command = [sys.executable, "-c", program]
    done = subprocess.run(command, preexec_fn=lower, stdout=subprocess.PIPE, text=True, check=True)
    assert int(done.stdout) == limit


# What an Apple GPU computes is what the processor computes


@pytest.mark.usefixtures("_gpu")
def test_the_pretended_gpu_refuses_what_a_real_one_does() -> None:
    x = torch.ones(3, device="mps")
    assert isinstance(x, OnGpu)
    with pytest.raises(TypeError, match="float64"):
        x.double()
    with pytest.raises(TypeError, match="float64"):
        torch.zeros(3, device="mps", dtype=torch.float64)
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3)
    assert to_fp64(x / 3).tolist() == pytest.approx([1 / 3] * 3, rel=1e-6)
    assert to_fp64(x).device.type == "cpu"


@pytest.mark.usefixtures("_gpu")
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 1.0}, {"remasking": "random"}, {"block_length": 4, "cfg_scale": 0.5}],
    ids=lambda options: ", ".join(options) or "greedy",
)
def test_it_samples_the_same_text(options: dict[str, Any]) -> None:
    template = torch.full((2, 12), MASK)
    template[:, :2] = torch.tensor([3, 4])
    texts = []
    for model, device in zip(models(), ("cpu", "mps"), strict=True):
        config = SamplerConfig(steps=8, **options)
        canvas = infill(model, template.to(device), MASK, config, Generator().manual_seed(1))
        assert canvas.x_t.device.type == device
        texts.append(canvas.x_t.cpu())
    assert torch.equal(*texts)
    assert bool((texts[0] != MASK).any())


@pytest.mark.usefixtures("_gpu")
def test_it_measures_the_same_bound_and_likelihoods() -> None:
    windows = torch.randint(3, 9, (4, 8), generator=Generator().manual_seed(0))
    items = [Item((3, 4), (5, 6, 7)), Item((4,), (3, 8))]
    measured = []
    for model, device in zip(models(), ("cpu", "mps"), strict=True):
        nll = nll_by_model(model, Precision(torch.float32, "a test"))
        predict_at = predict_by_model(model, Precision(torch.float32, "a test"))
        options, on_device = BoundOptions(masks_per_window=2, device=device), TokenBatch(windows).to(device)
        policies = [make(PolicyOptions()) for make in POLICIES.values()]
        measured.append(
            [
                estimate_nelbo(nll, TokenBatch(windows), options).nelbo_nats_per_token,
                [result.nats for result in log_likelihoods(predict_at, items, MASK, mc_num=4, device=device)],
                are_greedy(predict_at, items, MASK, device=device),
                [result.nats for result, _ in causal_log_likelihoods(predict_at, items, device=device)],
                [exact_nll(predict_at, on_device, MASK, policy=policy).nll.tolist() for policy in policies],
            ]
        )
    assert measured[0] == measured[1]


@pytest.mark.usefixtures("_gpu", "one_thread")
@pytest.mark.parametrize(
    "change", [{}, {"optimizer": OptimizerOptions(optimizer="adamw", ema=0.0)}], ids=["muon", "adamw"]
)
def test_it_trains_to_the_same_weights_saves_and_goes_on(
    small_run: TrainConfig, data: PreparedText, tmp_path: Any, change: dict[str, Any]
) -> None:
    config = replace(
        small_run,
        network=NetworkOptions("llada", d_model=16, n_heads=2, n_layers=1),
        steps=6,
        evaluate_every=3,
        **change,
    )
    ends = []
    for device in ("cpu", "auto"):
        run = replace(config, device=device, output_dir=tmp_path / device)
        for length in (3, 6):
            folder = RunFolder(run.output_dir)
            plan = RunPlan.of(replace(run, steps=length), data)
            assert plan.device.type == ("cpu" if device == "cpu" else "mps")
            assert not plan.should_compile
            folder.start(plan.config)
            trainer = Trainer(plan, folder, resume=length == 6)
            trainer.run(Display(Console(quiet=True), None))
        ends.append(torch.cat([parameter.detach().cpu().flatten() for parameter in trainer.model.parameters()]))
        assert folder.last_step == 6
    assert torch.allclose(ends[0], ends[1], atol=1e-5)
    assert not torch.equal(ends[0], torch.zeros_like(ends[0]))


@pytest.mark.usefixtures("_gpu")
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_it_leaves_a_step_out_whose_gradient_is_no_number(name: Any) -> None:
    _, model = models()
    optimizers = make_optimizers(model.network, OptimizerOptions(optimizer=name))

    def weights() -> torch.Tensor:
        return torch.cat([parameter.detach().cpu().flatten() for parameter in model.parameters()])

    before = weights()
    for found, gradient, changes in ((1.0, torch.nan, False), (0.0, 1.0, True)):
        model.zero_grad()
        for parameter in model.parameters():
            (parameter * gradient).sum().backward()
        for optimizer in optimizers:
            optimizer.found_inf = torch.full((), found, device="mps")  # type: ignore[attr-defined]
            optimizer.step()
        assert bool(weights().isfinite().all())
        assert torch.equal(weights(), before) is not changes


@pytest.mark.usefixtures("_gpu")
@pytest.mark.parametrize(
    ("change", "option"),
    [
        ({"compile": True}, "`compile`"),
        ({"method": "qlora", "base": "somewhere"}, '`method="qlora"`'),
        ({"optimizer": OptimizerOptions(optimizer="adamw", optimizer_state="8bit")}, '`optimizer_state="8bit"`'),
    ],
)
def test_what_needs_other_kernels_is_refused_there(
    small_run: TrainConfig, data: PreparedText, change: dict[str, Any], option: str
) -> None:
    change = {"network": NetworkOptions(), **change} if "base" in change else change
    with pytest.raises(UserError, match=f"{option} is not for Apple's GPUs") as caught:
        RunPlan.of(replace(small_run, device="mps", **change), data)
    assert_one_sentence(caught.value)
