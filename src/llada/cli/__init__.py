"""The `llada` command. Each sub-command has a module, which is a thin layer over the package.

Results go to standard output, everything else to standard error.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from llada.cli.ending import USAGE_ERROR, run_to_end
from llada.cli.flags import in_flags, refuse_empty_paths
from llada.system.environment import allow_any_text, open_streams, set_defaults
from llada.system.errors import UserError
from llada.system.terminal import tell

COMMANDS = {
    "prepare": "get a text and write the folder that training reads",
    "data": "look at a prepared folder: what is in it, whether it is whole, statistics",
    "train": "train a masked diffusion language model from scratch, or go on with a run",
    "finetune": "train a checkpoint further on a text or on dialogues: all of it, or by LoRA and QLoRA",
    "chat": "chat with a checkpoint, and watch its answers appear",
    "evaluate": "measure a checkpoint: its NELBO, an exact likelihood, or the quality of its samples",
    "compare": "measure two checkpoints against each other",
    "frontier": "find out how a checkpoint is sampled best: likelihood against evaluations of the network",
    "plot": "draw the curves of runs into one picture",
    "watch": "show runs on a live page: bound, loss by t, samples, speed, and what trouble there was",
    "sample": "write text with a checkpoint, from a prompt, a template, or nothing",
    "serve": "serve a checkpoint: a page on which text un-masks itself, and an API that OpenAI clients speak",
    "export": "write a model in LLaDA's official layout, an adapter merged",
    "doctor": "say whether this machine is ready, what a run will use, and what to do about what is missing",
    "size": "count parameters, memory, computation and time, and suggest what fits",
}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a sub-command and exit.

    The exit codes are 0, 2 (bad input), 70 (an unforeseen error), 75 (training was stopped, saved, and can go on),
    130 (stopped at once by the user) and 143 (by a SIGTERM that nothing else handled).
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] in COMMANDS:
        run_command(arguments[0], arguments[1:])
    open_streams()
    allow_any_text()
    sys.exit(run_to_end(lambda: _answer(arguments), "", "llada"))


def _answer(arguments: Sequence[str]) -> int:
    """Answer a command line that does not begin with a command; return the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        tell(_help())
        return 0 if arguments else USAGE_ERROR
    if arguments[0] == "--version":
        from llada import __version__

        tell(f"llada-trainer {__version__}")
        return 0
    near = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
    meant = f"did you mean `llada {near[0]}`? There are" if near else "choose one of"
    raise UserError(f"There is no command {arguments[0]!r}: {meant} {', '.join(COMMANDS)}.")


@dataclass(frozen=True)
class Program:
    """The program that was called, with the defaults in which it differs from `llada COMMAND`."""

    name: str
    preset: str | None = None
    data_dir: Path | None = None
    """Folder with the prepared text, to write or to read."""
    numbered_runs: Path | None = None
    """Path to which each run adds a new number for its folder; None uses the preset's folder."""
    command: str | None = None
    """What to type to call the program again; its name if left out."""
    prepare_program: str = "llada prepare"
    next_program: str = "llada train"
    """The command that follows the preparation of a text."""
    after_training: str | None = None
    """The command that follows a run; `llada evaluate` or `llada chat` if left out."""

    @property
    def call(self) -> str:
        """What to type to call the program again."""
        return self.command or self.name


def run_command(name: str, arguments: Sequence[str], program: Program | None = None) -> NoReturn:
    """Run a sub-command, as `llada NAME` or as another program, and exit like `main`."""
    program = program or Program(f"llada {name}")
    open_streams()
    allow_any_text()
    set_defaults()
    sys.exit(run_to_end(lambda: _run(name, arguments, program), name, program.name.split()[0]))


def _run(name: str, arguments: Sequence[str], program: Program) -> int:
    # Imported on demand: help and mistakes need not wait for torch, and torch finds its environment variables set.
    command = importlib.import_module(f"llada.cli.{name}")
    refuse_empty_paths(arguments)
    try:
        code: int = command.run(arguments, program)
    except UserError as error:
        raise UserError(in_flags(str(error), program.prepare_program)) from error
    return code


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: llada COMMAND [OPTIONS]",
            "",
            "The open trainer for LLaDA, large language diffusion with masking.",
            "",
            *lines,
            "",
            "`llada COMMAND --help` lists the options of a command.",
        ]
    )
