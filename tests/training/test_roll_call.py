"""Processes list the same absent ones, also those that wait for a healthy one and those that come late."""

import threading
from contextlib import ExitStack

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]

from llada.training import roll_call
from llada.training.roll_call import Absent, RollCall


def absent(waiting: set[int], late: set[int]) -> list[Absent]:
    """What processes of four come to if those that wait call the roll, and late ones ask after that."""
    store = HashStore()
    everybody = [RollCall(store, rank, 4) for rank in range(4)]
    with ExitStack() as until_the_end:
        for rank in waiting | late:
            until_the_end.enter_context(everybody[rank].answered())
        calls = [threading.Thread(target=everybody[rank].absent) for rank in waiting]
        for call in calls:
            call.start()
        for call in calls:
            call.join()
        return [everybody[rank].absent() for rank in sorted(waiting | late)]


def test_all_list_who_has_ended_or_else_who_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roll_call, "GRACE_SECONDS", 0.4)
    monkeypatch.setattr(roll_call, "POLL_SECONDS", 0.05)
    monkeypatch.setattr("socket.gethostname", lambda: "node-a")
    # Process 2 has ended; 0 and 1 notice, and 3 is busy.
    assert [found.ended for found in absent({0, 1}, late={3})] == [["process 2 (on node-a)"]] * 3
    assert absent({0, 1, 3}, late={2}) == [Absent([], ["process 2 (on node-a)"])] * 4
    assert absent({0, 1, 2, 3}, late=set()) == [Absent([], [])] * 4


def test_who_leaves_before_the_call_does_not_answer_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roll_call, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(roll_call, "POLL_SECONDS", 0.05)
    store = HashStore()
    first, second = RollCall(store, 0, 2), RollCall(store, 1, 2)
    with second.answered():
        with first.answered():
            pass
        assert len(second.absent().ended) == 1


def test_if_the_notes_are_gone_process_0_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("Connection reset by peer")

    store = HashStore()
    process = RollCall(store, 1, 2)
    monkeypatch.setattr(HashStore, "check", refuse)
    with process.answered():
        assert process.absent() == Absent(["process 0"])
