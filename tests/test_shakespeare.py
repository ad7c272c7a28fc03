"""The folder of scripts: every command of its page runs, and the page has every command of the founding document."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

from llada.checkpoints.dummy import write_random_checkpoint
from tests.support.commands import PATIENCE
from tests.support.documents import ROOT, code_blocks, commands_of
from tests.support.warm_python import write_command

FOLDER = ROOT / "shakespeare"
PAGE = FOLDER / "SHAKESPEARE_README.md"
FOUNDING_DOCUMENT = next(iter(sorted((ROOT.parent / "shared" / "seed").glob("*.txt"))), None)

# What makes a command small enough for a test; the last of two equal flags counts.
SMALLER = {
    "download_shakespeare_dataset.py": ["--source", "file", "--input", "../text.txt", "--sequence_length", "256"],
    "train_llada_shakespeare.py": [
        "--d_model", "16", "--n_heads", "1", "--n_layers", "1", "--epochs", "0.1", "--evaluation_windows", "1",
        "--batch_size", "2",
    ],
    "train_llada_pretrained.py": ["--model_name", "../checkpoint", "--epochs", "0.05", "--evaluation_windows", "1"],
    "sample_llada.py": ["--checkpoint", "checkpoints/shakespeare-1", "--prompt", "to be", "--gen_length", "8"],
    "model_size_calculator.py": [],
    "test_transformer.py": [],
    "test_pretrained_model.py": [],
}  # fmt: skip


def script_commands() -> list[str]:
    return [line for line in commands_of(PAGE) if line.startswith("python ")]


@pytest.fixture(scope="module")
def clone(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone has, in a place to write to, with a text and a checkpoint that need no network."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(
        FOLDER, folder / "shakespeare", ignore=shutil.ignore_patterns("__pycache__", "*dataset", "checkpoints")
    )
    (folder / "src").symlink_to(ROOT / "src")
    (folder / "text.txt").write_text(text * 2, encoding="utf-8")
    write_random_checkpoint(folder / "checkpoint", text, n_tokens=262, max_sequence_length=4096)
    return folder


def run_small(line: str, folder: Path, python: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command of the page in this folder, at a small size."""
    words = line.split()
    script = Path(words[1]).name
    up = "" if folder.name == "shakespeare" else "shakespeare/"
    smaller = [word.removeprefix("../") if up else word for word in SMALLER[script]]
    command = [*python, up + script, *words[2:], *smaller]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_every_command_of_the_page_runs_inside_the_folder(clone: Path, warm_python: list[str]) -> None:
    """In their order, as a reader would type them one after the other."""
    folder = clone / "shakespeare"
    for line in script_commands():
        result = run_small(line, folder, warm_python)
        assert result.returncode == 0, f"{line}\n{result.stdout}\n{result.stderr}"
    # The text is one of our own here; of Shakespeare's, the first name is shakespeare_raw.txt.
    written = {path.name for path in (folder / "shakespeare_dataset").iterdir()}
    files = {"prepared_text.txt", "vocab.json", "train_data.npy", "val_data.npy", "metadata.json", "tokenised"}
    assert written <= files
    assert files - written <= {"tokenised"}  # gone with the text that was prepared last
    runs = sorted(path.name for path in (folder / "checkpoints").iterdir())
    trained = [line.split()[1] for line in script_commands() if "train_llada" in line]
    n_scratch, n_pretrained = (sum(name in line for line in trained) for name in ("shakespeare.py", "pretrained.py"))
    assert runs == sorted(
        [f"shakespeare-{n + 1}" for n in range(n_scratch)] + [f"pretrained-{n + 1}" for n in range(n_pretrained)]
    )
    for run in runs:
        assert (folder / "checkpoints" / run / "checkpoints" / "last" / "model.safetensors").is_file()


def test_every_script_runs_from_the_root_and_goes_on(clone: Path, warm_python: list[str]) -> None:
    for script in SMALLER:
        line = f"python {script}"
        result = run_small(line, clone, warm_python)
        assert result.returncode == 0, f"{line}\n{result.stdout}\n{result.stderr}"
    helped = run_small("python test_transformer.py --help", clone, warm_python)
    assert helped.returncode == 0
    assert helped.stdout.startswith("usage: test_transformer.py")
    assert "ok (" not in helped.stdout
    resumed = subprocess.run(
        [*warm_python, "shakespeare/train_llada_shakespeare.py", "--resume", "--epochs", "0.2"],
        cwd=clone, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr
    assert "Going on after step" in resumed.stderr
    assert [path.name for path in (clone / "checkpoints").glob("shakespeare-*")] == ["shakespeare-1"]


def test_defaults_are_the_founding_documents(clone: Path, warm_python: list[str]) -> None:
    """Batch 4, 10 epochs, 24 layers of 768 with 12 heads, dropout 0.1, rate 1e-4; 5 epochs at 1e-5, one by one."""
    run_small("python download_shakespeare_dataset.py --output_dir shakespeare_dataset", clone, warm_python)
    for script, flags in (
        ("train_llada_shakespeare.py", []),
        ("train_llada_pretrained.py", ["--model_name", "checkpoint"]),
    ):
        help_text = subprocess.run(
            [*warm_python, f"shakespeare/{script}", *flags, "--help"],
            cwd=clone, capture_output=True, text=True, timeout=PATIENCE, check=True, env={"COLUMNS": "100"},
        ).stdout  # fmt: skip
        assert f"usage: {script}" in help_text
        words = " ".join(help_text.replace("│", " ").split())
        expected = {"batch-size": "4", "epochs": "10", "d-model": "768", "n-heads": "12", "n-layers": "24"}
        expected |= {"dropout": "0.1", "learning-rate": "0.0001", "data-dir": "shakespeare_dataset", "device": "auto"}
        if "pretrained" in script:
            expected = {"batch-size": "1", "epochs": "5", "learning-rate": "1e-05", "data-dir": "shakespeare_dataset"}
        for flag, value in expected.items():
            default = re.search(rf"--{flag} .*?\(default: (.*?)\)", words)
            assert default, flag
            assert default[1] == value, flag


@pytest.mark.skipif(FOUNDING_DOCUMENT is None, reason="the founding document does not lie next to this clone")
def test_the_page_has_every_command_of_the_founding_document() -> None:
    assert FOUNDING_DOCUMENT is not None
    founding = commands_of(FOUNDING_DOCUMENT)
    assert len(founding) > 12
    assert set(founding) <= set(commands_of(PAGE))
    text = PAGE.read_text(encoding="utf-8")
    for script in re.findall(r"`([a-z_]+\.(?:py|txt|json|npy))`", FOUNDING_DOCUMENT.read_text(encoding="utf-8")):
        assert script in text, script


def test_requirements_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (FOLDER / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == project["dependencies"]
    assert "-r requirements.txt" in (FOLDER / "requirements_pretrained.txt").read_text(encoding="utf-8")


def test_figures_of_the_page_are_what_the_calculator_prints(clone: Path, warm_python: list[str]) -> None:
    """The rows of its table, by the command that it names."""
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) x (\d+) \| (\d+)M .*\| ([\d.]+ GB) \| ([\d.]+ GB) \|$", text, re.MULTILINE)
    assert len(rows) == 3
    for layers, width, _, plain, checkpointed in rows:
        shape = ["--layers", layers, "--d_model", width, "--n_heads", str(int(width) // 64), "--batch_size", "1"]
        shape += ["--hardware", "gpu"]
        report = json.loads(
            subprocess.run(
                [*warm_python, "shakespeare/model_size_calculator.py", *shape, "--tflops", "1", "--json"],
                cwd=clone, capture_output=True, text=True, timeout=PATIENCE, check=True,
            ).stdout
        )  # fmt: skip
        for key, figure in (("training", plain), ("training_with_activation_checkpointing", checkpointed)):
            assert f"{report[key]['total'] / 1e9:.1f} GB" == figure


@pytest.mark.slow
def test_requirements_are_enough_in_a_fresh_environment(clone: Path, tmp_path: Path) -> None:
    """`pip install -r`, then every script: nothing but the clone and what the file lists."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    for name in ("requirements.txt", "requirements_pretrained.txt"):
        result = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "-r", name],
            cwd=clone / "shakespeare", capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        if "No matching distribution" in result.stderr or "connection" in result.stderr.lower():
            pytest.skip("the package index is out of reach")
        assert result.returncode == 0, result.stderr
    for script, smaller in SMALLER.items():
        result = subprocess.run(
            [python, script, *smaller],
            cwd=clone / "shakespeare", capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert result.returncode == 0, f"{script}\n{result.stdout}\n{result.stderr}"


def paste(line: str, folder: Path, python: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Type a command as it was printed, where `llada` is not on the path and `python` is these words."""
    (folder / "bin").mkdir(exist_ok=True)
    write_command(folder / "bin" / "python", *python)
    path = f"{folder / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin"
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False,
        env={**os.environ, "PATH": path},
    )  # fmt: skip


@pytest.mark.parametrize("up", ["", "shakespeare/"])
def test_what_the_scripts_print_runs_when_it_is_pasted(clone: Path, up: str, warm_python: list[str]) -> None:
    """From preparing to a text, by nothing but what was printed; from the folder of the scripts and from the root."""
    folder = clone if up else clone / "shakespeare"
    source = "text.txt" if up else "../text.txt"
    unprepared = paste(f"python {up}train_llada_shakespeare.py --data_dir nowhere", folder, warm_python)
    assert unprepared.returncode == 2
    assert f"python {up}download_shakespeare_dataset.py" in unprepared.stderr
    prepare = f"python {up}download_shakespeare_dataset.py --source file --input {source} --sequence_length 256"
    prepared = paste(prepare, folder, warm_python)
    assert prepared.returncode == 0, prepared.stderr
    train = re.search(r"Next: (python \S+train_llada_shakespeare\.py --data_dir \S+|python train.*)", prepared.stdout)
    assert train
    small = " ".join(SMALLER["train_llada_shakespeare.py"])
    process = paste(f"{train[1]} {small} --output_dir 'checkpoints/a run'", folder, warm_python)
    assert process.returncode == 0, process.stderr
    sample = re.search(r"Next: (python .*)", process.stdout)
    assert sample
    text = paste(f"{sample[1]} --prompt 'to be' --gen_length 8", folder, warm_python)
    assert text.returncode == 0, text.stderr
    assert text.stdout.startswith("to be")


def test_what_a_stopped_script_prints_goes_on_with_the_run(clone: Path, warm_python: list[str]) -> None:
    folder = clone / "shakespeare"
    source = "python download_shakespeare_dataset.py --source file --input ../text.txt"
    assert paste(source, folder, warm_python).returncode == 0
    words = ["--preset", "tiny", *SMALLER["train_llada_shakespeare.py"], "--epochs", "1000", "--evaluate_every", "2"]
    command = [sys.executable, "train_llada_shakespeare.py", *words, "--output_dir", "checkpoints/stopped"]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE
    while not (folder / "checkpoints/stopped/checkpoints/last").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, said
    again = re.search(r"Go on with: (.*)", said)
    assert again
    assert again[1] == "python train_llada_shakespeare.py --resume checkpoints/stopped"
    done = paste(f"{again[1]} --epochs None --steps 1 --minutes None", folder, warm_python)  # it is beyond that
    assert "is complete" in done.stdout, done.stderr


def test_mask_fits_after_the_cast_that_the_page_names(clone: Path, warm_python: list[str]) -> None:
    folder = clone / "shakespeare"
    source = "python download_shakespeare_dataset.py --source file --input ../text.txt"
    assert paste(source, folder, warm_python).returncode == 0
    (block,) = code_blocks(PAGE, "python")
    check = f"{block}\nassert x_0.dtype == torch.int64\nx_0[0, 0] = 126336\nassert x_0[0, 0] == 126336"
    stored = "assert np.load('shakespeare_dataset/train_data.npy').dtype == np.uint8"
    done = subprocess.run(
        [*warm_python, "-c", f"{check}\n{stored}"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
