"""Install the build of torch that this machine can use into the environment of the Python that runs this.

PyPI's torch for Linux is the CUDA build, 3 GB to download. Where there is no NVIDIA GPU, PyTorch's CPU build
(200 MB) does the same, and PyTorch publishes it on an index of its own. The version is the one of constraints.txt.
Only torch itself is installed here; what it needs comes with the package, from the usual index.

    .venv/bin/python scripts/install_torch.py [auto | cpu | cuda]

`auto` keeps a torch of the right version, whatever its build. An installed build is replaced only by name.
"""

import argparse
import importlib.metadata
import importlib.util
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
SECONDS = 10  # to wait for an index to answer before it counts as out of reach
CUDA_SIZE = "3 GB to download, 5 GB on disk"


def has_nvidia_gpu(root: Path = Path("/")) -> bool:
    """Whether the driver shows a GPU; a driver without one, as in some containers, does not count."""
    if (root / "dev/nvidia0").exists() or any((root / "proc/driver/nvidia/gpus").glob("*")):
        return True
    command = shutil.which("nvidia-smi")
    if command is None:
        return False
    try:
        listed = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU 0" in listed.stdout


def wanted_version(constraints: Path) -> str:
    found = re.search(r"^torch==(\S+)$", constraints.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise SystemExit(f"install_torch: {constraints} does not pin torch; add a line torch==VERSION.")
    return found[1]


def installed_build() -> tuple[str, str] | None:
    """Return version (without local part) and kind (cpu, cuda, hip, xpu) of the installed torch, without importing
    it."""
    importlib.invalidate_caches()
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        distribution = importlib.metadata.distribution("torch")
        source = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except (importlib.metadata.PackageNotFoundError, OSError):
        return None
    if distribution.read_text("INSTALLER") is None:  # written last, so this installation was interrupted
        return None
    accelerator = re.search(r"^(cuda|hip|xpu)\b[^=]*= '", source, re.MULTILINE)
    return distribution.version.partition("+")[0], accelerator[1] if accelerator else "cpu"


def pip_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]


def has_cpu_build(version: str, *index: str) -> bool:
    """Whether an index lists the CPU build for this Python and machine; False also if it is out of reach."""
    command = pip_command("index", "versions", "torch", "--timeout", str(SECONDS), "--retries", "0", *index)
    listed = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    available = re.search(r"^Available versions: (.*)$", listed.stdout, re.MULTILINE)
    return available is not None and f"{version}+cpu" in available[1].split(", ")


def install(requirement: str, *index: str) -> bool:
    """Install torch alone; pip shows its progress, on standard error."""
    command = pip_command("install", "--no-deps", "--force-reinstall", requirement, *index)
    return subprocess.run(command, stdout=sys.stderr, check=False).returncode == 0 and installed_build() is not None


def install_cpu(version: str) -> bool:
    """Install the CPU build from the usual index if it has one, otherwise from PyTorch's."""
    indexes: tuple[tuple[str, ...], ...] = ((), ("--index-url", CPU_INDEX))
    return any(has_cpu_build(version, *index) and install(f"torch=={version}+cpu", *index) for index in indexes)


def install_cuda(version: str) -> bool:
    """Install PyPI's build for Linux; an index that also has the CPU build would give that otherwise."""
    return install(f"torch=={version},!={version}+cpu")


def say(text: str) -> None:
    print(f"torch: {text}", file=sys.stderr, flush=True)


def choose(wish: str, version: str, system: str, has_gpu: bool) -> None:
    """Install what the wish and the machine ask for, and say in one line what it is."""
    if wish == "cuda" and system != "Linux":
        raise SystemExit(f"install_torch: PyPI has no CUDA build of torch for {system}; leave TORCH=cuda out.")
    there = installed_build()
    if there is not None and there[0] == version and wish in ("auto", there[1]):
        return say(f"{version} is there, the {there[1].upper()} build")
    if system != "Linux":  # PyPI has one build, for the CPU and Apple's GPUs, and it comes with the package
        return None
    if wish == "cpu" or not (wish == "cuda" or has_gpu):
        reason = "as asked for" if wish == "cpu" else "no NVIDIA GPU found; TORCH=cuda takes the CUDA build"
        say(f"installing the CPU build of {version} ({reason})")
        is_installed = install_cpu(version)
    else:
        reason = "as asked for" if wish == "cuda" else "an NVIDIA GPU found; TORCH=cpu takes the small CPU build"
        say(f"installing the CUDA build of {version} ({reason}): {CUDA_SIZE}")
        is_installed = install_cuda(version)
    if wish != "auto" and (not is_installed or installed_build() != (version, wish)):
        place = "the usual index" if wish == "cuda" else f"the usual index or, within {SECONDS} s, {CPU_INDEX}"
        raise SystemExit(
            f"install_torch: the {wish.upper()} build of torch {version} cannot be obtained from {place}; connect to "
            f"it, or leave TORCH={wish} out and take what there is (at most {CUDA_SIZE})."
        )
    if not is_installed:
        say(f"that build is out of reach, so the usual index's comes with the package; it may be {CUDA_SIZE}")
    return None


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Install the build of torch that this machine can use.")
    parser.add_argument("build", nargs="?", default="auto", choices=("auto", "cpu", "cuda"))
    wish = parser.parse_args(arguments).build
    choose(wish, wanted_version(CONSTRAINTS), platform.system(), has_nvidia_gpu())


if __name__ == "__main__":
    main()
