"""Every command works on a system without POSIX's modules, calls and signals, without links, without flushing folders.

A simulation (hidden.py) on the system at hand: no machine with Windows took part.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from llada.cli import COMMANDS
from tests.support.commands import Result, RunCommand

HIDDEN = Path(__file__).parents[1] / "support" / "hidden.py"


def run_hidden(*arguments: object) -> Result:
    """A command in a process where things are hidden."""
    command = [sys.executable, str(HIDDEN), *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return Result(done.returncode, done.stdout, done.stderr)


def test_every_command_can_be_imported() -> None:
    program = "import hidden, importlib, sys; hidden.hide(); [importlib.import_module(name) for name in sys.argv[1:]]"
    names = [f"llada.cli.{name}" for name in (*COMMANDS, "harness")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(HIDDEN.parent), os.environ.get("PYTHONPATH", "")))}
    subprocess.run([sys.executable, "-c", program, *names], check=True, env=environment)


@pytest.mark.usefixtures("one_thread")
def test_prepare_train_resume_and_sample(llada: RunCommand, text: str, tmp_path: Path) -> None:
    """The same weights and the same text as in this process, where nothing is hidden."""
    (tmp_path / "my.txt").write_text(text, encoding="utf-8", newline="\n")
    outputs = []
    for plain in (True, False):

        def run(*arguments: object, command: RunCommand = llada if plain else run_hidden) -> str:
            result = command(*arguments)
            assert result.code == 0, result.err
            assert "Traceback" not in result.err
            return result.out

        data, folder = tmp_path / f"data-{plain}", tmp_path / f"run-{plain}"
        source = ("--source", "file", "--input", tmp_path / "my.txt", "--sequence_length", 64)
        run("prepare", *source, "--output_dir", data)
        small = ("--data_dir", data, "--sequence_length", 32, "--device", "cpu", "--precision", "fp32")
        steps = (
            "--compile",
            "False",
            "--steps",
            4,
            "--evaluate_every",
            2,
            "--evaluation_windows",
            4,
            "--log_every",
            1,
            "--keep",
            1,
        )
        run("train", "--preset", "tiny", *small, *steps, "--output_dir", folder)
        run("train", "--resume", folder, "--steps", 6)
        length = ("--gen_length", 24, "--steps", 8, "--device", "cpu")
        sample = run("sample", "--checkpoint", folder, *length)
        outputs.append((load_file(folder / "checkpoints" / "step-00000006" / "model.safetensors"), sample))
    assert (tmp_path / "run-True" / "checkpoints" / "last").is_symlink()
    assert (tmp_path / "run-False" / "checkpoints" / "last").read_bytes() == b"step-00000006\n"
    (weights, sample), (hidden_weights, hidden_sample) = outputs
    assert sample.strip()
    assert hidden_sample == sample
    assert weights.keys() == hidden_weights.keys()
    assert all(np.array_equal(weight, hidden_weights[name]) for name, weight in weights.items())
