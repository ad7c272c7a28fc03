"""Load of the machine by other processes, and room in its memory and on its disks."""

import contextlib
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from llada.system.child_process import Answer
from llada.system.errors import UserError
from llada.system.fact import Fact, Level
from llada.system.files import check_writable
from llada.system.format import bytes_in_words
from llada.system.torch_facts import torch_part

DEMO_MEMORY_BYTES = 1_200_000_000  # measured: 0.65 GB for training, 0.5 GB for a compiler next to it
DISK_BYTES = 10**9
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # "200000 100000" is 200 ms of cores in every 100 ms; or "max 100000"


@dataclass(frozen=True)
class Load:
    """The part of the processor that other processes take."""

    cores: int
    """Logical cores of the machine."""
    busy_cores: float
    """Cores that worked, on average over a moment in which this process slept."""
    busiest: dict[str, float]
    """Cores taken, by name of the program, the largest first, where the system reports them."""
    average: float
    """The load average of the last minute."""


def measure_load(seconds: float = 0.5) -> Load:
    """Watch the processor for a moment, in which this process sleeps."""
    import psutil

    before = _processor_times()
    psutil.cpu_percent()  # starts its own stopwatch
    start = time.monotonic()
    time.sleep(seconds)
    percent, elapsed = psutil.cpu_percent(), time.monotonic() - start
    cores = psutil.cpu_count() or 1
    used: dict[str, float] = {}
    for identity, (name, total) in _processor_times().items():
        if identity in before:
            share = (total - before[identity][1]) / elapsed
            used[name] = used.get(name, 0.0) + share
    busiest = sorted(
        ((name, round(share, 2)) for name, share in used.items() if share >= 0.05), key=lambda one: -one[1]
    )
    return Load(cores, round(percent / 100 * cores, 2), dict(busiest[:5]), psutil.getloadavg()[0])


def _processor_times() -> dict[tuple[int, float], tuple[str, float]]:
    """Return name and seconds of processor time of every other process that we may see, by its id and start time."""
    import psutil

    times = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid():
                used = process.cpu_times()
                times[process.pid, process.create_time()] = process.name(), used.user + used.system
    return times


def usable_cores() -> float:
    """Cores that this process may use at once, by its affinity and the container's quota."""
    import psutil

    try:
        cores = float(len(os.sched_getaffinity(0)))
    except AttributeError:  # macOS and Windows
        cores = float(psutil.cpu_count() or 1)
    with contextlib.suppress(OSError, ValueError):
        quota, period = (int(number) for number in _QUOTA.read_text().split())
        cores = min(cores, quota / period)
    return cores


def threads_fact(answer: Answer, cores: float, logical_cores: int) -> Fact:
    """Judge the threads that torch computes with, compared with the cores that this process may use."""
    part = torch_part(answer, "threads")
    setting = os.environ.get("OMP_NUM_THREADS")
    values = {
        "torch": part.value, "usable_cores": cores, "logical_cores": logical_cores, "OMP_NUM_THREADS": setting
    }  # fmt: skip
    where = f"{cores:g} of {logical_cores} cores usable"
    if part.failure:
        return Fact("threads", "note", f"{where}; {part.failure}", values=values)
    summary = f"{part.value}, {where}" + (f", OMP_NUM_THREADS={setting}" if setting else "")
    if part.value > max(1.0, cores):
        advice = (
            f"torch computes with {part.value} threads where it may use {cores:g} cores, which is slow: set "
            f"OMP_NUM_THREADS={max(1, int(cores))}."
        )
        return Fact("threads", "note", summary, advice, values)
    return Fact("threads", "fine", summary, values=values)


def memory_fact(installed: int, available: int, answer: Answer) -> Fact:
    """Judge the memory of the host, and what a container or a limit leaves of it as far as torch can be asked."""
    part = torch_part(answer, "memory")
    limits = part.value or {"usable_bytes": None, "free_bytes": None}
    usable = min(installed, limits["usable_bytes"] or installed)
    free = min(available, limits["free_bytes"] or available, usable)
    limit = usable if usable < installed else None
    values = {"installed_bytes": installed, "available_bytes": free, "limit_bytes": limit}
    summary = f"{bytes_in_words(free)} available of {bytes_in_words(installed)}"
    if limit is not None:
        summary += f", limited to {bytes_in_words(limit)}"
    need = bytes_in_words(DEMO_MEMORY_BYTES)
    if usable < DEMO_MEMORY_BYTES:
        advice = f"The demo takes {need} of memory and {bytes_in_words(usable)} is all there is: " + (
            "raise the container's or the shell's limit." if limit else "use a machine with more."
        )
        return Fact("memory", "problem", summary, advice, values)
    if free < DEMO_MEMORY_BYTES:
        advice = f"The demo takes {need} of memory and {bytes_in_words(free)} is available: close other programs first."
        return Fact("memory", "note", summary, advice, values)
    return Fact("memory", "fine", summary, values=values)


def folder_fact(key: str, folder: Path, remedy: str, level: Level) -> Fact:
    """Judge a folder by trying to write to it.

    Args:
        remedy: what to do about a full disk.
        level: how bad it would be if it could not be written.
    """
    failure, free = "", None
    try:
        check_writable(folder)
    except UserError as error:
        failure = str(error)
    with contextlib.suppress(OSError):
        usage = shutil.disk_usage(folder)
        free = usage.free if usage.total else None  # /proc and its like have no size
    values = {"folder": str(folder), "free_bytes": free, "is_writable": not failure}
    if free is not None and free < DISK_BYTES:  # first, since a full disk cannot be written either
        left, need = bytes_in_words(free), bytes_in_words(DISK_BYTES)
        advice = f"The disk of {folder} has {left} left, and {need} should be free: {remedy}."
        return Fact(key, level, f"{left} free in {folder}", advice, values)
    if failure:
        return Fact(key, level, f"{folder} cannot be written", failure, values)
    space = "unknown space" if free is None else bytes_in_words(free)
    return Fact(key, "fine", f"{space} free in {folder}", values=values)


def load_fact(load: Load) -> Fact:
    """Judge how much of the processor other processes take."""
    summary = f"{load.busy_cores:.1f} of {load.cores} cores busy, load average {load.average:.1f}"
    if load.busy_cores < max(0.5, load.cores / 4):
        return Fact("load", "fine", summary, values=asdict(load))
    names = ", ".join(f"{name} {share:.1f}" for name, share in load.busiest.items())
    by = f" ({names})" if names else ""
    advice = (
        f"Other processes keep {load.busy_cores:.1f} of {load.cores} cores busy{by}, which can slow a run several "
        "times: wait for them or stop them."
    )
    return Fact("load", "note", summary, advice, asdict(load))
