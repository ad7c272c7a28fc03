"""Kills, failing calls and a long run, each in a process of its own; a little of each in `make test`."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.faults.soak import slope
from tests.support.commands import PATIENCE

HERE = Path(__file__).parent


def run(script: str, *arguments: object, before: Sequence[str] = (), **environment: str) -> dict[str, Any]:
    """The JSON object that a script of this folder prints, run by the command `before`."""
    result = subprocess.run(
        [*before, sys.executable, str(HERE / script), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True, text=True, timeout=2 * PATIENCE, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    counted: dict[str, Any] = json.loads(result.stdout)
    return counted


@pytest.mark.parametrize(
    ("kills", "preparations"),
    [pytest.param(3, 2, id="some"), pytest.param(200, 50, id="all", marks=pytest.mark.faults)],
)
def test_killed_runs_end_like_runs_that_never_were(kills: int, preparations: int, tmp_path: Path) -> None:
    counted = run("kills.py", tmp_path, "--kills", kills, "--preparations", preparations)
    assert counted["wrong"] == []
    assert counted["kills"] >= kills
    assert counted["runs_completed"] >= 1


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What makes calls fail, compiled."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("there is no C compiler, or no LD_PRELOAD")
    path = tmp_path_factory.mktemp("library") / "faulty_calls.so"
    source = HERE / "faulty_calls.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", path, source, "-ldl"], check=True, capture_output=True)
    return path


@pytest.mark.parametrize("stride", [pytest.param(12, id="some"), pytest.param(1, id="all", marks=pytest.mark.faults)])
def test_calls_that_fail_lose_nothing(library: Path, stride: int, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    counted = run("inject.py", library, tmp_path / "below", stride, LD_PRELOAD=str(library))
    assert counted["wrong"] == []
    assert counted["injected"] > 320 / stride
    kinds = {kind.partition(": ")[2] for kind in counted["by_kind"]}
    assert {
        "write ENOSPC",
        "write EIO",
        "short write",
        "fsync EIO",
        "rename EACCES",
        "open EACCES",
        "read EIO",
    } <= kinds


@pytest.mark.faults
def test_a_disk_that_is_really_full_or_read_only(tmp_path: Path) -> None:
    own_disk = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*own_disk, "true"], check=False).returncode:
        pytest.skip("the system gives no process a disk of its own")
    found = run("full_disk.py", tmp_path, before=own_disk)
    assert found["same"]
    for case, (code, words) in {
        # In words that depend on what is being written; a checkpoint that would not fit is not begun.
        "fills": (2, "free some space|see to the disk"),
        "full": (2, "free some space|see to the disk"),
        "prepare on a full disk": (2, "free some space|see to the disk"),
        "room again": (0, ""),
        "read-only": (2, "Read-only file system"),
        "prepare read-only": (2, "Read-only file system"),
    }.items():
        assert found["found"][case]["code"] == code, case
        assert re.search(words, found["found"][case]["said"]), case


def test_the_slope_of_a_line_by_hand() -> None:
    assert slope([(0, 1), (1, 3), (2, 5)]) == (2.0, 0.0)
    assert slope([(0, 0), (1, 2), (2, 1)]) == pytest.approx((0.5, 3**0.5 / 2))


def test_a_soak_counts_what_is_open() -> None:
    """Too short to tell anything of memory: `make soak` takes an hour."""
    result = subprocess.run(
        [sys.executable, str(HERE / "soak.py"), "--minutes", "0.1"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    counted = json.loads(result.stdout)
    assert counted["steps"] > 0
    assert counted["samples"] >= 10
    assert 3 <= counted["open_files"][0] <= counted["open_files"][1] < 40
