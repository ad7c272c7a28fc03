"""What a run does after a step: log, save, stop, or go back to its last checkpoint.

The policy looks at numbers only, so that it can be tested by hand; the trainer does what it decides.
"""

from collections.abc import Callable
from dataclasses import dataclass

from llada.training.agenda import Action, Agenda
from llada.training.nan_guard import FEW, LATELY

AGAIN = 2 * LATELY  # steps after a return within which the same trouble is not another one


@dataclass(frozen=True)
class AfterStep:
    """What is to be done after a step, in this order."""

    log: bool
    action: Action
    is_complete: bool
    """The run has its whole length."""
    is_stopped: bool
    """It was asked to stop, and does."""

    @property
    def is_last(self) -> bool:
        return self.is_complete or self.is_stopped


class Policy:
    """Decides after each step. It changes nothing of what is learned, but when the run goes back."""

    def __init__(self, agenda: Agenda, log_every: int) -> None:
        self.agenda, self.log_every = agenda, log_every
        self.went_back_to: int | None = None
        """The step of the checkpoint that the run went back to last."""

    def after_step(
        self, step: int, is_complete: bool, is_asked_to_stop: bool, left_out_in_a_row: Callable[[], int]
    ) -> AfterStep:
        """
        Args:
            step: how many are done.
            left_out_in_a_row: how many steps up to the last one were left out; it waits for the device, so it is only
                asked where it matters.
        """
        in_a_row = left_out_in_a_row() if is_asked_to_stop else 0
        # In the middle of steps that are left out nothing is saved, so the run first goes on, or back.
        is_stopped = is_asked_to_stop and not in_a_row
        return AfterStep(
            log=step % self.log_every == 0 or is_complete or in_a_row >= FEW,
            action=self.agenda.decide(step, is_complete, is_stopped),
            is_complete=is_complete,
            is_stopped=is_stopped,
        )

    def may_go_back(self, checkpoint: int | None, step: int) -> bool:
        """Whether there is a checkpoint to go back to, and the run has not just come from there, or from a few steps
        ago."""
        if checkpoint is None:
            return False
        before = self.went_back_to
        return before is None or (checkpoint != before and step - before > AGAIN)

    def note_return(self, checkpoint: int) -> None:
        """The run went back; what was due was due at steps that are taken anew."""
        self.went_back_to = checkpoint
        self.agenda.note_saved()
