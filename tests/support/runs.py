"""Small runs, trained in their folders, and what is compared of them."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from llada.data.batches import TokenBatch
from llada.data.prepared import PreparedText
from llada.training.config import TrainConfig
from llada.training.metrics import read_metrics
from llada.training.plan import RunPlan
from llada.training.progress_bar import Display
from llada.training.run_folder import RunFolder
from llada.training.trainer import Trainer


def display(total: int | None = None) -> Display:
    return Display(Console(quiet=True), total)


def train(config: TrainConfig, data: PreparedText, resume: bool = False, stop_at: int | None = None) -> Trainer:
    """A run in its folder; with `stop_at`, a SIGINT comes during that step."""
    folder = RunFolder(config.output_dir)
    folder.start(config)
    return run_to(Trainer(RunPlan.of(config, data), folder, resume), stop_at)


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
    config: TrainConfig, data: PreparedText, resume: bool = False, stop_after: int | None = None
) -> Trainer:
    """A run in its folder, which is put in order if it goes on; with `stop_after`, told to stop in that step."""
    folder = RunFolder(config.output_dir)
    if resume:
        folder.recover()
    folder.start(config)
    trainer = Trainer(RunPlan.of(config, data), folder, resume)
    draw = trainer.steps.make_batch

    def make_batch(step: int) -> Any:
        trainer.stop.is_made = step + 1 == stop_after
        return draw(step)

    trainer.steps.make_batch = make_batch  # type: ignore[method-assign]
    return run_to(trainer)


def losses(config: TrainConfig) -> list[float]:
    return losses_of(config.output_dir)


def losses_of(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run / "metrics.jsonl") if "loss" in row]


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])
