"""A run that is asked to stop finishes its step and saves; asked again, it stops at once."""

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

# Ctrl-C; what schedulers and `kill` send before they kill; what Slurm's --signal usually asks for; Ctrl-Break, the one
# that Windows sends to another process. Not every system has all of them.
NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGBREAK")
SIGNALS = tuple(signal.Signals[name] for name in NAMES if hasattr(signal, name))
# torchrun passes its signal on to the processes that it started, and whoever signals it may signal them as well.
BY_TORCHRUN = "TORCHELASTIC_RUN_ID"  # set by torchrun, also for a single process
TWICE_SECONDS = 5.0  # within which such a signal comes again


class StopRequest:
    """Whether a signal has come; tests and programs may set it as well."""

    def __init__(self) -> None:
        self.is_made = False

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Take note of the first signal; the second one, whichever it is, does what it did before.

        Under torchrun, one of the same kind within a few seconds is not a second one. After a run that was stopped
        there, such a signal and SIGTERM are ignored.
        A signal that the process was started to ignore stays ignored.
        """
        before = {number: signal.getsignal(number) for number in SIGNALS}
        before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
        first: dict[int, float] = {}  # the first signal, and when it came

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def take_note(number: int, _frame: object) -> None:
            if first and time.monotonic() - first.get(number, -math.inf) > TWICE_SECONDS:
                restore()
                signal.raise_signal(number)
                return
            first.setdefault(number, time.monotonic())
            self.is_made = True
            if BY_TORCHRUN not in os.environ:
                restore()

        for number in before:
            signal.signal(number, take_note)
        try:
            yield
        finally:
            # When one process has ended, torchrun signals the others. Python, as it ends, puts default handlers in the
            # places of its own, and the signal would end the process before it has given its exit code.
            ignored = {*first, signal.SIGTERM} if self.is_made and BY_TORCHRUN in os.environ else set()
            for number, handler in before.items():
                if signal.getsignal(number) is take_note:
                    signal.signal(number, signal.SIG_IGN if number in ignored else handler)
