"""Work on untrusted data in a process of its own, within limits of time and memory.

A chat template or a tokenizer from a stranger can ask for any amount of work, in ways that no list of forbidden names
covers: nested loops, widths, regular expressions that never end, a library that aborts. So the limit is put on the
process that does it. It is started once and asked many times: a question costs some ten microseconds, not a start.

Where the system has limits (Linux; the time on macOS too), the process sets its own before each question and the
kernel holds them, even if the asking process has died. Everywhere, the asking process watches it and ends it.
"""

import contextlib
import json
import os
import queue
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

_LENGTH = struct.Struct(">Q")  # comes before each message
_WATCH_SECONDS = 0.05
_PATIENCE_SECONDS = 60  # for a process that does not even compute: the machine may be busy, or have been asleep
_TIME_SIGNALS = [getattr(signal, name) for name in ("SIGPROF", "SIGXCPU") if hasattr(signal, name)]


@dataclass(frozen=True)
class Limits:
    """Limits for the answer to one question."""

    seconds: float
    """Computing time, over all cores together."""
    megabytes: int
    """Memory, including that of the process itself (some 20 MB)."""

    @property
    def time_in_words(self) -> str:
        return f"it takes more than {self.seconds:.3g} s of computing"

    @property
    def memory_in_words(self) -> str:
        return f"it takes more than {self.megabytes} MB of memory"


_START = Limits(60, 1000)  # limits for importing our own code and the libraries


class WorkError(Exception):
    """There is no answer: a limit was reached, the process crashed, or the work itself failed. The text says which."""


class BoundedProcess:
    """A process that answers questions. It starts at the first question, and again at the first one after it ended."""

    def __init__(self, script: Path, *arguments: str) -> None:
        """Describe the process, which is not started yet.

        Args:
            script: a Python file that answers as `tokenizers/stranger.py` does.
        """
        self._command = [sys.executable, "-P", str(script), *arguments]
        self._preparations: list[tuple[Mapping[str, Any], Limits, bytes]] = []
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._replies: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._seconds_before = 0.0
        self._end: weakref.finalize[..., BoundedProcess] | None = None

    def prepare(self, question: Mapping[str, Any], limits: Limits, blob: bytes = b"") -> Any:
        """Ask a question that every later process is asked again, before anything else, and return the answer.

        Raises:
            WorkError: there is no answer.
        """
        try:
            answer = self.ask(question, limits, blob)
        except WorkError:
            self._stop()
            raise
        self._preparations.append((question, limits, blob))
        return answer

    def ask(self, question: Mapping[str, Any], limits: Limits, blob: bytes = b"") -> Any:
        """Ask a question and return the answer.

        Raises:
            WorkError: there is no answer; the next question goes to a new process, if this one had to be ended.
        """
        with self._lock:
            try:
                if self._process is None or self._owner != os.getpid():  # a fork must not talk to its parent's process
                    self._start()
                reply = self._exchange(question, limits, blob)
            except BaseException:  # also Ctrl-C: a late answer must not be taken for that to the next question
                self._stop()
                raise
            if "ends" in reply:
                self._stop()
        if "failure" in reply:
            raise WorkError(reply["failure"])
        return reply["answer"]

    def _start(self) -> None:
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path if entry)
        environment = {**os.environ, "PYTHONPATH": path, "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        try:
            self._process = process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
            )
            self._owner, self._replies = os.getpid(), queue.SimpleQueue()
            self._end = weakref.finalize(self, _end_process, process, self._owner)
            threading.Thread(target=_read_replies, args=(process.stdout, self._replies), daemon=True).start()
        except (OSError, RuntimeError) as error:  # RuntimeError: no thread
            raise WorkError(f"the system starts no process for it: {error}") from error
        self._seconds_before = 0.0
        self._seconds_before = json.loads(self._await_reply(_START))["seconds"]
        for question, limits, blob in self._preparations:
            failure = self._exchange(question, limits, blob).get("failure")
            if failure is not None:
                raise WorkError(failure)

    def _exchange(self, question: Mapping[str, Any], limits: Limits, blob: bytes) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        header = json.dumps({**question, "seconds": limits.seconds, "megabytes": limits.megabytes}).encode()
        with contextlib.suppress(BrokenPipeError):  # it has ended, and the reason is found below
            for part in (header, blob):
                self._process.stdin.write(_LENGTH.pack(len(part)))
                self._process.stdin.write(part)
            self._process.stdin.flush()
        reply: dict[str, Any] = json.loads(self._await_reply(limits))
        self._seconds_before = reply["seconds"]
        return reply

    def _await_reply(self, limits: Limits) -> bytes:
        assert self._process is not None
        patience = time.monotonic() + _PATIENCE_SECONDS + 10 * limits.seconds
        while True:
            try:
                reply = self._replies.get(timeout=_WATCH_SECONDS)
            except queue.Empty:
                self._watch(limits, patience)
                continue
            if reply is None:
                raise WorkError(_describe_end(self._process, limits))
            return reply

    def _watch(self, limits: Limits, patience: float) -> None:
        """End the process if it is beyond a limit; where the kernel enforces the limits as well, the kernel comes
        first."""
        assert self._process is not None
        with contextlib.suppress(psutil.Error):  # ended: the next look at the replies finds out
            watched = psutil.Process(self._process.pid)
            spent = watched.cpu_times()
            if spent.user + spent.system - self._seconds_before > 1.2 * limits.seconds + _WATCH_SECONDS:
                raise WorkError(limits.time_in_words)
            if watched.memory_info().rss > 1e6 * limits.megabytes:
                raise WorkError(limits.memory_in_words)
        if time.monotonic() > patience:
            raise WorkError("it gives no answer")

    def _stop(self) -> None:
        if self._end is not None and self._owner == os.getpid():
            self._end()
        self._process = self._end = None


def _read_replies(stream: IO[bytes], replies: "queue.SimpleQueue[bytes | None]") -> None:
    """Pass on what a process answers, and None when it has ended."""
    with contextlib.suppress(OSError, ValueError):  # closed by `_end_process`
        while len(header := stream.read(_LENGTH.size)) == _LENGTH.size:
            (length,) = _LENGTH.unpack(header)
            reply = stream.read(length)
            if len(reply) < length:
                break
            replies.put(reply)
    replies.put(None)


def _end_process(process: "subprocess.Popen[bytes]", owner: int) -> None:
    if os.getpid() == owner:  # a fork leaves its parent's process alone
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if stream is not None:
                stream.close()


def _describe_end(process: "subprocess.Popen[bytes]", limits: Limits) -> str:
    try:
        code = process.wait(timeout=_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        return "it gives no answer"
    if -code in _TIME_SIGNALS:
        return limits.time_in_words
    if -code in (signal.SIGABRT, getattr(signal, "SIGKILL", -1)):  # libraries abort where no memory is left
        return f"it crashes, or takes more than {limits.megabytes} MB of memory"
    return f"it crashes with code {code}"
