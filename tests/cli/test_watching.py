"""`llada sample --watch` and `--film`: the text on its way, in terminals of all kinds, and in files."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llada.cli import watching
from llada.data.prepared import PreparedText
from llada.films.frames import frames_of
from llada.films.write import KINDS
from llada.training.config import DataOptions, NetworkOptions, TrainConfig
from tests.support.commands import PATIENCE, RunCommand, assert_one_sentence
from tests.support.runs import train

CODES = re.compile(r"\x1b\[(\?)?([\d;]*)([A-Za-z])")
MASKED = "to <MASK*12>or<MASK>"


@pytest.fixture(scope="module")
def trained(data: PreparedText, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has hardly learned anything."""
    folder = tmp_path_factory.mktemp("watched") / "run"
    options = DataOptions(data_dir=(data.folder,), sequence_length=24)
    network = NetworkOptions(d_model=16, n_heads=2, n_layers=1)
    config = TrainConfig(network=network, data=options, output_dir=folder, batch_size=4, steps=4, device="cpu")
    train(config, data)
    return folder


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "MOST_STEPS_PER_SECOND", 1e9)


def read_all(master: int) -> Callable[[], str]:
    """Read a terminal in the background; what is returned waits for its end."""
    found: list[bytes] = []

    def read() -> None:
        while True:
            try:
                piece = os.read(master, 1 << 16)
            except OSError:  # the other side is closed
                return
            if not piece:
                return
            found.append(piece)

    thread = threading.Thread(target=read)
    thread.start()

    def wait() -> str:
        thread.join(PATIENCE)
        os.close(master)
        return b"".join(found).decode()

    return wait


def test_films_of_all_kinds_are_kept(llada: RunCommand, trained: Path, tmp_path: Path) -> None:
    films = [tmp_path / f"film{kind}" for kind in KINDS]
    result = llada("sample", "--checkpoint", trained, "--template", MASKED, "--film", *films, "--colour_by", "age")
    assert result.code == 0, result.err
    assert f"The film is {' and '.join(map(str, films))}." in result.err
    assert all(film.stat().st_size > 1000 for film in films)
    page = (tmp_path / "film.html").read_text(encoding="utf-8")
    (data,) = re.findall(r'id="events">(.*?)</script>', page, re.DOTALL)
    events: list[dict[str, Any]] = json.loads(data)
    assert events[-1]["text"] == result.out.removesuffix("\n")
    assert "".join(str(place.text) for place in frames_of(events)[-1].places) == events[-1]["text"]
    assert [place.is_given for place in frames_of(events)[0].places] == [True] * 3 + [False] * 12 + [True] * 2 + [False]
    assert (events[0]["seed"], events[0]["model"], len(events[0]["fingerprint"])) == (0, "run", 16)
    assert all(len(token["alternatives"]) == 5 for event in events[1:-1] for token in event["revealed"])


def test_of_several_texts_the_first_is_filmed(llada: RunCommand, trained: Path, tmp_path: Path) -> None:
    arguments = ["sample", "--checkpoint", trained, "--n_samples", 3, "--gen_length", 8, "--json", "--seed", 5]
    result = llada(*arguments, "--film", tmp_path / "film.html")
    assert "The film of the first of 3 texts is" in result.err
    (data,) = re.findall(r'id="events">(.*?)</script>', (tmp_path / "film.html").read_text("utf-8"), re.DOTALL)
    assert json.loads(data)[-1]["text"] == json.loads(result.out)["samples"][0]
    assert json.loads(llada(*arguments).out)["samples"] == json.loads(result.out)["samples"]


@pytest.mark.parametrize("flag", ["--watch", "--show"])
def test_without_a_terminal_only_the_text_is_printed(llada: RunCommand, trained: Path, flag: str) -> None:
    result = llada("sample", "--checkpoint", trained, "--template", MASKED, flag)
    assert result.code == 0
    assert re.fullmatch(r"to (?s:.{12})or(?s:.)\n", result.out)
    assert "standard error is not a terminal that can draw." in result.err
    assert "░" not in result.out + result.err


def test_a_film_that_cannot_be_written_is_refused_before_the_model_is_opened(llada: RunCommand, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    result = llada("sample", "--checkpoint", nowhere, "--film", "a.svg", "film.mp4")
    assert_one_sentence(result, "film.mp4", ".gif, .html, .svg or .cast")
    (tmp_path / "file").touch()
    result = llada("sample", "--checkpoint", nowhere, "--film", tmp_path / "file" / "film.svg")
    assert_one_sentence(result, "is a file: choose another folder")
    assert_one_sentence(llada("sample", "--checkpoint", nowhere, "--film", ""), "--film has an empty value")
    result = llada("sample", "--checkpoint", nowhere, "--colour_by", "size")
    assert_one_sentence(result, "--colour_by must be one of age, confidence")


def test_a_text_that_is_written_piece_by_piece_has_no_film(llada: RunCommand, trained: Path) -> None:
    result = llada("sample", "--checkpoint", trained, "--slide", "--gen_length", 40, "--film", "film.svg")
    assert_one_sentence(result, "--slide writes piece by piece", "--watch and --film")


@pytest.mark.parametrize("columns", [40, 120])
@pytest.mark.parametrize("colours", [True, False])
def test_a_terminal_shows_the_text_as_it_unmasks(
    llada: RunCommand, trained: Path, monkeypatch: pytest.MonkeyPatch, columns: int, colours: bool
) -> None:
    master, slave = pty.openpty()
    wait = read_all(master)
    for name, value in {"COLUMNS": str(columns), "LINES": "24", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    for name in ("COLORTERM", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    if not colours:
        monkeypatch.setenv("NO_COLOR", "1")
    with os.fdopen(slave, "w", encoding="utf-8") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        result = llada("sample", "--checkpoint", trained, "--gen_length", 24, "--watch", "--policy", "random")
    shown = wait()
    assert (result.code, len(result.out)) == (0, 25)
    for n_masked in (24, 12, 1):
        assert f"{n_masked} masked" in CODES.sub("", shown)
    assert "finished" in CODES.sub("", shown)
    assert max(map(len, CODES.sub("", shown).replace("\r", "\n").split("\n"))) <= columns
    assert ("38;5;" in shown) is colours
    assert "\x1b[2m" in shown  # dim masks, with and without colours
    assert "24 evaluations of the network" in shown


def test_a_command_draws_on_its_terminal_and_leaves_the_text(trained: Path) -> None:
    """In a process of its own, with a real terminal of 40 columns for everything."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 40, 0, 0))
    wait = read_all(master)
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    command = [sys.executable, "-m", "llada", "sample", "--checkpoint", str(trained), "--gen_length", "20", "--watch"]
    with subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env={**environment, "TERM": "xterm"}
    ) as process:
        os.close(slave)
        assert process.wait(PATIENCE) == 0
    shown = wait()
    assert "\x1b[?25l" in shown  # the cursor is hidden
    assert "\x1b[?25h" in shown  # and comes back
    lines = CODES.sub("", shown).replace("\r", "\n").split("\n")
    assert max(map(len, lines)) <= 60  # the last line, of the evaluations, is not drawn but printed
    assert re.search(r"20 evaluations of the network in \d", lines[-2] or lines[-3])
