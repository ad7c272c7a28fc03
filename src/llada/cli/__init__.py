"""The `llada` command: one module a sub-command, each a thin layer over the package.

Results go to standard output, everything else to standard error.
"""

import errno
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from llada.errors import UserError
from llada.files import hush
from llada.system.environment import allow_any_text, set_defaults

COMMANDS = {
    "prepare": "get a text and write the folder that training reads",
    "train": "train a masked diffusion language model from scratch, or go on with a run",
    "finetune": "train a checkpoint further on a text or on dialogues: all of it, or by LoRA and QLoRA",
    "chat": "talk with a checkpoint, and watch its answers appear",
    "evaluate": "measure a checkpoint: its NELBO, an exact likelihood, or the quality of its samples",
    "compare": "measure two checkpoints against each other",
    "sample": "write text with a checkpoint, from a prompt, a template, or nothing",
    "export": "write a model in LLaDA's official layout, an adapter merged",
    "doctor": "say whether this machine is ready, what a run will use, and what to do about what is missing",
    "size": "count parameters, memory, computation and time, and suggest what fits",
}

# What takes less memory, by command; training has its own forecast and sentences.
OUT_OF_MEMORY = {
    "sample": "lower --n_samples or --gen_length, or open the weights as bf16 (--dtype bf16)",
    "chat": "lower --gen_length, or open the weights as bf16 (--dtype bf16)",
    "evaluate": "lower --batch_size or --sequence_length, or open the weights as bf16 (--dtype bf16)",
    "compare": "lower --batch_size or --sequence_length, or open the weights as bf16 (--dtype bf16)",
    "harness": "lower --batch_size, or put dtype=bf16 into --model_args",
    "export": "write the weights as they are stored (--dtype stored), or take a machine with more memory",
}

USAGE_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells say it
# Of sysexits.h, EX_TEMPFAIL: come again. Nothing is lost, unlike with 130 and 143, and schedulers can tell it apart.
STOPPED_AND_SAVED = 75


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a sub-command; exits with 0, 2 (bad input), 75 (training was stopped, saved, and can go on), 130 (stopped at
    once by the user) or, by the system, 143 (by a second SIGTERM)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        sys.exit(0 if arguments else USAGE_ERROR)
    if arguments[0] == "--version":
        from llada import __version__

        print(f"llada-trainer {__version__}")
        return
    name, *rest = arguments
    if name not in COMMANDS:
        _fail("llada", f"There is no command {name!r}: choose one of {', '.join(COMMANDS)}.")
    run_command(name, rest)


@dataclass(frozen=True)
class Program:
    """The program that a person called, with the defaults in which it differs from `llada COMMAND`."""

    name: str
    preset: str | None = None
    data_dir: Path | None = None
    """Prepared folder to write or read."""
    numbered_runs: Path | None = None
    """Run folders are this path with a number, a new one for each run; None is the preset's one folder."""
    prepare_program: str = "llada prepare"
    next_program: str = "llada train"
    """What comes after preparing a text."""


def run_command(name: str, arguments: Sequence[str], program: Program | None = None) -> NoReturn:
    """Run a sub-command, as `llada NAME` or as another program, and exit like `main`."""
    program = program or Program(f"llada {name}")
    first_word = program.name.split()[0]
    allow_any_text()
    set_defaults()
    # Imported on demand, so that help and mistakes need not wait for torch, which then finds its environment set.
    command = importlib.import_module(f"llada.cli.{name}")
    try:
        sys.exit(command.run(arguments, program))
    except UserError as error:
        _fail(first_word, str(error).replace("llada prepare", program.prepare_program))
    except BrokenPipeError:  # the reader of our output has seen enough
        hush(sys.stdout)
        sys.exit(INTERRUPTED)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            _fail(first_word, _out_of_memory(name))
        _fail(first_word, _describe(error))
    except (RuntimeError, MemoryError) as error:
        from llada.training.forecast import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        _fail(first_word, _out_of_memory(name))
    except KeyboardInterrupt:
        say("Stopped.")
        sys.exit(INTERRUPTED)


def _out_of_memory(command: str) -> str:
    remedy = OUT_OF_MEMORY.get(command, "free some memory, or take a machine with more")
    return f"The memory is not enough for this: {remedy}."


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


def _describe(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full{where}: free some space and repeat the command; what was complete before is unharmed."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"No permission to read or write there{where}: choose another folder or change its permissions."
    return f"{error.strerror or type(error).__name__}{where}: check the path and the disk."


def _fail(program: str, sentence: str) -> NoReturn:
    say(f"{program}: {sentence}")
    sys.exit(USAGE_ERROR)


def say(sentence: str) -> None:
    """On standard error; if nobody reads there any more, the exit code still says how it ended."""
    try:
        print(sentence, file=sys.stderr, flush=True)
    except OSError:
        hush(sys.stderr)
