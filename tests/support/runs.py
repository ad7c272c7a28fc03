"""Small runs, trained in their folders, and what is compared of them."""

import math
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from llada.data.batches import TokenBatch
from llada.data.mixture import Mixture
from llada.data.prepared import PreparedText
from llada.optim.ema import trained_weights
from llada.training.build import build_model
from llada.training.config import TrainConfig
from llada.training.data_source import make_source
from llada.training.metrics import LossByTime, read_metrics
from llada.training.plan import RunPlan
from llada.training.progress_bar import Display
from llada.training.run_folder import RunFolder
from llada.training.state import Progress
from llada.training.step import Steps
from llada.training.trainer import Trainer

CLOCK = ("seconds", "tokens_per_second", "memory_bytes")
"""What of the metrics two equal runs may differ in."""


def display(total: int | None = None) -> Display:
    return Display(Console(quiet=True), total)


def trainer_of(config: TrainConfig, data: PreparedText | Mixture, resume: bool = False) -> Trainer:
    """A run that is about to begin, or to go on, in its folder."""
    folder = RunFolder(config.output_dir)
    folder.start(config)
    return Trainer(RunPlan.of(config, data), folder, resume)


def train(
    config: TrainConfig, data: PreparedText | Mixture, resume: bool = False, stop_at: int | None = None
) -> Trainer:
    """Train a run in its folder; with `stop_at`, a SIGINT comes during that step."""
    return run_to(trainer_of(config, data, resume), stop_at)


def first_gradients(plan: RunPlan) -> dict[str, Tensor]:
    """Gradients of the first step of a run from its random start, before they are clipped."""
    torch.manual_seed(0)
    steps = Steps(plan, build_model(plan, None), make_source(plan, 0), Progress())
    steps.backward(0, LossByTime(plan.device))
    weights = trained_weights(steps.model.network).items()
    return {name: weight.grad for name, weight in weights if weight.grad is not None}


def run_to(trainer: Trainer, stop_at: int | None = None) -> Trainer:
    """Train to the end, or until the SIGINT that comes during a step."""
    if stop_at is not None:
        draw = trainer.steps.source.draw

        def draw_and_interrupt(n_before: int, generator: torch.Generator) -> TokenBatch:
            if trainer.progress.step == stop_at:
                os.kill(os.getpid(), signal.SIGINT)
            return draw(n_before, generator)

        trainer.steps.source.draw = draw_and_interrupt
    trainer.run(display())
    return trainer


def train_until(
    config: TrainConfig, data: PreparedText | Mixture, resume: bool = False, stop_after: int | None = None
) -> Trainer:
    """Train a run in its folder, which is put in order if it goes on; with `stop_after`, it is stopped in that step."""
    if resume:
        RunFolder(config.output_dir).recover()
    trainer = trainer_of(config, data, resume)
    draw = trainer.steps.make_batch

    def make_batch(step: int) -> Any:
        trainer.stop.is_made = step + 1 == stop_after
        return draw(step)

    trainer.steps.make_batch = make_batch  # type: ignore[method-assign]
    return run_to(trainer)


def run_and_listen(trainer: Trainer) -> list[str]:
    """Train to the end; the lines that the run writes for people."""
    console = Console(record=True, quiet=False, file=None, width=10_000, stderr=True)
    trainer.run(Display(console, None))
    return console.export_text().splitlines()


def break_losses(trainer: Trainer, is_broken: Callable[[int, int], bool], value: float = math.nan) -> None:
    """Multiply the loss of a step by `value` where `is_broken` says so of the step and the data order."""
    loss = trainer.steps.loss

    def broken(*arguments: Any) -> Tensor:
        progress = trainer.progress
        return loss(*arguments) * (value if is_broken(progress.step, progress.data_order) else 1.0)

    trainer.steps.loss = broken  # type: ignore[method-assign, assignment]


def metrics_without_clock(config: TrainConfig) -> list[dict[str, Any]]:
    """The metrics of a run, without what depends on the clock and on the machine."""
    rows = read_metrics(config.output_dir / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]


def losses(config: TrainConfig) -> list[float]:
    return losses_of(config.output_dir)


def losses_of(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run / "metrics.jsonl") if "loss" in row]


def weights(trainer: Trainer) -> Tensor:
    """All weights of the network, in one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def assert_parts_are_those_of_the_whole(steps_of: Callable[[int, int], Steps], at: Sequence[int]) -> None:
    """Bit for bit, in any number of processes: ids, masks, probabilities and weights of the rows of some steps.

    Args:
        steps_of: makes the steps of a run in a process, from its rank and how many there are; 12 rows a step.
    """
    whole = steps_of(0, 1)
    for processes in (2, 3, 4, 12):
        parts = [steps_of(rank, processes) for rank in range(processes)]
        for step in at:
            clean, noisy = whole.make_batch(step)
            for part in parts:
                rows, (own_clean, own_noisy) = part.share.rows, part.make_batch(step)
                assert torch.equal(own_clean.x_0, clean.x_0[rows])
                assert torch.equal(own_clean.is_maskable, clean.is_maskable[rows])
                for field in fields(noisy):
                    assert torch.equal(getattr(own_noisy, field.name), getattr(noisy, field.name)[rows]), field.name
