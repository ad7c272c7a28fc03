"""Compilers of this machine, and the settings in which torch's generated C++ can be compiled.

torch compiles with `-march=native -O3`. A compiler that does not know the processor then tunes for no processor in
particular, and g++ 12 has been seen to make wrong code of that (docs/EXPERIMENTS.md, 19). The settings here are tried
in order until the code of one passes its check (llada.system.compile); each has a cache folder of its own, so that a
bad kernel never comes back from a cache.
"""

import os
import platform
import re
import shlex
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from llada.system.child_process import run_limited
from llada.system.cxx import find_compilers
from llada.system.files import file_written_whole

ToolchainName = Literal["native", "explicit-march", "O2", "other-compiler", "256-bit", "triton", "none"]
PROBE_SECONDS = 60.0
"""Time limit of compiling two lines of C++, which takes a tenth of a second: beyond it the compiler hangs."""
CPU_INFORMATION = Path("/proc/cpuinfo")

# Newest first: the flags of /proc/cpuinfo that a processor must have for a name of -march. Such a name implies its own
# -mtune.
MARCH_OF_FEATURES = (
    ("sapphirerapids", {"amx_tile", "avx512_fp16", "avx512_bf16"}),
    ("cooperlake", {"avx512_bf16", "avx512_vnni"}),
    ("skylake-avx512", {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"}),
    ("haswell", {"avx2", "fma", "bmi2"}),
)


@dataclass(frozen=True)
class Toolchain:
    """A compiler, and the changes to the command line that torch writes for it."""

    name: ToolchainName
    compiler: str = ""
    """The compiler's command, "" where torch brings its own (Triton on a GPU)."""
    replacements: tuple[tuple[str, str], ...] = ()
    """Pairs of an option as torch writes it and its replacement."""
    vector_bits: int | None = None
    """Width of vector instructions; None is the processor's widest."""

    def __str__(self) -> str:
        if not self.compiler:
            return "Triton"
        changes = [new for _, new in self.replacements]
        if self.vector_bits:
            changes.append(f"{self.vector_bits}-bit vectors")
        return " ".join([Path(shlex.split(self.compiler)[0]).name, *changes])

    @property
    def folder(self) -> Path:
        """The folder of its compiled code, which later processes use too."""
        return cache_folder() / self.name


def cache_folder() -> Path:
    """Return the folder of compiled code; the environment variable LLADA_COMPILE_CACHE moves it.

    It is not in the temporary folder, torch's default, where other users could put code that is then run.
    """
    named = os.environ.get("LLADA_COMPILE_CACHE")
    if named:
        return Path(named).absolute()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or tempfile.gettempdir())
    elif sys.platform == "darwin":
        base = Path("~/Library/Caches").expanduser()
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    return base / "llada" / "compiled"


def has_compiler(device: torch.device) -> bool:
    """Whether torch has something to compile with: on a CPU it writes C++."""
    if device.type == "cuda":
        return True
    return device.type == "cpu" and (sys.platform == "win32" or bool(find_compilers()))


def toolchains(device: torch.device) -> list[Toolchain]:
    """List the settings to try on this machine, best first; empty where nothing can compile."""
    if device.type == "cuda":
        return [Toolchain("triton")]
    if device.type != "cpu":
        return []
    if sys.platform == "win32":  # there, torch looks for its compiler, cl, by itself
        return [Toolchain("native")]
    compilers = find_compilers()
    if not compilers:
        return []
    first, *others = compilers
    march = processor_march()
    found = [Toolchain("native", first)]
    if march:
        found.append(Toolchain("explicit-march", first, (("-march=native", f"-march={march}"),)))
    found.append(Toolchain("O2", first, (("-O3", "-O2"),)))
    if others:
        found.append(Toolchain("other-compiler", others[0]))
    if march and march != "haswell":
        found.append(Toolchain("256-bit", first, (("-march=native", "-march=haswell"),), vector_bits=256))
    return found


def processor_flags() -> frozenset[str]:
    """Return the processor's features as /proc/cpuinfo lists them; empty where there is no such file."""
    try:
        found = re.search(r"^flags\s*:(.*)$", CPU_INFORMATION.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return frozenset()
    return frozenset(found[1].split()) if found else frozenset()


def processor_march() -> str | None:
    """Return the newest -march name whose instructions this processor has; None for other families of processors."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    flags = processor_flags()
    return next((name for name, needed in MARCH_OF_FEATURES if needed <= flags), None)


def trouble_of_compiler(toolchain: Toolchain, seconds: float = PROBE_SECONDS) -> str | None:
    """Say why this compiler cannot be used, found by compiling two lines; None if it can be used."""
    if not toolchain.compiler:
        return None
    with tempfile.TemporaryDirectory() as name:
        source, result = Path(name) / "two_lines.cpp", Path(name) / "two_lines.so"
        source.write_text("#include <cmath>\ndouble two_lines(double x) { return std::exp(x); }\n", encoding="utf-8")
        command = [*shlex.split(program_of(toolchain)), "-O3", "-shared", "-fPIC", str(source), "-o", str(result)]
        failure = run_limited(command, seconds, with_errors=True).failure
        if not failure and not result.exists():
            failure = "makes nothing"
    return f"it {failure}" if failure else None


def program_of(toolchain: Toolchain) -> str:
    """Return the command to give to torch as its compiler: the compiler, or a script that changes its options."""
    if not toolchain.replacements:
        return toolchain.compiler
    kind = "clang++" if _is_clang(toolchain.compiler) else "g++"  # torch decides by this name which options it may use
    script = private_folder(toolchain.folder) / kind
    content = "\n".join(_script_lines(toolchain))
    if not script.exists() or script.read_text(encoding="utf-8") != content:
        with file_written_whole(script) as aside:
            aside.write_text(content, encoding="utf-8")
            aside.chmod(stat.S_IRWXU)
    return str(script)


def _script_lines(toolchain: Toolchain) -> Iterator[str]:
    yield from ("#!/bin/sh", "# The compiler, with other options in the place of some.", "for argument; do", "shift")
    yield 'case "$argument" in'
    for old, new in toolchain.replacements:
        yield f"{shlex.quote(old)}) argument={shlex.quote(new)};;"
    yield from ("esac", 'set -- "$@" "$argument"', "done", f'exec {toolchain.compiler} "$@"', "")


def _is_clang(compiler: str) -> bool:
    return "clang" in str(run_limited([*shlex.split(compiler), "--version"], PROBE_SECONDS).value)


def private_folder(folder: Path) -> Path:
    """Make the folder if need be, for this user alone: what is in it is executed."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def use(toolchain: Toolchain) -> None:
    """Make torch compile with this toolchain from now on, in this process."""
    import torch._inductor.config as settings
    from torch._inductor.utils import clear_caches

    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(private_folder(toolchain.folder))
    clear_caches()
    settings.fallback_random = True  # random numbers as without compiling, so that dropout is the same
    if toolchain.compiler:
        settings.cpp.cxx = (None, program_of(toolchain))
        settings.cpp.simdlen = toolchain.vector_bits
        from torch._inductor.cpu_vec_isa import valid_vec_isa_list

        valid_vec_isa_list.cache_clear()
