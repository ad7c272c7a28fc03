"""A checkpoint that is written beside training is that of its step, whatever training does in the meantime."""

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from llada import hardware
from llada.checkpoint import load_checkpoint
from llada.errors import UserError
from llada.text.dataset import PreparedText
from llada.training import saving
from llada.training.config import TrainConfig
from llada.training.monitor import Display
from llada.training.plan import RunPlan
from llada.training.run_folder import RunFolder
from llada.training.state import read_state
from llada.training.trainer import Trainer


def trainer_of(config: TrainConfig, data: PreparedText) -> Trainer:
    folder = RunFolder(config.output_dir)
    folder.start(config)
    return Trainer(RunPlan.of(config, data), folder)


def run(trainer: Trainer) -> None:
    trainer.run(Display(Console(quiet=True), None))


def test_training_goes_on_and_the_checkpoint_is_that_of_its_step(
    small_run: TrainConfig, data: PreparedText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first save waits until step 10 is done; without memory for a copy, the same is written in the way."""
    trainer, may_write = trainer_of(small_run, data), threading.Event()
    save, step = trainer.folder.save, trainer.train_step
    threads: list[str] = []

    def saving_late(*arguments: Any) -> None:
        threads.append(threading.current_thread().name)
        assert may_write.wait(60)
        save(*arguments)

    def stepping(by_time: Any) -> Any:
        done = step(by_time)
        if trainer.progress.step == 10:
            may_write.set()
        return done

    monkeypatch.setattr(trainer.folder, "save", saving_late)
    monkeypatch.setattr(trainer, "train_step", stepping)
    run(trainer)
    assert threads == ["checkpoint", "MainThread"]  # the last one is waited for

    other = trainer_of(replace(small_run, output_dir=tmp_path / "other"), data)
    monkeypatch.setattr(saving, "free_memory_bytes", lambda: 1000)
    names = []
    save_other = other.folder.save
    monkeypatch.setattr(
        other.folder, "save", lambda *a: (names.append(threading.current_thread().name), save_other(*a))
    )
    run(other)
    assert names == ["MainThread"] * 2
    for step_name in ("step-00000006", "step-00000012"):
        one, two = (load_checkpoint(t.folder.checkpoints / step_name) for t in (trainer, other))
        for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
            assert torch.equal(a, b)
        states = [read_state(t.folder.checkpoints / step_name) for t in (trainer, other)]
        for optimizers in zip(*(state["optimizers"] for state in states), strict=True):
            moments = [[v for part in o["state"].values() for v in part.values()] for o in optimizers]
            assert all(map(torch.equal, *moments))


def test_a_copy_is_made_only_where_half_of_the_free_memory_holds_all_of_it(
    small_run: TrainConfig, data: PreparedText, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's weights and, beside their moving average, the run's own."""
    trainer = trainer_of(small_run, data)
    trainer.train_step(trainer.by_time)
    weights = trainer.model.network.state_dict()
    packed = trainer.state.pack(trainer.progress, weights, {}, False, {})
    n_bytes = saving.bytes_in(weights) + saving.bytes_in(packed)
    names: list[str] = []
    monkeypatch.setattr(trainer.folder, "save", lambda *_: names.append(threading.current_thread().name))
    for free in (2 * n_bytes, 2 * n_bytes + 1):
        monkeypatch.setattr(saving, "free_memory_bytes", lambda free=free: free)
        trainer.saver.save(trainer.progress, trainer.plan, trainer.model, packed, beside=True)
        trainer.saver.wait()
    assert names == ["MainThread", "checkpoint"]


@pytest.mark.parametrize("fails_at", [6, 12])
def test_what_went_wrong_beside_is_told(
    fails_at: int, small_run: TrainConfig, data: PreparedText, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(small_run, data)
    save = trainer.folder.save

    def failing(progress: Any, *rest: Any) -> None:
        if progress.step == fails_at:
            raise UserError("The disk is full: free some space.")
        save(progress, *rest)

    monkeypatch.setattr(trainer.folder, "save", failing)
    with pytest.raises(UserError, match="The disk is full"):
        run(trainer)


def test_the_memory_that_is_free_is_the_less_of_machine_and_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, used, told = tmp_path / "limit", tmp_path / "used", SimpleNamespace(available=4_096_000)

    def no_proc() -> None:
        raise FileNotFoundError("/proc/meminfo")

    monkeypatch.setattr(hardware, "CONTAINER_MEMORY", (limit, used))
    monkeypatch.setattr(hardware.psutil, "virtual_memory", no_proc)
    assert hardware.free_memory_bytes() is None
    monkeypatch.setattr(hardware.psutil, "virtual_memory", lambda: told)
    assert hardware.free_memory_bytes() == 4_096_000
    limit.write_text("max\n")
    used.write_text("500\n")
    assert hardware.free_memory_bytes() == 4_096_000
    limit.write_text("1500\n")
    assert hardware.free_memory_bytes() == 1000
