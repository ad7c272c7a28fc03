"""Processes that work on items: in order, few at a time, and ended with the process that started them."""

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from llada.system.errors import UserError
from llada.system.worker_processes import map_in_order


def make_worker(offset: int) -> Callable[[int], int]:
    def work(item: int) -> int:
        if item == 13:
            raise UserError("13 is refused: leave it out.")
        if item == 66:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02 * (item % 3))
        return item + offset

    return work


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_the_order_of_the_items(processes: int) -> None:
    pairs = list(map_in_order(functools.partial(make_worker, 100), range(10), processes))
    assert pairs == [(i, i + 100) for i in range(10)]


def test_few_items_are_taken_ahead() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for i in range(12):
            taken += 1
            yield i

    for n_done, _ in enumerate(map_in_order(functools.partial(make_worker, 0), items(), 2)):
        assert taken <= n_done + 4


@pytest.mark.parametrize("processes", [1, 2])
def test_the_error_of_the_first_item_that_has_one_is_raised(processes: int) -> None:
    results = map_in_order(functools.partial(make_worker, 0), [1, 2, 13, 3, 4], processes)
    assert [next(results), next(results)] == [(1, 1), (2, 2)]
    with pytest.raises(UserError, match="13 is refused"):
        next(results)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no such signal")
def test_a_process_that_is_killed_gives_a_sentence() -> None:
    with pytest.raises(UserError, match="was ended from outside"):
        list(map_in_order(functools.partial(make_worker, 0), [66, 1], 2))


PROGRAM = """
import functools
from llada.system.worker_processes import map_in_order
from tests.system.test_worker_processes import make_worker

if __name__ == "__main__":
    for item, _ in map_in_order(functools.partial(make_worker, 0), [3] * 10**6, 2):
        print(item, flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no such signal")
def test_processes_end_with_the_one_that_started_them(tmp_path: object) -> None:
    path = os.path.join(str(tmp_path), "program.py")
    with open(path, "w", encoding="utf-8") as file:
        file.write(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, path], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 2
        process.kill()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []
