"""What callbacks report while a run goes on."""

from dataclasses import replace
from pathlib import Path

from llada.data.prepared import PreparedText
from llada.evaluation.nelbo import Nelbo
from llada.training.callbacks import Callback
from llada.training.config import TrainConfig
from llada.training.data_source import Sample
from llada.training.log import StepResult
from llada.training.metrics import read_metrics
from llada.training.plan import RunPlan
from llada.training.run_folder import RunFolder
from llada.training.state import Progress
from llada.training.trainer import Trainer
from tests.support.runs import run_to


class Recorder(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.bounds: dict[int, float] = {}
        self.folders: list[str] = []

    def on_step(self, progress: Progress, done: StepResult) -> None:
        self.losses.append(float(done.loss))
        assert progress.step == len(self.losses)

    def on_evaluation(self, progress: Progress, result: Nelbo, sample: Sample) -> None:
        self.bounds[progress.step] = result.nelbo_nats_per_token
        assert sample.text

    def on_save(self, progress: Progress, folder: Path) -> None:
        self.folders.append(folder.name)


class Silent(Callback):
    """Defines nothing."""


def test_callbacks_are_told_what_the_metrics_hold(small_run: TrainConfig, data: PreparedText) -> None:
    config = replace(small_run, steps=8, evaluate_every=3)
    folder = RunFolder(config.output_dir)
    folder.start(config)
    recorder = Recorder()
    trainer = Trainer(RunPlan.of(config, data), folder, callbacks=(recorder, Silent()))
    run_to(trainer)
    rows = read_metrics(config.output_dir / "metrics.jsonl")
    assert recorder.losses == [row["loss"] for row in rows if "loss" in row]
    assert recorder.bounds == {row["step"]: row["nelbo"] for row in rows if "nelbo" in row}
    assert list(recorder.bounds) == [3, 6, 8]
    assert recorder.folders == ["step-00000003", "step-00000006", "step-00000008"]
    assert folder.last.resolve().name == recorder.folders[-1]
