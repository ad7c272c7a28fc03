"""Several processes with a GPU: NCCL with one process, and two processes that share a GPU, connected by gloo.

NCCL wants a GPU for each process, and gloo cannot gather what is on a GPU (pytorch/pytorch#132471). So FSDP is tried by
one process that sends to itself by NCCL, and sums of gradients by two processes whose GPU is the same. Run by
`scripts/gpu-check`, as test_cuda.py is.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed import HashStore  # type: ignore[attr-defined]

from llada.data.prepared import PreparedText
from llada.system.device import PrecisionName
from llada.training.config import NetworkOptions, TrainConfig
from llada.training.metrics import LossByTime
from llada.training.plan import RunPlan
from llada.training.run_folder import RunFolder
from llada.training.trainer import Trainer
from tests.support.commands import RunCommand
from tests.support.groups import torchrun
from tests.support.ranks import ONE_GPU, finish, start
from tests.support.runs import first_gradients, losses_of
from tests.test_cuda import ON, needs_gpu
from tests.test_cuda import pytestmark as on_a_gpu

pytestmark = on_a_gpu
CLOSE = 1e-4  # of losses in fp32, whose sums are in another order for half the rows
# The rates are constant, so that a run of six steps that goes on to twelve is one of twelve.
SMALL = [
    "--network", "llada", "--d_model", "20", "--n_heads", "2", "--n_layers", "2", "--sequence_length", "24",
    "--batch_size", "8", "--warmup_steps", "2", "--decay", "1e-9", "--evaluate_every", "6", "--log_every", "1",
    "--evaluation_windows", "4", "--compile", "False", "--device", ON,
]  # fmt: skip
WAYS = {
    "muon": ["--precision", "fp32"],
    "adamw": ["--precision", "fp32", "--optimizer", "adamw", "--accumulate", "2"],
    "bf16": ["--precision", "bf16", "--optimizer", "adamw", "--ema", "0"],
}


@pytest.fixture
def alone_in_a_group() -> Iterator[None]:
    backend = "cpu:gloo,cuda:nccl" if ON == "cuda" else "gloo"
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone_in_a_group")
@pytest.mark.parametrize("keeps_whole", [False, True], ids=["parts", "whole"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_that_fsdp_sends_are_those_of_a_network_that_is_not_shared_out(
    precision: PrecisionName, keeps_whole: bool, small_run: TrainConfig, data: PreparedText
) -> None:
    config = replace(
        small_run, network=NetworkOptions(d_model=20, n_heads=2, n_layers=2), accumulate=3, precision=precision,
        device=ON, compile=False,
    )  # fmt: skip
    plan = RunPlan.of(config, data)

    plain = first_gradients(plan)
    assert any(bool(gradient.any()) for gradient in plain.values())
    found = first_gradients(replace(plan, is_sharded=True, keeps_gradients_whole=keeps_whole))
    assert found.keys() == plain.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("alone_in_a_group")
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_steps_of_a_network_that_is_shared_out_are_those_of_one_that_is_not(
    optimizer: Literal["muon", "adamw"], small_run: TrainConfig, data: PreparedText, tmp_path: Path
) -> None:
    plan = RunPlan.of(
        replace(
            small_run, network=NetworkOptions(d_model=20, n_heads=2, n_layers=2), accumulate=2, device=ON,
            optimizer=replace(small_run.optimizer, optimizer=optimizer), compile=False,
        ),
        data,
    )  # fmt: skip

    def losses(run: str, plan: RunPlan) -> list[float]:
        folder = RunFolder(tmp_path / run)
        folder.start(plan.config)
        trainer = Trainer(plan, folder)
        by_time = LossByTime(trainer.device)
        done = [trainer.train_step(by_time) for _ in range(6)]
        return [float(number) for step in done for number in (step.loss, step.grad_norm)]

    whole, shared = losses("whole", plan), losses("shared", replace(plan, is_sharded=True))
    assert len(set(whole)) == len(whole)
    assert shared == pytest.approx(whole, rel=CLOSE)


@needs_gpu  # two processes on a CPU are tried in training/test_group.py
def test_two_processes_train_like_one(llada: RunCommand, data: PreparedText, tmp_path: Path) -> None:
    """Also if one process goes on with a run of two."""

    def command(way: str, run: str) -> list[object]:
        return ["train", *SMALL, *WAYS[way], "--data_dir", data.folder, "--output_dir", tmp_path / f"{way}-{run}"]

    started = start(2, [[ONE_GPU, *command(way, "together"), "--steps", 6 if way == "muon" else 12] for way in WAYS])
    for way in WAYS:
        assert llada(*command(way, "alone"), "--steps", 12).code == 0
    for process in finish(started):
        assert [each.code for each in process] == [0] * len(WAYS), [each.err[-1000:] for each in process]
    assert llada("train", "--resume", tmp_path / "muon-together", "--steps", 12).code == 0
    for way in WAYS:
        run, alone = (tmp_path / f"{way}-{name}" for name in ("together", "alone"))
        close = 2e-2 if way == "bf16" else CLOSE
        assert losses_of(run) == pytest.approx(losses_of(alone), abs=close), way
        if way != "bf16":  # a weight whose gradient is near 0 may be moved the other way by AdamW
            ours, theirs = (load_file(each / "checkpoints" / "last" / "model.safetensors") for each in (run, alone))
            for name, weight in ours.items():
                assert (weight - theirs[name]).abs().mean() < CLOSE, (way, name)


@needs_gpu
def test_more_processes_than_gpus_are_refused(data: PreparedText, tmp_path: Path) -> None:
    too_many, run = torch.cuda.device_count() + 1, tmp_path / "run"
    words = ["train", *SMALL, "--data_dir", data.folder, "--output_dir", run, "--steps", 4]
    result = torchrun(too_many, words)
    assert result.returncode
    assert f"Process {too_many - 1} of this machine has no GPU of its own" in result.stderr
    assert not run.exists()
