"""However a command ends: an exit code, at most one sentence, and no traceback that nobody asked for."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from llada.cli.ending import describe, run_to_end
from llada.data.prepared import PreparedText
from llada.system.errors import LONGEST_SENTENCE, UserError
from tests.support.commands import PATIENCE

FULL = Path("/dev/full")
full_disk = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


class PanicException(BaseException):  # by its name in the libraries written in Rust
    """As pyo3 raises it."""


def deep(n: int = 0) -> int:
    return deep(n + 1)


def raising(error: BaseException) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


@pytest.mark.parametrize(
    ("work", "words"),
    [
        (raising(ValueError("a\n  b\x1b[2J.")), "ValueError (a b\\x1b[2J)"),
        (raising(AssertionError()), "AssertionError: if"),
        (raising(PanicException("no entry found for key")), "PanicException (no entry found for key)"),
        (deep, "RecursionError (maximum recursion depth exceeded"),
        (raising(KeyError("x" * 10**6)), "KeyError ('xxx"),
        (raising(RuntimeError("a kernel went astray")), "RuntimeError (a kernel went astray)"),
    ],
)
def test_what_nobody_foresaw_is_one_sentence_with_a_code_of_its_own(
    work: Callable[[], int], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLADA_TRACEBACK", raising=False)
    assert run_to_end(work, "sample", "llada") == 70
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("llada: This ended by an error that was not foreseen, ")
    assert words in said
    assert len(said) < 600
    monkeypatch.setenv("LLADA_TRACEBACK", "1")
    assert run_to_end(work, "sample", "llada") == 70
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UserError("It is wrong: correct it."), "llada: It is wrong: correct it.\n"),
        (MemoryError(), "The memory is not enough for this: lower --n_samples"),
        (RuntimeError("[enforce fail] can't allocate memory: you tried"), "The memory is not enough"),
        (RuntimeError("could not create a primitive"), "The memory is not enough for this: lower --n_samples"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "The memory is not enough"),
        (OSError(errno.ENOSPC, "No space left on device", "a\x1bb"), "The disk is full (a\\x1bb): free"),
        (OSError(errno.EFBIG, "File too large"), "A file would be larger than is allowed here: raise the limit"),
        (PermissionError(errno.EACCES, "Permission denied", "there"), "No permission to read or write there (there)"),
    ],
)
def test_what_was_foreseen_is_bad_input(error: Exception, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_to_end(raising(error), "sample", "llada") == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_what_safetensors_says_of_a_disk_is_said_of_a_disk(tmp_path: Path) -> None:
    """A limit of the size of files stands for a full disk."""
    program = """
import resource, signal, sys, torch
from safetensors.torch import save_file
from llada.cli.ending import run_to_end
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
sys.exit(run_to_end(lambda: save_file({"a": torch.zeros(1 << 16)}, sys.argv[1]), "export", "llada"))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.safetensors")], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("llada: A file would be larger than is allowed here: raise the limit")
    assert done.stderr.count("\n") == 1
    full = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert describe(full, "export")[1].startswith("The disk is full: free some space")


def test_other_ends_keep_their_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_to_end(lambda: 75, "train", "llada") == 75
    assert run_to_end(raising(SystemExit()), "train", "llada") == 0
    assert run_to_end(raising(SystemExit(3)), "train", "llada") == 3
    assert run_to_end(raising(KeyboardInterrupt()), "train", "llada") == 130
    assert capsys.readouterr().err == "Stopped.\n"
    with pytest.raises(GeneratorExit):
        run_to_end(raising(GeneratorExit()), "train", "llada")


def test_a_sentence_has_a_greatest_length_and_keeps_its_remedy() -> None:
    long = str(UserError(f"The architecture {'x' * 30_000_000} is unknown: choose another."))
    assert len(long) == LONGEST_SENTENCE
    assert long.startswith("The architecture xxx")
    assert long.endswith("xxx is unknown: choose another.")
    assert len(str(UserError("\x1b" * 5000))) == LONGEST_SENTENCE
    assert str(UserError("y" * LONGEST_SENTENCE)) == "y" * LONGEST_SENTENCE


def test_killed_while_something_else_than_training_goes_on_leaves_a_sentence() -> None:
    """Such as a compiler, in a process of its own, which ends as well."""
    program = """
import subprocess, sys
from llada.cli.ending import describe, run_to_end
from llada.system.child_process import run_limited
def work():
    print("at work", flush=True)
    run_limited([sys.executable, "-c", "import time; time.sleep(3600)"], 3000)
    return 0
sys.exit(run_to_end(work, "train", "llada"))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    os.kill(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=PATIENCE)  # which waits for all that hold the pipe
    assert process.returncode == 143
    assert said == "llada: Stopped by SIGTERM; what was saved before is complete.\n"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def started(*arguments: object, **streams: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llada", *map(str, arguments)]
    return subprocess.run(command, text=True, timeout=PATIENCE, **streams)  # type: ignore[call-overload]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["prepare", "--help"], ["doctor", "--help"]])
def test_help_may_have_no_reader(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = started(*arguments, stdout=write, stderr=subprocess.PIPE)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (130, "")


@full_disk
def test_a_result_that_cannot_be_written_is_an_error() -> None:
    with FULL.open("w") as full:
        done = started("--version", stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr == (
        "llada: Standard output cannot be written (No space left on device): free some space, or send it elsewhere.\n"
    )


@full_disk
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_run_is_complete_wherever_its_words_go(stream: str, data: PreparedText, tmp_path: Path) -> None:
    options = ["--preset", "tiny", "--d_model", 16, "--n_layers", 1, "--sequence_length", 24, "--device", "cpu"]
    length = ["--steps", 4, "--evaluate_every", 2, "--log_every", 1, "--evaluation_windows", 2]
    with FULL.open("w") as full:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: full}
        place = ["--data_dir", data.folder, "--output_dir", tmp_path / "run"]
        done = started("train", *options, *length, *place, **streams)
    assert done.returncode == 0
    assert (tmp_path / "run" / "checkpoints" / "step-00000004").is_dir()
    if stream == "stdout":
        assert "Standard output cannot be written" in done.stderr
    else:
        assert "Trained 4 steps" in done.stdout
