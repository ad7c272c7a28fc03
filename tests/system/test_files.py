"""Files and folders that are whole or not there at all: also when a rename, a write or the caller fails."""

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llada.system import files
from llada.system.errors import UserError
from llada.system.files import (
    check_writable,
    folder_written_whole,
    read_json,
    remove_leftovers,
    resolved,
    sha256_of,
    write_json,
)
from llada.system.temporary_names import aside_of, is_aside
from tests.support.sentences import assert_one_sentence


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def disk_full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def _usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.parametrize("n_bytes", [0, 3, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_the_checksum_of_a_file_is_that_of_its_bytes(tmp_path: Path, n_bytes: int) -> None:
    data = (b"llada" * (1 + n_bytes // 5))[:n_bytes]
    (tmp_path / "file").write_bytes(data)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_a_known_checksum(tmp_path: Path) -> None:
    """The example "abc" of the standard, FIPS 180-2."""
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_of(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_json_is_written_in_utf8_for_people(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", {"a": "é世", "b": [1]})
    assert (tmp_path / "file.json").read_bytes().decode("utf-8") == '{\n  "a": "é世",\n  "b": [\n    1\n  ]\n}\n'
    assert names_in(tmp_path) == ["file.json"]


def test_json_is_read_as_it_was_written(tmp_path: Path) -> None:
    content = {"a": "é世\n", "b": [1, 2.5, None, True], "c": {"d": 1e-5}, "caf\udce9": "\ud800 \\udce9 \\\ud800"}
    write_json(tmp_path / "file.json", {"old": 1})
    write_json(tmp_path / "file.json", content)
    assert read_json(tmp_path / "file.json") == content


def test_a_failed_rename_leaves_the_old_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "file.json", {"old": 1})
    monkeypatch.setattr(os, "replace", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "file.json", {"new": 2})
    assert read_json(tmp_path / "file.json") == {"old": 1}
    assert names_in(tmp_path) == ["file.json"]


def test_a_full_disk_leaves_the_old_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "file.json", {"old": 1})

    def write_half(path: Path, text: str, encoding: str, newline: str) -> None:
        path.write_bytes(text[:5].encode(encoding))
        disk_full()

    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "file.json", {"new": 2})
    assert read_json(tmp_path / "file.json") == {"old": 1}
    assert names_in(tmp_path) == ["file.json"]


def test_what_is_no_json_leaves_the_old_json(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "file.json", {"new": object()})
    assert read_json(tmp_path / "file.json") == {"old": 1}
    assert names_in(tmp_path) == ["file.json"]


def test_reading_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"file\.json is missing") as caught:
        read_json(tmp_path / "file.json")
    assert_one_sentence(caught.value)


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"{'a': 1}", b'{"a": 1}}', b'{"a": "\xff"}', b"\x00\x00"])
def test_reading_refuses_what_is_no_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(UserError, match=r"file\.json is not valid JSON") as caught:
        read_json(tmp_path / "file.json")
    assert_one_sentence(caught.value)


@pytest.mark.parametrize("content", ["[1, 2]", "null", "3", '"text"'])
def test_reading_refuses_what_is_no_object(tmp_path: Path, content: str) -> None:
    (tmp_path / "file.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"file\.json holds no JSON object") as caught:
        read_json(tmp_path / "file.json")
    assert_one_sentence(caught.value)


def write_new(folder: Path) -> None:
    with folder_written_whole(folder) as aside:
        (aside / "new").write_text("new", encoding="utf-8")


def make_old(folder: Path) -> None:
    folder.mkdir()
    (folder / "old").write_text("old", encoding="utf-8")


def test_a_new_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    folder = tmp_path / "some" / "where" / "folder"
    with folder_written_whole(folder) as aside:
        (aside / "new").write_text("new", encoding="utf-8")
        assert not folder.exists()
        assert aside.parent == folder.parent  # else the rename could not be done in one step
    assert names_in(folder) == ["new"]
    assert names_in(folder.parent) == ["folder"]


def test_a_folder_replaces_all_of_the_old_one(tmp_path: Path) -> None:
    make_old(tmp_path / "folder")
    with folder_written_whole(tmp_path / "folder") as aside:
        (aside / "new").write_text("new", encoding="utf-8")
        assert names_in(tmp_path / "folder") == ["old"]
    assert names_in(tmp_path / "folder") == ["new"]
    assert names_in(tmp_path) == ["folder"]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_a_failure_in_the_block_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with folder_written_whole(tmp_path / "folder") as aside:
            (aside / "new").write_text("new", encoding="utf-8")
            raise error

    with pytest.raises(error):
        fail()
    assert names_in(tmp_path) == []
    make_old(tmp_path / "folder")
    with pytest.raises(error):
        fail()
    assert names_in(tmp_path) == ["folder"]
    assert names_in(tmp_path / "folder") == ["old"]


def fail_renames(monkeypatch: pytest.MonkeyPatch, failing: list[int]) -> None:
    """Let the renames of these numbers fail, counted from 1, and do the others; the system cannot swap."""
    monkeypatch.setattr(files, "_swap", lambda one, other: False)
    rename, done = os.rename, []

    def counted(source: Path, target: Path) -> None:
        done.append(source)
        if len(done) in failing:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", counted)


def test_a_failed_rename_of_a_new_folder_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_renames(monkeypatch, [1])
    with pytest.raises(OSError, match="Input/output"):
        write_new(tmp_path / "folder")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("failing", [pytest.param(1, id="of the old folder"), pytest.param(2, id="of the new folder")])
def test_a_failed_rename_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    make_old(tmp_path / "folder")
    fail_renames(monkeypatch, [failing])
    with pytest.raises(OSError, match="Input/output"):
        write_new(tmp_path / "folder")
    assert names_in(tmp_path / "folder") == ["old"]
    assert (tmp_path / "folder" / "old").read_text(encoding="utf-8") == "old"
    assert names_in(tmp_path) == ["folder"]


def test_an_old_folder_that_cannot_be_put_back_is_not_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_old(tmp_path / "folder")
    fail_renames(monkeypatch, [2, 3])
    with pytest.raises(OSError, match="Input/output"):
        write_new(tmp_path / "folder")
    assert [path.read_text(encoding="utf-8") for path in tmp_path.rglob("old")] == ["old"]


def test_every_file_is_on_the_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[int | str] = []
    flush, rename = os.fsync, os.rename

    def noted_flush(descriptor: int) -> None:
        events.append(os.fstat(descriptor).st_ino)
        flush(descriptor)

    def noted_rename(source: Path, target: Path) -> None:
        events.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_flush)
    monkeypatch.setattr(os, "rename", noted_rename)
    with folder_written_whole(tmp_path / "folder") as aside:
        (aside / "one").write_bytes(b"1")
        (aside / "two").write_bytes(b"2")
    files = {(tmp_path / "folder" / name).stat().st_ino for name in ("one", "two")}
    assert files <= set(events[: events.index("rename")])


@pytest.mark.usefixtures("_usual_umask")
@pytest.mark.parametrize(
    ("umask", "modes_wanted"), [(0o022, (0o755, 0o644)), (0o077, (0o700, 0o600)), (0o002, (0o775, 0o664))]
)
def test_who_may_read_what_is_written_is_up_to_the_umask(
    tmp_path: Path, umask: int, modes_wanted: tuple[int, int]
) -> None:
    os.umask(umask)
    with folder_written_whole(tmp_path / "folder") as aside:
        (aside / "file").write_bytes(b"1")
        write_json(aside / "file.json", {})
    modes = {name: (tmp_path / "folder" / name).stat().st_mode & 0o777 for name in (".", "file", "file.json")}
    of_folder, of_file = modes_wanted
    assert modes == {".": of_folder, "file": of_file, "file.json": of_file}


def test_there_is_a_folder_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system swaps names: no rename ever takes the old folder away."""
    make_old(tmp_path / "folder")
    monkeypatch.setattr(os, "rename", disk_full)
    write_new(tmp_path / "folder")
    assert names_in(tmp_path) == ["folder"]
    assert names_in(tmp_path / "folder") == ["new"]


def test_a_swap_that_fails_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_old(tmp_path / "folder")
    monkeypatch.setattr(files, "_swap", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_new(tmp_path / "folder")
    assert names_in(tmp_path) == ["folder"]
    assert names_in(tmp_path / "folder") == ["old"]


def test_leftovers_of_killed_writers_go_and_nothing_else(tmp_path: Path) -> None:
    """Only names with the mark are ours: whatever else stands next to a folder is left, however alike it looks."""
    make_old(tmp_path / "env")
    ours = [aside_of(tmp_path / "env", kind) for kind in ("tmp", "old", "leaving")]
    others = [
        ".env.local", ".env.production", ".env.d", ".env.old", ".env.lock", ".env.tmp", ".env.1234", ".env.abcd1234",
        ".env.llada.lock", ".env.llada-12345678", ".env.llada-12345678.bak", ".env.llada-1234567.tmp",
        ".env.llada-1234567g.tmp", "env.llada-12345678.tmp", ".envs.llada-12345678.tmp", ".env.d.llada-12345678.tmp",
    ]  # fmt: skip
    for path in [*ours, *(tmp_path / name for name in others)]:
        path.mkdir()
        (path / "file").write_bytes(b"1")
    aside_of(tmp_path / "env").write_bytes(b"1")
    aside_of(tmp_path / "env").symlink_to(".env.local")
    remove_leftovers(tmp_path / "env")
    assert names_in(tmp_path) == sorted(["env", *others])
    assert names_in(tmp_path / "env") == ["old"]
    assert all(names_in(tmp_path / name) == ["file"] for name in others)


def test_names_of_unfinished_things_are_known_by_their_form(tmp_path: Path) -> None:
    names = {aside_of(tmp_path / name).name for name in ("a", "a.b", ".c", "d\ne", "é") for _ in range(50)}
    assert len(names) == 250
    assert all(map(is_aside, names))
    assert not any(map(is_aside, ("a", ".a", ".a.tmp", ".swp", ".config.json.swp", ".a.llada.lock", ".model.backup")))


def test_a_folder_that_a_killed_writer_took_away_is_put_back(tmp_path: Path) -> None:
    make_old(aside_of(tmp_path / "folder", "old"))
    aside_of(tmp_path / "folder").mkdir()
    remove_leftovers(tmp_path / "folder")
    assert names_in(tmp_path) == ["folder"]
    assert names_in(tmp_path / "folder") == ["old"]


def test_a_place_that_cannot_be_written_is_found_by_trying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "not" / "yet" / "there")
    assert names_in(tmp_path) == []
    (tmp_path / "file").write_bytes(b"1")
    with pytest.raises(UserError, match=r"since .*file is a file") as caught:
        check_writable(tmp_path / "file" / "run")
    assert_one_sentence(caught.value)

    def read_only(**_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    with pytest.raises(UserError, match="Read-only file system") as caught:
        check_writable(tmp_path / "run")
    assert_one_sentence(caught.value)


def test_a_path_through_what_is_not_there_is_refused(tmp_path: Path) -> None:
    """`a/../b` without `a` would be written to `b` and be looked for in vain."""
    with pytest.raises(UserError, match=r"through .*/a, which is not there: name the folder without it") as caught:
        check_writable(tmp_path / "a" / ".." / "b")
    assert_one_sentence(caught.value)
    (tmp_path / "a").mkdir()
    check_writable(tmp_path / "a" / ".." / "b")


def test_a_link_to_itself_is_no_path_further(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    assert resolved(loop) == tmp_path.resolve() / "loop"
    (tmp_path / "link").symlink_to("there")
    assert resolved(tmp_path / "link") == tmp_path.resolve() / "there"
