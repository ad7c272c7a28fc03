"""Files are opened as what they should be: nothing is waited for, no device is read, and no link is written through."""

import errno
import hashlib
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from llada.checkpoints.run_layout import each_row, followed
from llada.checkpoints.safetensors import StoredWeights
from llada.system import regular_files
from llada.system.checksums import find_damage, write_checksums
from llada.system.errors import UserError
from llada.system.files import read_json, sha256_of
from llada.system.locks import LOCK_FILE, locked
from llada.system.regular_files import (
    append_own,
    check_regular,
    make_own_folder,
    open_own,
    open_regular,
    read_bounded,
    read_optional,
)
from llada.tokenizers.char import CharTokenizer
from llada.training.metrics import MetricsFile
from llada.training.pruning import keep_for
from tests.support.sentences import assert_one_sentence

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


NO_FILES = pytest.mark.parametrize("make", [make_pipe, make_link_to_device, make_socket, Path.mkdir])


def read_regular(path: Path) -> None:
    with open_regular(path):
        pass


def in_time(act: Callable[[], object]) -> BaseException | None:
    """What an act raises; it must not take longer than a machine that does other work does for nothing."""
    raised: list[BaseException | None] = []

    def run() -> None:
        try:
            act()
            raised.append(None)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert raised, "it waits for ever"
    return raised[0]


READERS: dict[str, Callable[[Path], object]] = {
    "open": read_regular,
    "check": check_regular,
    "hash": sha256_of,
    "json": read_json,
    "bounded": lambda path: read_bounded(path, 9),
    "metrics": lambda path: list(each_row(path)),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@NO_FILES
def test_what_is_no_file_is_refused_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], read: Callable[[Path], object]
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    make(Path("thing"))
    error = in_time(lambda: read(Path("thing")))
    assert isinstance(error, UserError)
    assert_one_sentence(error)
    assert "is not a regular file" in str(error)


@NO_FILES
def test_no_reader_of_a_folder_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    """Each where a checkpoint or a run has a file of its own."""
    monkeypatch.chdir(tmp_path)
    readers: dict[str, Callable[[], object]] = {
        "vocab.json": lambda: CharTokenizer.load(Path()),
        "checksums.json": lambda: _raise(find_damage(Path())),
        "model.safetensors": lambda: StoredWeights.of(Path()),
        "metrics.jsonl": lambda: MetricsFile(Path("metrics.jsonl"), 0),
        ".llada.lock": lambda: locked(Path(), inside=True).__enter__(),
    }
    for name, read in readers.items():
        make(Path(name))
        if (name, make) == (".llada.lock", make_link_to_device):
            continue  # below
        assert isinstance(in_time(read), UserError | OSError), name


def _raise(damage: str | None) -> None:
    if damage:
        raise UserError(damage)


def test_a_file_with_a_size_that_no_such_file_has_is_not_read(tmp_path: Path) -> None:
    """Sparse files of a terabyte: refused by what is on the disk, before a hash of it is begun."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\1")
    write_checksums(tmp_path)
    os.truncate(path, 1 << 40)
    with pytest.raises(UserError, match=r"is not on the disk but for a part \(1,099,\d{3},\d{3},\d{3} of") as caught:
        sha256_of(path)
    assert_one_sentence(caught.value)
    assert find_damage(tmp_path) == "model.safetensors is not a whole file"
    os.truncate(tmp_path / "checksums.json", 1 << 40)
    with pytest.raises(UserError, match=r"checksums\.json has more than 16,000,000 bytes"):
        read_json(tmp_path / "checksums.json")
    os.truncate(path, 3)
    assert sha256_of(path) == hashlib.sha256(b"\1\0\0").hexdigest()


def test_holes_of_a_usual_size_are_no_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What copies leave out that find zeros; the limit is on what is missing, not on the size."""
    monkeypatch.setattr(regular_files, "LARGEST_HOLES", 1 << 20)
    path = tmp_path / "file"
    with path.open("wb") as file:
        for n in range(4):
            file.seek(n << 19)
            file.write(b"x" * (1 << 18))
    read = path.read_bytes()
    with open_regular(path) as file:
        regular_files.check_holes(path, file)
        assert file.read() == read


def test_lines_of_metrics_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n')
    os.truncate(path, 1 << 40)
    assert in_time(lambda: _equal(list(each_row(path)), [{"step": 1}])) is None


def _equal(found: object, expected: object) -> None:
    assert found == expected


# Writing in place


@pytest.mark.parametrize("leads_to", ["victim", "nowhere"])
def test_no_link_is_written_through(tmp_path: Path, leads_to: str) -> None:
    """Whatever writes in place: the lock inside and next to a folder, metrics, the list of adapters, samples."""
    (tmp_path / "victim").write_bytes(b"mine")
    step = tmp_path / "run" / "checkpoints" / "step-00000001"
    step.mkdir(parents=True)
    for path in (
        tmp_path / ".out.llada.lock",
        tmp_path / "run" / ".llada.lock",
        step / "adapters.txt",
        tmp_path / "own",
    ):
        path.symlink_to(tmp_path / leads_to)
    writers: list[Callable[[], object]] = [
        lambda: locked(tmp_path / "out").__enter__(),
        lambda: locked(tmp_path / "run", inside=True).__enter__(),
        lambda: keep_for(tmp_path / "other", step),
        lambda: open_own(tmp_path / "own", os.O_WRONLY | os.O_TRUNC),
        lambda: append_own(tmp_path / "own", "text"),
        lambda: make_own_folder(tmp_path / "own"),
    ]
    for write in writers:
        error = in_time(write)
        assert isinstance(error, UserError)
        assert "is a link, which is not followed to write there" in str(error)
        assert_one_sentence(error)
    assert (tmp_path / "victim").read_bytes() == b"mine"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("leads_to", ["victim", "nowhere"])
def test_metrics_in_the_place_of_a_link_are_a_file(tmp_path: Path, leads_to: str) -> None:
    (tmp_path / "victim").write_bytes(b'{"step": 1}\n{"step": 9}\n')
    path = tmp_path / "metrics.jsonl"
    path.symlink_to(tmp_path / leads_to)
    MetricsFile(path, 3).write({"step": 4})
    assert not path.is_symlink()
    assert path.read_bytes() == (b'{"step": 1}\n' if leads_to == "victim" else b"") + b'{"step": 4}\n'
    assert (tmp_path / "victim").read_bytes() == b'{"step": 1}\n{"step": 9}\n'
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="the system follows links")
def test_a_link_that_comes_in_between_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").symlink_to(tmp_path / "nowhere")
    monkeypatch.setattr(regular_files, "check_no_link", lambda path: None)
    with pytest.raises(OSError, match=r"\[Errno") as caught:
        open_own(tmp_path / "own", os.O_WRONLY)
    assert caught.value.errno in (errno.ELOOP, errno.EMLINK)
    assert not (tmp_path / "nowhere").exists()


def test_a_name_that_is_a_pipe_stands_for_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "last")
    assert in_time(lambda: _equal(followed(tmp_path / "last"), tmp_path / "last")) is None


def test_a_hard_link_is_not_written_through(tmp_path: Path) -> None:
    """Of a lock, which would be overwritten, it is refused; what grows at its end leaves the other name its content."""
    victim, ours = tmp_path / "victim", tmp_path / "ours"
    victim.write_bytes(b"precious\n")
    os.link(victim, ours)
    with pytest.raises(UserError, match=r"ours has another name elsewhere, whose content would be lost") as caught:
        open_own(ours, os.O_RDWR)
    assert_one_sentence(caught.value)
    os.link(victim, tmp_path / f".run{LOCK_FILE}")
    with pytest.raises(UserError, match="has another name elsewhere"), locked(tmp_path / "run"):
        pass
    append_own(ours, "more\n")
    append_own(ours, "and more\n")
    assert ours.read_bytes() == b"precious\nmore\nand more\n"
    assert victim.read_bytes() == b"precious\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".run.llada.lock", "ours", "victim"]


@NO_FILES
def test_what_need_not_be_there_does_not_count_as_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    """A tokenizer without its tokenizer_config.json has another chat template, which nobody would notice."""
    monkeypatch.chdir(tmp_path)
    assert read_optional(Path("file"), 9) is None
    make(Path("file"))
    assert isinstance(in_time(lambda: read_optional(Path("file"), 9)), UserError | OSError)


def test_a_link_to_nothing_does_not_count_as_absent(tmp_path: Path) -> None:
    """As in a cache of downloads that lost a file."""
    path = tmp_path / "file"
    path.symlink_to("nowhere")
    with pytest.raises(UserError, match="is a link to what is not there: restore the file") as caught:
        read_optional(path, 9)
    assert_one_sentence(caught.value)
    (tmp_path / "nowhere").write_bytes(b"abc")
    assert read_optional(path, 9) == b"abc"
    (tmp_path / "checksums.json").symlink_to("gone")
    assert find_damage(tmp_path) is not None


def test_a_file_where_a_folder_of_ours_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "samples").write_bytes(b"")
    with pytest.raises(UserError, match="samples is not a folder: move it elsewhere"):
        make_own_folder(tmp_path / "samples")
