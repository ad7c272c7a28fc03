"""Processes that start meet each other, and never what an earlier start has left in the store they share."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]

from llada.training.rendezvous import met

ROOT = Path(__file__).parents[2]
PATIENCE = 240  # seconds
SOON = timedelta(seconds=60)
HEAD_START = 0.5  # seconds


def addresses(store: HashStore, start: str, late: int | None = None) -> list[list[str]]:
    """What each of three processes reads if all note their addresses in the part that is theirs; one may come late."""

    def process(rank: int) -> list[str]:
        if rank == late:
            time.sleep(HEAD_START)
        part = met(store, rank, 3, SOON)
        part.set(f"address/{rank}", f"{start} {rank}")
        return [part.get(f"address/{other}").decode() for other in range(3)]

    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(process, range(3)))


@pytest.mark.parametrize("late", [0, 1, 2])
def test_a_second_start_never_reads_the_notes_of_the_first(late: int) -> None:
    store = HashStore()
    assert addresses(store, "first") == [["first 0", "first 1", "first 2"]] * 3
    assert addresses(store, "second", late) == [["second 0", "second 1", "second 2"]] * 3


def test_a_start_that_was_broken_off_does_not_lead_the_next_one_astray() -> None:
    store = HashStore()
    for rank in (0, 1):  # both wait for process 2, in vain
        with pytest.raises(RuntimeError):
            met(store, rank, 3, timedelta(seconds=0.2))
    assert addresses(store, "second", late=0) == [["second 0", "second 1", "second 2"]] * 3


def test_the_others_are_waited_for_as_long_as_asked_and_then_named() -> None:
    store = HashStore()
    addresses(store, "first")
    with pytest.raises(RuntimeError, match="process 0, which waits for all, did not answer within `timeout_minutes`"):
        met(store, 1, 3, timedelta(seconds=0.5))
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(met, store, 1, 3, timedelta(seconds=1.5))
        with pytest.raises(RuntimeError, match="process 2 did not come within `timeout_minutes`"):
            met(store, 0, 3, timedelta(seconds=1))
        assert isinstance(other.exception(), RuntimeError)


WORKER = """
import os, sys, time
from pathlib import Path
from llada.training.group import joined
is_second, rank = os.environ["TORCHELASTIC_RESTART_COUNT"] == "1", int(os.environ["RANK"])
time.sleep(2.0 if is_second and rank == 0 else 0.0)
with joined(1, "cpu") as group:
    total = group.sum_of_numbers(rank + 1)[0]
if is_second:  # into a file of its own, as lines of two processes in one pipe may mix
    Path(sys.argv[1], f"total {rank}").write_text(str(total))
sys.exit(0 if is_second else 1)
"""


def test_a_group_that_torchrun_starts_again_meets_although_the_store_has_old_addresses(tmp_path: Path) -> None:
    """torchrun keeps its store; process 1 reads it two seconds before process 0 writes its new address into it."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER, encoding="utf-8")
    again = ["--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *again, str(script), str(tmp_path)],
        capture_output=True, text=True, timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert [float((tmp_path / f"total {rank}").read_text(encoding="utf-8")) for rank in (0, 1)] == [3, 3]
