"""Small runs, trained in their folders, and what is compared of them."""

import os
import signal

import torch
from rich.console import Console

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
    trainer = Trainer(RunPlan.of(config, data), folder, resume)
    if stop_at is not None:
        draw = trainer.steps.source.draw

        def draw_and_interrupt(n_before: int, generator: torch.Generator):  # type: ignore[no-untyped-def]
            if trainer.progress.step == stop_at:
                os.kill(os.getpid(), signal.SIGINT)
            return draw(n_before, generator)

        trainer.steps.source.draw = draw_and_interrupt
    trainer.run(display())
    return trainer


def losses(config: TrainConfig) -> list[float]:
    return [row["loss"] for row in read_metrics(config.output_dir / "metrics.jsonl") if "loss" in row]


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])
