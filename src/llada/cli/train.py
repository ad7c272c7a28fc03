"""The commands `llada train` and, with another description, `llada finetune`."""

import argparse
import contextlib
import os
import re
import shlex
import socket
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from llada.checkpoints.folder import read_config, read_tokenizer
from llada.checkpoints.hub import fetch, read_published_config
from llada.checkpoints.load import find_adapter
from llada.checkpoints.lora_files import base_of_adapter
from llada.checkpoints.sampling_default import SAMPLING_FILE, write_default
from llada.cli import Program
from llada.cli.ending import STOPPED_AND_SAVED, USAGE_ERROR
from llada.cli.flags import in_flags
from llada.cli.options import parse
from llada.costs.fit import with_length
from llada.data.mixture import Mixture
from llada.data.prepared import PreparedText
from llada.data.sft import Answers
from llada.evaluation.distributed import Shard
from llada.models import EncoderConfig, NetworkConfig
from llada.system.console import StderrConsole
from llada.system.errors import UserError, forget_frames, is_out_of_memory
from llada.system.files import check_writable, resolved
from llada.system.format import duration_in_words
from llada.system.locks import locked
from llada.system.terminal import note, say
from llada.tokenizers.base import Tokenizer
from llada.tokenizers.char import CharTokenizer
from llada.training.agreement import surroundings
from llada.training.config import TrainConfig
from llada.training.forecast import announce, check_memory, out_of_memory
from llada.training.group import Group, OtherFailedError, is_started_by_torchrun, joined, processes_here
from llada.training.loggers import check_loggers
from llada.training.plan import RunPlan
from llada.training.presets import PRESETS, measured_sampling
from llada.training.progress_bar import Display
from llada.training.pruning import keep_for
from llada.training.rehearsal import rehearse
from llada.training.run_folder import RunFolder, RunReader
from llada.training.run_memory import shared_out_if_needed
from llada.training.trainer import Trainer

DESCRIPTION = """Train a masked diffusion language model from scratch, or go on with a run."""
PRESET_HELP = """These options set the defaults of all others:
  --preset NAME      Start from a named configuration (default: {preset}):
      {presets}.
  --config FILE      The config.json of another run.
  --resume [FOLDER]  Go on with this run (default: {resumed}).
  --changed_data     With --resume, go on even if the data have changed.
  --dry_run [N]      Print the plan of the run, for N processes here if given.

`torchrun --standalone --nproc-per-node N -m llada {command} ...` shares each step among N processes."""

READ_BEFORE = ("preset", "config", "resume", "changed_data", "dry_run", "checkpoint")
SAME_RUN = ("toolchain", "base")  # what a run stores in another form than it is given
RESTARTS = "TORCHELASTIC_RESTART_COUNT"  # set by torchrun


@dataclass(frozen=True)
class Asked:
    """What a command line asks for."""

    config: TrainConfig
    resume: bool
    changed_data: bool
    dry_run: int | None
    """Number of processes on this machine to plan for, 0 for those that there are; None to train."""


def run(
    arguments: Sequence[str], program: Program, description: str = DESCRIPTION, default_preset: str = "laptop"
) -> int:
    asked: Asked | UserError
    try:
        asked = _parse(arguments, program, description, program.preset or default_preset)
    except UserError as error:
        asked = error
    if isinstance(asked, Asked) and asked.dry_run is not None:
        return _print_plan(asked)
    try:
        config = TrainConfig() if isinstance(asked, UserError) else asked.config
        with joined(config.timeout_minutes, config.device) as group:
            return _run_in_group(asked, program, group)
    except OtherFailedError:
        return USAGE_ERROR


def _run_in_group(asked: Asked | UserError, program: Program, group: Group) -> int:
    """Do the run in one of several processes, or alone; whoever speaks of an error says who it is."""
    with contextlib.ExitStack() as until_the_end:
        try:
            asked = group.together(lambda: _unless_refused(asked))
            folder = group.together(lambda: _open_folder(asked, group, until_the_end))
            with group.watched():
                return _run(asked, folder, program, group)
        except UserError as error:
            if group.is_main:
                raise
            raise UserError(f"Process {group.rank} (on {socket.gethostname()}): {error}") from error


def _unless_refused(asked: Asked | UserError) -> Asked:
    if isinstance(asked, UserError):
        raise asked
    return asked


def _print_plan(asked: Asked) -> int:
    """Print what a run would be, once, and start nothing."""
    processes = asked.dry_run or (int(os.environ["WORLD_SIZE"]) if is_started_by_torchrun() else 1)
    here = asked.dry_run or processes_here()
    if is_started_by_torchrun() and os.environ["RANK"] != "0":
        return 0
    folder, shard = RunFolder(asked.config.output_dir), Shard(0, processes)
    if asked.resume:
        folder.check_resumable()
    plan, _ = _make_plan(asked.config, folder, asked.resume, Place(shard, here, is_dry=True))
    announce(shared_out_if_needed(plan), StderrConsole(), in_flags)
    return 0


def _write_sampling_default(config: TrainConfig, folder: RunFolder) -> None:
    """Store how a run's network is sampled best, and take away what a run left that never came to a checkpoint."""
    (folder.path / SAMPLING_FILE).unlink(missing_ok=True)
    measured = measured_sampling(config)
    if measured is not None:
        write_default(folder.path, *measured)


def _open_folder(asked: Asked, group: Group, until_the_end: contextlib.ExitStack) -> RunFolder:
    """Lock the run folder and put it in order; only process 0 does, and all others read it."""
    config = asked.config
    if not group.is_main:
        return RunReader(config.output_dir)
    check_writable(config.output_dir)  # before an hour is spent on a run that cannot be saved
    folder = RunFolder(config.output_dir, until_the_end.enter_context(locked(config.output_dir, inside=True)))
    if asked.resume:
        folder.check_resumable()
        folder.check_continues(config)
        for sentence in folder.recover():
            StderrConsole().print(sentence, style="yellow", highlight=False, markup=False, soft_wrap=True)
    else:
        folder.check_free()
        folder.recover()  # what a run left that was killed before its first checkpoint
    check_loggers(config.log)  # before anything is downloaded or read
    rehearse(folder.path)
    return folder


def _run(asked: Asked, folder: RunFolder, program: Program, group: Group) -> int:
    """Do the run, while holding the run folder's lock; return the exit code."""
    resume = asked.resume
    console = StderrConsole()
    console.quiet = not group.is_main
    place = Place(group.shard, processes_here())
    plan, start = group.main_first(lambda: _make_plan(asked.config, folder, resume, place))
    group.check_same(lambda: surroundings(plan))  # on which it depends what is exchanged from here on
    plan = shared_out_if_needed(plan, group.is_any)
    group.together(lambda: announce(plan, console, in_flags))
    try:
        return _train(  # which alone holds the trainer, so that an error can let go of it
            group.together(lambda: Trainer(plan, folder, resume, start, asked.changed_data, group=group)),
            resume,
            console,
            program,
        )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        forget_frames(error)  # what would fit is measured, which takes memory
        raise out_of_memory(plan, str(folder.path), folder.has_checkpoint()) from error


def _train(trainer: Trainer, resume: bool, console: StderrConsole, program: Program) -> int:
    """Train to the end, or to a signal; return the exit code."""
    folder, config, is_main = trainer.folder, trainer.plan.config, trainer.group.is_main
    if resume:
        folder.prune(config.keep)  # a kill may have come in between
    if trainer.fraction_done() >= 1:
        if is_main:
            note(f"The run in {folder.path} is complete; raise --steps, --epochs or --minutes to train it further.")
        return 0
    if resume:
        console.print(f"Going on after step {trainer.progress.step:,}.", highlight=False)
        for change in trainer.resumed.changed_settings:
            console.print(in_flags(f"Changed since: {change}"), highlight=False, markup=False)
    folder.start(config)
    if is_main and not resume:
        _write_sampling_default(config, folder)
    trainer.run(Display(console, trainer.plan.total_steps, in_flags))
    is_complete = trainer.fraction_done() >= 1
    if is_main:
        _say_the_end(trainer, program, is_complete)
    return 0 if is_complete else STOPPED_AND_SAVED


def _say_the_end(trainer: Trainer, program: Program, is_complete: bool) -> None:
    folder, plan, progress = trainer.folder, trainer.plan, trainer.progress
    if not is_complete:
        command = f"{program.call} --resume {shlex.quote(str(folder.path))}"
        say(f"Stopped; saved after step {folder.last_step}. Go on with: {command}")
        return
    note(f"Trained {progress.step:,} steps in {duration_in_words(progress.seconds)}.")
    note(
        f"Best NELBO {progress.best_nelbo:.3f} nats per {plan.data.tokenizer.unit}, at step {progress.best_step:,}; "
        "curves.png shows it."
    )
    next_command = program.after_training or f"llada {'evaluate' if plan.config.data.chat is None else 'chat'}"
    note(f"Run folder: {folder.path}. Next: {next_command} --checkpoint {shlex.quote(str(folder.path))}")


@dataclass(frozen=True)
class Place:
    """Where a run is planned: in which of its processes, and how many of them are on this machine."""

    shard: Shard
    processes_here: int
    is_dry: bool = False
    """Whether nothing is to be written or downloaded."""

    def plan(
        self, config: TrainConfig, data: PreparedText | Mixture | Answers, network_config: NetworkConfig | None = None
    ) -> RunPlan:
        return RunPlan.of(config, data, network_config, self.shard, self.processes_here)


def _make_plan(config: TrainConfig, folder: RunFolder, resume: bool, place: Place) -> tuple[RunPlan, Path | None]:
    """Return the plan of the run, and the checkpoint folder whose weights it starts from, if there is one."""
    if config.base is None:
        plan = place.plan(config, _open_data(config))
        longest = read_config(folder.last).max_sequence_length if resume else plan.length
        if isinstance(plan.network_config, EncoderConfig) and plan.length < longest:
            # Shorter sequences use the first of the learned positions.
            plan = place.plan(config, plan.data, with_length(plan.network_config, longest))
        return plan, None
    base = _base_now(config.base, folder) if resume and config.method != "full" else config.base
    config = replace(config, base=base)
    if find_adapter(Path(base)):
        raise UserError(f"{base} is an adapter: merge it by `llada export` first, and name what that wrote.")
    if resume and config.method == "full":
        start = folder.last
    else:
        network = read_published_config(base)
        if config.data.chat is None:  # before the weights are downloaded
            plan = place.plan(config, config.data.open_texts(is_checked=False), network)
            if place.is_dry:
                return plan, None
            check_memory(plan)
        start = fetch(base, network)
    if config.method != "full" and Path(base).exists():
        # The absolute path of the step's folder holds wherever the adapter is opened from, and if its run goes on.
        start = resolved(start)
        config = replace(config, base=str(start))
        if start != folder.last and place.shard.rank == 0 and not place.is_dry:
            keep_for(folder.path, start)  # before anything that takes long, since its run may go on meanwhile
    plan = place.plan(config, _open_data(config, start), read_config(start))
    return plan, None if start == folder.last else start


def _base_now(base: str, folder: RunFolder) -> str:
    """Return where the base of an adapter's run is now.

    If it is not where it was when the run began, and no other place is named, the path relative to the adapter's own
    folder is tried, which still holds if both were moved together.
    """
    if base != folder.read_config(folder.path).base or Path(base).exists():
        return base
    known = base_of_adapter(folder.last)
    return known if Path(known).exists() else base


def _open_data(config: TrainConfig, start: Path | None = None) -> PreparedText | Mixture | Answers:
    """Open the texts or dialogues of a run, in the tokens of the checkpoint that it starts from, or in characters."""
    options = config.data
    if options.chat is None:
        return options.open_texts(None if start is None else read_tokenizer(start))
    dialogues = options.read_dialogues()
    if start is None:
        tokenizer: Tokenizer = CharTokenizer(dialogues.characters)
        longest = sys.maxsize
    else:
        tokenizer, longest = read_tokenizer(start), read_config(start).max_sequence_length
    answers = Answers.of(dialogues, tokenizer, min(longest, options.chat_length or longest))
    for sentence in answers.notes:
        say(sentence)
    return answers


def _processes_to_plan(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--dry_run plans for 1 process or more, not {text}: correct it, or leave N out.")
    return int(text)


def _parse(arguments: Sequence[str], program: Program, description: str, default_preset: str) -> Asked:
    """Read a command line.

    A preset, a file or a run to resume sets the defaults of all other flags, so it is read before them.
    """
    first = _FirstParser(prog=program.name, add_help=False, allow_abbrev=False)
    base = first.add_mutually_exclusive_group()
    base.add_argument("--preset", choices=PRESETS, default=default_preset)
    base.add_argument("--config", type=Path)
    base.add_argument("--resume", nargs="?", const="")
    first.add_argument("--output_dir", "--output-dir", type=Path)
    first.add_argument("--changed_data", "--changed-data", action="store_true")
    first.add_argument("--dry_run", "--dry-run", nargs="?", type=_processes_to_plan, const=0)
    for length in ("--epochs", "--steps"):
        first.add_argument(length)
    chosen, rest = first.parse_known_args(arguments)

    resume = chosen.resume is not None
    if chosen.changed_data and not resume:
        raise UserError("--changed_data is for a run that goes on: add --resume, or leave it out.")
    if chosen.resume and chosen.output_dir:
        raise UserError("--resume FOLDER and --output_dir both name the run: give one of them.")
    default = PRESETS[chosen.preset]
    if program.data_dir is not None:
        default = replace(default, data=replace(default.data, data_dir=(program.data_dir,)))
    folder = Path(chosen.resume) if chosen.resume else chosen.output_dir
    if folder is None:
        folder = _numbered_folder(program.numbered_runs, resume) if program.numbered_runs else default.output_dir
    if resume:
        default = RunFolder.read_config(folder)
    elif chosen.config:
        default = TrainConfig.read(chosen.config)
        folder = chosen.output_dir or (folder if program.numbered_runs else default.output_dir)
    # A given length replaces the default's, whether that is in steps or in epochs.
    if chosen.epochs or chosen.steps:
        rest += ["--epochs", chosen.epochs or "None", "--steps", chosen.steps or "None"]
    default = replace(default, output_dir=folder)
    resumed = "the newest run" if program.numbered_runs else "--output_dir"
    presets = "\n      ".join(textwrap.wrap(", ".join(PRESETS), 64))
    command = program.name.removeprefix("llada ") if program.name.startswith("llada ") else "train"
    preset_help = PRESET_HELP.format(presets=presets, preset=default_preset, resumed=resumed, command=command)
    config = parse(TrainConfig, program.name, rest, f"{description}\n\n{preset_help}", default, READ_BEFORE)
    if chosen.preset == "sft" and not resume and not chosen.config and config.data.chat is None:
        raise UserError("--preset sft learns the answers of dialogues: add --chat FILE.jsonl.")
    if not resume and os.environ.get(RESTARTS, "0") != "0":  # the command that began the run now goes on with it
        if program.numbered_runs and not chosen.output_dir:
            begun = _numbered(program.numbered_runs, _newest_number(program.numbered_runs))
        else:
            begun = folder
        stored = _same_run_in(RunFolder(begun), replace(config, output_dir=begun))
        config, resume = (stored, True) if stored else (config, False)
    return Asked(config, resume, chosen.changed_data, chosen.dry_run)


def _same_run_in(folder: RunFolder, config: TrainConfig) -> TrainConfig | None:
    """Return the configuration of the run in a folder, if it has come to a checkpoint and began with these settings."""
    if not folder.has_checkpoint():
        return None
    stored = replace(folder.read_config(folder.path), output_dir=folder.path)
    alike = {name: getattr(config, name) for name in SAME_RUN}
    return stored if replace(stored, **alike) == config else None


def _numbered_folder(stem: Path, resume: bool) -> Path:
    """Return `stem-N` with the number of the newest run, to resume it, or with the next free number."""
    newest = _newest_number(stem)
    if resume and not newest:
        raise UserError(f"{stem}-N does not exist, so nothing can be resumed: name a run, or leave out --resume.")
    return _numbered(stem, newest if resume else newest + 1)


def _newest_number(stem: Path) -> int:
    """Return the largest N of the folders `stem-N`; 0 without any."""
    pattern = re.compile(rf"{re.escape(stem.name)}-(\d+)")
    found = [pattern.fullmatch(path.name) for path in stem.parent.glob("*")]
    return max((int(match[1]) for match in found if match), default=0)


def _numbered(stem: Path, number: int) -> Path:
    return stem.with_name(f"{stem.name}-{number}")


class _FirstParser(argparse.ArgumentParser):
    """Raises a UserError of one sentence instead of printing the usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[0].upper()}{message[1:]} (`{self.prog} --help` lists the options).")
