"""Run one section of `scripts/gpu-check`, in a process of its own.

    python benchmarks/gpu_sections.py SECTION ROWS [--device cuda|cpu] [--tiny]

writes the section's rows (gpu_rows.py) to the file ROWS, as they come.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from gpu_rows import LeftOutError, Rows, shortened
from llada.system.device import choose_device, describe_device, matmul_flops_per_second

ROOT = Path(__file__).parents[1]
LARGE_MATMUL = 8192  # rows and columns: a smaller matmul is over before a GPU is busy
REPEATS, MATMULS = 5, 10
OPTIONAL = ("triton", "peft", "bitsandbytes", "tokenizers", "numpy")


@dataclass(frozen=True)
class Place:
    """The device and size of a section, with its rows."""

    device: torch.device
    tiny: bool
    rows: Rows

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Measure FLOPs per second of large matmuls: on a GPU the median of several runs, on a CPU by the package's
    function."""
    if device.type == "cpu":
        return matmul_flops_per_second(device, dtype, seconds=0.05)
    a, b = (torch.randn(LARGE_MATMUL, LARGE_MATMUL, device=device, dtype=dtype) for _ in range(2))
    speeds = []
    for _ in range(REPEATS + 1):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(MATMULS):
            a @ b
        stop.record()
        stop.synchronize()
        speeds.append(MATMULS * 2 * LARGE_MATMUL**3 / (start.elapsed_time(stop) / 1000))
    return sorted(speeds[1:])[REPEATS // 2]  # the first run pays for set-up


def machine(place: Place) -> None:
    """Report the machine and how fast it multiplies."""
    facts = {
        "device": describe_device(place.device),
        "torch": torch.__version__,
        "CUDA": torch.version.cuda or "none",
        "driver": driver_version(),
        "Python": platform.python_version(),
        "cores": str(os.cpu_count()),
    }
    if place.device.type == "cuda":
        properties = torch.cuda.get_device_properties(place.device)
        facts["memory"] = f"{properties.total_memory / 1e9:.1f} GB"
        facts["capability"] = f"{properties.major}.{properties.minor}"
    for name in OPTIONAL:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            facts[name] = importlib.metadata.version(name)
    place.rows.path.with_name("machine.json").write_text(json.dumps(facts), encoding="utf-8")
    for dtype in (torch.bfloat16, torch.float32):
        name = f"matmul {str(dtype).removeprefix('torch.')}"
        with place.rows.case(name):
            place.rows.add(name, tflops=matmul_peak(place.device, dtype) / 1e12)


def driver_version() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return "none"
    return result.stdout.split("\n")[0].strip()


class Recorder:
    """A pytest plugin that writes a row for each test as it ends, with the numbers that it recorded."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.seen: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        is_end = report.when == "call" or report.outcome != "passed"
        name = report.nodeid.rpartition("::")[2]
        if not is_end or name in self.seen:
            return
        self.seen.add(name)
        function, bracket, parameters = name.partition("[")
        name = function.removeprefix("test_").replace("_", " ") + (f" [{parameters}" if bracket else "")
        outcome = {"passed": "ok", "skipped": "skipped"}.get(report.outcome, "failed")
        figures = {key: value for key, value in report.user_properties if isinstance(value, (int, float))}
        self.rows.add(name, outcome, self._sentence(report), seconds=report.duration, **figures)  # type: ignore[arg-type]

    @staticmethod
    def _sentence(report: pytest.TestReport) -> str:
        if report.outcome == "passed":
            return ""
        if report.outcome == "skipped":
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            return shortened(reason.removeprefix("Skipped: "))
        crash = getattr(report.longrepr, "reprcrash", None)
        return shortened((crash.message if crash else str(report.longrepr)).strip().split("\n")[0])


def tests(place: Place) -> None:
    """Run the tests that need a GPU; on a CPU, they compare it with itself."""
    run_tests(place, "test_cuda.py")


def group(place: Place) -> None:
    """Run the tests of several processes with a GPU."""
    run_tests(place, "test_cuda_group.py")


def run_tests(place: Place, file: str) -> None:
    arguments = ["-m", "cuda", str(ROOT / "tests" / file), "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    recorder = Recorder(place.rows)
    code = pytest.main([*arguments, "-q", "--tb=short"], plugins=[recorder])
    if not recorder.seen:
        raise RuntimeError(f"pytest ran no test and ended with {int(code)}")


def doctor(place: Place) -> None:
    """Report what `llada doctor` finds, where there is such a command."""
    with place.rows.case("llada doctor"):
        if importlib.util.find_spec("llada.cli.doctor") is None:
            raise LeftOutError("this version has no such command")
        command = [sys.executable, "-m", "llada", "doctor", "--json"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        print(result.stdout, result.stderr)
        report = json.loads(result.stdout)
        problems = report.get("problems", [])
        sentence = f"exit code {result.returncode}" + (f": {problems[0]}" if problems else "")
        place.rows.add("llada doctor", "ok" if result.returncode in (0, 1) else "failed", shortened(sentence))


def find(section: str) -> Callable[[Place], None]:
    """Find the function of a section; modules that only it needs are imported here."""
    if section == "speed":
        from gpu_speed import speed

        return speed
    if section in ("lora", "qlora", "bf16", "sampling"):
        import gpu_large

        return getattr(gpu_large, section)
    return {"machine": machine, "tests": tests, "group": group, "doctor": doctor}[section]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("section")
    parser.add_argument("rows", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    device = choose_device(options.device)
    find(options.section)(Place(device, options.tiny, Rows(options.section, options.rows)))


if __name__ == "__main__":
    main()
