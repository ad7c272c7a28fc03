"""What the documents promise: every command in the README runs, every file and function that they name exists."""

import os
import re
import shlex
import string
import subprocess
import sys
from pathlib import Path

import pytest

from llada import cli
from llada.checkpoints.dummy import write_random_checkpoint
from tests.support.commands import PATIENCE
from tests.support.documents import ROOT, code_blocks, commands_of

NAMES = ("README.md", "GUIDELINES.md", "CONTRIBUTING.md", "CHANGELOG.md")
REPORTS = ("docs/EVALUATION.md", "docs/RESULTS.md", "docs/RELIABILITY.md", "docs/EXPERIMENTS.md")
DOCUMENTS = [ROOT / name for name in (*NAMES, *REPORTS, "shakespeare/SHAKESPEARE_README.md")]

# What makes a command small enough for a test, by its name.
SMALLER = {
    "train": [
        "--d_model",
        "16",
        "--n_layers",
        "1",
        "--steps",
        "4",
        "--evaluate_every",
        "4",
        "--evaluation_windows",
        "2",
    ],
    "evaluate": ["--masks_per_window", "2"],
    "compare": ["--masks_per_window", "2"],
    "sample": ["--steps", "4"],
    "prepare": [],
    "finetune": ["--steps", "2", "--evaluation_windows", "2"],
    "chat": ["--gen_length", "4", "--prompt", "to be"],
    "export": [],
    "size": ["--tflops", "1"],
    "doctor": ["--quick"],
}


def llada_commands() -> list[str]:
    return [line for line in commands_of(ROOT / "README.md") if line.split()[0] in ("llada", ".venv/bin/llada")]


def test_readme_shows_every_command_and_target() -> None:
    named = {line.split()[1] for line in llada_commands()}
    assert named == set(cli.COMMANDS)
    assert {"make demo", "make test"} <= set(commands_of(ROOT / "README.md"))


def run_small(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True).stdout
    _, command, *arguments = words.split("\0")[:-1]
    if "--epochs" in arguments:  # the length of the run is said in steps, below
        del arguments[(at := arguments.index("--epochs")) : at + 2]
    if "GSAI-ML/LLaDA-8B-Base" in arguments and command == "finetune":  # a small one in its place
        arguments[arguments.index("GSAI-ML/LLaDA-8B-Base")] = "checkpoint"
    full = [sys.executable, "-m", "llada", command, *arguments, *SMALLER[command]]  # the last of two flags counts
    return subprocess.run(full, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)


def test_every_llada_command_of_the_readme_runs(text: str, tmp_path: Path) -> None:
    """In one folder, in their order, at a small size; Tiny Shakespeare is replaced by a text that needs no network."""
    (tmp_path / "my.txt").write_text(f"{text}{string.ascii_letters}:?,.'", encoding="utf-8")
    write_random_checkpoint(tmp_path / "checkpoint", text)
    (dialogues,) = code_blocks(ROOT / "README.md", "json")
    (tmp_path / "dialogues.jsonl").write_text(dialogues)
    like_the_demo = ["llada prepare", "llada train --output_dir runs/demo"]
    for line in like_the_demo + llada_commands():
        if "prepare" in line and "--source file" not in line:
            line = f"llada prepare --input my.txt --sequence_length 100 {' '.join(shlex.split(line)[2:])}"
        elif "prepare" in line:
            line += " --sequence_length 100"
        result = run_small(line, tmp_path)
        assert result.returncode == 0, f"{line}\n{result.stdout}\n{result.stderr}"


def test_every_python_block_of_the_readme_runs(text: str, tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_text(text, encoding="utf-8")
    for line in (
        "llada prepare --input my.txt --sequence_length 100",
        "llada train --preset tiny --output_dir runs/demo",
    ):
        assert run_small(line, tmp_path).returncode == 0
    for block in code_blocks(ROOT / "README.md", "python"):
        result = subprocess.run(
            [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE
        )
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)`", path.read_text(encoding="utf-8")))
    assert named <= targets


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_linked_files_and_pictures_exist(path: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_no_number_is_still_to_be_filled_in(path: Path) -> None:
    assert re.findall(r"@[A-Z]+@", path.read_text(encoding="utf-8")) == []


def test_functions_named_by_the_guidelines_exist() -> None:
    """Names like `objective.masked_nll` resolve in the package."""
    import importlib

    names = re.findall(r"`((?:[a-z_]+\.)+[A-Za-z_]+)`", (ROOT / "GUIDELINES.md").read_text(encoding="utf-8"))
    checked = 0
    for name in names:
        module, _, attribute = name.rpartition(".")
        if (ROOT / "src" / "llada" / (module.replace(".", "/") + ".py")).exists():
            assert hasattr(importlib.import_module(f"llada.{module}"), attribute), name
            checked += 1
    assert checked > 15


def test_file_tree_of_the_readme_is_complete() -> None:
    tree = next(block for block in code_blocks(ROOT / "README.md", "text") if "src/llada/" in block)
    package = tree.split("\nshakespeare/")[0]
    rooms = {path.parent.name + "/" for path in (ROOT / "src" / "llada").glob("*/__init__.py")}
    modules = {path.name for path in (ROOT / "src" / "llada").glob("[a-z]*.py")}
    assert {line.split()[0] for line in package.splitlines() if line.startswith("  ")} == rooms | modules


@pytest.fixture
def demo(text: str, tmp_path: Path):  # type: ignore[no-untyped-def]
    """The demo script on a small text with the tiny preset."""
    (tmp_path / "my.txt").write_text(text, encoding="utf-8")
    prepare = "llada prepare --input my.txt --sequence_length 100 --output_dir data"
    assert run_small(prepare, tmp_path).returncode == 0
    environment = {
        **os.environ,
        "BIN": os.path.relpath(Path(sys.executable).parent, ROOT),
        "DEMO_DATA": str(tmp_path / "data"),
        "DEMO_RUN": str(tmp_path / "run"),
        "DEMO_PRESET": "tiny",
        "DEMO_PROMPT": "to be",
    }

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ROOT / "scripts" / "demo"], env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
        )

    return run


def test_demo_ends_with_the_number_a_sample_and_the_folder(demo, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    first = demo()
    assert first.returncode == 0, first.stderr
    assert "$ llada train --preset tiny" in first.stderr
    end = first.stdout.partition("Done.")[2]
    assert re.search(r"NELBO \d\.\d{4} ± \d\.\d{4} nats per character", end)
    assert "A sample:\n    " in end
    assert f"Run folder: {tmp_path / 'run'}" in end
    assert "Next:" in end

    again = demo()
    assert again.returncode == 0
    assert "is there" in again.stdout
    assert "Next:" in again.stdout
    assert "$ llada" not in again.stderr  # nothing is done twice
    assert re.search(r"NELBO \d\.\d{4}", again.stdout)

    checkpoints = tmp_path / "run" / "checkpoints"
    for name in ("last", "best"):  # as on a disk without links
        target = (checkpoints / name).resolve().name
        (checkpoints / name).unlink()
        (checkpoints / name).write_text(f"{target}\n", encoding="utf-8")
    assert "is there" in demo().stdout
    (checkpoints / "last").unlink()  # as copied without links
    os.utime(tmp_path / "run" / "summary.txt", (1, 1))  # and trained further since
    assert "--resume" in demo().stderr


def test_demo_goes_on_where_it_was_stopped(demo, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert demo().returncode == 0
    (tmp_path / "run" / "summary.txt").unlink()  # as if stopped after the training
    again = demo()
    assert again.returncode == 0, again.stderr
    assert "--resume" in again.stderr
    assert "Done." in again.stdout
