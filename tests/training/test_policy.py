"""What a run does after a step, by hand."""

import pytest

from llada.training.agenda import Action, Agenda
from llada.training.nan_guard import FEW
from llada.training.policy import AGAIN, AfterStep, Policy


def make(log_every: int = 10, evaluate_every: int = 100) -> Policy:
    return Policy(Agenda(evaluate_every, save_minutes=10, clock=lambda: 0.0), log_every)


def not_asked() -> int:
    raise AssertionError("the device would be waited for")


def test_a_plain_step_does_not_wait_for_the_device() -> None:
    assert make().after_step(7, False, False, not_asked) == AfterStep(False, Action.NOTHING, False, False)
    assert make().after_step(10, False, False, not_asked) == AfterStep(True, Action.NOTHING, False, False)
    assert make().after_step(100, False, False, not_asked) == AfterStep(True, Action.EVALUATE_AND_SAVE, False, False)


def test_the_last_step_is_logged_evaluated_and_saved() -> None:
    after = make().after_step(7, True, False, not_asked)
    assert after == AfterStep(log=True, action=Action.EVALUATE_AND_SAVE, is_complete=True, is_stopped=False)
    assert after.is_last


def test_a_run_that_is_asked_to_stop_saves_and_does() -> None:
    after = make().after_step(7, False, True, lambda: 0)
    assert after == AfterStep(log=False, action=Action.SAVE, is_complete=False, is_stopped=True)
    assert after.is_last


@pytest.mark.parametrize("in_a_row", [1, FEW - 1, FEW])
def test_it_does_not_stop_among_steps_that_are_left_out(in_a_row: int) -> None:
    """Once there are a few in a row they are logged, which is when the run goes back."""
    after = make().after_step(7, False, True, lambda: in_a_row)
    assert after == AfterStep(in_a_row >= FEW, Action.NOTHING, is_complete=False, is_stopped=False)
    assert not after.is_last


def test_a_run_goes_back_once_for_the_same_trouble() -> None:
    policy = make()
    assert not policy.may_go_back(None, 50)  # there is no checkpoint
    assert policy.may_go_back(40, 50)
    policy.note_return(40)
    assert policy.went_back_to == 40
    assert not policy.may_go_back(40, 40 + 10 * AGAIN)  # the same checkpoint
    assert not policy.may_go_back(40 + AGAIN - 1, 40 + AGAIN)  # a newer one, a few steps later
    assert policy.may_go_back(40 + AGAIN, 41 + AGAIN)


def test_what_was_due_before_a_return_is_not_due_after_it() -> None:
    policy = make()
    policy.agenda.postpone(Action.EVALUATE_AND_SAVE)
    policy.note_return(3)
    assert policy.after_step(4, False, False, not_asked).action is Action.NOTHING
