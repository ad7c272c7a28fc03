"""What a stranger's text may send to a terminal: nothing that it obeys."""

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from llada.data.prepared import PreparedText
from llada.system.console import print_rich
from llada.system.terminal import fit_for, visible
from tests.support.commands import PATIENCE

HOSTILE = "\x1b]52;c;ZXZpbA==\x07\x1b[2J\x9b31m\x7f\r\x08 \u202eabc\u2066 \u061c\U000e0041 \x00"
OBEYED = ("\x1b]52", "\x1b[2J", "\x9b", "\x7f", "\x08", "\u202e", "\u2066", "\u061c", "\U000e0041", "\x00", "\x07")

ALL_WAYS = """
import sys
from rich.live import Live
from rich.text import Text
from llada.system.console import StderrConsole
from llada.system.environment import allow_any_text
from llada.system.terminal import note, say, tell
from llada.training.progress_bar import Display
allow_any_text()
hostile = sys.argv[1].encode().decode("unicode_escape")
tell(hostile); note(hostile); say(hostile); tell(hostile, ahead="\\x1b[1mours\\x1b[0m ")
console = StderrConsole()
console.print(hostile, style="bold")
console.print(Text(hostile))
with Live(console=console, auto_refresh=False) as live:
    live.update(Text(hostile), refresh=True)
with Display(console, 10) as display:
    display.say(hostile)
    display.update(1, 0.1, hostile, 1.0)
"""


def on_a_terminal(command: list[str], **variables: str) -> str:
    """What a program sends to a terminal that both of its streams go to."""
    ours, its = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "200", "PYTHONIOENCODING": "utf-8", **variables}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=its, stderr=its, env=environment)
    os.close(its)
    received = b""
    try:
        while piece := os.read(ours, 1 << 16):
            received += piece
    except OSError:  # how Linux says that nobody holds the other end any more
        pass
    finally:
        os.close(ours)
    assert process.wait(PATIENCE) == 0, received
    return received.decode()


def test_signs_are_shown_in_place_of_what_is_obeyed() -> None:
    assert visible("a\x1b[2Jb\x07\r\n\tc\x7f\x9bd\u202ee") == "a␛[2Jb␇␍\n\tc␡\ufffdd\ufffde"
    plain = "Été, 世界, عربى, 👩\u200d🚀: £5 – “quoted”\n\tand so on"
    assert visible(plain) == plain
    assert len(visible(HOSTILE)) == len(HOSTILE)


def test_files_and_pipes_get_the_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit_for(io.StringIO(), HOSTILE) == HOSTILE
    out = subprocess.run(
        [sys.executable, "-c", "import sys; from llada.system.terminal import tell; tell(sys.argv[1])", "a\x1b[2Jb"],
        stdout=subprocess.PIPE, check=True,
    ).stdout  # fmt: skip
    assert out.rstrip() == b"a\x1b[2Jb"


def test_no_way_to_the_terminal_lets_them_pass() -> None:
    said = on_a_terminal([sys.executable, "-c", ALL_WAYS, HOSTILE.encode("unicode_escape").decode()])
    for sequence in OBEYED:
        assert sequence not in said.replace("\x1b[1mours\x1b[0m", ""), repr(sequence)
    assert said.count("␛]52;c;ZXZpbA==") >= 8
    assert "\x1b[1mours\x1b[0m ␛]52" in said


def test_a_folder_with_a_hostile_name_is_shown(data: PreparedText, tmp_path: Path) -> None:
    """Through a whole command, which names the folder that it wrote."""
    source = tmp_path / "text.txt"
    source.write_text("to be or not to be " * 50, encoding="utf-8")
    target = tmp_path / "a\x1b]0;title\x07b"
    command = [sys.executable, "-m", "llada", "prepare", "--source", "file", "--input", str(source)]
    said = on_a_terminal([*command, "--output_dir", str(target), "--sequence_length", "20"])
    assert "\x1b]0" not in said
    assert "a␛]0;title␇b" in said
    assert (target / "metadata.json").is_file()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_stream_that_lacks_characters_ends_nothing(encoding: str) -> None:
    program = "from llada.system.environment import allow_any_text as a; from llada.system.terminal import tell; a(); "
    done = subprocess.run(
        [sys.executable, "-c", program + "tell('░ 世')"], env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout.rstrip() == rb"\u2591 \u4e16"


def test_a_reader_that_has_gone_ends_a_picture_like_any_other_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich's own console would exit with 1, which no command of ours does."""
    reads, writes = os.pipe()
    os.close(reads)
    with open(writes, "wb", buffering=0) as stream:
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(stream, encoding="utf-8", write_through=True))
        with pytest.raises(BrokenPipeError):
            print_rich("a table")
