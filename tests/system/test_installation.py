"""Which build of torch is installed where, by the real pip from indexes on disk; and what each make target installs."""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests.support.commands import PATIENCE
from tests.support.documents import ROOT, commands_of

SCRIPT = ROOT / "scripts" / "install_torch.py"
OUT_OF_REACH = "http://127.0.0.1:1/simple"  # refused at once

# The script on a machine with or without a GPU, whatever this one has.
PROGRAM = """
import sys, install_torch
wish, install_torch.CPU_INDEX, system, has_gpu = sys.argv[1:]
install_torch.SECONDS = 2
install_torch.has_nvidia_gpu = lambda: has_gpu == "True"
install_torch.platform.system = lambda: system
install_torch.main([wish])
"""


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_torch", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


VERSION = load_script().wanted_version(ROOT / "constraints.txt")
CPU, CUDA = f"{VERSION}+cpu", VERSION


def write_index(folder: Path, *versions: str) -> str:
    """A package index on disk that holds these versions of a torch of two small files; its address."""
    (folder / "torch").mkdir(parents=True)
    for version in versions:
        info = f"torch-{version}.dist-info"
        cuda = "None" if version.endswith("+cpu") else "'13.0'"
        with zipfile.ZipFile(folder / "torch" / f"torch-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr("torch/__init__.py", "")
            wheel.writestr("torch/version.py", f"cuda: Optional[str] = {cuda}\nhip: Optional[str] = None\n")
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    links = "".join(f'<a href="{path.name}">{path.name}</a>' for path in (folder / "torch").glob("*.whl"))
    (folder / "torch" / "index.html").write_text(f"<!DOCTYPE html><html><body>{links}</body></html>")
    return folder.as_uri()


class Machine:
    """An environment with pip and nothing else, whose usual index and whose GPU are made up."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / "bin" / "python"
        variables = {"base": str(folder), "platbase": str(folder), "installed_base": str(folder)}
        self.packages = Path(sysconfig.get_path("purelib", "venv", variables))
        pip = importlib.util.find_spec("pip")
        assert pip is not None
        assert pip.origin is not None
        (self.packages / "pip").symlink_to(Path(pip.origin).parent)

    def choose(
        self, wish: str, usual: str, cpu_index: str = OUT_OF_REACH, system: str = "Linux", has_gpu: bool = False
    ) -> subprocess.CompletedProcess[str]:
        settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": usual, "PIP_NO_CACHE_DIR": "1"}
        others = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
        return subprocess.run(
            [self.python, "-c", PROGRAM, wish, cpu_index, system, str(has_gpu)],
            env={**others, **settings, "PYTHONPATH": str(SCRIPT.parent), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip

    def installed(self) -> str | None:
        """The version by its folder's name, and not by the script's own reading."""
        versions = [
            path.name.removeprefix("torch-").removesuffix(".dist-info") for path in self.packages.glob("torch-*")
        ]
        assert len(versions) < 2
        return versions[0] if versions else None

    def forget(self) -> None:
        for path in self.packages.glob("torch*"):
            shutil.rmtree(path)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(tmp_path_factory.mktemp("environment"))


@pytest.fixture
def machine(environment: Machine) -> Iterator[Machine]:
    yield environment
    environment.forget()


@pytest.fixture(scope="module")
def pypi(tmp_path_factory: pytest.TempPathFactory) -> str:
    """As on PyPI, where there are no builds by name, and a newer version."""
    return write_index(tmp_path_factory.mktemp("pypi"), CUDA, "99.0")


@pytest.fixture(scope="module")
def pytorch(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_index(tmp_path_factory.mktemp("pytorch"), CPU, "99.0+cpu")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A mirror that has both builds."""
    return write_index(tmp_path_factory.mktemp("both"), CUDA, CPU)


def lines(result: subprocess.CompletedProcess[str]) -> list[str]:
    """What the script itself says, without pip."""
    return [line for line in result.stderr.splitlines() if line.startswith(("torch: ", "install_torch: "))]


def test_without_a_gpu_pytorchs_cpu_build_is_taken(machine: Machine, pypi: str, pytorch: str) -> None:
    result = machine.choose("auto", pypi, pytorch)
    assert result.returncode == 0, result.stderr
    assert machine.installed() == CPU
    (line,) = lines(result)
    assert "no NVIDIA GPU found" in line

    again = machine.choose("auto", OUT_OF_REACH)
    assert again.returncode == 0, again.stderr
    assert lines(again) == [f"torch: {VERSION} is there, the CPU build"]
    assert machine.installed() == CPU


def test_with_a_gpu_the_cuda_build_is_taken(machine: Machine, both: str, pytorch: str) -> None:
    """Also where the usual index has the CPU build, which sorts higher."""
    result = machine.choose("auto", both, pytorch, has_gpu=True)
    assert result.returncode == 0, result.stderr
    assert machine.installed() == CUDA
    assert "GB to download" in lines(result)[0]


def test_a_gpus_build_that_cannot_be_had_is_left_to_the_usual_index(machine: Machine, pytorch: str) -> None:
    result = machine.choose("auto", pytorch, has_gpu=True)  # an index of CPU builds alone
    assert result.returncode == 0, result.stderr
    assert machine.installed() is None
    assert "out of reach" in lines(result)[1]


def test_a_mirror_of_both_builds_is_enough(machine: Machine, both: str) -> None:
    assert machine.choose("auto", both, OUT_OF_REACH).returncode == 0
    assert machine.installed() == CPU


def test_out_of_reach_the_usual_build_is_left_to_come_and_its_size_is_said(machine: Machine, pypi: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        for index in (OUT_OF_REACH, f"http://127.0.0.1:{silent.getsockname()[1]}/simple"):
            result = machine.choose("auto", pypi, index)
            assert result.returncode == 0, result.stderr
            assert machine.installed() is None
            _, line = lines(result)
            assert "out of reach" in line
            assert "3 GB to download" in line


def test_a_build_asked_for_by_name_is_installed_or_refused(
    machine: Machine, pypi: str, pytorch: str, both: str
) -> None:
    refused = machine.choose("cpu", pypi, OUT_OF_REACH)
    assert refused.returncode == 1
    assert machine.installed() is None
    assert "cannot be obtained" in lines(refused)[-1]
    assert lines(refused)[-1].endswith(").")

    assert machine.choose("cpu", pypi, pytorch, has_gpu=True).returncode == 0
    assert machine.installed() == CPU
    assert machine.choose("cpu", OUT_OF_REACH).returncode == 0  # there, so nothing is asked of an index

    assert machine.choose("cuda", both, pytorch).returncode == 0  # another build by name replaces it
    assert machine.installed() == CUDA
    kept = machine.choose("auto", both, pytorch)  # but not by itself
    assert lines(kept) == [f"torch: {VERSION} is there, the CUDA build"]
    assert machine.installed() == CUDA
    assert machine.choose("cpu", both, pytorch).returncode == 0
    assert machine.installed() == CPU


def test_another_version_or_half_an_installation_is_replaced(machine: Machine, pytorch: str, tmp_path: Path) -> None:
    (machine.packages / "torch").mkdir()  # pip was killed before it wrote the rest
    (machine.packages / "torch" / "__init__.py").touch()
    assert machine.choose("auto", pytorch).returncode == 0
    assert machine.installed() == CPU

    next(machine.packages.glob("torch-*")).joinpath("INSTALLER").unlink()  # or before its last file
    result = machine.choose("auto", pytorch)
    assert "installing" in lines(result)[0]
    assert next(machine.packages.glob("torch-*")).joinpath("INSTALLER").exists()

    machine.forget()
    old = write_index(tmp_path / "old", "1.0+cpu")
    program: list[str | Path] = [machine.python, "-m", "pip", "install", "-q", "--index-url", old, "torch==1.0+cpu"]
    subprocess.run(program, env={**os.environ, "PIP_CONFIG_FILE": os.devnull}, timeout=PATIENCE, check=True)
    assert machine.installed() == "1.0+cpu"
    assert machine.choose("auto", pytorch).returncode == 0
    assert machine.installed() == CPU


def test_other_systems_have_one_build(machine: Machine, both: str) -> None:
    assert machine.choose("auto", both, system="Darwin").returncode == 0
    assert machine.installed() is None  # it comes with the package
    refused = machine.choose("cuda", both, system="Darwin")
    assert refused.returncode == 1
    assert "no CUDA build of torch for Darwin" in refused.stderr


def test_a_gpu_is_found_by_its_device_its_driver_or_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_nvidia_gpu = load_script().has_nvidia_gpu
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert not has_nvidia_gpu(tmp_path)
    (tmp_path / "proc/driver/nvidia/gpus").mkdir(parents=True)
    assert not has_nvidia_gpu(tmp_path)  # a driver without a GPU
    (tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0").mkdir()
    assert has_nvidia_gpu(tmp_path)
    (tmp_path / "device/dev").mkdir(parents=True)
    (tmp_path / "device/dev/nvidia0").touch()
    assert has_nvidia_gpu(tmp_path / "device")

    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "nvidia-smi"
    for says, found in (
        ("echo 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)'", True),
        ("echo 'No devices were found'; exit 6", False),
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", False),
    ):
        command.write_text(f"#!/bin/sh\n{says}\n")
        command.chmod(0o755)
        assert has_nvidia_gpu(tmp_path / "nowhere") is found


# --- make ---

FAKE_PYTHON = """#!/bin/sh
# Logs what it is asked; `-m venv` makes an environment of itself; a call with the word $FAIL in it fails.
printf '%s\n' "$*" >> "$LOG"
case "$*" in *"${FAIL:-nothing}"*) exit 1;; esac
if [ "$2" = venv ]; then
    mkdir -p .venv/bin
    for name in python ruff mypy pytest; do cp "$0" .venv/bin/$name; done
fi
"""


class Clone:
    """The Makefile in a folder where no command does anything but leave its name."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, folder)
        (folder / "scripts").mkdir()
        for path, content in (
            (folder / "python", FAKE_PYTHON),
            (folder / "scripts" / "demo", '#!/bin/sh\necho demo >> "$LOG"\n'),
        ):
            path.write_text(content)
            path.chmod(0o755)

    def make(self, *arguments: str, fail: str = "nothing") -> list[str]:
        """The commands that a call runs, each in short."""
        self.log.write_text("")
        environment = {**os.environ, "LOG": str(self.log), "FAIL": fail, "MAKEFLAGS": "", "TORCH": "nonsense"}
        result = subprocess.run(
            ["make", f"PYTHON={self.folder / 'python'}", *arguments],
            cwd=self.folder, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert (result.returncode == 0) is (fail == "nothing"), result.stderr
        said = self.log.read_text().replace("-m pip install --quiet --constraint constraints.txt --editable", "pip")
        return [line.replace("scripts/install_torch.py", "torch") for line in said.splitlines()]


@pytest.fixture
def fake_clone(tmp_path: Path) -> Clone:
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    return Clone(tmp_path)


def test_the_demo_installs_the_package_alone_and_tests_add_the_rest(fake_clone: Clone) -> None:
    assert fake_clone.make("demo") == ["-m venv .venv", "torch auto", "pip .", "demo"]
    assert fake_clone.make("demo") == ["demo"]
    assert fake_clone.make("lint") == ["pip .[dev]", "check .", "format --check .", ""]
    assert fake_clone.make("test", "install", "demo") == ["-n auto --dist loadfile --no-loadscope-reorder", "demo"]
    for changed in ("constraints.txt", "pyproject.toml"):
        (fake_clone.folder / changed).touch()
        assert fake_clone.make("install")[-2:] == ["pip .", "pip .[dev]"]


def test_an_interrupted_installation_is_taken_up_again(fake_clone: Clone) -> None:
    everything = ["-m venv .venv", "torch auto", "pip .", "pip .[dev]"]
    assert fake_clone.make("install", fail="venv") == everything[:1]
    assert fake_clone.make("install", fail="install_torch") == everything[:2]
    assert fake_clone.make("install", fail="editable .") == everything[:3]
    assert fake_clone.make("install", fail="[dev]") == everything[2:]
    assert fake_clone.make("install") == everything[3:]
    assert fake_clone.make("install") == []


def test_a_build_of_torch_stays_until_another_is_named(fake_clone: Clone) -> None:
    assert fake_clone.make("demo", "TORCH=cpu") == ["-m venv .venv", "torch cpu", "pip .", "demo"]
    assert fake_clone.make("demo") == fake_clone.make("demo", "TORCH=cpu") == ["demo"]
    assert fake_clone.make("demo", "TORCH=cuda", fail="install_torch") == ["-m venv .venv", "torch cuda"]
    assert fake_clone.make("demo") == ["demo"]
    assert fake_clone.make("demo", "TORCH=cuda") == ["-m venv .venv", "torch cuda", "pip .", "demo"]
    assert fake_clone.make("demo") == ["demo"]
    assert fake_clone.make("demo", "TORCH=cpu") == ["-m venv .venv", "torch cpu", "pip .", "demo"]


# --- what the files say of one another ---


def test_the_workflow_calls_the_same_commands_as_the_documents() -> None:
    path = ROOT / ".github" / "workflows" / "ci.yml"
    text = path.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    (job,) = workflow["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert commands == [line for line in script.splitlines() if line.startswith("make ")] == ["make lint", "make test"]
    assert "make test" in commands_of(ROOT / "README.md")
    assert all(f"`{command}`" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8") for command in commands)
    assert job["strategy"]["matrix"]["os"] == ["ubuntu-latest", "macos-latest"]
    assert job["env"] == {"PYTHON": "python"}
    assert "not run yet" in text.splitlines()[0].lower()


def test_versions_of_python_are_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    classified = [c.rpartition(" ")[2] for c in project["classifiers"] if re.search(r"Python :: 3\.\d+$", c)]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert classified == workflow["jobs"]["check"]["strategy"]["matrix"]["python"]
    assert project["requires-python"] == f">={classified[0]}"


def test_every_pin_is_within_its_range() -> None:
    """A constraint out of the range would make the installation fail."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            name, _, version = line.partition("==")
            pins[canonicalize_name(name)] = version
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    requirements = [Requirement(text) for group in groups for text in group]
    checked = [r for r in requirements if r.name != project["name"]]
    assert len(checked) > 15
    for requirement in checked:
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), str(requirement)
