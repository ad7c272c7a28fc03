"""Installations of the package that are broken in a known way, and `llada doctor` in them."""

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[2] / "src"
SITE = Path(sysconfig.get_path("purelib"))

# A stand-in for system/compile.py, whose check takes a minute: `probe` returns VERDICTS, a Python expression.
COMPILE = """
import sys, types
from dataclasses import dataclass

@dataclass(frozen=True)
class Verdict:
    toolchain: str
    compiler: str
    is_right: bool
    reason: str
    seconds: float

def probe(device):
    import os
    print("what a compiler prints is not the answer")
    return {verdicts}

module = types.ModuleType("llada.system.compile")
module.Verdict, module.probe = Verdict, probe
sys.modules[module.__name__] = module
"""
RIGHT = 'Verdict("native", "/usr/bin/g++", True, "its code gives what the plain network gives", 4.0)'


def with_verdicts(folder: Path, verdicts: str = f"[{RIGHT}]", more: str = "") -> dict[str, str]:
    """Environment in which every Python process has the stand-in, and runs `more` when it starts."""
    start = folder / "start"
    start.mkdir()
    (start / "sitecustomize.py").write_text(COMPILE.format(verdicts=verdicts) + more)
    return {"PYTHONPATH": os.pathsep.join([str(start), str(SOURCE)])}


def installation(
    folder: Path, without: tuple[str, ...] = (), modules: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Environment of a copy, by links, of what is installed here, for an interpreter that has nothing else.

    Args:
        without: packages left out, with their metadata.
        modules: source of modules put in, by name; a name with a version, like "torch-2.0.0", is metadata.
    """
    site = folder / "site"
    site.mkdir()
    for entry in SITE.iterdir():
        if entry.name.split("-")[0].removesuffix(".py").lower() not in (*without, "sitecustomize"):
            (site / entry.name).symlink_to(entry)
    for name, source in (modules or {}).items():
        if "-" in name:
            distribution, version = name.split("-")
            (site / f"{name}.dist-info").mkdir()
            (site / f"{name}.dist-info" / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
            )
        else:
            (site / f"{name}.py").write_text(source)
    return {"PYTHONPATH": os.pathsep.join([str(site), str(SOURCE)]), "PYTHONNOUSERSITE": "1"}


class Report:
    """What `llada doctor` printed, as text or JSON, and how it ended."""

    def __init__(self, result: "subprocess.CompletedProcess[str]") -> None:
        self.code, self.out, self.err = result.returncode, result.stdout, result.stderr
        assert "Traceback" not in self.err + self.out, self.err

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)

    @property
    def facts(self) -> dict[str, Any]:
        return self.json["facts"]


def doctor(
    *flags: str, environment: Mapping[str, str], python: Sequence[str] = (sys.executable,), cwd: Path | None = None
) -> Report:
    """Run `llada doctor` as a person would, with some environment variables; an empty value unsets one."""
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    result = subprocess.run(
        [*python, "-P", "-m", "llada", "doctor", *flags],
        env={name: value for name, value in variables.items() if value},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        cwd=cwd,
    )
    return Report(result)


def write_script(path: Path, text: str) -> Path:
    """Write a program for a shell, and return its path."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path
