"""Questions that may crash, hang or print, asked in a process of their own and within a time limit.

Each question has a new process, so that what an earlier one imported or broke is gone. Many small questions about
untrusted data, which need limits of computing and memory as well, go to one process that stays: see limited_process.py.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llada.system.errors import first_line

# Only the answer goes to the first standard output; what an imported library prints there goes nowhere. The end is
# abrupt on purpose: a library that crashes while the interpreter shuts down has answered. The parent keeps our standard
# input open and writes nothing into it: when the parent is killed, that closes, and this process ends.
_PROGRAM = """
import importlib, json, os, sys, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
answers = os.dup(1)
os.dup2(2, 1)
module, function, *arguments = sys.argv[1:]
try:
    answer = {"value": getattr(importlib.import_module(module), function)(*arguments)}
except BaseException as error:
    answer = {"failure": f"{type(error).__name__}: {error}"}
with open(answers, "w", encoding="utf-8") as file:
    json.dump(answer, file)
os._exit(0)
"""


_SECONDS_TO_READ = 5


@dataclass(frozen=True)
class Answer:
    """What a child process returned, or why it returned nothing."""

    value: Any = None
    failure: str = ""
    """One clause, like "OSError: libgomp.so.1 is missing" or "took longer than 60 s"; empty if there is a value."""


def ask(module: str, function: str, *arguments: str, seconds: float) -> Answer:
    """Call a function of a module in a child process; its result must be a JSON value.

    The current folder is not searched for modules, unlike with a plain `python -c`.
    """
    command = [sys.executable, "-P", "-c", _PROGRAM, module, function, *arguments]
    finished = run_limited(command, seconds, ends_with_us=True)
    if finished.failure:
        return Answer(failure=finished.failure)
    try:
        answer = json.loads(finished.value)
        return Answer(answer.get("value"), first_line(answer.get("failure", "")))
    except ValueError:
        return Answer(failure="the process ended without an answer")


def run_limited(
    command: Sequence[str], seconds: float, with_errors: bool = False, ends_with_us: bool = False
) -> Answer:
    """Run a program and return what it prints; if time is up, it and all that it started are killed.

    Args:
        with_errors: whether standard error belongs to what it prints.
        ends_with_us: its standard input stays open as long as this process lives, instead of being empty.
    """
    errors = subprocess.STDOUT if with_errors else subprocess.DEVNULL
    stdin = subprocess.PIPE if ends_with_us else subprocess.DEVNULL
    try:
        process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=errors, cwd=_elsewhere())
    except OSError as error:
        return Answer(failure=f"cannot be run: {error.strerror or error}")
    try:
        output = _read(process, seconds)
    except subprocess.TimeoutExpired:
        return Answer(failure=f"took longer than {seconds:g} s")
    finally:
        _stop(process)
    if process.returncode < 0:
        return Answer(failure=f"crashed ({_signal_name(-process.returncode)})")
    said = output.decode(errors="replace")
    if process.returncode > 0:
        reason = f": {first_line(said)}" if with_errors and first_line(said) else ""
        return Answer(failure=f"failed (exit code {process.returncode}{reason})")
    return Answer(said)


def _elsewhere() -> str | None:
    """The folder to run in if the current one was removed, since torch would not start there; None if it exists."""
    try:
        os.getcwd()
    except OSError:
        return os.sep
    return None


def _read(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """Read all that a process prints until it ends; unlike `communicate`, this keeps its standard input open."""
    heard: list[bytes] = []
    stream = process.stdout
    assert stream is not None
    reader = threading.Thread(target=lambda: heard.append(stream.read()), daemon=True)
    reader.start()
    process.wait(seconds)
    reader.join(_SECONDS_TO_READ)  # a descendant that outlives it may hold the pipe
    return b"".join(heard)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that still runs, and its descendants, which would keep the pipe and the processor busy."""
    if process.poll() is None:
        family = []
        with contextlib.suppress(Exception):  # without psutil, only the process itself
            import psutil

            family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for descendant in family:
            with contextlib.suppress(psutil.Error):
                descendant.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
