"""Measurements in a process of their own, and the memory that it takes (from /proc, so Linux only)."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def in_a_process(script: str, case: dict[str, Any]) -> Any:
    """Run `python SCRIPT --case CASE` and return the JSON value that it prints last."""
    command = [sys.executable, script, "--case", json.dumps(case)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def status_bytes(key: str) -> int:
    """Read VmRSS, VmHWM (its peak) or VmSize of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def begin_peak_anew() -> None:
    """Restart the measurement of VmHWM."""
    Path("/proc/self/clear_refs").write_text("5")
