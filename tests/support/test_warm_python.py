"""A warm process is seen from outside as a new one is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.warm_python import write_command

PROGRAM = """
import os, sys
print(os.getcwd(), sys.argv[1:], os.environ["COLOUR"], sys.stdin.read(), flush=True)
print(__name__, "words for people", file=sys.stderr)
"""
ENDS = {
    "sys.exit(3)": 3,
    "sys.exit('a sentence')": 1,
    "raise ValueError('unforeseen')": 1,
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)": -9,
    "": 0,
}


@pytest.mark.parametrize(("end", "code"), ENDS.items())
@pytest.mark.parametrize("is_script", [False, True])
def test_arguments_streams_folder_environment_and_exit_code(
    is_script: bool, end: str, code: int, warm_python: list[str], tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(PROGRAM + end)
    what = ["script.py"] if is_script else ["-c", PROGRAM + end]
    new, warm = (
        subprocess.run(
            [*python, *what, "two words", "ä"], cwd=tmp_path, env={**os.environ, "COLOUR": "green"},
            input="from outside", capture_output=True, text=True, check=False,
        )
        for python in ([sys.executable], warm_python)
    )  # fmt: skip
    assert new.returncode == warm.returncode == code
    assert warm.stdout == new.stdout
    assert "['two words', 'ä'] green from outside" in warm.stdout
    assert warm.stderr.splitlines()[-1:] == new.stderr.splitlines()[-1:]


def test_a_module_runs_and_a_written_command_passes_its_arguments_on(warm_python: list[str], tmp_path: Path) -> None:
    write_command(tmp_path / "llada", *warm_python, "-m", "llada")
    new, warm = (
        subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
        for command in ([sys.executable, "-m", "llada"], [tmp_path / "llada"])
    )
    assert warm == new


def test_it_has_torch_from_the_start(warm_python: list[str]) -> None:
    program = "import sys; sys.exit(not {'torch', 'llada.cli.train'} <= set(sys.modules))"
    assert warm_python == [sys.executable] or subprocess.run([*warm_python, "-c", program], check=False).returncode == 0
