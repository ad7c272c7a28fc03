"""When a run evaluates and saves: by steps, by time, when it stops, and after steps at which it could not."""

import time
from collections.abc import Callable
from enum import Enum, auto


class Action(Enum):
    """What is done after a step."""

    NOTHING = auto()
    SAVE = auto()
    EVALUATE_AND_SAVE = auto()


class Agenda:
    """Decides after each step. None of it changes what is learned.

    Args:
        evaluate_every: steps between evaluations, each with a checkpoint.
        save_minutes: time between checkpoints, at most.
        clock: seconds, which never go back.
    """

    def __init__(self, evaluate_every: int, save_minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.evaluate_every, self._seconds = evaluate_every, 60 * save_minutes
        self._clock, self._saved_at, self._owed = clock, clock(), Action.NOTHING

    def decide(self, step: int, is_complete: bool, stop: bool) -> Action:
        """
        Args:
            step: how many are done.
            stop: whether the run was asked to stop; it is measured then only if that is due anyway.
        """
        if is_complete or step % self.evaluate_every == 0 or self._owed is Action.EVALUATE_AND_SAVE:
            return Action.EVALUATE_AND_SAVE
        is_late = self._clock() - self._saved_at >= self._seconds
        return Action.SAVE if stop or is_late or self._owed is Action.SAVE else Action.NOTHING

    def postpone(self, action: Action) -> bool:
        """Do it after the next step; whether it was not postponed already."""
        was_owed, self._owed = self._owed, action
        return was_owed is Action.NOTHING

    def note_saved(self) -> None:
        """A checkpoint was made, or given up."""
        self._saved_at, self._owed = self._clock(), Action.NOTHING
