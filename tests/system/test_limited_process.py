"""A process that works within limits: each limit, each way to end, and that the next question is answered."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from llada.system.limited_process import BoundedProcess, Limits, WorkError
from llada.tokenizers.bpe import STRANGER

ROOMY = Limits(30, 500)

SERVICE = f"""
import os, sys
sys.path.append({str(STRANGER.parent)!r})
import stranger

class Service:
    def setup(self, blob):
        self.word = blob.decode()
        return len(blob)
    def echo(self, text):
        print("noise")
        return [text, self.word, os.getpid()]
    def burn(self):
        while True:
            pass
    def eat(self):
        return len("x" * 10**10)
    def nibble(self):
        kept = []
        while True:
            kept.append(bytearray(10**6))
    def leave(self, code):
        os._exit(code)
    def abort(self):
        os.abort()
    def fail(self):
        raise BaseException("no\\nand more")
    def recurse(self):
        return self.recurse()

if sys.argv[1] == "watched":  # as where the system has no limits of its own
    stranger.resource = None
sys.argv[1] = "tokenizer"
stranger.TokenizerService = Service
stranger.main()
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "service.py"
    path.write_text(SERVICE)
    return path


def start(script: Path, kind: str = "limited") -> BoundedProcess:
    process = BoundedProcess(script, kind)
    assert process.prepare({"name": "setup"}, ROOMY, b"word") == 4
    return process


def pid_of(process: BoundedProcess) -> int:
    *rest, pid = process.ask({"name": "echo", "text": "é\ud800"}, ROOMY)
    assert rest == ["é\ud800", "word"]
    assert isinstance(pid, int)
    return pid


@pytest.mark.parametrize("kind", ["limited", "watched"])
@pytest.mark.parametrize(
    ("name", "limits", "complaint"),
    [
        ("burn", Limits(0.2, 500), r"more than 0\.2 s of computing"),
        ("nibble", Limits(60, 120), "too much memory|more than 120 MB of memory"),
    ],
)
def test_time_and_memory_have_an_end(script: Path, kind: str, name: str, limits: Limits, complaint: str) -> None:
    process = start(script, kind)
    first = pid_of(process)
    with pytest.raises(WorkError, match=complaint):
        process.ask({"name": name}, limits)
    assert not psutil.pid_exists(first)
    assert pid_of(process) != first  # prepared as the first one was


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process firmly")
def test_memory_is_refused_before_it_is_taken(script: Path) -> None:
    with pytest.raises(WorkError, match="too much memory"):
        start(script).ask({"name": "eat"}, Limits(60, 200))


@pytest.mark.parametrize(
    ("question", "complaint"),
    [({"name": "leave", "code": 3}, "crashes with code 3"), ({"name": "abort"}, "crashes, or takes more than 500 MB")],
)
def test_a_crash_is_told_and_followed_by_a_new_process(
    script: Path, question: dict[str, object], complaint: str
) -> None:
    process = start(script)
    first = pid_of(process)
    with pytest.raises(WorkError, match=complaint):
        process.ask(question, ROOMY)
    assert pid_of(process) != first


@pytest.mark.parametrize(
    ("name", "complaint"), [("fail", "^no$"), ("recurse", "too deep"), ("nothing", "no attribute")]
)
def test_a_failure_leaves_the_process_as_it_was(script: Path, name: str, complaint: str) -> None:
    process = start(script)
    first = pid_of(process)
    with pytest.raises(WorkError, match=complaint):
        process.ask({"name": name}, ROOMY)
    assert pid_of(process) == first


def test_a_late_answer_is_not_taken_for_that_to_the_next_question(
    script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start(script)
    first = pid_of(process)

    def interrupt(*_: object) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BoundedProcess, "_await_reply", interrupt)
        with pytest.raises(KeyboardInterrupt):
            process.ask({"name": "echo", "text": "late"}, ROOMY)
    assert pid_of(process) != first


def test_a_setup_that_fails_leaves_no_process(script: Path) -> None:
    process = BoundedProcess(script, "limited")
    with pytest.raises(WorkError, match="codec can't decode"):
        process.prepare({"name": "setup"}, ROOMY, b"\xff")
    assert not any("service.py" in " ".join(child.cmdline()) for child in psutil.Process().children())


def test_it_ends_with_the_object(script: Path) -> None:
    process = start(script)
    pid = pid_of(process)
    del process
    gc.collect()
    assert not psutil.pid_exists(pid)


def test_signals_for_the_asking_process_do_not_reach_it(script: Path) -> None:
    process = start(script)
    pid = pid_of(process)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    assert pid_of(process) == pid


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_has_a_process_of_its_own(script: Path) -> None:
    process = start(script)
    mine = pid_of(process)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, str(pid_of(process)).encode())
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert int(os.read(read, 100)) != mine
    assert pid_of(process) == mine


@pytest.mark.skipif(sys.platform == "win32", reason="the kernel has no timer there")
def test_it_ends_by_itself_when_the_asking_process_is_killed(script: Path) -> None:
    """In the middle of endless work, which nobody watches any more."""
    program = f"""
        from pathlib import Path
        from llada.system.limited_process import BoundedProcess, Limits
        process = BoundedProcess(Path({str(script)!r}), "limited")
        process.prepare({{"name": "setup"}}, Limits(30, 500), b"word")
        print(process.ask({{"name": "echo", "text": ""}}, Limits(30, 500))[2], flush=True)
        process.ask({{"name": "burn"}}, Limits(1, 500))
    """
    asking = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    assert asking.stdout is not None
    pid = int(asking.stdout.readline())
    asking.kill()
    asking.communicate()
    for _ in range(600):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    raise AssertionError("it goes on")


def test_a_system_that_starts_no_process_is_told(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(WorkError, match="the system starts no process"):
        start(script)
