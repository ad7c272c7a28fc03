"""Work on many items in processes that end with this one, results in the order of the items."""

import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from llada.system.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
Worker = Callable[[Item], Result]
_AHEAD = 1  # items that wait for each process

_worker: Callable[[Any], Any] | None = None  # of a process that was started here


def map_in_order(
    make: Callable[[], Worker[Item, Result]], items: Iterable[Item], processes: int
) -> Iterator[tuple[Item, Result]]:
    """Yield each item with what a worker gives for it, in the order of the items.

    Items are taken as they are needed. An error of a worker is raised when it is that item's turn, so that it does not
    depend on which process was faster; the others are ended then.

    Args:
        make: makes a worker, once in each process; with one process, in this one. It and the items are sent by
            `multiprocessing`.

    Raises:
        UserError: a process was killed; and what the workers raise.
    """
    if processes == 1:
        work = make()
        for item in items:
            yield item, work(item)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    ours, theirs = context.Pipe(duplex=False)
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    coming = iter(items)
    with theirs, ProcessPoolExecutor(processes, context, _begin, (make, ours)) as pool:
        try:
            while True:
                wanted = (1 + _AHEAD) * processes - len(waiting)
                waiting.extend((item, pool.submit(_work, item)) for item in itertools.islice(coming, wanted))
                if not waiting:
                    return
                item, future = waiting.popleft()
                yield item, future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "A process that did a part of the work was ended from outside, perhaps for lack of memory: repeat the "
                "command, which goes on from there, with fewer `processes`."
            ) from error
        finally:
            theirs.close()  # ends the processes, whatever they do
            ours.close()
            pool.shutdown(wait=False, cancel_futures=True)


def _begin(make: Callable[[], Callable[[Any], Any]], end: Connection) -> None:
    """Prepare a process: one core, no signals of its own, and an end with the process that started it."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the first process ends the others
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with, args=(end,), daemon=True).start()
    _worker = make()


def _end_with(end: Connection) -> None:
    try:
        end.recv_bytes()
    except (EOFError, OSError):
        sys.stderr.flush()
        os._exit(1)


def _work(item: Any) -> Any:
    assert _worker is not None
    return _worker(item)
