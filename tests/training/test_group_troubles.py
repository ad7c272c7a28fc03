"""What is wrong or happens in one of several processes is named by the others, and costs no step."""

import contextlib
import os
import random
import re
import signal
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import cast

import pytest
import torch
from torch.distributed import HashStore  # type: ignore[attr-defined]

from llada.data.prepared import PreparedText
from llada.system.device import DeviceName
from llada.system.errors import UserError
from llada.training import group, roll_call
from llada.training.group import ALONE, Group
from llada.training.metrics import read_metrics
from llada.training.roll_call import RollCall
from tests.support.commands import PATIENCE, RunCommand, assert_one_sentence
from tests.support.groups import assert_alike, flags, start_torchrun, torchrun, weights_of
from tests.support.ranks import finish, start
from tests.support.runs import losses_of


def test_a_port_in_use_is_named(
    llada: RunCommand, data: PreparedText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        variables = {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        result = llada(*flags([], data, tmp_path / "run", 4))
    assert_one_sentence(result, f"The port of 127.0.0.1:{port} is in use", "MASTER_PORT")


def test_who_is_missing_is_named_also_by_an_exchange_of_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roll_call, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr("socket.gethostname", lambda: "node-a")
    store = HashStore()
    RollCall(store, 0, 2)
    group = Group(1, 2, RollCall(store, 1, 2))
    assert group.roll_call is not None
    reset = "[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:43402: Connection reset by peer."
    with pytest.raises(RuntimeError, match="shapes"), group.watched():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="reset by peer"), ALONE.watched():
        raise RuntimeError(reset)
    named = r"waited in vain for process 0 \(on node-a\), which ended or hangs"
    with group.roll_call.answered(), pytest.raises(UserError, match=named), group.watched():
        raise RuntimeError(reset)


def test_who_neither_ended_nor_waits_is_named_in_other_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roll_call, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(roll_call, "POLL_SECONDS", 0.01)
    store = HashStore()
    busy, waits = RollCall(store, 0, 2), RollCall(store, 1, 2)
    said = "waited in vain for process 0 .*, which hangs, is busy, or waits for another one"
    with busy.answered(), waits.answered(), pytest.raises(UserError, match=said), Group(1, 2, waits).watched():
        raise RuntimeError("gloo: Timed out waiting")


def test_a_process_without_a_gpu_of_its_own_is_refused_unless_it_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def join(timeout: timedelta, backend: str) -> Group:
        raise UserError(backend)

    monkeypatch.setattr(group, "_join", join)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1")):
        monkeypatch.setenv(name, value)
    for device, local_rank, sentence in (
        ("auto", "1", 'Process 1 of this machine has no GPU of its own, of 1: .*`device="cpu"`'),
        ("auto", "0", "^cpu:gloo,cuda:nccl$"),
        ("cpu", "1", "^gloo$"),
    ):
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        with pytest.raises(UserError, match=sentence), group.joined(1.0, cast(DeviceName, device)):
            pass


def lines_of(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def wait_for_lines(run: Path, n: int) -> None:
    """Wait until a run has logged so many lines."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if lines_of(run) >= n:
            return
        time.sleep(0.05)
    raise AssertionError(f"{run} did not come to {n} lines")


def wait_for_some(run: Path, seconds: float, n: int) -> None:
    """Wait so long, or until a run has logged so many further lines if that is sooner."""
    end, before = time.monotonic() + seconds, lines_of(run)
    while time.monotonic() < end and lines_of(run) < before + n:
        time.sleep(0.02)


@pytest.mark.faults
def test_a_signal_to_one_process_stops_all_after_the_same_step(
    llada: RunCommand, data: PreparedText, tmp_path: Path
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    way = ["--accumulate", "4", "--evaluate_every", "1000", "--log_every", "1"]
    started = start(2, [flags(way, data, run, 400)])
    wait_for_lines(run, 5)
    started[1].send_signal(signal.SIGTERM)
    (first,), (second,) = finish(started)
    assert (first.code, second.code) == (75, 75)
    assert "Stopped; saved after step" in first.err
    done = len(losses_of(run))
    assert 5 <= done < 400
    assert llada("train", "--resume", run, "--steps", done + 2).code == 0
    assert llada(*flags(way, data, whole, done + 2)).code == 0
    assert_alike(run, whole)


@pytest.mark.faults
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_process_that_hangs_or_dies_is_named(parallel: str, data: PreparedText, tmp_path: Path) -> None:
    way = ["--evaluate_every", "100000", "--timeout_minutes", "0.4", "--parallel", parallel]
    for number, name in ((signal.SIGSTOP, "hangs"), (signal.SIGKILL, "dies")):
        run = tmp_path / name
        started = start(3, [flags([*way, "--batch_size", "6"], data, run, 100_000)])
        wait_for_lines(run, 3)
        started[1].send_signal(number)
        (first,), (third,) = finish([started[0], started[2]])
        started[1].kill()
        started[1].communicate()
        for rank, ended in ((0, first), (2, third)):
            assert ended.code == 2
            assert f"waited in vain for process 1 (on {socket.gethostname()})" in ended.err, ended.err
            assert (f"Process {rank} (on" in ended.err) == (rank > 0)
            assert "process 0" not in ended.err
            assert "Traceback" not in ended.err


@pytest.mark.faults
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_one_that_waits_for_a_healthy_one_is_not_named(parallel: str, data: PreparedText, tmp_path: Path) -> None:
    """gloo reports the end of process 2 of 4 to its neighbours 1 and 3; process 0 waits for them."""
    started = start(4, [flags(["--evaluate_every", "100000", "--parallel", parallel], data, tmp_path / "run", 100_000)])
    wait_for_lines(tmp_path / "run", 3)
    started[2].kill()
    for ((ended,),) in [finish([started[rank]]) for rank in (0, 1, 3)]:
        assert ended.code == 2
        assert f"waited in vain for process 2 (on {socket.gethostname()}), which ended or hangs" in ended.err, ended.err
    started[2].communicate()


@pytest.mark.faults
def test_a_signal_to_torchrun_and_all_that_it_started_saves(data: PreparedText, tmp_path: Path) -> None:
    """torchrun passes the signal on to processes that have had it."""
    run = tmp_path / "run"
    group = start_torchrun(2, flags(["--evaluate_every", "100000"], data, run, 100_000))
    wait_for_lines(run, 5)
    for pid in (group.pid, *children_of(group.pid)):
        os.kill(pid, signal.SIGTERM)
    out, _ = group.communicate(timeout=PATIENCE)
    assert "Stopped; saved after step" in out, out
    assert "Stopped by SIGTERM" not in out
    assert (run / "checkpoints" / "last").exists()


@pytest.mark.faults
@pytest.mark.parametrize("turn", range(3))
def test_a_signal_to_one_that_torchrun_started_ends_all_with_the_code_of_a_saved_run(
    data: PreparedText, tmp_path: Path, turn: int
) -> None:
    """torchrun signals those that are left when one has ended, which may be while Python ends."""
    run = tmp_path / "run"
    group = start_torchrun(2, flags(["--evaluate_every", "100000"], data, run, 100_000))
    wait_for_lines(run, 5)
    os.kill(sorted(children_of(group.pid))[turn % 2], signal.SIGTERM)
    out, _ = group.communicate(timeout=PATIENCE)
    assert "Stopped; saved after step" in out, out
    codes = re.findall(r"exitcode *: *(-?\d+)", out)
    assert codes
    assert {*codes} == {"75"}, out


KILLS = 20


@pytest.mark.faults
def test_after_twenty_kills_the_weights_are_those_of_an_undisturbed_run(data: PreparedText, tmp_path: Path) -> None:
    """torchrun starts the group again whenever one of the two is killed, and the run goes on from its checkpoint."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    steps = 1200  # more than the kills leave room for
    way = ["--evaluate_every", "5", "--log_every", "7", "--complementary"]  # checkpoints have sums of steps not logged
    assert torchrun(2, flags(way, data, whole, steps)).returncode == 0
    group = start_torchrun(2, flags(way, data, run, steps), f"--max-restarts={KILLS}")
    chance, kills, killed = random.Random(0), 0, set()
    while group.poll() is None and kills < KILLS:
        wait_for_some(run, chance.uniform(0.5, 12.0), chance.randrange(1, 16))
        alive = [pid for pid in children_of(group.pid) if pid not in killed]
        if alive:
            victim = chance.choice(alive)
            killed.add(victim)
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                kills += 1
    out, _ = group.communicate(timeout=PATIENCE)
    assert group.returncode == 0, out[-5000:]
    assert kills == KILLS
    for name, weight in weights_of(run).items():
        assert torch.equal(weight, weights_of(whole)[name])
    rows, twins = ([row for row in read_metrics(each / "metrics.jsonl") if "nll" in row] for each in (run, whole))
    assert [(row["loss"], row["nll"], row["nll_by_t"]) for row in rows] == [
        (row["loss"], row["nll"], row["nll_by_t"]) for row in twins
    ]


def children_of(parent: int) -> list[int]:
    """The processes that a process has started, by their numbers."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found
