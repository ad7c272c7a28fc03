"""Which processes are still there when an exchange breaks off.

gloo reports the end of a process only to those that were exchanging with it. The others wait for a healthy one, or
compute, and can leave no note themselves. So each process has a thread that answers for it and lists who has not. All
lists are made at about the same time, before the first process ends because of its list.
"""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

GRACE_SECONDS = 3.0  # to answer, and to give up waiting as well
POLL_SECONDS = 0.5
LONGEST_SECONDS = 15.0  # for all of it, if the notes cannot be reached

_CALL, _HERE, _WAITING, _HOST = "roll call", "here", "waiting", "host"


@dataclass(frozen=True)
class Absent:
    """Who is missing, in words."""

    ended: Sequence[str]
    """They do not answer."""
    others: Sequence[str] = ()
    """They answer, and do not wait in vain themselves."""


@dataclass
class RollCall:
    """The notes that processes leave for each other."""

    store: Any
    """A Store of torch.distributed, which some builds of torch lack."""
    rank: int
    processes: int
    _thread: threading.Thread | None = None
    _leaves: threading.Event = field(default_factory=threading.Event)
    _absent: Absent | None = None

    def __post_init__(self) -> None:
        self.store.set(f"{_HOST}/{self.rank}", socket.gethostname())

    @contextmanager
    def answered(self) -> Iterator[None]:
        """Answer in a thread, until this process leaves."""
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._thread.start()
        try:
            yield
        finally:
            self._leaves.set()
            self._thread.join(GRACE_SECONDS)

    def absent(self) -> Absent:
        """Call the roll, or return what came of it if another process has called it."""
        assert self._thread is not None
        with suppress(RuntimeError, OSError):
            self.store.set(f"{_WAITING}/{self.rank}", "")
            self.store.set(_CALL, "")
        self._thread.join(LONGEST_SECONDS)
        return self._absent or Absent(["process 0"])  # which keeps the notes, where nobody else does

    def _answer(self) -> None:
        with suppress(RuntimeError, OSError):  # whoever keeps the notes has ended
            store = self.store.clone()  # the process itself may be waiting for something in the other
            while not store.check([_CALL]):
                if self._leaves.wait(POLL_SECONDS):
                    return
            store.set(f"{_HERE}/{self.rank}", "")
            # Process 0 may keep the notes, and stays until all have read them.
            if not self._leaves.wait(GRACE_SECONDS + (0 if self.rank else 2 * POLL_SECONDS)):
                ended = self._without(store, _HERE)
                self._absent = Absent(ended, [name for name in self._without(store, _WAITING) if name not in ended])

    def _without(self, store: Any, note: str) -> list[str]:
        ranks = [rank for rank in range(self.processes) if not store.check([f"{note}/{rank}"])]
        return [f"process {rank} (on {store.get(f'{_HOST}/{rank}').decode()})" for rank in ranks]
