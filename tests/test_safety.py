"""Safe by default: no code from files, no unpacking of archives to disk, no network unless a command is for that."""

import ast
import socket
from pathlib import Path
from typing import Any

import pytest

from llada import cli
from llada.data.prepared import PreparedText

PACKAGE = Path(__file__).parents[1] / "src" / "llada"
FILES = sorted(PACKAGE.rglob("*.py"))
# Calls that run what they are given, or put the files of an archive wherever it says.
FORBIDDEN_CALLS = {"eval", "exec", "compile_command", "extract", "extractall", "unpack_archive", "system", "popen"}
FORBIDDEN_OPTIONS = {"trust_remote_code", "shell", "allow_pickle"}


def calls_of(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_runs_what_it_is_given(path: Path) -> None:
    for call in calls_of(path):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        is_method_of_ours = name == "eval" and isinstance(
            call.func, ast.Attribute
        )  # torch's switch, which takes nothing
        assert name not in FORBIDDEN_CALLS or (is_method_of_ours and not call.args), f"{path.name}:{call.lineno}"
        options = {option.arg for option in call.keywords}
        assert not options & FORBIDDEN_OPTIONS, f"{path.name}:{call.lineno}"


def test_the_probe_finds_what_it_looks_for(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("zip.extractall(x)\nload(y, trust_remote_code=True)\nmodel.eval()\n")
    names = [call.func.attr for call in calls_of(path) if isinstance(call.func, ast.Attribute)]
    assert names == ["extractall", "eval"]


def test_training_and_using_a_model_needs_no_network(
    data: PreparedText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a connection was asked for")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    run, place = str(tmp_path / "run"), ["--data_dir", str(data.folder)]
    small = ["--preset", "tiny", "--d_model", "16", "--n_layers", "1", "--sequence_length", "24", "--steps", "2"]
    for command in (
        ["train", *small, *place, "--evaluation_windows", "2", "--output_dir", run],
        ["sample", "--checkpoint", run, "--steps", "2"],
        ["export", "--checkpoint", run, "--output_dir", str(tmp_path / "exported")],
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(command)
        assert not end.value.code, capsys.readouterr().err
