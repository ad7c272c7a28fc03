"""What a run shows while it goes on: a bar with loss, bound, speed and time left."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from llada.system.files import hush
from llada.system.format import duration_in_words
from llada.training.state import Progress as RunProgress

SECONDS_BETWEEN_LINES = 20.0  # where there is no terminal to draw a bar on
STEPS_BEFORE_TIMING = 5  # the first ones warm up caches and compile


class Display:
    """A live bar on a terminal; a line now and then elsewhere.

    Args:
        respell: puts the options that a sentence names, in backticks as in Python, as the reader types them.
    """

    def __init__(self, console: Console, total: int | None, respell: Callable[[str], str] = str) -> None:
        self.console, self._respell = console, respell
        self._last_line = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.fields[fraction_done]}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn() if total else TextColumn("step {task.completed}"),
            TextColumn("{task.fields[status]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=total, status="", fraction_done="")

    def __enter__(self) -> "Display":
        with self._whoever_reads():
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._whoever_reads():
            self._progress.stop()

    def update(self, step: int, fraction_done: float, status: str, seconds_left: float | None) -> None:
        """Show the state of the run, of which a fraction is done."""
        if seconds_left is not None:
            status += f" · {duration_in_words(seconds_left)} left"
        with self._whoever_reads():
            self._progress.update(self._task, completed=step, status=status, fraction_done=f"{fraction_done:4.0%}")
        if not self.console.is_terminal and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.say(f"step {step} ({fraction_done:.0%}) · {status}")

    def advise(self, sentence: str) -> None:
        """Say what names options."""
        self.say(self._respell(sentence))

    def say(self, text: str) -> None:
        with self._whoever_reads():
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def _whoever_reads(self) -> Iterator[None]:
        """A run goes on when the terminal, the pipe or the disk that its progress goes to is gone."""
        try:
            yield
        except OSError:
            self.console.quiet = True
            hush(self.console.file)


class Stopwatch:
    """Speed of training and time left; evaluations count as time, not as speed.

    Args:
        progress: the run's, whose `seconds` are kept up to date.
        total_steps, minutes: the limits of the run, None where there is none.
        agreed: gives all processes of the run the same seconds, since learning rates may depend on them.
    """

    def __init__(
        self,
        progress: RunProgress,
        total_steps: int | None,
        minutes: float | None,
        agreed: Callable[[float], float] = float,
    ) -> None:
        self.progress, self._agreed = progress, agreed
        self._total_steps, self._minutes = total_steps, minutes
        self._before = progress.seconds
        self._start = self._lap_start = time.perf_counter()
        self._laps = self._timed_steps = self._timed_tokens = 0
        self._timed_seconds = 0.0

    def lap(self, tokens: int) -> None:
        """A step of so many tokens is done."""
        now = time.perf_counter()
        self._laps += 1
        if self._laps > STEPS_BEFORE_TIMING:
            self._timed_steps += 1
            self._timed_tokens += tokens
            self._timed_seconds += now - self._lap_start
        self._lap_start = now
        self.progress.seconds = self._agreed(self._before + now - self._start)

    def skip(self) -> None:
        """Something else than a step is done."""
        self._lap_start = time.perf_counter()
        self.progress.seconds = self._agreed(self._before + self._lap_start - self._start)

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of training; None until it is known."""
        if not self._timed_steps:
            return None
        return self._timed_tokens / self._timed_seconds

    @property
    def seconds_left(self) -> float | None:
        """The rest of the run at the speed so far; None until it is known."""
        if not self._timed_steps:
            return None
        limits = []
        if self._total_steps is not None:
            limits.append((self._total_steps - self.progress.step) * self._timed_seconds / self._timed_steps)
        if self._minutes is not None:
            limits.append(60 * self._minutes - self.progress.seconds)
        return max(0.0, min(limits))
