"""Compiled functions by torch.compile, with a toolchain whose code was found to be right on this machine.

Each toolchain is first tried in a process of its own with a time limit: a compiler that hangs, or code that crashes,
ends that process and nothing else. What passes there is compiled here, out of the same cache, and checked once more on
the caller's own weights and data (llada.system.compile_check).
"""

import contextlib
import hashlib
import json
import platform
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llada.system import compile_check
from llada.system.child_process import ask
from llada.system.compile_check import Finding, Recipe, Subject, compare, compile_function
from llada.system.errors import first_line
from llada.system.files import write_text_whole
from llada.system.toolchains import (
    CPU_INFORMATION,
    Toolchain,
    ToolchainName,
    private_folder,
    toolchains,
    trouble_of_compiler,
    use,
)

CHILD_SECONDS = 600.0
"""Time limit of compiling and checking in a process of its own."""
PROBE_SECONDS = 150.0
"""Time limit of the small case of `probe`, which takes 10 to 40 seconds."""
FAILED = "compiling failed"
VERDICTS_FILE = "verdicts.json"


@dataclass(frozen=True)
class Verdict:
    """The result of trying a toolchain on this machine."""

    toolchain: ToolchainName
    compiler: str
    is_right: bool
    reason: str
    seconds: float


@dataclass(frozen=True)
class Compiled:
    """A compiled function that passed its check, with the toolchain that made it."""

    function: Callable[..., Tensor]
    toolchain: Toolchain
    finding: Finding


def compile_checked(
    subject: Subject,
    recipe: Recipe,
    device: torch.device,
    preferred: ToolchainName | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Compiled | None:
    """Compile the subject's function by the first toolchain whose code is right; None if there is no such toolchain.

    Args:
        recipe: makes an equivalent subject, of other weights, in another process.
        preferred: the toolchain that is tried first, such as the one that a run began with.
        say: is given a sentence on each toolchain that fails.
    """
    for toolchain, finding in _tried(recipe, device, preferred):
        if finding.is_right:
            compiled, finding = _compile_here(subject, toolchain)
            if finding.is_right:
                return Compiled(compiled, toolchain, finding)
        say(f"{toolchain} is not used: {finding.reason}.")
    return None


def probe(device: torch.device) -> list[Verdict]:
    """Try this machine's toolchains in order, up to the first right one; returns [] if there is no compiler."""
    verdicts = []
    recipe = Recipe("llada.system.compile_check:rotation", {})
    start = time.perf_counter()
    for toolchain, finding in _tried(recipe, device, None, PROBE_SECONDS):
        if device.type != "cpu":
            _, finding = _compile_here(recipe.make().to(device), toolchain)
        now = time.perf_counter()
        verdicts.append(Verdict(toolchain.name, toolchain.compiler, finding.is_right, finding.reason, now - start))
        if finding.is_right:
            break
        start = now
    return verdicts


def _tried(
    recipe: Recipe, device: torch.device, preferred: ToolchainName | None, seconds: float = CHILD_SECONDS
) -> Iterator[tuple[Toolchain, Finding]]:
    """Iterate over the toolchains with what was found in a process of its own; a compiler that hung is not asked
    again."""
    hung: set[str] = set()
    for toolchain in sorted(toolchains(device), key=lambda each: each.name != preferred):
        if toolchain.compiler in hung:
            continue
        if device.type != "cpu":  # there is no second GPU to try it on, and memory for one network only
            yield toolchain, Finding(True, "to be checked")
            continue
        try:
            yield toolchain, try_in_child(toolchain, recipe, seconds)
        except TimeoutError as error:
            hung.add(toolchain.compiler)
            yield toolchain, Finding(False, str(error))
        except OSError as error:
            yield toolchain, Finding(False, f"{FAILED} ({error})")


def _compile_here(subject: Subject, toolchain: Toolchain) -> tuple[Callable[..., Tensor], Finding]:
    """Compile in this process and check; compiled code that is wrong is forgotten."""
    compiled = subject.function
    try:
        use(toolchain)
        compiled = compile_function(subject.function)
        finding = compare(subject, compiled)
    except Exception as error:  # a compiler may fail in any way, and the plain function is there
        if isinstance(error, torch.OutOfMemoryError):
            raise
        finding = Finding(False, f"{FAILED} ({type(error).__name__}: {first_line(str(error))})")
    if not finding.is_right:
        torch._dynamo.reset()
    return compiled, finding


# -- a process of its own ---------------------------------------------------------------------------------------------


def try_in_child(toolchain: Toolchain, recipe: Recipe, seconds: float = CHILD_SECONDS) -> Finding:
    """Compile and check in another process, which may crash; what it compiled stays in the cache.

    Raises:
        TimeoutError: the compiler did not answer in time.
    """
    memory = VerdictMemory(toolchain, recipe)
    finding = memory.recall()
    if finding is None:
        trouble = trouble_of_compiler(toolchain)
        if trouble and "took longer" in trouble:
            raise TimeoutError(trouble)
        finding = Finding(False, trouble) if trouble else _ask_child(toolchain, recipe, seconds)
        if not trouble:
            memory.keep(finding)
    return finding


def _ask_child(toolchain: Toolchain, recipe: Recipe, seconds: float) -> Finding:
    order = {"toolchain": asdict(toolchain), "recipe": asdict(recipe), "threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as name:  # longer than a command line may be
        path = Path(name) / "order.json"
        path.write_text(json.dumps(order), encoding="utf-8")
        answer = ask(__name__, "carry_out", str(path), seconds=seconds)
    if answer.failure.startswith("took longer"):
        raise TimeoutError(f"compiling {answer.failure}")
    if answer.failure.startswith("crashed"):
        return Finding(False, f"the code that it made {answer.failure}")
    if answer.failure:
        return Finding(False, f"{FAILED} ({answer.failure})")
    return Finding(**answer.value)


def carry_out(path: str) -> dict[str, Any]:
    """Compile and check as an order file says; called in a process of its own."""
    order = json.loads(Path(path).read_text(encoding="utf-8"))
    said = order["toolchain"]
    toolchain = Toolchain(**{**said, "replacements": tuple(map(tuple, said["replacements"]))})
    torch.set_num_threads(order["threads"])
    subject = Recipe(**order["recipe"]).make()
    use(toolchain)
    return asdict(compare(subject, compile_function(subject.function)))


class VerdictMemory:
    """A store of what was found about a toolchain and a recipe, next to the compiled code.

    A failure to compile is tried again each time, since it may have been the disk or another process.
    """

    def __init__(self, toolchain: Toolchain, recipe: Recipe) -> None:
        self._path = private_folder(toolchain.folder) / VERDICTS_FILE
        facts = [asdict(toolchain), asdict(recipe), torch.__version__, torch.get_num_threads(), sys.version]
        facts += [_processor_name(), _identity(toolchain.compiler), Path(compile_check.__file__).read_text("utf-8")]
        self._key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def recall(self) -> Finding | None:
        known = self._read().get(self._key)
        with contextlib.suppress(TypeError):
            return Finding(**known) if known else None
        return None

    def keep(self, finding: Finding) -> None:
        if not finding.is_right and finding.reason.startswith(FAILED):
            return
        known = {**self._read(), self._key: asdict(finding)}
        with contextlib.suppress(OSError):  # it is only found out again the next time
            write_text_whole(self._path, json.dumps(known))

    def _read(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            content = json.loads(self._path.read_text(encoding="utf-8"))
            return content if isinstance(content, dict) else {}
        return {}


def _processor_name() -> str:
    with contextlib.suppress(OSError):
        for line in CPU_INFORMATION.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line
    return platform.processor()


def _identity(compiler: str) -> list[Any]:
    """Facts that change when another compiler is installed under the same name."""
    program = shutil.which(shlex.split(compiler)[0]) if compiler else None
    if program is None:
        return []
    path = Path(program).resolve()
    return [str(path), path.stat().st_size, path.stat().st_mtime]
