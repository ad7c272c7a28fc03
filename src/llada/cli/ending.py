"""Exit codes of the commands, and the one sentence that a command ends with if it failed."""

import errno
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llada.system.errors import UserError, is_out_of_memory, shortened
from llada.system.files import hush
from llada.system.terminal import finish, say

USAGE_ERROR = 2
# EX_SOFTWARE of sysexits.h: an unforeseen error.
UNFORESEEN = 70
# EX_TEMPFAIL of sysexits.h: try again. Unlike with 130 and 143, nothing is lost, and schedulers can act on it.
STOPPED_AND_SAVED = 75
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
TERMINATED = 143  # 128 + SIGTERM
TRACEBACK = "LLADA_TRACEBACK"
"""Environment variable that asks for the traceback of an unforeseen error."""

# What takes less memory, by command; a run that has begun has its own sentences (training/forecast.py).
OUT_OF_MEMORY = {
    "train": "lower --batch_size or --sequence_length, or take a machine with more memory",
    "finetune": "lower --batch_size or --sequence_length, or take a machine with more memory",
    "sample": "lower --n_samples or --gen_length, or open the weights as bf16 (--dtype bf16)",
    "chat": "lower --gen_length, or open the weights as bf16 (--dtype bf16)",
    "evaluate": "lower --batch_size or --sequence_length, or open the weights as bf16 (--dtype bf16)",
    "compare": "lower --batch_size or --sequence_length, or open the weights as bf16 (--dtype bf16)",
    "harness": "lower --batch_size, or put dtype=bf16 into --model_args",
    "serve": "lower --batch or --batch_tokens, or open the weights as bf16 (--dtype bf16)",
    "export": "write the weights as they are stored (--dtype stored), or take a machine with more memory",
}
PANIC = "PanicException"  # what Rust libraries raise for a bug of their own; a BaseException


class Terminated(BaseException):
    """A SIGTERM came that nothing else handles."""


def run_to_end(work: Callable[[], int], command: str, program: str) -> int:
    """Do a command's work, write the sentence for people if it failed, and return the exit code.

    Args:
        command: the command's name, which chooses the remedy for too little memory.
        program: the word that the sentence begins with.
    """
    try:
        with _terminated():
            code = _code_of(work)
            finish()
            return code
    except BrokenPipeError:  # the reader of our output has seen enough
        hush(sys.stdout)
        return INTERRUPTED
    except KeyboardInterrupt:
        say("Stopped.")
        return INTERRUPTED
    except Terminated:
        say(f"{program}: Stopped by SIGTERM; what was saved before is complete.")
        return TERMINATED
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        code, sentence = describe(error, command)
        if code == UNFORESEEN and os.environ.get(TRACEBACK, "") not in ("", "0"):
            say(traceback.format_exc().rstrip())
        say(f"{program}: {sentence}")
        return code


def _code_of(work: Callable[[], int]) -> int:
    """Return the exit code of work that may end by SystemExit, as a parser does that printed its help."""
    try:
        return work()
    except SystemExit as exit_:
        if exit_.code is None or isinstance(exit_.code, int):
            return exit_.code or 0
        say(exit_.code)
        return 1


@contextmanager
def _terminated() -> Iterator[None]:
    """Let a SIGTERM raise an exception, so that open files are closed and a sentence is written.

    A handler that the caller installed stays in place.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def end(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second SIGTERM ends the process at once
        raise Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is end:  # a run that was stopped may have it ignored
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def describe(error: BaseException, command: str) -> tuple[int, str]:
    """Return the exit code and the sentence for an error."""
    if isinstance(error, UserError):
        return USAGE_ERROR, str(error)
    if is_out_of_memory(error):
        remedy = OUT_OF_MEMORY.get(command, "free some memory, or take a machine with more")
        return USAGE_ERROR, f"The memory is not enough for this: {remedy}."
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return USAGE_ERROR, "A path holds a NUL character, which no file's name has: correct it."
    if isinstance(error, OSError):
        return USAGE_ERROR, _describe_os_error(error)
    if type(error).__name__ == "SafetensorError" and (found := re.search(r"os error (\d+)", str(error))):
        number = int(found[1])
        return USAGE_ERROR, _describe_os_error(OSError(number, os.strerror(number)))
    return UNFORESEEN, unforeseen(error)


def unforeseen(error: BaseException) -> str:
    """Return the sentence for an unforeseen error."""
    kind, what = type(error).__name__, shortened(" ".join(str(error).split()).rstrip("."), 300)
    # UserError makes whatever the sentence quotes fit for a terminal.
    return str(
        UserError(
            f"This ended by an error that was not foreseen, {kind}{f' ({what})' if what else ''}: if the input is "
            f"sound, please report it with what {TRACEBACK}=1 in the environment shows."
        )
    )


def _describe_os_error(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        sentence = f"The disk is full{where}: free some space and repeat the command; what was complete before is"
        return str(UserError(f"{sentence} unharmed."))
    if error.errno == errno.EFBIG:
        remedy = "raise the limit on the size of files (`ulimit -f`), or choose another disk"
        return str(UserError(f"A file would be larger than is allowed here{where}: {remedy}."))
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "choose another folder or change its permissions"
        return str(UserError(f"No permission to read or write there{where}: {remedy}."))
    return str(UserError(f"{error.strerror or type(error).__name__}{where}: check the path and the disk."))
