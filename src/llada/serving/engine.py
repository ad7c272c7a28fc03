"""The engine: one thread owns the network, and writes many texts at once by batching at step level.

Each text has its own plan, randomness and settings (`sampling.fills`). In each round of the loop, texts that wait join
where there is room, every text that is being written takes one step, and those that are complete leave: a short text
does not wait for a long one that came with it. A text is what it would be alone with its seed.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from llada.models.local_cache import with_cache
from llada.models.predictor import MaskPredictor
from llada.sampling.events import TokenTexts
from llada.sampling.fills import StepResult, advance
from llada.sampling.guidance import Suppressed, suppress
from llada.serving.limits import Limits
from llada.serving.writing import Outcome, StepRecord, Wanted, Writing
from llada.system.errors import first_line, is_out_of_memory

logger = logging.getLogger(__name__)

LONGEST_WAIT = 600
"""Seconds that a client is asked to wait at most."""
SMOOTHING = 0.1
"""Weight of the newest step in the mean time of a step."""


class Observer(Protocol):
    """Counts what the engine does; the metrics."""

    def stepped(self, n_texts: int, n_tokens: int, evaluations: int, seconds: float) -> None: ...
    def counted(self, waiting: int, active: int) -> None: ...


class QueueFullError(Exception):
    """No room in the queue."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"The server is busy: try again in {seconds} s.")
        self.seconds = seconds


class StoppingError(Exception):
    """The server is being stopped, and takes no more texts."""


class OutOfTimeError(Exception):
    """A text took longer than the limit."""


class UnwantedError(Exception):
    """Nobody wants the text any more."""


OnStep = Callable[[StepRecord], object]
OnEnd = Callable[[Outcome | Exception], object]


@dataclass(eq=False)
class Ticket:
    """A text in the engine. The callbacks come from the engine's thread and must return at once."""

    on_step: OnStep
    on_end: OnEnd
    writing: Writing
    deadline: float
    is_cancelled: bool = False

    @property
    def wanted(self) -> Wanted:
        return self.writing.wanted

    def cancel(self) -> None:
        """Stop writing the text before the next step; may be called from any thread, and after the end."""
        self.is_cancelled = True


@dataclass
class Engine:
    """Writes texts for the server; `start` and `stop` its thread."""

    model: MaskPredictor
    texts: TokenTexts
    limits: Limits
    observer: Observer
    step_seconds: float | None = None
    """Mean time of a step lately, in seconds; None before the first."""
    _waiting: deque[Ticket] = field(default_factory=deque)
    _active: list[Ticket] = field(default_factory=list)
    _predictors: dict[tuple[Any, ...], Suppressed] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _most: int | None = None
    """Texts that fit into memory together, once it was found that more do not."""
    _stop_at: float | None = None
    _thread: threading.Thread | None = None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def mask_id(self) -> int:
        return self.texts.tokenizer.mask_id

    # -- from any thread ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread that owns the network."""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def stop(self, grace: float) -> None:
        """Take no more texts, complete within so many seconds those that are there, and end the others."""
        with self._changed:
            self._stop_at = min(self._stop_at or float("inf"), time.monotonic() + grace)
            self._changed.notify()

    def join(self) -> None:
        """Wait until the thread has ended, after `stop`."""
        if self._thread is not None:
            self._thread.join()

    @property
    def is_ready(self) -> bool:
        """Whether it takes texts."""
        return self._stop_at is None and self._thread is not None and self._thread.is_alive()

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    @property
    def n_active(self) -> int:
        return len(self._active)

    def submit(self, texts: Sequence[tuple[Wanted, OnStep, OnEnd]]) -> list[Ticket]:
        """Put the texts of a request into the queue, all or none.

        Raises:
            QueueFullError: the queue has no room for them.
            StoppingError: the server is being stopped.
        """
        deadline = time.monotonic() + self.limits.seconds
        tickets = [
            Ticket(on_step, on_end, Writing(wanted, self.mask_id, self.texts, self.device), deadline)
            for wanted, on_step, on_end in texts
        ]
        with self._changed:
            if not self.is_ready:
                raise StoppingError("The server is being stopped, and takes no more texts.")
            n_waiting = sum(not ticket.is_cancelled for ticket in self._waiting)
            if n_waiting + len(tickets) > self._room():
                raise QueueFullError(self.seconds_to_wait())
            self._waiting.extend(tickets)
            self.observer.counted(len(self._waiting), len(self._active))
            self._changed.notify()
        return tickets

    def _room(self) -> int:
        """The number of texts that may be in the queue: those that join at once do not count."""
        return self.limits.queue + max(0, self.limits.batch - len(self._active))

    def seconds_to_wait(self) -> int:
        """Estimate, in whole seconds, when a text that is being written leaves: its steps by the time of a step."""
        left = [ticket.writing.fill.limit for ticket in list(self._active)]
        seconds = min(left, default=1) * (self.step_seconds or 1.0)
        return max(1, min(LONGEST_WAIT, -int(-seconds // 1)))

    # -- in the engine's thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._wait_for_work():
            try:
                self._round()
            except Exception as error:  # a mistake of ours must not end the thread that everybody waits for
                logger.error("The engine failed, %s: %s", type(error).__name__, first_line(error))
                self._end_all(error)
        self._end_all(StoppingError("The server was stopped before the text was complete."))

    def _wait_for_work(self) -> bool:
        """Wait until there is something to write; False when the thread is to end."""
        with self._changed:
            while not self._waiting and not self._active and self._stop_at is None:
                self._changed.wait()
            if self._stop_at is None:
                return True
            return bool(self._waiting or self._active) and time.monotonic() < self._stop_at

    def _round(self) -> None:
        """Let texts leave that nobody wants any more, let others join, and take a step."""
        self._dismiss()
        self._admit()
        for tickets in self._groups():
            self._step(tickets)

    def _dismiss(self) -> None:
        """End the texts that are cancelled or late, whether they wait or are being written."""
        now = time.monotonic()
        with self._changed:
            tickets = [*self._waiting, *self._active]
        for ticket in tickets:
            if ticket.is_cancelled:
                self._leave(ticket, UnwantedError("Nobody waits for this text any more."))
            elif now > ticket.deadline:
                late = OutOfTimeError(f"The text was not complete after {self.limits.seconds:g} seconds: ask for less.")
                self._leave(ticket, late)

    def _admit(self) -> None:
        """Move texts from the queue to those that are being written, in their order."""
        while True:
            with self._changed:
                if not self._waiting or not self._fits(self._waiting[0]):
                    break
                self._active.append(self._waiting.popleft())
        self.observer.counted(len(self._waiting), len(self._active))

    def _fits(self, ticket: Ticket) -> bool:
        lengths = [len(other.wanted.template) for other in (*self._active, ticket)]
        n = len(lengths)
        return n == 1 or (n <= (self._most or self.limits.batch) and n * max(lengths) <= self.limits.batch_tokens)

    def _groups(self) -> list[list[Ticket]]:
        """Texts that are evaluated together: those that the same tokens are kept from, with and without guidance."""
        groups: dict[tuple[Any, ...], list[Ticket]] = {}
        for ticket in self._active:
            groups.setdefault(_kind(ticket), []).append(ticket)
        for kind in self._predictors.keys() - groups.keys():
            del self._predictors[kind]  # with what it kept of texts that have left
        return list(groups.values())

    def _predictor(self, ticket: Ticket) -> Suppressed:
        kind = _kind(ticket)
        if kind not in self._predictors:
            self._predictors[kind] = suppress(with_cache(self.model), ticket.wanted.banned)
        return self._predictors[kind]

    def _step(self, tickets: Sequence[Ticket]) -> None:
        """Take one step of texts. If that fails, take it in halves: an error of one text is not one of the others."""
        for ticket in tickets:
            ticket.writing.prepare()
        begun = time.perf_counter()
        try:
            results = advance(
                self._predictor(tickets[0]), [ticket.writing.fill for ticket in tickets], self.texts.tokenizer.pad_id
            )
        except Exception as error:
            for ticket in tickets:
                ticket.writing.undo()
            if len(tickets) == 1:
                self._leave(tickets[0], error)
                return
            logger.warning("A step of %d texts failed, and is taken in halves: %s", len(tickets), first_line(error))
            middle = len(tickets) // 2
            if is_out_of_memory(error):
                self._most = middle
            self._step(tickets[:middle])
            self._step(tickets[middle:])
            return
        seconds = time.perf_counter() - begun
        mean = self.step_seconds
        self.step_seconds = seconds if mean is None else mean + SMOOTHING * (seconds - mean)
        n_tokens = sum(len(result.positions) for result in results)
        evaluations = 2 if tickets[0].wanted.config.cfg_scale else 1
        self.observer.stepped(len(tickets), n_tokens, evaluations, seconds)
        for ticket, result in zip(tickets, results, strict=True):
            self._take(ticket, result)

    def _take(self, ticket: Ticket, result: StepResult) -> None:
        try:
            record = ticket.writing.take(result)
            if ticket.wanted.shows_steps:
                ticket.on_step(record)
            outcome = ticket.writing.outcome() if ticket.writing.is_over else None
        except Exception as error:
            self._leave(ticket, error)
            return
        if outcome is not None:
            self._leave(ticket, outcome)

    def _leave(self, ticket: Ticket, end: Outcome | Exception) -> None:
        with self._changed:
            if ticket in self._active:
                # The last one takes its row, so that of what is kept of the others as little as possible moves.
                place, last = self._active.index(ticket), self._active.pop()
                if last is not ticket:
                    self._active[place] = last
            else:
                self._waiting.remove(ticket)
            self.observer.counted(len(self._waiting), len(self._active))
        _end(ticket, end)

    def _end_all(self, error: Exception) -> None:
        with self._changed:
            tickets = [*self._active, *self._waiting]
            self._active.clear()
            self._waiting.clear()
            self.observer.counted(0, 0)
        for ticket in tickets:
            _end(ticket, error)


def _kind(ticket: Ticket) -> tuple[Any, ...]:
    """What texts must have in common to be evaluated together."""
    return (ticket.wanted.banned, bool(ticket.wanted.config.cfg_scale))


def _end(ticket: Ticket, end: Outcome | Exception) -> None:
    try:
        ticket.on_end(end)
    except Exception as error:
        logger.error("The end of a text could not be reported, %s: %s", type(error).__name__, first_line(error))
