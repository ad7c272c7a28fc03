"""What a program that trains, or a logger, is called with while a run goes on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llada.evaluation.nelbo import Nelbo
from llada.training.data_source import Sample
from llada.training.log import StepResult
from llada.training.state import Progress


class Callback:
    """Called by a `Trainer`, in the thread that trains; an exception ends the run, whose last checkpoint stays.

    Subclass it and define what is of interest: each method does nothing unless it is defined. The model must stay as it
    is, and the progress is the run's own, to be read only. A logger (loggers.py) is a callback whose exceptions do not
    end the run.
    """

    def on_start(self, progress: Progress) -> None:
        """The run is about to begin, or to go on after the steps that the progress counts."""

    def on_step(self, progress: Progress, done: StepResult) -> None:
        """A step is done. Reading its loss waits for the device."""

    def on_metrics(self, row: Mapping[str, Any]) -> None:
        """A line was written to metrics.jsonl (metrics.py lists its fields)."""

    def on_evaluation(self, progress: Progress, result: Nelbo, sample: Sample) -> None:
        """The model was measured; at step 0, the checkpoint that a fine-tuning run starts from."""

    def on_save(self, progress: Progress, folder: Path) -> None:
        """A checkpoint is handed over to be written to this folder, which is there a little later."""

    def on_end(self) -> None:
        """The run is over, has stopped, or has failed."""


class CallbackList(Callback):
    """Several callbacks, called in their order."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = list(callbacks)

    def on_start(self, progress: Progress) -> None:
        for callback in self.callbacks:
            callback.on_start(progress)

    def on_step(self, progress: Progress, done: StepResult) -> None:
        for callback in self.callbacks:
            callback.on_step(progress, done)

    def on_metrics(self, row: Mapping[str, Any]) -> None:
        for callback in self.callbacks:
            callback.on_metrics(row)

    def on_evaluation(self, progress: Progress, result: Nelbo, sample: Sample) -> None:
        for callback in self.callbacks:
            callback.on_evaluation(progress, result, sample)

    def on_save(self, progress: Progress, folder: Path) -> None:
        for callback in self.callbacks:
            callback.on_save(progress, folder)

    def on_end(self) -> None:
        for callback in self.callbacks:
            callback.on_end()
