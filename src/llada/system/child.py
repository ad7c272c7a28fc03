"""Questions that may crash, hang or print, asked in a process of their own and within a time limit."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Only the answer goes to the first standard output; what an imported library prints there goes nowhere. The end is
# abrupt on purpose: a library that crashes while the interpreter shuts down has answered.
_PROGRAM = """
import importlib, json, os, sys
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
    finished = run_limited([sys.executable, "-P", "-c", _PROGRAM, module, function, *arguments], seconds)
    if finished.failure:
        return Answer(failure=finished.failure)
    try:
        answer = json.loads(finished.value)
        return Answer(answer.get("value"), first_line(answer.get("failure", "")))
    except ValueError:
        return Answer(failure="the process ended without an answer")


def run_limited(command: Sequence[str], seconds: float, with_errors: bool = False) -> Answer:
    """Run a program and return what it prints; if time is up, it and all that it started are killed.

    Args:
        with_errors: whether standard error belongs to what it prints.
    """
    errors = subprocess.STDOUT if with_errors else subprocess.DEVNULL
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, cwd=_elsewhere()
        )
    except OSError as error:
        return Answer(failure=f"cannot be run: {error.strerror or error}")
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return Answer(failure=f"took longer than {seconds:g} s")
    finally:
        _stop(process)
    if process.returncode < 0:
        return Answer(failure=f"crashed ({_signal_name(-process.returncode)})")
    if process.returncode > 0:
        return Answer(failure=f"failed (exit code {process.returncode})")
    return Answer(output.decode(errors="replace"))


def _elsewhere() -> str | None:
    """Folder to run in where the current one was removed, in which torch would not start; None if it is there."""
    try:
        os.getcwd()
    except OSError:
        return os.sep
    return None


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that still runs, and its descendants, which would keep the pipe and the processor."""
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
    if process.stdout is not None:
        process.stdout.close()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def first_line(text: str) -> str:
    """Shorten an error message to its first line that says something, of at most 200 characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0].rstrip(".:")[:200] if lines else ""
