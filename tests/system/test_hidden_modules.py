"""Every command works on a system without POSIX's modules, calls and signals, without links, without flushing folders.

A simulation (hidden.py) on the system at hand: no machine with Windows took part.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from llada.cli import COMMANDS

HIDDEN = Path(__file__).parents[1] / "support" / "hidden.py"
PLAIN = "from llada.cli import main; main()"


def run(*arguments: object, plain: bool = False, code: int = 0) -> str:
    """Standard output of a command, in a process where things are hidden unless it is a plain one."""
    start = ["-c", PLAIN] if plain else [str(HIDDEN)]
    command = [sys.executable, *start, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_every_command_can_be_imported() -> None:
    program = "import hidden, importlib, sys; hidden.hide(); [importlib.import_module(name) for name in sys.argv[1:]]"
    names = [f"llada.cli.{name}" for name in (*COMMANDS, "harness")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(HIDDEN.parent), os.environ.get("PYTHONPATH", "")))}
    subprocess.run([sys.executable, "-c", program, *names], check=True, env=environment)


def test_prepare_train_resume_and_sample(text: str, tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_text(text, encoding="utf-8", newline="\n")
    outputs = []
    for plain in (True, False):
        data, folder = tmp_path / f"data-{plain}", tmp_path / f"run-{plain}"
        source = ("--source", "file", "--input", tmp_path / "my.txt", "--sequence_length", 64)
        run("prepare", *source, "--output_dir", data, plain=plain)
        small = ("--data_dir", data, "--sequence_length", 32, "--device", "cpu", "--precision", "fp32")
        steps = ("--steps", 4, "--evaluate_every", 2, "--evaluation_windows", 4, "--log_every", 1, "--keep", 1)
        run("train", "--preset", "tiny", *small, *steps, "--output_dir", folder, plain=plain)
        run("train", "--resume", folder, "--steps", 6, plain=plain)
        length = ("--gen_length", 24, "--steps", 8, "--device", "cpu")
        sample = run("sample", "--checkpoint", folder, *length, plain=plain)
        outputs.append((load_file(folder / "checkpoints" / "step-00000006" / "model.safetensors"), sample))
    assert (tmp_path / "run-True" / "checkpoints" / "last").is_symlink()
    assert (tmp_path / "run-False" / "checkpoints" / "last").read_bytes() == b"step-00000006\n"
    (weights, sample), (hidden_weights, hidden_sample) = outputs
    assert sample.strip()
    assert hidden_sample == sample
    assert weights.keys() == hidden_weights.keys()
    assert all(np.array_equal(weight, hidden_weights[name]) for name, weight in weights.items())
