"""What a program that trains is told while a run goes on."""

from pathlib import Path
from typing import Protocol

from llada.evaluation.nelbo import Nelbo
from llada.training.data_source import Sample
from llada.training.log import StepResult
from llada.training.state import Progress


class Callback(Protocol):
    """Called by a `Trainer`, in the thread that trains; an exception ends the run, whose last checkpoint stays.

    Subclass it and define what is of interest: each method does nothing unless it is defined. The model must stay as it
    is, and the progress is the run's own, to be read only.
    """

    def on_step(self, progress: Progress, done: StepResult) -> None:
        """A step is done. Reading its loss waits for the device."""

    def on_evaluation(self, progress: Progress, result: Nelbo, sample: Sample) -> None:
        """The model was measured; at step 0, the checkpoint that a fine-tuning run starts from."""

    def on_save(self, progress: Progress, folder: Path) -> None:
        """A checkpoint is handed over to be written to this folder, which is there a little later."""
