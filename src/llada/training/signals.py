"""A run that is asked to stop finishes its step and saves; asked again, it stops at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

# Ctrl-C; what schedulers and `kill` send before they kill; what Slurm's --signal usually asks for; Ctrl-Break, the one
# that Windows sends to another process. Not every system has all of them.
NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGBREAK")
SIGNALS = tuple(signal.Signals[name] for name in NAMES if hasattr(signal, name))


class StopRequest:
    """Whether a signal has come; tests and programs may set it as well."""

    def __init__(self) -> None:
        self.is_made = False

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Take note of the first signal; the second one, whichever it is, does what it did before.

        A signal that the process was started to ignore stays ignored.
        """
        before = {number: signal.getsignal(number) for number in SIGNALS}
        before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def take_note(_number: int, _frame: object) -> None:
            self.is_made = True
            restore()

        for number in before:
            signal.signal(number, take_note)
        try:
            yield
        finally:
            restore()
