"""`llada train`."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from llada.cli import INTERRUPTED
from llada.cli.options import parse
from llada.errors import UserError
from llada.files import read_json
from llada.text.dataset import PreparedText
from llada.training.config import PRESETS, TrainConfig
from llada.training.forecast import announce
from llada.training.monitor import Display, format_duration
from llada.training.plan import RunPlan
from llada.training.run_folder import RunFolder
from llada.training.trainer import Trainer

DEFAULT_PRESET = "laptop"
DESCRIPTION = f"""Train a masked diffusion language model from scratch, or go on with a run.

These come first and set the defaults of all other options:
  --preset NAME        {", ".join(PRESETS)} (default: {DEFAULT_PRESET})
  --config FILE        config.json of a run
  --resume [FOLDER]    go on with the run in that folder (default: --output_dir)"""


def run(arguments: Sequence[str]) -> int:
    config, resume = _parse(arguments)
    console = Console(stderr=True)
    data = PreparedText.open(config.data.data_dir)
    folder = RunFolder(config.output_dir)
    if not resume:
        folder.check_free()
    plan = RunPlan.of(config, data)
    announce(plan, console)
    trainer = Trainer(plan, folder, resume)
    if trainer.share_done() >= 1:
        print(f"The run in {folder.path} is complete; raise --steps, --epochs or --minutes to train it further.")
        return 0
    if resume:
        console.print(f"Going on after step {trainer.progress.step:,}.", highlight=False)
    folder.start(config)
    progress = trainer.run(Display(console, plan.total_steps))
    if trainer.share_done() < 1:
        command = shlex.join(["llada", "train", "--resume", str(folder.path)])
        print(f"Stopped after step {progress.step}; saved. Go on with: {command}", file=sys.stderr)
        return INTERRUPTED
    print(f"Trained {progress.step:,} steps in {format_duration(progress.seconds)}.")
    print(
        f"Best NELBO {progress.best_nelbo:.3f} nats per character, at step {progress.best_step:,}; curves.png shows it."
    )
    print(f"Run folder: {folder.path}. Next: llada evaluate --checkpoint {folder.path}")
    return 0


def _parse(arguments: Sequence[str]) -> tuple[TrainConfig, bool]:
    """The configuration of the run, and whether it goes on with one that is there.

    A preset, a file or a run to resume sets the defaults of all other flags, so it is read before them.
    """
    first = argparse.ArgumentParser(prog="llada train", add_help=False, allow_abbrev=False)
    base = first.add_mutually_exclusive_group()
    base.add_argument("--preset", choices=PRESETS, default=DEFAULT_PRESET)
    base.add_argument("--config", type=Path)
    base.add_argument("--resume", nargs="?", const="")
    first.add_argument("--output_dir", "--output-dir", type=Path)
    for length in ("--epochs", "--steps"):
        first.add_argument(length)
    chosen, rest = first.parse_known_args(arguments)

    default = PRESETS[chosen.preset]
    resume = chosen.resume is not None
    if chosen.resume and chosen.output_dir:
        raise UserError("--resume FOLDER and --output_dir both name the run: give one of them.")
    folder = Path(chosen.resume) if chosen.resume else chosen.output_dir
    if resume:
        default = RunFolder.read_config(folder or default.output_dir)
    elif chosen.config:
        default = TrainConfig.from_json(read_json(chosen.config))
    # A length that is given takes the place of the one that the default has, be it in steps or in epochs.
    if chosen.epochs or chosen.steps:
        rest += ["--epochs", chosen.epochs or "None", "--steps", chosen.steps or "None"]
    default = replace(default, output_dir=folder or default.output_dir)
    return parse(TrainConfig, "train", rest, DESCRIPTION, default), resume
