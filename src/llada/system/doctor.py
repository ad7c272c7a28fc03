"""Facts with verdicts and remedies for `llada doctor`: whether this machine is ready, and what a run here will use.

Nothing here raises for a broken installation: what may be broken is imported in child processes (system/inspection.py),
and a fact that cannot be found out says so.
"""

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from llada.system.child_process import Answer, ask
from llada.system.cxx import Compiler, compiled_code_fact, compiler_fact, describe_compiler, find_compiler
from llada.system.errors import first_line
from llada.system.fact import Fact
from llada.system.installation import (
    DISTRIBUTION,
    OPTIONAL_PARTS,
    installed_version,
    look_up,
    optional_package,
    packages_fact,
    part_fact,
    required_packages,
)
from llada.system.machine import folder_fact, load_fact, measure_load, memory_fact, threads_fact, usable_cores
from llada.system.torch_facts import device_fact, precision_fact, torch_fact, torch_part, vectors_fact

INSPECTION = "llada.system.inspection"
HUB_SECONDS = 3.0
# Time limits for what takes seconds on a healthy machine, and longer on a busy one or a slow disk.
IMPORT_SECONDS = 180.0
CHECK_SECONDS = 900.0
KEYS = (
    "llada", "python", "dependencies", "torch", "device", "precision", "vector_instructions", "threads", "memory",
    "disk", "compile_cache", "load", *OPTIONAL_PARTS, "hub", "compiler", "compiled_code",
)  # fmt: skip
NO_FOLDER = {"folder": None, "free_bytes": None, "is_writable": False}
SLOW_KEYS = ("hub", "compiled_code")


def examine(quick: bool = False) -> Iterator[Fact]:
    """Examine this machine and installation, one fact after the other, in the order of `KEYS`.

    Args:
        quick: whether to leave out `SLOW_KEYS` and imports of the optional parts: seconds instead of a minute.
    """
    yield _fact("llada", _llada)
    yield _fact("python", _python)
    load = _fact("load", lambda: load_fact(measure_load()))  # before the processes below make a load of their own
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(ask, INSPECTION, "describe_torch", seconds=IMPORT_SECONDS)
        dependencies = pool.submit(_fact, "dependencies", _dependencies)
        parts = [pool.submit(_fact, module, partial(_part, module, quick)) for module in OPTIONAL_PARTS]
        hub = None if quick else pool.submit(_fact, "hub", _hub)
        compiler = pool.submit(_fact, "compiler", lambda: compiler_fact(_compiler(), is_checked=not quick))
        yield dependencies.result()
        yield from _torch_facts(asked.result())
        yield load
        yield from (part.result() for part in parts)
        if hub is not None:
            yield hub.result()
        yield compiler.result()
    if not quick:
        yield _fact("compiled_code", _compiled_code)


def _fact(key: str, find: Callable[[], Fact]) -> Fact:
    """Find a fact; if that fails, return a fact that says so."""
    try:
        return find()
    except Exception as error:
        return Fact(key, "note", f"not known ({type(error).__name__}: {first_line(str(error))})")


def _llada() -> Fact:
    version, folder = installed_version(DISTRIBUTION), Path(__file__).parents[1]
    return Fact(
        "llada", "fine", f"{version or 'not installed'}, {folder}", values={"version": version, "folder": str(folder)}
    )


def _python() -> Fact:
    system = f"{platform.uname().system} {platform.release()} {platform.machine()}"
    values = {"version": platform.python_version(), "executable": sys.executable, "system": system}
    return Fact("python", "fine", f"{values['version']}, {sys.executable}, {system}", values=values)


def _dependencies() -> Fact:
    packages = [package for package in required_packages() if package.distribution != "torch"]
    modules = [package.module for package in packages if package.version is not None]
    answer = ask(INSPECTION, "import_modules", *modules, seconds=IMPORT_SECONDS)
    if not answer.failure:
        return packages_fact(packages, answer.value)
    each = {module: ask(INSPECTION, "import_modules", module, seconds=IMPORT_SECONDS) for module in modules}
    return packages_fact(packages, {module: one.failure for module, one in each.items() if one.failure})


def _torch_facts(asked: Answer) -> Iterator[Fact]:
    """Judge everything that torch decides, or that limits what torch may use."""

    def judge_torch() -> Fact:
        required = next((one.required for one in required_packages() if one.distribution == "torch"), "")
        return torch_fact(look_up("torch", required, (asked.value or {}).get("version")), asked, _has_nvidia())

    def judge_memory() -> Fact:
        import psutil

        memory = psutil.virtual_memory()
        return memory_fact(memory.total, memory.available, asked)

    yield _fact("torch", judge_torch)
    yield _fact("device", lambda: device_fact(asked))
    yield _fact("precision", lambda: precision_fact(asked))
    yield _fact("vector_instructions", lambda: vectors_fact(asked))
    yield _fact("threads", lambda: threads_fact(asked, usable_cores(), os.cpu_count() or 1))
    yield _fact("memory", judge_memory)
    yield _fact("disk", _current_folder)
    yield _fact("compile_cache", lambda: _compile_cache(asked))


def _has_nvidia() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def _current_folder() -> Fact:
    try:
        folder = Path.cwd()
    except OSError:
        advice = "The current folder is not there any more: change to another one."
        return Fact("disk", "problem", "no current folder", advice, NO_FOLDER)
    return folder_fact("disk", folder, "free some space, or work in a folder on another disk", "problem")


def _compile_cache(asked: Answer) -> Fact:
    """Judge the folder where torch keeps compiled code; without it runs are not compiled, but they run."""
    part = torch_part(asked, "cache_folder")
    if part.failure:
        return Fact("compile_cache", "note", part.failure, values=NO_FOLDER)
    remedy = "free some space, or set LLADA_COMPILE_CACHE to a folder on another disk"
    return folder_fact("compile_cache", Path(part.value), remedy, "note")


def _compiler() -> Compiler | None:
    path = find_compiler()
    return None if path is None else describe_compiler(path)


def _part(module: str, quick: bool) -> Fact:
    package, install = optional_package(module)
    failure = None
    if not quick and package.version is not None:
        answer = ask(INSPECTION, "import_modules", module, seconds=IMPORT_SECONDS)
        failure = answer.failure or first_line(answer.value.get(module, ""))
    return part_fact(module, package, install, failure)


def _hub() -> Fact:
    """Check whether named checkpoints can be downloaded, which nothing else needs."""
    answer = ask(INSPECTION, "reach_hub", str(HUB_SECONDS), seconds=HUB_SECONDS + 10)
    found = answer.value or {"endpoint": None, "is_offline": None, "failure": answer.failure}
    endpoint, failure = found["endpoint"], found["failure"]
    is_reachable = None if found["is_offline"] else failure is None
    values = {**found, "is_reachable": is_reachable}
    if found["is_offline"]:
        return Fact("hub", "fine", "not asked, since the environment says HF_HUB_OFFLINE", values=values)
    if failure is None:
        return Fact("hub", "fine", f"{endpoint} answers", values=values)
    advice = (
        f"The Hugging Face hub could not be reached ({failure}), so checkpoints cannot be downloaded by name; all else "
        "works: check the network or a proxy, or set HF_HUB_OFFLINE=1 to work without."
    )
    return Fact("hub", "note", f"not reachable ({failure})", advice, values)


def _compiled_code() -> Fact:
    return compiled_code_fact(ask(INSPECTION, "check_compiled_code", seconds=CHECK_SECONDS))
