"""The C++ compiler that torch would use: where it is, and whether it knows this processor."""

import os
import re
import shlex
import shutil
import sys
from dataclasses import asdict, dataclass
from typing import Any

from llada.system.child_process import Answer, run_limited
from llada.system.fact import Fact

USUAL_COMPILERS = {"darwin": ("clang++", "g++"), "win32": ("cl",)}
COMPILERS = ("g++", "clang++", "c++")
_SECONDS = 20  # a question takes a hundredth of a second
_INSTALL = "install one (Debian: apt install g++; macOS: xcode-select --install)"
_INSTALL_NEWER = "a newer compiler, or another one named in CXX, may do"
_UNCOMPILED = "so runs go on uncompiled, at 0.4 to 0.8 of the speed (docs/EXPERIMENTS.md)"
_UNKNOWN = ("generic", "x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4")


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler and what it says about itself."""

    path: str
    name: str = ""
    """Name and version like "g++ 12.2.0"; empty if it does not answer."""
    architecture: str | None = None
    """The architecture that `-march=native` stands for; None if the compiler does not report it."""
    tuning: str | None = None
    """The processor whose timing the code is arranged for."""
    failure: str = ""
    """The reason that it cannot be used, one clause."""

    @property
    def knows_processor(self) -> bool | None:
        """Whether it has a name for this processor; otherwise it takes a relative's and "generic" timing.

        Such code is the most likely to be wrong, since few people compile with that combination.
        """
        tuning = self.tuning or self.architecture
        return None if tuning is None else tuning not in _UNKNOWN


def find_compilers() -> list[str]:
    """Commands of C++ compilers on this machine, the preferred one first, each program once.

    The environment variable CXX names the preferred one, as it does for torch.
    """
    names = [os.environ.get("CXX") or "", *USUAL_COMPILERS.get(sys.platform, COMPILERS)]
    names += [f"{name}-{version}" for name in COMPILERS[:2] for version in range(30, 9, -1)]
    found: dict[str, str] = {}
    for name in names:
        program = shutil.which(shlex.split(name)[0]) if name.strip() else None
        if program:
            found.setdefault(os.path.realpath(program), name)
    return list(found.values())


def find_compiler() -> str | None:
    """Return the path of the preferred compiler; None if there is no compiler."""
    found = find_compilers()
    return shutil.which(shlex.split(found[0])[0]) if found else None


def missing_compiler() -> str | None:
    """Return the compiler named by CXX if it does not exist, else None."""
    named = os.environ.get("CXX", "").strip()
    return named if named and shutil.which(shlex.split(named)[0]) is None else None


def describe_compiler(path: str) -> Compiler:
    """Ask a compiler for its version and for the processor that it takes this one for."""
    if sys.platform == "win32":
        return Compiler(path, "cl")
    version = run_limited([path, "--version"], _SECONDS)
    if version.failure:
        return Compiler(path, failure=version.failure)
    title = (version.value.splitlines() or [""])[0]
    number = re.findall(r"\d+(?:\.\d+)+", re.sub(r"\(.*?\)", "", title))
    is_clang = "clang" in title
    name = " ".join(["clang++" if is_clang else os.path.basename(path), *number[:1]])
    target = run_limited(
        [path, "-march=native", "-###", "-x", "c++", "-c", os.devnull]
        if is_clang
        else [path, "-march=native", "-Q", "--help=target"],
        _SECONDS,
        with_errors=True,
    )
    if target.failure:
        return Compiler(path, name)
    if is_clang:
        patterns = r'"-target-cpu" "([^"]+)"', r'"-tune-cpu" "([^"]+)"'
    else:
        patterns = r"^\s*-march=\s+(\S+)$", r"^\s*-mtune=\s+(\S+)$"
    architecture, tuning = (re.search(pattern, target.value, re.MULTILINE) for pattern in patterns)
    return Compiler(path, name, architecture and architecture[1], tuning and tuning[1])


def compiler_fact(compiler: Compiler | None, is_checked: bool) -> Fact:
    """Judge the compiler itself.

    Args:
        compiler: None if there is no compiler.
        is_checked: whether its code is checked next; then an unknown processor matters only if that check fails.
    """
    if compiler is None:
        advice = f"There is no C++ compiler, {_UNCOMPILED}: {_INSTALL}."
        values: dict[str, Any] = dict.fromkeys(("path", "name", "architecture", "tuning", "failure"))
        return Fact("compiler", "note", "none", advice, {**values, "knows_processor": None})
    values = {**asdict(compiler), "knows_processor": compiler.knows_processor}
    if compiler.failure:
        advice = f"{compiler.path} {compiler.failure}, {_UNCOMPILED}: {_INSTALL}, or name another in CXX."
        return Fact("compiler", "note", f"{compiler.path} {compiler.failure}", advice, values)
    summary = f"{compiler.name}, {compiler.path}"
    if compiler.architecture:
        tuning = f", tuned for {compiler.tuning}" if compiler.tuning not in (None, compiler.architecture) else ""
        summary += f", -march=native is {compiler.architecture}{tuning}"
    named = missing_compiler()
    if named:
        advice = f"CXX names {named}, which is not there, so {compiler.path} is used: correct or unset CXX."
        return Fact("compiler", "note", summary, advice, values)
    if compiler.knows_processor is not False:
        return Fact("compiler", "fine", summary, values=values)
    summary += ", does not know this processor"
    if is_checked:
        return Fact("compiler", "fine", summary, values=values)
    advice = (
        f"{compiler.name} is older than this processor, so its code may be wrong; runs check that by themselves and go "
        "on without: see `llada doctor`, or install a newer one."
    )
    return Fact("compiler", "note", summary, advice, values)


def compiled_code_fact(answer: Answer) -> Fact:
    """Judge compiled code by the verdicts of `inspection.check_compiled_code`."""
    verdicts: list[dict[str, Any]] = answer.value or []
    right = next((one for one in verdicts if one["is_right"]), None)
    values = {
        "is_right": None if answer.failure or not verdicts else right is not None,
        "toolchain": right and right["toolchain"],
        "verdicts": verdicts,
        "failure": answer.failure or None,
    }
    if answer.failure:
        advice = f"Compiled code could not be checked ({answer.failure}): if a run fails, add `compile=False`."
        return Fact("compiled_code", "note", f"not checked: {answer.failure}", advice, values)
    if not verdicts:
        return Fact("compiled_code", "fine", "none, since there is no compiler: runs go on uncompiled", values=values)
    wrong = "; ".join(f"{one['toolchain']}: {one['reason']}" for one in verdicts if not one["is_right"])
    if right is None:
        advice = f"No compiler setting gives right code here ({wrong}), {_UNCOMPILED}: {_INSTALL_NEWER}."
        return Fact("compiled_code", "note", f"wrong with each of {len(verdicts)} settings", advice, values)
    seconds = sum(one["seconds"] for one in verdicts)
    summary = f"right with {right['toolchain']} ({right['compiler']}), checked in {seconds:.0f} s"
    if not wrong:
        return Fact("compiled_code", "fine", summary, values=values)
    advice = (
        f"The first compiler setting does not give right code here ({wrong}), so runs use {right['toolchain']}: "
        f"{_INSTALL_NEWER}."
    )
    return Fact("compiled_code", "note", summary, advice, values)
