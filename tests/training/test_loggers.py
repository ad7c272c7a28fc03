"""Loggers hold what metrics.jsonl holds, and none of them can end a run."""

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llada.data.prepared import PreparedText
from llada.system.errors import UserError
from llada.training.callbacks import Callback
from llada.training.config import TrainConfig
from llada.training.loggers import LOGGERS, check_loggers, scalars
from llada.training.metrics import read_metrics
from llada.training.own_names import foreign_names
from llada.training.plan import RunPlan
from llada.training.run_folder import RunFolder
from llada.training.state import Progress
from llada.training.trainer import Trainer
from tests.support.runs import losses, run_and_listen, train, trainer_of

needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="the tensorboard package is not installed"
)
needs_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="the wandb package is not installed")


class Recorder(Callback):
    """A logger of our own."""

    package = "json"  # which every Python has

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.settings = folder, settings
        self.rows: list[Mapping[str, Any]] = []
        self.calls: list[str] = []

    def on_start(self, progress: Progress) -> None:
        self.calls.append(f"start {progress.step}")

    def on_metrics(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)

    def on_end(self) -> None:
        self.calls.append("end")


def run(config: TrainConfig, data: PreparedText) -> tuple[Trainer, str]:
    """A run, and what it said."""
    trainer = trainer_of(config, data)
    return trainer, "\n".join(run_and_listen(trainer))


def test_a_logger_is_given_every_line_and_the_settings(
    small_run: TrainConfig, data: PreparedText, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Recorder] = []

    def make(folder: Path, settings: Mapping[str, Any]) -> Recorder:
        made.append(Recorder(folder, settings))
        return made[-1]

    make.package = Recorder.package  # type: ignore[attr-defined]
    monkeypatch.setitem(LOGGERS, "mine", make)
    config = replace(small_run, log=("mine",))
    run(config, data)
    assert len(made) == 1
    assert made[0].rows == read_metrics(config.output_dir / "metrics.jsonl")
    assert made[0].calls == ["start 0", "end"]
    assert made[0].settings == config.to_json()
    assert TrainConfig.from_json(config.to_json()) == config  # stored, and resumed with


@pytest.mark.parametrize("method", ["on_start", "on_step", "on_metrics", "on_evaluation", "on_save", "on_end"])
def test_a_run_goes_on_without_a_logger_that_fails(
    method: str, small_run: TrainConfig, data: PreparedText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fail(*_: object) -> None:
        calls.append(method)
        raise OSError("no network")

    monkeypatch.setitem(LOGGERS, "bad", type("Bad", (Recorder,), {method: fail}))
    train(small_run, data)
    bad = replace(small_run, output_dir=tmp_path / "bad", log=("bad",))
    _, said = run(bad, data)
    assert calls == [method]  # and not once more
    assert said.count("The run goes on without bad, which failed (no network)") == 1
    assert losses(bad) == losses(small_run)


def test_an_unknown_or_missing_logger_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, small_run: TrainConfig, data: PreparedText
) -> None:
    with pytest.raises(UserError, match=r"^`log` can be tensorboard, wandb, not tensorbord: choose one of them"):
        check_loggers(["tensorbord"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in LOGGERS:
        with pytest.raises(UserError, match=rf"^`log={name}` needs the {name} package: pip install 'llada-trainer"):
            Trainer(RunPlan.of(replace(small_run, log=(name,)), data), RunFolder(small_run.output_dir))


def test_numbers_of_a_line_have_flat_names() -> None:
    row = {"step": 3, "loss": 1.5, "nll": None, "nll_by_t": [0.5, None, 1, 2], "text": "x", "is_good": True}
    assert list(scalars(row)) == [("loss", 1.5), ("nll_by_t/0.12", 0.5), ("nll_by_t/0.62", 1), ("nll_by_t/0.88", 2)]


@needs_tensorboard
def test_tensorboard_shows_what_the_metrics_hold(small_run: TrainConfig, data: PreparedText) -> None:
    """Also of a run that was stopped and goes on."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = replace(small_run, log=("tensorboard",))
    train(config, data, stop_at=7)
    train(RunFolder.read_config(config.output_dir), data, resume=True)
    events = EventAccumulator(str(config.output_dir / "tensorboard"))
    events.Reload()
    rows = read_metrics(config.output_dir / "metrics.jsonl")
    for name in ("loss", "nelbo", "grad_norm"):
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        assert shown == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows if name in row]


@needs_wandb
@pytest.mark.filterwarnings("ignore")
def test_wandb_runs_offline(small_run: TrainConfig, data: PreparedText, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = replace(small_run, log=("wandb",))
    _, said = run(config, data)
    assert "goes on without wandb" not in said
    folder = config.output_dir / "wandb"
    run_id = (folder / "run-id.txt").read_text()
    assert list(folder.glob(f"offline-run-*-{run_id}/*.wandb"))
    assert foreign_names(config.output_dir) == []


def test_loggers_are_imported_where_they_are_asked_for(small_run: TrainConfig, data: PreparedText) -> None:
    before = set(sys.modules)
    train(small_run, data)
    assert not {"tensorboard", "wandb"} & (set(sys.modules) - before)
