"""The meeting of the processes as they start, which keeps what an earlier start has left away from them.

`torchrun` keeps one store, of addresses and other notes, for all restarts of a group. gloo and NCCL write into it under
the same names every time. So a process that starts a moment before another one reads the address of that one's dead
predecessor: it fails, or both wait for each other until they lose patience (pytorch/pytorch#135712). Numbers that
torchrun gives to restarts do not help, since each machine counts its own.
"""

import time
import uuid
from datetime import timedelta
from typing import Any

# Between two looks: in a wait of the store itself, no signal would come through, and torchrun's would last 30 seconds.
POLL_SECONDS = 0.05

_MEETING = "llada/meeting"  # process 0's name for the start that is under way


def met(store: Any, rank: int, processes: int, timeout: timedelta) -> Any:
    """Wait until all processes of this start are here; returns a part of the store that is theirs alone.

    Process 0 names the meeting, the others announce themselves there by a name of their own, and process 0 answers to
    that name. So nobody is taken in by an earlier meeting: nobody answers there anymore.

    Args:
        store: a Store of torch.distributed that all processes reach.
        rank: number of this process.
        processes: how many there are.
        timeout: how long to wait.

    Raises:
        RuntimeError: others are not here in time.
    """
    from torch.distributed.distributed_c10d import PrefixStore

    end, own = time.monotonic() + timeout.total_seconds(), uuid.uuid4().hex
    if rank == 0:
        meeting = f"llada/{own}"
        store.set(_MEETING, meeting)
        for other in range(1, processes):
            while not store.check([f"{meeting}/{other}"]):
                _look_again(end, f"process {other} did not come")
        for other in range(1, processes):
            store.set(f"{meeting}/{store.get(f'{meeting}/{other}').decode()}", "")
        return PrefixStore(meeting, store)
    meeting = ""
    while not meeting or not store.check([f"{meeting}/{own}"]):
        _look_again(end, "process 0, which waits for all, did not answer")
        if store.check([_MEETING]):
            meeting = store.get(_MEETING).decode()
            store.set(f"{meeting}/{rank}", own)
    return PrefixStore(meeting, store)


def _look_again(end: float, otherwise: str) -> None:
    if time.monotonic() > end:
        raise RuntimeError(f"{otherwise} within `timeout_minutes`")
    time.sleep(POLL_SECONDS)
