"""A wheel built from the repository, in an environment outside the clone: it has all its files, and it works there."""

import ast
import email
import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Sequence
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.commands import PATIENCE
from tests.support.documents import ROOT

SOURCE = ROOT / "src" / "llada"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# What may be missing when the package runs: extras, imported where they are needed.
OPTIONAL = {"bitsandbytes", "lm_eval", "peft", "pyarrow", "regex", "tqdm", "transformers", "zstandard"}


def run(command: Sequence[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
    result = subprocess.run(
        command, cwd=folder, env={**environment, "PIP_CONFIG_FILE": os.devnull},
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the source distribution, as an index would have both; built without a network."""
    folder = tmp_path_factory.mktemp("build")
    (folder / "clone").mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "clone")
    shutil.copytree(ROOT / "src", folder / "clone" / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    build = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    run([sys.executable, "-c", build, folder], folder / "clone")
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "unpacked", filter="data")
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--quiet"]
    (unpacked,) = (folder / "unpacked").iterdir()
    run([sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", folder, unpacked], folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel alone is installed here; torch and the other dependencies are read where the tests have them.

    An editable installation there is not followed, since Python reads the .pth files of its own folders only.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    run(
        [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--no-index", "--no-deps",
         "--quiet", wheel],
        folder,
    )  # fmt: skip
    variables = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", "venv", variables))
    there = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (packages / "dependencies.pth").write_text("".join(f"{path}\n" for path in there))
    return folder


def metadata_of(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = [path for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert packed == {f"llada/{path.relative_to(SOURCE).as_posix()}" for path in files}
    assert {"llada/py.typed", "llada/data/tiny_shakespeare_edits.json"} <= packed


def test_the_metadata_are_those_of_the_project(wheel: Path) -> None:
    metadata = metadata_of(wheel)
    assert metadata["Name"] == PROJECT["name"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    payload = metadata.get_payload(decode=True)
    assert isinstance(payload, bytes)
    assert payload.decode().strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()
    assert metadata.get_all("Classifier") == PROJECT["classifiers"]
    required = [Requirement(text) for text in metadata.get_all("Requires-Dist", []) if "extra ==" not in text]
    assert {str(r) for r in required} == {str(Requirement(text)) for text in PROJECT["dependencies"]}
    (torch,) = (r.specifier for r in required if r.name == "torch")
    assert torch.contains("2.11.0")  # what GPU images carry
    assert torch.contains("2.13.0+cpu")
    assert not torch.contains("2.10.0")


def test_the_package_declares_what_it_imports_and_no_more() -> None:
    """By reading every file; the other tests run where all sorts of packages are."""
    imported: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                imported.add(node.module.partition(".")[0])
    outside = imported - set(sys.stdlib_module_names) - {"llada"}
    homes = importlib.metadata.packages_distributions()
    named = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    assert {canonicalize_name(homes[name][0]) for name in outside - OPTIONAL} == named
    assert outside >= OPTIONAL


def test_it_prepares_trains_and_samples_outside_the_clone(environment: Path, text: str, tmp_path: Path) -> None:
    program = "import llada; print(llada.__file__); llada.load_checkpoint; print(llada.SamplerConfig().steps)"
    where, steps = run([environment / "bin" / "python", "-c", program], tmp_path).stdout.split()
    assert Path(where).is_relative_to(environment)
    assert int(steps) > 0

    (tmp_path / "my.txt").write_text(text, encoding="utf-8")
    llada = environment / "bin" / "llada"
    small = ["--d_model", "16", "--n_layers", "1", "--steps", "4", "--evaluate_every", "4", "--evaluation_windows", "2"]
    run([llada, "prepare", "--input", "my.txt", "--sequence_length", "100"], tmp_path)
    run([llada, "train", "--preset", "tiny", *small, "--output_dir", "run"], tmp_path)
    assert (tmp_path / "run" / "checkpoints" / "last" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "curves.png").is_file()
    written = run([llada, "sample", "--checkpoint", "run", "--prompt", "to be", "--steps", "4"], tmp_path)
    assert written.stdout.startswith("to be")


USER = """
import torch
import llada

checkpoint = llada.load_checkpoint("run")
reveal_type(checkpoint)
canvas = torch.full((1, 20), checkpoint.tokenizer.mask_id)
filled = llada.infill(checkpoint.predict, canvas, checkpoint.tokenizer.mask_id, llada.SamplerConfig(steps=20))
reveal_type(filled.x_t)

model = llada.load("run", device="cpu")
reveal_type(model.generate("to be", length=4, temperature=0.5, on_step=lambda step: print(step.text)))
reveal_type(model.infill(["<MASK>"]))
reveal_type(model.nelbo("to be").stderr)
reveal_type(model.logits(canvas))
reveal_type(model.chat([{"role": "user", "content": "to be?"}]))

llada.infill("canvas")  # wrong
llada.nothing  # wrong
model.generate("to be", step=4)  # wrong
"""


def test_users_have_its_types(environment: Path, tmp_path: Path) -> None:
    """Strict checking outside the clone, by the marker in the wheel: names, their types, and a mistake."""
    (tmp_path / "user.py").write_text(USER)
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--python-executable",
        environment / "bin" / "python",
        "user.py",
    ]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MYPY"))}
    result = subprocess.run(
        command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    lines = result.stdout.splitlines()
    revealed = [line.partition("Revealed type is ")[2].strip('"') for line in lines if "Revealed type" in line]
    assert [name.replace("builtins.", "") for name in revealed] == [
        "llada.checkpoints.folder.Checkpoint", "torch._tensor.Tensor",
        "str", "list[str]", "float", "torch._tensor.Tensor", "str",
    ], result.stdout  # fmt: skip
    wrong = {number for number, line in enumerate(USER.splitlines(), 1) if line.endswith("# wrong")}
    errors = [line for line in lines if ": error:" in line]
    assert {int(line.split(":")[1]) for line in errors} == wrong, result.stdout
