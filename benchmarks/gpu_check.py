"""Check and measure this clone on a GPU: tests, training speed, LLaDA-8B's memory and speed, sampling.

    scripts/gpu-check [--device cuda|cpu] [--tiny] [--wheels FOLDER] [--out FOLDER] [--only SECTIONS] [--python PYTHON]

Needs no network and no installation: the code is that of the clone, and packages that the machine lacks come as wheels
from a folder (.whl in the clone, if it is there). Each section is a process of its own with a time limit, so that
whatever goes wrong in one is a row of the report and its memory is free for the next one; all take 8 minutes at most.
The report is written to FOLDER (runs/gpu-check) after every section: gpu-check.json, gpu-check.txt, and gpu-check.log
with what the sections print. The exit code is 0 if nothing failed; what a machine cannot run is reported as left out.
`--device cpu --tiny` is a rehearsal of the same code in about a minute, with shapes whose figures mean nothing.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpu_packages import MISSING
from gpu_rows import Row, draw_table, read_rows, shortened

ROOT = Path(__file__).parents[1]
SECONDS = 480.0  # for all sections together
# Seconds that a section may take, in order of importance: the first ones are done if the time runs out.
LIMITS = {
    "machine": 75,
    "tests": 150,
    "group": 100,
    "lora": 75,
    "bf16": 90,
    "speed": 190,
    "sampling": 75,
    "qlora": 75,
    "doctor": 60,
}
PATIENCE = 3.0  # times as long for a rehearsal, which may share its machine with others
PREPARING = 120.0  # seconds for the wheels, and for importing what is there
WORTH_STARTING = 10.0  # seconds, for importing torch alone takes some
NEEDED_TO_RUN = "packages"  # name of the row for missing packages


class Check:
    """A run of sections, and their report."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.options, self.scratch = options, scratch
        self.started = time.monotonic()
        self.patience = PATIENCE if options.tiny else 1.0
        self.rows: list[Row] = []
        self.seconds: dict[str, float] = {}
        self.machine: dict[str, Any] = {}
        self.environment = environment_of(options, scratch)
        self.log = options.out / "gpu-check.log"

    def run(self, sections: Sequence[str]) -> None:
        self.log.write_text("", encoding="utf-8")
        if sentence := self._missing():
            self.rows.append(Row(NEEDED_TO_RUN, "", "failed", sentence))
            self.write(is_complete=False)
            return
        for section in sections:
            print(f"{self.taken():5.0f} s  {section} ...", file=sys.stderr, flush=True)
            self.rows += self._run(section)
            self.write(is_complete=section == sections[-1])

    def taken(self) -> float:
        return time.monotonic() - self.started

    def _missing(self) -> str:
        """Install the wheels, and say in a sentence what is missing all the same."""
        wheels = sorted(self.options.wheels.glob("*.whl")) if self.options.wheels else []
        if self.options.wheels and not wheels:
            return f"There are no wheels in {self.options.wheels}: name another folder, or leave out --wheels."
        if wheels:
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
            command += ["--no-cache-dir", "--upgrade", "--target", str(self.scratch / "site"), *map(str, wheels)]
            code, printed = self._prepare(command)
            if code:
                return shortened(f"The wheels could not be installed: {last_line(printed)}")
        command = [sys.executable, str(ROOT / "benchmarks" / "gpu_packages.py"), str(ROOT / "pyproject.toml")]
        code, printed = self._prepare(command)
        if code:
            return shortened(f"It could not be found out what is missing: {last_line(printed)}")
        missing = [line for line in printed.splitlines() if line.startswith(MISSING)]
        return f"{missing[0]}: put wheels of these into a folder and name it by --wheels." if missing else ""

    def _prepare(self, command: Sequence[str]) -> tuple[int, str]:
        """Run a command that comes before the sections; returns its exit code and output."""
        try:
            result = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self.environment, check=False,
                timeout=PREPARING * self.patience,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return 1, f"it took more than {PREPARING * self.patience:.0f} s"
        self._log(result.stdout)
        return result.returncode, result.stdout

    def _run(self, section: str) -> list[Row]:
        """Run a section in a process of its own, which is ended at its limit."""
        limit = min(LIMITS[section] * self.patience, SECONDS * self.patience - self.taken())
        if limit < WORTH_STARTING:
            minutes = SECONDS * self.patience / 60
            return [Row(section, "", "failed", f"not started: the {minutes:.0f} minutes were over")]
        start, path = time.monotonic(), self.scratch / f"{section}.jsonl"
        command = [sys.executable, str(ROOT / "benchmarks" / "gpu_sections.py"), section, str(path)]
        command += ["--device", self.options.device, *(["--tiny"] if self.options.tiny else [])]
        output = self.scratch / f"{section}.log"
        with output.open("wb") as file:
            process = subprocess.Popen(
                command, cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                code: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                end(process)
        printed = output.read_text(encoding="utf-8", errors="replace")
        self._log(f"==== {section}\n{printed}")
        self.seconds[section] = time.monotonic() - start
        rows = read_rows(path)
        if code is None:
            rows.append(Row(section, "", "failed", f"ended at its limit of {limit:.0f} s"))
        elif code:
            rows.append(Row(section, "", "failed", shortened(f"exit code {code}: {last_line(printed)}")))
        elif not rows:
            rows.append(Row(section, "", "failed", "reported nothing"))
        facts = self.scratch / "machine.json"
        if facts.exists():
            self.machine = json.loads(facts.read_text(encoding="utf-8"))
        return rows

    def _log(self, text: str) -> None:
        with self.log.open("a", encoding="utf-8") as file:
            file.write(text.rstrip() + "\n")

    def write(self, is_complete: bool) -> None:
        """Write the report as it stands."""
        content = {
            "machine": self.machine,
            "commit": commit_of(self.options.commit),
            "device": self.options.device,
            "tiny": self.options.tiny,
            "is_complete": is_complete,
            "seconds": self.taken(),
            "seconds_by_section": self.seconds,
            "rows": [asdict(row) for row in self.rows],
        }
        write_whole(self.options.out / "gpu-check.json", json.dumps(content, indent=1) + "\n")
        write_whole(self.options.out / "gpu-check.txt", self.in_words(content) + "\n")

    def in_words(self, content: Mapping[str, Any]) -> str:
        facts = ", ".join(f"{name} {value}" for name, value in self.machine.items())
        head = f"commit {content['commit']}, {content['seconds']:.0f} s" + (f", {facts}" if facts else "")
        note = "\nA rehearsal with tiny shapes: its figures mean nothing." if self.options.tiny else ""
        return f"{head}{note}\n\n{draw_table(self.rows)}"


def environment_of(options: argparse.Namespace, scratch: Path) -> dict[str, str]:
    """Return the environment of the sections: the clone's code, the wheels, and no network or display."""
    paths = [str(ROOT / "src"), str(scratch / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "Agg",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # for results that must be repeatable bit for bit
        "LLADA_CUDA_TESTS_ON": options.device,
    }
    if options.tiny:  # compiling takes a CPU minutes: its place in the code is rehearsed, not its work
        environment.update(TORCH_COMPILE_DISABLE="1", TORCHDYNAMO_DISABLE="1")
    return environment


def end(process: "subprocess.Popen[bytes]") -> None:
    """End the process and all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_line(printed: str) -> str:
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    return lines[-1] if lines else "nothing was printed"


def commit_of(given: str | None) -> str:
    """Return the commit as given, or as git reports it; "unknown" without git's folder."""
    if given:
        return given
    command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return result.stdout.strip() if result.returncode == 0 else "unknown"


def write_whole(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/gpu-check", description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, nothing compiled: a rehearsal")
    parser.add_argument("--wheels", type=Path, help="folder with wheels of missing packages (.whl, if it is there)")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu-check", help="folder for the report")
    parser.add_argument("--only", default=",".join(LIMITS), help="sections, separated by commas")
    parser.add_argument("--python", help="the interpreter (python3); read by scripts/gpu-check")
    parser.add_argument("--commit", help="what to report as the commit, where git does not know")
    options = parser.parse_args(arguments)
    options.only = [name.strip() for name in options.only.split(",") if name.strip()]
    if unknown := [name for name in options.only if name not in LIMITS]:
        parser.error(f"there is no section {unknown[0]}: choose from {', '.join(LIMITS)}")
    if options.wheels is None and (ROOT / ".whl").is_dir():
        options.wheels = ROOT / ".whl"
    options.out = options.out.resolve()
    return options


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the section is ended as well
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as name:
        check = Check(options, Path(name))
        check.run(options.only)
    print((options.out / "gpu-check.txt").read_text(encoding="utf-8"), end="")
    sys.exit(1 if any(row.outcome == "failed" for row in check.rows) else 0)


if __name__ == "__main__":
    main()
