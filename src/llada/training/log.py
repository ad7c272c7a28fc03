"""What a run writes down of itself and shows while it goes on: metrics.jsonl, curves.png, samples, warnings."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from llada.checkpoints.run_layout import CURVES_FILE, METRICS_FILE, SAMPLES_FOLDER
from llada.evaluation.nelbo import Nelbo
from llada.system.device import used_memory_bytes
from llada.system.files import write_text_whole
from llada.system.regular_files import make_own_folder
from llada.training.answer_check import EosShare
from llada.training.data_source import Sample, Source
from llada.training.diagnostics import ConvergenceWatch, SpikeWatch
from llada.training.metrics import LossByTime, MetricsFile, draw_curves
from llada.training.nan_guard import Guard, finite_or_none
from llada.training.plan import RunPlan
from llada.training.progress_bar import Display, Stopwatch
from llada.training.state import Progress

DRAW_EVERY_SECONDS = 15  # at most; the curves take a quarter of a second, as much as many steps of a small network


@dataclass(frozen=True)
class StepResult:
    """What a step reports: loss and the norm of the gradient (scalars on the device), its learning rate, its size."""

    loss: Tensor
    grad_norm: Tensor
    learning_rate_factor: float
    tokens: int


class RunLog:
    """The files and the display of a run."""

    def __init__(
        self,
        plan: RunPlan,
        folder: Path,
        display: Display,
        progress: Progress,
        on_metrics: Callable[[Mapping[str, Any]], None] = lambda row: None,
    ) -> None:
        """
        Args:
            on_metrics: called with each line of metrics.jsonl once it is written.
        """
        self.on_metrics = on_metrics
        self.folder, self.display, self.unit = folder, display, plan.data.tokenizer.unit
        self.device = plan.device
        self.watch = ConvergenceWatch(plan)
        self._drawn = time.monotonic()
        self.open_at(progress)

    def open_at(self, progress: Progress) -> None:
        """Open metrics.jsonl up to this state of the run, and look for the spikes in it again, so that later ones are
        judged as in an uninterrupted run."""
        self.metrics = MetricsFile(self.folder / METRICS_FILE, progress.step, progress.data_order)
        self.spikes = SpikeWatch()
        for row in self.metrics.rows():
            self.spikes.add(row.get("nll"))

    def write_step(
        self,
        progress: Progress,
        fraction_done: float,
        done: StepResult,
        by_time: LossByTime,
        guard: Guard,
        eos_share: EosShare | None,
        timer: Stopwatch,
    ) -> None:
        """A line of what was measured since the last one, and what people should know of it."""
        step, loss = progress.step, float(done.loss)
        nll, nll_by_t = by_time.take()
        guard.take()
        leapt_from = self.spikes.add(nll)
        rate = timer.tokens_per_second
        self._write(
            {
                "step": step,
                "tokens": progress.tokens,
                "seconds": round(progress.seconds, 2),
                "loss": finite_or_none(loss),
                "nll": nll,
                "nll_by_t": nll_by_t,
                "grad_norm": finite_or_none(float(done.grad_norm)),
                "learning_rate_factor": done.learning_rate_factor,
                "tokens_per_second": rate and round(rate),
                "fraction_done": round(fraction_done, 6),
                "memory_bytes": used_memory_bytes(self.device),
                **({"skipped_steps": guard.skipped} if guard.skipped else {}),
                **({} if leapt_from is None else {"spike_from": leapt_from}),
                **(eos_share.take() if eos_share else {}),
            }
        )
        status = f"loss {loss:.3f}"
        if progress.best_step:
            status += f" · NELBO {progress.best_nelbo:.3f}"
        if rate:
            status += f" · {rate / 1000:.1f}k tokens/s"
        self.display.update(step, fraction_done, status, timer.seconds_left)
        if guard.skipped:
            self.display.say(
                f"By step {step}, {guard.skipped} of the last steps were left out, since their loss or gradient was no "
                "finite number; the weights are as they were."
            )
        if leapt_from is not None:
            self.display.say(f"By step {step}, the cross-entropy leapt from {leapt_from:.2f} to {nll:.2f} nats.")
        warning = self.watch.add(step, fraction_done, nll)
        if warning:
            self.display.advise(warning)

    def _write(self, row: dict[str, Any]) -> None:
        self.metrics.write(row)
        self.on_metrics(row)

    def write_return(self, progress: Progress, left_at: int) -> None:
        """The run went back to a checkpoint."""
        self.display.say(
            f"Going back to the checkpoint of step {progress.step}, and on with the data in another order."
        )
        self.open_at(progress)
        self._write({"step": progress.step, "went_back_from": left_at, "data_order": progress.data_order})

    def write_evaluation(self, step: int, result: Nelbo, sample: Sample, source: Source) -> None:
        """A line with the bound, and a file with the sample."""
        self._write({"step": step, **result.metrics, **sample.metrics})
        folder = self.folder / SAMPLES_FOLDER
        make_own_folder(folder)
        write_text_whole(folder / f"step-{step:08d}.txt", sample.text + "\n")
        self.display.say(
            f"step {step}: NELBO {result.with_error(3)} nats per {self.unit}, on {result.windows} "
            f"validation {source.noun}; {source.shows}:\n{_indented(sample.text)}"
        )
        if sample.warning:
            self.display.advise(sample.warning)

    def close_up(self, is_last: bool) -> None:
        """Before a checkpoint, which must not know of lines that are missing on the disk."""
        if is_last or time.monotonic() - self._drawn >= DRAW_EVERY_SECONDS:
            try:
                draw_curves(self.metrics.path, self.folder / CURVES_FILE)
            except Exception as error:  # a checkpoint is worth more than its picture
                self.display.say(f"curves.png could not be drawn ({error}).")
            self._drawn = time.monotonic()
        self.metrics.flush_to_disk()


class SilentLog(RunLog):
    """What a process has that does not write: what was measured is forgotten, and nothing is said."""

    def __init__(self) -> None:
        """It has neither files nor a display."""

    def open_at(self, progress: Progress) -> None:
        """There is nothing to open."""

    def write_step(
        self,
        progress: Progress,
        fraction_done: float,
        done: StepResult,
        by_time: LossByTime,
        guard: Guard,
        eos_share: EosShare | None,
        timer: Stopwatch,
    ) -> None:
        by_time.take()
        guard.take()
        if eos_share:
            eos_share.take()

    def write_return(self, progress: Progress, left_at: int) -> None:
        """Process 0 says it."""

    def write_evaluation(self, step: int, result: Nelbo, sample: Sample, source: Source) -> None:
        """Process 0 does it."""

    def close_up(self, is_last: bool) -> None:
        """There is nothing to close."""


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
