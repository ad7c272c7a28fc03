"""A first signal ends a run after its step, a second one at once; and two processes never train in one folder."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llada import cli
from llada.data.prepared import PreparedText
from llada.training import signals
from llada.training.signals import SIGNALS, StopRequest
from tests.support.commands import PATIENCE

WAIT = """
import time
from llada.training.signals import StopRequest
stop = StopRequest()
with stop.on_signals():
    print(flush=True)
    while not stop.is_made:
        time.sleep(0.01)
    print("noted", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_and_the_handlers_are_put_back(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    stop = StopRequest()
    with stop.on_signals():
        assert not stop.is_made
        os.kill(os.getpid(), number)
        assert stop.is_made
        assert [signal.getsignal(each) for each in SIGNALS] == before
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        stop = StopRequest()
        with stop.on_signals():
            os.kill(os.getpid(), signal.SIGUSR1)
        assert not stop.is_made
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_of_any_kind_ends_the_process_at_once(second: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout
    process.stdout.readline()
    os.kill(process.pid, signal.SIGTERM)
    assert process.stdout.readline() == "noted\n"
    os.kill(process.pid, second)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == -second


def test_under_torchrun_the_same_signal_within_seconds_is_no_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes from the scheduler and from torchrun; once the seconds are over, it does what it did before."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in SIGNALS}
    try:
        for second, seconds, stops in (
            (signal.SIGTERM, 60.0, False),
            (signal.SIGTERM, 0.0, True),
            (signal.SIGINT, 60.0, True),
        ):
            monkeypatch.setattr(signals, "TWICE_SECONDS", seconds)
            came.clear()
            stop = StopRequest()
            with stop.on_signals():
                os.kill(os.getpid(), signal.SIGTERM)
                assert stop.is_made
                os.kill(os.getpid(), second)
                assert came == [second] * stops
            # Also while Python ends, which takes handlers of its own away, and no others.
            assert (signal.getsignal(signal.SIGTERM) is signal.SIG_IGN) is not stops
            os.kill(os.getpid(), second)  # when the run has saved and ends
            assert came == [second, second] * stops
            for number in SIGNALS:
                signal.signal(number, lambda number, _: came.append(number))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_second_process_is_refused_and_sigterm_saves(
    data: PreparedText, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "llada", "train"]
    options = ["--preset", "tiny", "--d_model", "16", "--n_layers", "1", "--sequence_length", "24", "--device", "cpu"]
    length = ["--steps", "1000000", "--evaluate_every", "5", "--log_every", "1", "--evaluation_windows", "2"]
    place = ["--data_dir", str(data.folder), "--output_dir", str(run), "--compile", "False"]
    first = subprocess.Popen([*command, *options, *length, *place], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE
    while not (run / "checkpoints" / "last").exists() and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.05)
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "--resume", str(run)])
    assert end.value.code == 2
    assert f"is being written by process {first.pid} on " in capsys.readouterr().err
    os.kill(first.pid, signal.SIGTERM)
    _, said = first.communicate(timeout=PATIENCE)
    assert first.returncode == 75, said
    step = int((run / "checkpoints" / "last").resolve().name[5:])
    assert f"Stopped; saved after step {step}. Go on with: llada train --resume {run}" in said
    assert not (run / ".llada.lock").exists()


def test_a_run_ends_as_it_should_when_nobody_reads_its_progress(data: PreparedText, tmp_path: Path) -> None:
    """Ctrl-C on `llada train 2>&1 | tee log` ends `tee` first."""
    read, write = os.pipe()
    os.close(read)
    options = ["--preset", "tiny", "--d_model", "16", "--n_layers", "1", "--sequence_length", "24", "--device", "cpu"]
    length = ["--steps", "4", "--evaluate_every", "2", "--log_every", "1", "--evaluation_windows", "2"]
    place = ["--data_dir", str(data.folder), "--output_dir", str(tmp_path / "run")]
    command = [sys.executable, "-m", "llada", "train", *options, *length, *place]
    try:
        assert subprocess.run(command, stderr=write, stdout=subprocess.DEVNULL, timeout=PATIENCE).returncode == 0
        assert (tmp_path / "run" / "checkpoints" / "step-00000004").is_dir()
        program = "import sys; from llada.system.terminal import say; say('Stopped; saved.'); sys.exit(75)"
        assert subprocess.run([sys.executable, "-c", program], stderr=write, timeout=PATIENCE).returncode == 75
    finally:
        os.close(write)
