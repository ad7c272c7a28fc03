"""What is found out about the C++ compiler, of ones that are there and of ones that are played."""

import platform
import time
from pathlib import Path

import psutil
import pytest

from llada.system import cxx
from tests.support.installations import write_script


def test_compiler_that_cxx_names_in_vain_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++-99")
    fact = cxx.compiler_fact(cxx.Compiler("/usr/bin/g++", "g++ 12.2"), is_checked=True)
    assert fact.level == "note"
    assert fact.advice == "CXX names g++-99, which is not there, so /usr/bin/g++ is used: correct or unset CXX."


def test_compiler_that_fails_or_hangs_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = cxx.describe_compiler(str(write_script(tmp_path / "failing", "exit 4")))
    assert failing.failure == "failed (exit code 4)"
    monkeypatch.setattr(cxx, "_SECONDS", 3)
    pid = tmp_path / "pid"
    hanging = cxx.describe_compiler(str(write_script(tmp_path / "hanging", f"sleep 1000 & echo $! > {pid}; wait")))
    assert hanging.failure == "took longer than 3 s"
    deadline = time.monotonic() + 60
    while psutil.pid_exists(int(pid.read_text())) and time.monotonic() < deadline:
        if psutil.Process(int(pid.read_text())).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.05)
    else:
        assert not psutil.pid_exists(int(pid.read_text()))
    fact = cxx.compiler_fact(hanging, is_checked=True)
    assert fact.level == "note"
    assert fact.advice.startswith(f"{tmp_path}/hanging took longer than 3 s, so runs go on uncompiled")


GCC = """
case "$1" in
--version) echo "g++ (Debian 12.2.0-14+deb12u1) 12.2.0"; echo "Copyright" ;;
*) printf '  -march=                     \\t\\t%s\\n  -mtune=                     \\t\\t%s\\n' {march} {mtune}
   echo '  Known valid arguments for -march= option:' ;;
esac
"""
CLANG = """
case "$1" in
--version) echo "Debian clang version 14.0.6" ;;
*) echo ' (in-process) "/usr/lib/llvm-14/bin/clang" "-cc1" "-target-cpu" "znver3" "-target-feature" "+sse2"' >&2 ;;
esac
"""


def test_compiler_older_than_the_processor_is_recognized(tmp_path: Path) -> None:
    """As g++ 12.2 says on an Emerald Rapids."""
    path = write_script(tmp_path / "g++", GCC.format(march="cooperlake", mtune="generic"))
    compiler = cxx.describe_compiler(str(path))
    assert (compiler.name, compiler.architecture, compiler.tuning) == ("g++ 12.2.0", "cooperlake", "generic")
    assert compiler.knows_processor is False
    assert cxx.compiler_fact(compiler, is_checked=True).level == "fine"  # the check decides
    fact = cxx.compiler_fact(compiler, is_checked=False)
    assert fact.level == "note"
    assert "older than this processor" in fact.advice
    assert "-march=native is cooperlake, tuned for generic" in fact.summary


def test_compilers_that_know_the_processor(tmp_path: Path) -> None:
    gcc = cxx.describe_compiler(str(write_script(tmp_path / "g++", GCC.format(march="znver4", mtune="znver4"))))
    assert gcc.knows_processor is True
    assert cxx.compiler_fact(gcc, is_checked=False).level == "fine"
    clang = cxx.describe_compiler(str(write_script(tmp_path / "clang++", CLANG)))
    assert (clang.name, clang.architecture, clang.knows_processor) == ("clang++ 14.0.6", "znver3", True)


@pytest.mark.skipif(cxx.find_compiler() is None, reason="no C++ compiler here")
def test_installed_compiler_answers() -> None:
    path = cxx.find_compiler()
    assert path is not None
    compiler = cxx.describe_compiler(path)
    assert compiler.failure == ""
    assert compiler.name[-1].isdigit()
    if "g++" in compiler.name and platform.machine() == "x86_64":
        assert compiler.architecture
        assert compiler.tuning
