"""`llada doctor` on a good machine and on broken ones: sentences, exit codes, JSON, and never a traceback."""

import http.server
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from llada.system import machine
from llada.system.child_process import Answer, ask, run_limited
from llada.system.device import choose_device, choose_precision
from llada.system.doctor import KEYS
from llada.system.installation import OPTIONAL_PARTS, Package, look_up, packages_fact, part_fact
from llada.system.torch_facts import torch_fact
from tests.support.commands import RunCommand
from tests.support.documents import ROOT
from tests.support.installations import RIGHT, Report, doctor, installation, with_verdicts, write_script

BARE_PYTHON = sys._base_executable  # type: ignore[attr-defined]
GIGABYTE = 10**9
WRONG = 'Verdict("O2", "/usr/bin/g++", False, "gradients are NaN", 3.0)'


# What programs may rely on, next to "level" and "summary".
SCHEMA = {
    "llada": {"version", "folder"},
    "python": {"version", "executable", "system"},
    "dependencies": {"versions", "failures"},
    "torch": {"version", "cuda", "required", "failure"},
    "device": {"type", "description", "memory_bytes"},
    "precision": {"dtype", "reason"},
    "vector_instructions": {"capability", "avx512_bf16", "amx"},
    "threads": {"torch", "usable_cores", "logical_cores", "OMP_NUM_THREADS"},
    "memory": {"installed_bytes", "available_bytes", "limit_bytes"},
    "disk": {"folder", "free_bytes", "is_writable"},
    "compile_cache": {"folder", "free_bytes", "is_writable"},
    "load": {"cores", "busy_cores", "busiest", "average"},
    **{key: {"version", "required", "imports", "failure", "install"} for key in OPTIONAL_PARTS},
    "hub": {"endpoint", "is_offline", "is_reachable", "failure"},
    "compiler": {"path", "name", "architecture", "tuning", "failure", "knows_processor"},
    "compiled_code": {"is_right", "toolchain", "verdicts", "failure"},
}


def schema_of(facts: dict[str, Any]) -> dict[str, set[str]]:
    return {key: set(fact) - {"level", "summary"} for key, fact in facts.items()}


@pytest.fixture
def hub() -> Iterator[str]:
    """Address of a server that answers every request with 200 and nothing."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def bare(tmp_path: Path, *flags: str, environment: Mapping[str, str] | None = None, **parts: object) -> Report:
    """The report in a broken installation, of an interpreter without one of its own.

    Args:
        environment: further variables; folders of PYTHONPATH come before the installation's.
    """
    if sys.executable == BARE_PYTHON:
        pytest.skip("these tests run outside a virtual environment")
    broken, further = installation(tmp_path, **parts), environment or {}  # type: ignore[arg-type]
    search = filter(None, [further.get("PYTHONPATH"), broken["PYTHONPATH"]])
    variables = {**broken, **further, "PYTHONPATH": os.pathsep.join(search)}
    # -S, for what that interpreter has installed itself would stand in for what the installation lacks.
    return doctor(*flags, environment=variables, python=[BARE_PYTHON, "-S"])


# A good machine.


def test_good_machine_is_ready(tmp_path: Path, hub: str) -> None:
    report = doctor("--json", environment={**with_verdicts(tmp_path), "HF_HUB_OFFLINE": "", "HF_ENDPOINT": hub})
    assert report.code == 0, report.out + report.err
    content, facts = report.json, report.facts
    assert list(content) == ["is_ready", "problems", "notes", "facts"]
    assert content["is_ready"] is True
    assert content["problems"] == []
    assert list(facts) == list(KEYS)
    assert schema_of(facts) == SCHEMA
    precision = choose_precision("auto", choose_device("auto"))
    expected: dict[str, dict[str, object]] = {
        "llada": {"folder": str(ROOT / "src" / "llada")},
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "torch": {"version": torch.__version__, "cuda": torch.version.cuda, "failure": None},
        "device": {"type": choose_device("auto").type},
        "precision": {"dtype": str(precision.dtype).split(".")[1], "reason": precision.reason},
        "vector_instructions": {"capability": torch.backends.cpu.get_cpu_capability()},
        "threads": {"logical_cores": os.cpu_count()},
        "memory": {"installed_bytes": psutil.virtual_memory().total},
        "disk": {"folder": os.getcwd(), "is_writable": True},
        "hub": {"endpoint": hub, "is_offline": False, "is_reachable": True, "failure": None},
        "compiled_code": {"is_right": True, "toolchain": "native", "failure": None},
    }
    for key, values in expected.items():
        assert {name: facts[key][name] for name in values} == values
    assert facts["dependencies"]["versions"]["numpy"] == metadata.version("numpy")
    assert facts["dependencies"]["failures"] == {}
    for key in ("dependencies", "torch", "device", "precision", "compiled_code", "hub"):
        assert facts[key]["level"] == "fine"
    for key in ("peft", "bitsandbytes", "lm_eval", "transformers"):
        assert facts[key]["imports"] in (True, None)  # None: it is not installed


def test_report_has_one_aligned_ascii_line_a_fact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal of ASCII only; with little installed, for speed."""
    folder = tmp_path / "Übung"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    report = bare(tmp_path, without=("torch", "peft", "bitsandbytes", "lm_eval", "transformers"))
    assert report.out.isascii()
    assert "bung" in report.out
    table, *_, verdict = report.out.split("\n\n")
    lines = table.splitlines()
    names = [line[9:30].strip().replace(" ", "_").replace("lm-eval", "lm_eval") for line in lines]
    assert names == list(KEYS)
    assert {line[:9].strip() for line in lines} <= {"ok", "note", "PROBLEM"}
    assert all(line[29] == " " != line[30] for line in lines)  # where the third column begins
    assert verdict == "Not ready: 1 problem.\n"


def test_quick_neither_compiles_nor_calls(tmp_path: Path) -> None:
    environment = {**with_verdicts(tmp_path, "os.abort()"), "HF_HUB_OFFLINE": "", "HF_ENDPOINT": "http://127.0.0.1:9"}
    report = doctor("--quick", "--json", environment=environment)
    assert report.code == 0, report.out + report.err
    assert list(report.facts) == list(KEYS)
    assert report.facts["hub"] is None
    assert report.facts["compiled_code"] is None
    assert report.facts["peft"]["imports"] is None


def test_doctor_starts_without_torch() -> None:
    program = "import sys, llada.cli.doctor, llada.cli.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_mistaken_flags_are_refused(llada: RunCommand) -> None:
    assert llada("doctor", "--quik").code == 2


# Broken installations.


def test_missing_torch_is_a_problem(tmp_path: Path) -> None:
    report = bare(tmp_path, "--quick", without=("torch",))
    assert report.code == 1
    (line,) = [line for line in report.out.splitlines() if line.startswith("- torch")]
    assert line.startswith("- torch is not installed, and nothing runs without it: pip install 'torch")
    assert report.out.endswith("\nNot ready: 1 problem.\n")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise OSError('libcudart.so.12: cannot open shared object file')", "OSError: libcudart.so.12: cannot open"),
        ("import os; os.abort()", "crashed (SIGABRT)"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
    ],
)
def test_torch_that_cannot_be_imported_is_a_problem(tmp_path: Path, source: str, reason: str) -> None:
    report = bare(tmp_path, "--quick", "--json", without=("torch",), modules={"torch": source, "torch-2.13.0": ""})
    assert report.code == 1
    (problem,) = report.json["problems"]
    assert problem.startswith("torch 2.13.0 cannot be imported (")
    assert reason in problem
    assert "pip install --force-reinstall 'torch" in problem
    assert report.facts["torch"]["version"] == "2.13.0"
    assert report.facts["device"]["type"] is None


def test_old_torch_is_a_problem(tmp_path: Path) -> None:
    source = "import types\n__version__, version = '2.0.0', types.SimpleNamespace(cuda='11.7', hip=None)\n"
    source += "def get_num_threads(): return 1\n"
    report = bare(tmp_path, "--quick", "--json", without=("torch",), modules={"torch": source, "torch-2.0.0": ""})
    assert report.code == 1
    (problem,) = report.json["problems"]
    assert problem.startswith("torch 2.0.0 is too old: pip install 'torch")
    assert report.facts["threads"]["torch"] == 1  # what this torch can say, it says


@pytest.mark.parametrize("name", ["tyro", "psutil", "rich", "huggingface_hub", "packaging"])
def test_missing_dependency_is_no_traceback(tmp_path: Path, name: str) -> None:
    """torch is left out too, for speed."""
    report = bare(tmp_path, "--json", "--quick", without=(name, "torch"))
    assert report.code == 1
    assert list(report.facts) == list(KEYS)
    needed = [line for line in metadata.requires("llada-trainer") or [] if line.startswith(name)]
    if needed:
        assert f"{name.replace('_', '-')} (not installed)" in " ".join(report.json["problems"])


def test_broken_dependency_is_a_problem(tmp_path: Path) -> None:
    report = bare(
        tmp_path, "--json", "--quick", without=("torch", "pooch"), modules={"pooch": "1/0", "pooch-1.8.2": ""}
    )
    assert report.facts["dependencies"]["failures"] == {"pooch": "ZeroDivisionError: division by zero"}
    assert "pooch (ZeroDivisionError: division by zero)" in " ".join(report.json["problems"])


def test_broken_optional_part_is_a_note(tmp_path: Path) -> None:
    start = with_verdicts(tmp_path)
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "peft.py").write_text("raise RuntimeError('Failed to import because of:\\n numpy')")
    (modules / "bitsandbytes.py").write_text("import os; os.abort()")
    report = doctor("--json", environment={"PYTHONPATH": f"{modules}{os.pathsep}{start['PYTHONPATH']}"})
    assert report.code == 0
    for name, reason in (("peft", "RuntimeError: Failed to import because of"), ("bitsandbytes", "crashed (SIGABRT)")):
        fact = report.facts[name]
        if fact["version"] is None:
            assert fact["summary"].startswith("not installed: pip install 'llada-trainer[")
        else:
            assert (fact["level"], fact["imports"], fact["failure"]) == ("note", False, reason)
            assert any(note.startswith(f"{name} {fact['version']} is installed but") for note in report.json["notes"])


def test_optional_parts_that_are_missing_are_named_with_their_install(tmp_path: Path) -> None:
    report = bare(tmp_path, "--json", "--quick", without=("torch", "peft", "lm_eval"))
    assert report.facts["peft"]["summary"] == "not installed: pip install 'llada-trainer[lora]'"
    assert report.facts["peft"]["level"] == "fine"
    assert report.facts["lm_eval"]["summary"] == "not installed: pip install 'llada-trainer[eval]'"


def test_versions_are_compared_with_the_range() -> None:
    def package(required: str, version: str) -> tuple[bool, bool]:
        found = look_up("torch", required, version)
        return found.is_older, found.is_newer

    assert package(">=2.11,<3", "2.11.0+cu128") == (False, False)
    assert package(">=2.11,<3", "2.10.1") == (True, False)
    assert package(">=2.11,<3", "3.0.0") == (False, True)
    assert package(">=2.11,<3", "2.14.0.dev20261101") == (False, False)
    assert package("==2.13.0", "2.13.0+cpu") == (False, False)
    assert package("==2.13.0", "2.12.1") == (True, False)
    newer = Package("torch", "<3", "3.0.0", is_newer=True)
    assert torch_fact(newer, Answer({"version": "3.0.0"}), has_nvidia=False).level == "note"
    assert packages_fact([newer], {}).level == "note"
    assert part_fact("torch", newer, "torch", failure="").level == "note"


def test_gpu_that_torch_cannot_use_is_a_note() -> None:
    answer = Answer({"version": "2.13.0+cpu", "cuda": None, "device": {"value": {"type": "cpu"}}})
    fact = torch_fact(Package("torch", "", "2.13.0"), answer, has_nvidia=True)
    assert fact.level == "note"
    assert "install torch's CUDA build" in fact.advice
    answer.value["cuda"] = "12.8"
    assert "check its driver" in torch_fact(Package("torch", "", "2.13.0"), answer, has_nvidia=True).advice
    answer.value["device"]["value"]["type"] = "cuda"
    assert torch_fact(Package("torch", "", "2.13.0"), answer, has_nvidia=True).level == "fine"


@pytest.mark.parametrize(
    "more",
    [
        "import os, psutil\nfor name in ('sysconf', 'sched_getaffinity', 'getloadavg'): delattr(os, name)",
        "import sys, psutil; sys.modules['resource'] = sys.modules['fcntl'] = None",
    ],
    ids=["no_sysconf", "no_resource"],
)
def test_other_systems_have_less_and_get_a_report(tmp_path: Path, more: str) -> None:
    report = doctor("--json", "--quick", environment=with_verdicts(tmp_path, more=more))
    assert report.code == 0, report.out
    assert list(report.facts) == list(KEYS)


def test_no_home_folder(tmp_path: Path) -> None:
    report = doctor("--quick", environment={"HOME": "/nonexistent", "PYTHONPATH": str(ROOT / "src")})
    assert report.code == 0, report.out


# Compilers.


def test_no_compiler_and_no_hub_is_ready(tmp_path: Path) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    environment = {**with_verdicts(tmp_path, "[]"), **offline, "PATH": str(tmp_path), "CXX": ""}
    report = bare(tmp_path, "--json", environment=environment, without=tuple(OPTIONAL_PARTS))  # they take long
    assert report.code == 0
    assert report.facts["compiler"]["path"] is None
    (note,) = [note for note in report.json["notes"] if "compiler" in note]
    assert note.startswith("There is no C++ compiler, so runs go on uncompiled")
    assert "apt install g++" in note
    assert report.facts["compiled_code"]["is_right"] is None
    assert report.facts["compiled_code"]["level"] == "fine"
    fact = report.facts["hub"]  # not asked
    assert (fact["level"], fact["is_offline"], fact["is_reachable"]) == ("fine", True, None)


def test_keys_stay_where_nothing_is_known(tmp_path: Path) -> None:
    without = ("torch", "huggingface_hub", *OPTIONAL_PARTS)
    report = bare(tmp_path, "--json", without=without)
    assert report.code == 1
    assert schema_of(report.facts) == SCHEMA
    assert report.facts["device"] == {
        "level": "note", "summary": "not known: torch cannot be imported", "type": None, "description": None,
        "memory_bytes": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("verdicts", "level", "toolchain", "words"),
    [
        (f"[{WRONG}, {RIGHT}]", "note", "native", "(O2: gradients are NaN), so runs use native"),
        (
            f"[{WRONG}]",
            "note",
            None,
            "No compiler setting gives right code here (O2: gradients are NaN), so runs go on",
        ),
        ("os.abort()", "note", None, "could not be checked (crashed (SIGABRT))"),
        ("1 / 0", "note", None, "could not be checked (ZeroDivisionError: division by zero)"),
    ],
)
def test_wrong_compiled_code_is_a_note(tmp_path: Path, verdicts: str, level: str, toolchain: str, words: str) -> None:
    variables = with_verdicts(tmp_path, verdicts)
    program = (
        "import json; from llada.system.doctor import _compiled_code as find; fact = find();"
        "print(json.dumps([fact.level, fact.values['toolchain'], fact.advice]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **variables}, capture_output=True, text=True, check=True
    )
    found_level, found_toolchain, advice = json.loads(result.stdout)
    assert (found_level, found_toolchain) == (level, toolchain)
    assert words in advice


# The hub.


def test_hub_that_does_not_answer_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    from llada.system import doctor as module

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(module, "HUB_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the call and says nothing
        for port in (silent.getsockname()[1], 9):
            monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
            fact = module._hub()
            assert fact.level == "note"
            assert fact.values["is_reachable"] is False
            assert fact.advice.startswith("The Hugging Face hub could not be reached (")
            assert fact.advice.count(". ") == 0


# The machine.


def test_memory_that_the_demo_lacks() -> None:
    unknown = Answer(failure="torch is missing")
    assert machine.memory_fact(8 * GIGABYTE, 4 * GIGABYTE, unknown).level == "fine"
    note = machine.memory_fact(8 * GIGABYTE, GIGABYTE // 2, unknown)
    assert (note.level, note.values["available_bytes"]) == ("note", GIGABYTE // 2)
    assert note.advice.endswith("500 MB is available: close other programs first.")
    assert machine.memory_fact(GIGABYTE, GIGABYTE, unknown).level == "problem"
    container = Answer({"memory": {"value": {"usable_bytes": GIGABYTE, "free_bytes": GIGABYTE // 2}}})
    limited = machine.memory_fact(64 * GIGABYTE, 60 * GIGABYTE, container)
    assert limited.level == "problem"
    assert (limited.values["limit_bytes"], limited.values["available_bytes"]) == (GIGABYTE, GIGABYTE // 2)
    assert limited.advice.endswith("raise the container's or the shell's limit.")


def test_full_disk_and_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.folder_fact("disk", tmp_path, "free some", "problem").level == "fine"
    gone = machine.folder_fact("disk", Path("/dev/null/folder"), "free some", "problem")
    assert (gone.level, gone.values["is_writable"]) == ("problem", False)
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(100 * GIGABYTE, 99, 999_000_000))
    full = machine.folder_fact("disk", tmp_path, "free some space", "problem")
    assert full.level == "problem"
    assert full.advice == f"The disk of {tmp_path} has 999 MB left, and 1.0 GB should be free: free some space."
    assert machine.folder_fact("compile_cache", tmp_path, "free some", "note").level == "note"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no folder that nobody can write")
def test_folder_that_nobody_can_write_is_a_problem() -> None:
    report = doctor("--quick", environment={"PYTHONPATH": str(ROOT / "src")}, cwd=Path("/proc"))
    assert report.code == 1
    assert "- /proc cannot be written" in report.out


@pytest.mark.skipif(os.name != "posix", reason="a folder in use cannot be removed there")
def test_folder_that_was_removed_is_a_problem(tmp_path: Path) -> None:
    command = (
        f"mkdir {tmp_path}/gone && cd {tmp_path}/gone && rmdir ../gone && {sys.executable} -P -m llada doctor --quick"
    )
    result = subprocess.run(
        ["sh", "-c", command],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    report = Report(result)
    assert report.code == 1
    assert "- The current folder is not there any more" in report.out
    assert "1 problem." in report.out  # torch, which does not start there, is not blamed


def test_compile_cache_that_cannot_be_made_is_a_note(tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(ROOT / "src"), "LLADA_COMPILE_CACHE": "/dev/null/cache"}
    report = doctor("--quick", "--json", environment=environment)
    assert report.code == 0
    assert report.facts["compile_cache"]["level"] == "note"


def test_threads_are_compared_with_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    answer = Answer({"threads": {"value": 16}})
    assert machine.threads_fact(answer, 16.0, 32).level == "fine"
    fact = machine.threads_fact(answer, 2.5, 32)
    assert fact.level == "note"
    assert fact.advice.endswith("set OMP_NUM_THREADS=2.")
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(machine, "_QUOTA", quota)
    without_quota = machine.usable_cores()
    quota.write_text("max 100000\n")
    assert machine.usable_cores() == without_quota >= 1
    quota.write_text("50000 100000\n")
    assert machine.usable_cores() == 0.5


def test_other_work_is_seen(tmp_path: Path) -> None:
    program = "import sys\nprint(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as busy:
        try:
            assert busy.stdout is not None
            busy.stdout.readline()
            load = machine.measure_load(seconds=1.0)
        finally:
            busy.kill()
    assert load.busy_cores > 0.2
    assert any(name.startswith("python") and share > 0.1 for name, share in load.busiest.items())


def test_load_is_judged_by_the_share_of_the_machine() -> None:
    assert machine.load_fact(machine.Load(16, 3.0, {"make": 3.0}, 3.0)).level == "fine"
    fact = machine.load_fact(machine.Load(2, 1.9, {"python": 1.5, "cc1plus": 0.4}, 3.0))
    assert fact.level == "note"
    assert "1.9 of 2 cores busy (python 1.5, cc1plus 0.4)" in fact.advice


# Children.


def test_children_answer_or_say_why_not() -> None:
    assert ask("llada.system.format", "bytes_in_words", seconds=300).failure.startswith("TypeError")
    assert ask("platform", "python_version", seconds=300) == Answer(platform.python_version())
    assert ask("os", "abort", seconds=300).failure == "crashed (SIGABRT)"
    assert ask("no_such_module", "f", seconds=300).failure == "ModuleNotFoundError: No module named 'no_such_module'"
    assert run_limited([sys.executable, "-c", "import time; time.sleep(60)"], 0.2).failure == "took longer than 0.2 s"
    assert run_limited(["/nonexistent/g++"], 1).failure == "cannot be run: No such file or directory"


@pytest.mark.skipif(os.name != "posix", reason="the shell's redirections")
@pytest.mark.parametrize(("redirection", "codes"), [(">&-", (0,)), ("| true", (0, 130)), ("> /dev/full", (2,))])
def test_output_that_nobody_takes_is_no_traceback(redirection: str, codes: tuple[int, ...]) -> None:
    command = f"set -o pipefail; {sys.executable} -P -m llada doctor --quick {redirection}"
    result = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert Report(result).code in codes


# The demo.


@pytest.mark.parametrize(("code", "commands"), [(1, ["doctor --quick"]), (0, ["doctor --quick", "prepare"])])
def test_demo_asks_first_and_stops_at_a_problem(tmp_path: Path, code: int, commands: list[str]) -> None:
    calls = tmp_path / "calls"
    write_script(tmp_path / "llada", f'echo "$*" >> {calls}; [ "$1" = doctor ] && exit {code}; exit 7')
    environment = {
        **os.environ,
        "BIN": os.path.relpath(tmp_path, ROOT),
        "DEMO_DATA": str(tmp_path / "data"),
        "DEMO_RUN": str(tmp_path / "run"),
    }
    result = subprocess.run([ROOT / "scripts" / "demo"], env=environment, capture_output=True, check=False)
    assert result.returncode == (code or 7)
    called = calls.read_text().splitlines()
    assert [line[: len(name)] for line, name in zip(called, commands, strict=True)] == commands
