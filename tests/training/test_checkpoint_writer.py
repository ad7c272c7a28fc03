"""A checkpoint that is written in the background is that of its step, whatever training does in the meantime."""

import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from llada.checkpoints.folder import read_checkpoint
from llada.checkpoints.run_layout import newest_first
from llada.data.prepared import PreparedText
from llada.system import device as hardware
from llada.system.errors import UserError
from llada.system.locks import locked
from llada.training import checkpoint_writer as saving
from llada.training.config import TrainConfig
from llada.training.plan import RunPlan
from llada.training.run_folder import RunFolder
from llada.training.state import bytes_in, read_state
from llada.training.trainer import Trainer
from tests.support.runs import run_to, trainer_of
from tests.support.sentences import assert_one_sentence


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
    run_to(trainer)
    assert threads == ["checkpoint", "MainThread"]  # the last one is waited for

    other = trainer_of(replace(small_run, output_dir=tmp_path / "other"), data)
    monkeypatch.setattr(saving, "free_memory_bytes", lambda: 1000)
    names: list[str] = []
    save_other = other.folder.save

    def saving_named(*arguments: Any) -> None:
        names.append(threading.current_thread().name)
        save_other(*arguments)

    monkeypatch.setattr(other.folder, "save", saving_named)
    run_to(other)
    assert names == ["MainThread"] * 2
    for step_name in ("step-00000006", "step-00000012"):
        one, two = (read_checkpoint(t.folder.checkpoints / step_name) for t in (trainer, other))
        for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
            assert torch.equal(a, b)
        states = [read_state(t.folder.checkpoints / step_name) for t in (trainer, other)]
        for optimizers in zip(*(state["optimizers"] for state in states), strict=True):
            moments = [[v for part in o["state"].values() for v in part.values()] for o in optimizers]
            assert all(map(torch.equal, *moments))


def test_a_copy_is_made_only_where_half_of_the_free_memory_holds_all_of_it(
    small_run: TrainConfig, data: PreparedText, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's weights and, in addition to their moving average, the run's own."""
    trainer = trainer_of(small_run, data)
    trainer.train_step(trainer.by_time)
    weights = trainer.model.network.state_dict()
    packed = trainer.state.pack(trainer.progress, weights, {}, False, {})
    n_bytes = bytes_in(weights) + bytes_in(packed)
    names: list[str] = []
    monkeypatch.setattr(trainer.folder, "save", lambda *_: names.append(threading.current_thread().name))
    for free in (2 * n_bytes, 2 * n_bytes + 1):
        monkeypatch.setattr(saving, "free_memory_bytes", lambda free=free: free)
        trainer.saver.save(trainer.progress, trainer.plan, trainer.model, packed, in_background=True)
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
        run_to(trainer)


def test_the_memory_that_is_free_is_the_less_of_machine_and_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, used, told = tmp_path / "limit", tmp_path / "used", SimpleNamespace(available=4_096_000)

    def no_proc() -> None:
        raise FileNotFoundError("/proc/meminfo")

    monkeypatch.setattr(hardware, "CONTAINER_MEMORY", (limit, used))
    monkeypatch.setattr(psutil, "virtual_memory", no_proc)
    assert hardware.free_memory_bytes() is None
    monkeypatch.setattr(psutil, "virtual_memory", lambda: told)
    assert hardware.free_memory_bytes() == 4_096_000
    limit.write_text("max\n")
    used.write_text("500\n")
    assert hardware.free_memory_bytes() == 4_096_000
    limit.write_text("1500\n")
    assert hardware.free_memory_bytes() == 1000


@pytest.mark.parametrize("where", ["run", "data"])
def test_a_run_stops_when_its_folder_or_its_data_are_other_ones(
    small_run: TrainConfig, data: PreparedText, tmp_path: Path, where: str
) -> None:
    """After step 8; that of step 6 is the last checkpoint, and no folder is made where the run's was."""
    shutil.copytree(data.folder, tmp_path / "data")
    config = replace(small_run, data=replace(small_run.data, data_dir=(tmp_path / "data",)))
    with locked(config.output_dir, inside=True) as lock:
        folder = RunFolder(config.output_dir, lock)
        folder.start(config)
        trainer = Trainer(RunPlan.of(config, PreparedText.open(tmp_path / "data")), folder)
        step = trainer.train_step

        def stepping(by_time: Any) -> Any:
            done = step(by_time)
            if trainer.progress.step == 8:
                trainer.saver.wait()
                if where == "run":
                    os.rename(folder.path, tmp_path / "moved")
                else:
                    os.utime(tmp_path / "data" / "train_data.npy", ns=(0, 0))
            return done

        trainer.train_step = stepping  # type: ignore[method-assign]
        said = r"run was renamed or removed" if where == "run" else r"train_data\.npy was changed while it was in use"
        with pytest.raises(UserError, match=said) as caught:
            run_to(trainer)
        assert_one_sentence(caught.value)
    assert config.output_dir.exists() == (where == "data")
    kept = RunFolder(tmp_path / "moved" if where == "run" else config.output_dir)
    assert [path.name for path in newest_first(kept.checkpoints)] == ["step-00000006"]


def test_without_a_thread_to_be_had_a_checkpoint_is_written_in_the_way(
    small_run: TrainConfig, data: PreparedText, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    trainer = trainer_of(small_run, data)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    run_to(trainer)
    assert [path.name for path in newest_first(trainer.folder.checkpoints)] == ["step-00000012", "step-00000006"]
