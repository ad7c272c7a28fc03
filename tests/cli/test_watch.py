"""`llada watch` as a command: its sentences for bad input, and a server that ends when it is asked to."""

import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from llada.cli import main
from tests.support.commands import PATIENCE
from tests.support.watched_runs import make_run, row


def sentence_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ending:
        main(["watch", *arguments])
    assert ending.value.code == 2
    return capsys.readouterr().err


def test_bad_input_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(make_run(tmp_path / "run", [row(1)]))
    assert "missing is not there: name a run folder" in sentence_of([str(tmp_path / "missing")], capsys)
    assert "--port must be from 0 to 65535, not 70000: choose another." in sentence_of([run, "--port", "70000"], capsys)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = sentence_of([run, "--port", str(port)], capsys)
    assert re.search(rf"The port {port} of 127.0.0.1 is in use: the next free one is \d+ \(--port \d+\)", said)


def test_whether_it_could_be_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        main(["watch", str(make_run(tmp_path / "run", [row(1)])), "--port", "0", "--check"])
    assert ending.value.code == 0
    assert "Watching at http://127.0.0.1:" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_stopped(tmp_path: Path, number: signal.Signals) -> None:
    run = make_run(tmp_path / "run", [row(1)])
    command = [sys.executable, "-m", "llada", "watch", str(run), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
            assert address is not None
            with urllib.request.urlopen(address[0] + "api/runs", timeout=PATIENCE) as answer:
                assert answer.status == 200
            process.send_signal(number)
            _, error = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert (process.returncode, error) == (0, "")


def test_the_page_does_not_wait_for_torch() -> None:
    program = "import sys, llada.cli.watch, llada.serving.runs.api; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
