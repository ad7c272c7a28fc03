"""What the documents promise: every command in the README runs, all others can be read by `llada`, every link leads
somewhere, and every file and function that they name exists."""

import gzip
import importlib
import json
import os
import re
import shlex
import string
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
import tyro
import yaml

from llada import __version__, cli
from llada.checkpoints.dummy import write_random_checkpoint
from llada.cli import options
from llada.system.errors import UserError
from llada.training.config import TrainConfig
from llada.training.presets import PRESETS
from llada.training.run_folder import RunFolder
from tests.support.commands import PATIENCE
from tests.support.documents import ROOT, anchors_of, code_blocks, commands_of, inline_code, words_of
from tests.support.warm_python import write_command
from tests.test_architecture import LAYERS

NAMES = ("README.md", "GUIDELINES.md", "CONTRIBUTING.md", "CHANGELOG.md", "shakespeare/SHAKESPEARE_README.md")
DOCUMENTS = [*(ROOT / name for name in NAMES), *sorted((ROOT / "docs").glob("*.md"))]
PACKAGE = ROOT / "src" / "llada"
CHARACTERS = f"{string.ascii_letters}:?,.'*<>"  # that the prompts and templates of the pages have

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
    "frontier": ["--windows", "2", "--minutes", "0.01"],
    "export": [],
    "plot": [],
    "size": ["--tflops", "1"],
    "doctor": ["--quick"],
    "watch": ["--port", "0", "--check"],
    "serve": ["--check", "--port", "0"],
    "data": [],
}


def llada_commands() -> list[str]:
    return [line for line in commands_of(ROOT / "README.md") if line.split()[0] in ("llada", ".venv/bin/llada")]


def test_readme_shows_every_command_and_target() -> None:
    named = {line.split()[1] for line in llada_commands()}
    assert named == set(cli.COMMANDS)
    assert {"make demo", "make test"} <= set(commands_of(ROOT / "README.md"))


def write_crawl(folder: Path, text: str) -> None:
    """Documents such as the pages prepare from, in crawl/."""
    (folder / "crawl").mkdir()
    pieces = [text[place : place + 90] for place in range(0, len(text), 90)]
    with gzip.open(folder / "crawl" / "1.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": piece}) + "\n" for piece in pieces)


CRAWLED = "--vocab_size 300 --val_share 0.3 --sequence_length 50"


def run_small(line: str, folder: Path, python: Sequence[str]) -> subprocess.CompletedProcess[str]:
    _, command, *arguments = words_of(line)
    if "--epochs" in arguments:  # the length of the run is said in steps, below
        del arguments[(at := arguments.index("--epochs")) : at + 2]
    if "GSAI-ML/LLaDA-8B-Base" in arguments and command == "finetune":  # a small one in its place
        arguments[arguments.index("GSAI-ML/LLaDA-8B-Base")] = "checkpoint"
    full = [*python, "-m", "llada", command, *arguments, *SMALLER[command]]  # the last of two flags counts
    return subprocess.run(full, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)


def test_every_llada_command_of_the_readme_runs(text: str, tmp_path: Path, warm_python: list[str]) -> None:
    """In one folder, in their order, at a small size; Tiny Shakespeare is replaced by a text that needs no network.

    Each command runs in a new process the first time, and in a warm one after that.
    """
    (tmp_path / "my.txt").write_text(f"{text}{CHARACTERS}", encoding="utf-8")
    write_random_checkpoint(tmp_path / "checkpoint", text)
    write_crawl(tmp_path, text)
    (dialogues,) = code_blocks(ROOT / "README.md", "json")
    (tmp_path / "dialogues.jsonl").write_text(dialogues)
    like_the_demo = ["llada prepare", "llada train --output_dir runs/demo"]
    seen = set()
    for line in like_the_demo + llada_commands():
        if "crawl/" in line:
            line += f" {CRAWLED}"
        elif "prepare" in line and "--source file" not in line:
            line = f"llada prepare --input my.txt --sequence_length 100 {' '.join(shlex.split(line)[2:])}"
        elif "prepare" in line:
            line += " --sequence_length 100"
        command = line.split()[1]
        result = run_small(line, tmp_path, warm_python if command in seen else [sys.executable])
        seen.add(command)
        assert result.returncode == 0, f"{line}\n{result.stdout}\n{result.stderr}"


@pytest.fixture(scope="module")
def after_the_demo(text: str, tmp_path_factory: pytest.TempPathFactory, warm_python: list[str]) -> Path:
    """A folder with a run in runs/demo and a prepared text in shakespeare_dataset, both tiny."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "my.txt").write_text(f"{text}{CHARACTERS}", encoding="utf-8")
    write_crawl(folder, text)
    for line in (
        "llada prepare --input my.txt --sequence_length 100",
        f"llada prepare --input crawl --tokenizer bpe --output_dir data/crawl {CRAWLED}",
        "llada prepare --input my.txt --sequence_length 100 --output_dir shakespeare_dataset",
        "llada train --preset tiny --output_dir runs/demo",
    ):
        assert run_small(line, folder, warm_python).returncode == 0
    return folder


@pytest.mark.parametrize(
    "path", [path for path in DOCUMENTS if code_blocks(path, "python")], ids=lambda path: path.name
)
def test_python_of_every_page_runs(path: Path, after_the_demo: Path, warm_python: list[str]) -> None:
    """The blocks of a page in one process, as a reader would type them one after the other."""
    program = "\n".join(code_blocks(path, "python"))
    result = subprocess.run(
        [*warm_python, "-c", program], cwd=after_the_demo, capture_output=True, text=True, timeout=PATIENCE
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)`", path.read_text(encoding="utf-8")))
    assert named <= targets


class Understood(Exception):  # noqa: N818  not an error
    """A command line was read to its end."""


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands stop where they have read their options; every run that they name has the laptop preset's."""
    read = tyro.cli

    def read_and_stop(*arguments: Any, **settings: Any) -> NoReturn:
        options.check_ranges(read(*arguments, **settings))
        raise Understood

    monkeypatch.setattr(tyro, "cli", read_and_stop)
    monkeypatch.setattr(RunFolder, "read_config", lambda folder: PRESETS["laptop"])
    monkeypatch.setattr(TrainConfig, "read", lambda path: PRESETS["laptop"])


def complaint_of(line: str) -> str | None:
    """What `llada` says against a command line, None if it can be read."""
    _, command, *arguments = words_of(line)
    if command not in cli.COMMANDS:
        return f"There is no command {command!r}."
    try:
        importlib.import_module(f"llada.cli.{command}").run(arguments, cli.Program(f"llada {command}"))
    except Understood:
        return None
    except UserError as error:
        return str(error)
    raise AssertionError(f"{line} was carried out")


@pytest.mark.usefixtures("read_only")
@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_llada_understands_every_command(path: Path) -> None:
    for line in commands_of(path):
        if line.startswith("llada "):
            assert complaint_of(line) is None, line
    # Within sentences they may lack what is required, or have a placeholder for a value; every flag must be there.
    for line in inline_code(path):
        if re.match(r"llada [a-z]+ .*--(?!help)", line) and "..." not in line:
            complaint = complaint_of(line)
            assert complaint is None or not complaint.startswith(("Unrecognized", "There is no command")), line


@pytest.mark.usefixtures("read_only")
def test_a_command_with_an_unknown_flag_or_value_is_found() -> None:
    assert complaint_of("llada train --preset laptop --steps 3") is None
    assert "--stepz" in str(complaint_of("llada train --stepz 3"))
    assert "--remasking" in str(complaint_of("llada sample --checkpoint run --remasking best"))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    """To a file or a picture, and to a heading in it where they name one."""
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", path.read_text(encoding="utf-8")):
        page = path.parent / target if target else path
        assert page.exists(), target
        assert not anchor or anchor in anchors_of(page), f"{target}#{anchor}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_named_files_exist(path: Path) -> None:
    places = r"(?<![\w/])(?:benchmarks|docs|scripts|shakespeare|src|tests)/[\w./-]*\w"
    for name in re.findall(places, path.read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), name


def test_readme_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in DOCUMENTS[1:]:
        assert str(path.relative_to(ROOT).as_posix()) in text, path


def test_citation_has_the_version_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert "2502.09992" in citation["references"][0]["url"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_no_number_is_still_to_be_filled_in(path: Path) -> None:
    assert re.findall(r"@[A-Z]+@", path.read_text(encoding="utf-8")) == []


def resolves(name: str) -> bool:
    """Whether a dotted name of the package is a module, or something in one."""
    if (PACKAGE / name.replace(".", "/")).with_suffix(".py").exists():
        return True
    module, _, attribute = name.rpartition(".")
    if module == "model":  # what a `Model` is called where it is used
        return hasattr(importlib.import_module("llada.model").Model, attribute)
    home = PACKAGE / module.replace(".", "/")
    if not (home.with_suffix(".py").exists() or (home / "__init__.py").exists()):
        return False
    return hasattr(importlib.import_module(f"llada.{module}"), attribute)


def test_functions_named_by_the_documents_exist() -> None:
    """Names like `objective.masked_nll` resolve in the package."""
    rooms = {path.stem for path in PACKAGE.iterdir()}
    checked = 0
    for path in DOCUMENTS:
        for name in inline_code(path):
            if re.fullmatch(r"(?:[a-z_]+\.)+(?!(?:py|json)$)[A-Za-z_]+", name) and name.split(".")[0] in rooms:
                assert resolves(name), f"{name} in {path.name}"
                checked += 1
    assert checked > 15


def test_file_tree_of_the_readme_is_complete() -> None:
    tree = next(block for block in code_blocks(ROOT / "README.md", "text") if "src/llada/" in block)
    package = tree.split("\nshakespeare/")[0]
    rooms = {path.parent.name + "/" for path in (ROOT / "src" / "llada").glob("*/__init__.py")}
    modules = {path.name for path in (ROOT / "src" / "llada").glob("[a-z]*.py")}
    assert {line.split()[0] for line in package.splitlines() if line.startswith("  ")} == rooms | modules


def test_every_folder_has_its_floor_in_contributing() -> None:
    """The table of layers is that of the architecture test."""
    rows = re.findall(
        r"^\| (\d+) \| `([a-z_]+)` \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert {name: int(floor) for floor, name in rows} == {k: v for k, v in LAYERS.items() if k != "__main__"}


NEW = Path(sys.executable).parent  # the folder of `llada`, each call of which is a new process
Demo = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def demo(text: str, tmp_path: Path, warm_python: list[str]) -> Demo:
    """The demo script on a small text with the tiny preset, by the `llada` of a folder, that of warm processes if left
    out."""
    (tmp_path / "my.txt").write_text(text, encoding="utf-8")
    prepare = "llada prepare --input my.txt --sequence_length 100 --output_dir data"
    assert run_small(prepare, tmp_path, warm_python).returncode == 0
    (tmp_path / "bin").mkdir()
    write_command(tmp_path / "bin" / "llada", *warm_python, "-m", "llada")
    environment = {
        **os.environ,
        "DEMO_DATA": str(tmp_path / "data"),
        "DEMO_RUN": str(tmp_path / "run"),
        "DEMO_PRESET": "tiny",
        "DEMO_PROMPT": "to be",
    }

    def run(commands: Path = tmp_path / "bin") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ROOT / "scripts" / "demo"], env={**environment, "BIN": os.path.relpath(commands, ROOT)},
            capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip

    return run


def test_demo_ends_with_the_number_a_sample_and_the_folder(demo: Demo, tmp_path: Path) -> None:
    first = demo(NEW)
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


def test_demo_goes_on_where_it_was_stopped(demo: Demo, tmp_path: Path, warm_python: list[str]) -> None:
    train = f"llada train --preset tiny --data_dir {tmp_path / 'data'} --output_dir run"
    trained = run_small(train, tmp_path, warm_python)
    assert trained.returncode == 0, trained.stderr  # as if stopped after the training
    again = demo()
    assert again.returncode == 0, again.stderr
    assert "--resume" in again.stderr
    assert "Done." in again.stdout
