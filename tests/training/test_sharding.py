"""A network that is shared out learns like one that is not, and each process keeps what the plan says."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed import HashStore  # type: ignore[attr-defined]

from llada.checkpoints.folder import make_predictor, save_weights
from llada.data.prepared import PreparedText
from llada.evaluation.distributed import Shard
from llada.models import LLaDAConfig
from llada.optim.ema import trained_weights
from llada.system.device import PrecisionName
from llada.system.errors import UserError
from llada.training import run_memory
from llada.training.config import NetworkOptions, OptimizerOptions, TrainConfig
from llada.training.forecast import check_memory
from llada.training.group import Group
from llada.training.metrics import LossByTime
from llada.training.plan import RunPlan
from llada.training.run_folder import RunFolder
from llada.training.run_memory import TORCH_BYTES, expected_memory, shared_out_if_needed
from llada.training.state import bytes_in
from llada.training.trainer import Trainer
from tests.support.commands import RunCommand
from tests.support.ranks import get_ready
from tests.support.runs import first_gradients, losses_of

CLOSE = 1e-5
UNEVEN = NetworkOptions(d_model=20, n_heads=2, n_layers=2)  # 20 rows, of which the first of 8 processes has 3
SHORT = [
    "--windows", "random", "--sequence_length", "24", "--batch_size", "4", "--warmup_steps", "2", "--steps", "4",
    "--epochs", "None", "--evaluate_every", "4", "--log_every", "1", "--evaluation_windows", "2", "--precision", "fp32",
    "--learning_rate", "1e-3", "--decay", "1e-9",
]  # fmt: skip
FSDP = ["--parallel", "fsdp"]
WAYS: dict[str, list[str]] = {
    "tied": ["--accumulate", "4", "--activation_checkpointing", "--optimizer", "muon", "--ema", "0.9"],
    "lora": ["--method", "lora", "--accumulate", "2"],
    "bf16": ["--weights", "bf16"],
}
"""Flags of fine-tuning, by what is special about it."""


@pytest.fixture
def tied(data: PreparedText, tmp_path: Path) -> Path:
    """A checkpoint whose head is its embedding, with 20 rows in its matrices and one head of keys for two."""
    config = NetworkOptions(d_model=20, n_heads=2, n_layers=2).build_config(data.tokenizer, 24)
    assert isinstance(config, LLaDAConfig)
    config = replace(config, weight_tying=True, n_kv_heads=1)
    torch.manual_seed(0)
    folder = tmp_path / "tied"
    folder.mkdir()
    save_weights(folder, config, data.tokenizer, make_predictor(config, data.tokenizer).network.state_dict())
    return folder


def stored(run: Path) -> dict[str, Tensor]:
    (path,) = (run / "checkpoints" / "last").glob("*.safetensors")
    return load_file(path)


def test_shared_out_checkpoints_are_fine_tuned_like_whole_ones(
    llada: RunCommand, data: PreparedText, tied: Path, tmp_path: Path
) -> None:
    """All weights with a tied head, an adapter, which goes on after a stop, and weights in bf16."""
    run_together = get_ready(2, "peft", "matplotlib.pyplot")

    def command(way: str, run: str) -> list[object]:
        base = ["finetune", "--checkpoint", tied, "--data_dir", data.folder, *SHORT]
        return [*base, *WAYS[way], "--output_dir", tmp_path / f"{way}-{run}"]

    for way in WAYS:
        assert llada(*command(way, "alone")).code == 0
    commands = [[*command(way, "together"), *FSDP] for way in WAYS]
    commands[1] += ["--steps", 2]
    commands += [["train", "--resume", tmp_path / "lora-together", "--steps", 4]]
    first, second = run_together(commands)
    assert [ended.code for ended in (*first, *second)] == [0] * 8, first
    assert [ended.err for ended in second] == [""] * 4
    for way in WAYS:
        weights, alone = (stored(tmp_path / f"{way}-{run}") for run in ("together", "alone"))
        if way == "bf16":  # gradients in bf16 differ in their last bit, so that a few weights are rounded otherwise
            alike = [(weight == alone[name]).flatten() for name, weight in weights.items()]
            assert torch.cat(alike).float().mean() > 0.9
            continue
        assert losses_of(tmp_path / f"{way}-together") == pytest.approx(losses_of(tmp_path / f"{way}-alone"), abs=CLOSE)
        for name, weight in weights.items():
            assert torch.allclose(weight, alone[name], rtol=0, atol=CLOSE), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_that_are_sent_after_each_batch_add_up_to_those_that_are_sent_once(
    precision: PrecisionName, small_run: TrainConfig, data: PreparedText
) -> None:
    """By torch's FSDP2 among one process, and without it; also if matrices are sent in bf16."""
    plan = RunPlan.of(replace(small_run, network=UNEVEN, accumulate=3, precision=precision), data)

    plain = first_gradients(plan)
    assert any(bool(gradient.any()) for gradient in plain.values())
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        for keeps_whole in (False, True):
            found = first_gradients(replace(plan, is_sharded=True, keeps_gradients_whole=keeps_whole))
            assert found.keys() == plain.keys()
            for name, gradient in found.items():
                assert torch.allclose(gradient, plain[name], rtol=0, atol=1e-7), name
    finally:
        dist.destroy_process_group()


# -- what a process keeps, by processes that only pretend to be there --------------------------------------------------

PROCESSES = 8


@pytest.fixture
def pretended() -> Iterator[Group]:
    """The first of several processes, which sends to nobody and receives nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=PROCESSES)
    yield Group(0, PROCESSES)
    dist.destroy_process_group()


KINDS: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": OptimizerOptions(optimizer="adamw", ema=0)},
    "muon, average, local": {
        "network": NetworkOptions("local", d_model=20, n_heads=2, n_layers=3, table_rows=64, attention_every=2)
    },
    "accumulated": {"accumulate": 2 * PROCESSES, "optimizer": OptimizerOptions(optimizer="adamw")},
    "bf16": {"weights": "bf16", "precision": "bf16", "optimizer": OptimizerOptions(optimizer="adamw", ema=0)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_keeps_what_the_plan_says(
    kind: str, small_run: TrainConfig, data: PreparedText, pretended: Group
) -> None:
    changes = {"network": UNEVEN, "parallel": "fsdp", "batch_size": 16, **KINDS[kind]}
    config = replace(small_run, **changes)
    plan = RunPlan.of(config, data, shard=Shard(0, PROCESSES))
    folder = RunFolder(config.output_dir)
    folder.start(config)
    trainer = Trainer(plan, folder, group=pretended)
    trainer.steps.gradients(0, LossByTime(trainer.device))
    kept, expected = trained_weights(trainer.model.network), expected_memory(plan)
    assert bytes_in(list(kept.values())) == expected.weights
    assert sum(weight.grad.nbytes for weight in kept.values() if weight.grad is not None) == expected.gradients
    trainer.train_step(LossByTime(trainer.device))
    moments = [moment for optimizer in trainer.optimizers for moment in optimizer.state.values()]
    assert sum(bytes_in({k: v for k, v in moment.items() if k != "step"}) for moment in moments) == expected.optimizer
    assert bytes_in(trainer.average.weights if trainer.average else {}) == expected.ema


def test_what_does_not_fit_is_shared_out_and_gradients_stay_whole_if_they_fit(
    small_run: TrainConfig, data: PreparedText, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory that there is just suffices for each plan in turn."""
    config = replace(small_run, network=NetworkOptions(d_model=64, n_heads=2, n_layers=2), accumulate=2 * PROCESSES)
    plan = RunPlan.of(config, data, shard=Shard(0, PROCESSES))
    parts = replace(plan, is_sharded=True)
    wholes = replace(parts, keeps_gradients_whole=True)
    needed = [expected_memory(each).total for each in (plan, wholes, parts)]
    assert needed == sorted(needed, reverse=True)

    def planned(room: int, **changes: Any) -> RunPlan:
        monkeypatch.setattr(run_memory, "memory_bytes", lambda device: room + int(TORCH_BYTES))
        return shared_out_if_needed(RunPlan.of(replace(config, **changes), data, shard=Shard(0, PROCESSES)))

    for room, expected in zip(needed, (plan, wholes, parts), strict=True):
        now = planned(room)
        assert (now.is_sharded, now.keeps_gradients_whole) == (expected.is_sharded, expected.keeps_gradients_whole)
    assert not planned(needed[2], parallel="ddp").is_sharded
    assert not planned(needed[2], compile=True).is_sharded
    assert planned(needed[0], parallel="fsdp").is_sharded
    check_memory(planned(needed[2]))
    with pytest.raises(UserError, match="This run needs about"):
        check_memory(planned(needed[2] - 1000))
