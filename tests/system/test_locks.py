"""Two processes never write one folder, and a process that was killed holds nobody up."""

import errno
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import lock_descriptor

from llada.system import locks
from llada.system.errors import UserError
from llada.system.locks import locked
from tests.support.sentences import assert_one_sentence

HOLD = """
import pathlib, sys, time, llada.system.locks
with llada.system.locks.locked(pathlib.Path(sys.argv[1])):
    print(flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the lock of `tmp_path / "run"`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_the_second_process_is_refused_with_the_name_of_the_first(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    with pytest.raises(UserError) as caught, locked(tmp_path / "run"):
        pass
    said = (
        rf"run is being written by process {holder.pid} on {re.escape(socket.gethostname())} since \d{{4}}-\d\d-\d\d "
    )
    assert re.search(said, str(caught.value))
    assert str(caught.value).endswith(".")
    with locked(tmp_path / "another"):
        pass


def test_a_killed_process_holds_nothing(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / ".run.llada.lock").exists()
    with locked(tmp_path / "run"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_lock_goes_with_the_block(tmp_path: Path) -> None:
    def fail() -> None:
        with locked(tmp_path / "run"):
            assert (tmp_path / ".run.llada.lock").exists()
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        fail()
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "run"):
        pass


def test_folders_made_for_the_lock_go_with_it_unless_they_are_used(tmp_path: Path) -> None:
    with locked(tmp_path / "some" / "where" / "run"):
        assert (tmp_path / "some" / "where").is_dir()
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "some" / "where" / "run"):
        (tmp_path / "some" / "file").write_bytes(b"1")
    assert [path.name for path in (tmp_path / "some").iterdir()] == ["file"]


def test_a_lock_inside_asks_nothing_of_the_folder_above(tmp_path: Path) -> None:
    with locked(tmp_path / "run", inside=True):
        assert [path.name for path in tmp_path.rglob("*")] == ["run", ".llada.lock"]
        with pytest.raises(UserError, match="is being written by process"), locked(tmp_path / "run", inside=True):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_nonsense_locks_nobody_out(tmp_path: Path) -> None:
    (tmp_path / ".run.llada.lock").write_bytes(b"\xff\x00 nonsense" * 100)
    with locked(tmp_path / "run"):
        pass


def test_many_that_wait_come_in_one_by_one(tmp_path: Path) -> None:
    """Also though each removes the file when it leaves: none gets in by a file that is another one by then."""
    inside, seen = [], []

    def enter(number: int) -> None:
        for _ in range(20):
            with locked(tmp_path / "run", wait=True):
                inside.append(number)
                seen.append(len(inside))
                inside.remove(number)

    threads = [threading.Thread(target=enter, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 160


def test_a_disk_that_keeps_the_file_of_a_lock_hides_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(UserError, match="what went wrong"), locked(tmp_path / "run"):
        raise UserError("what went wrong")
    with locked(tmp_path / "run"):
        pass


def test_a_process_that_is_stopped_at_once_holds_its_lock_until_it_ends(tmp_path: Path) -> None:
    """A thread of it may still be writing."""
    with pytest.raises(KeyboardInterrupt), locked(tmp_path / "run"):
        raise KeyboardInterrupt
    with pytest.raises(UserError, match="is being written by"), locked(tmp_path / "run"):
        pass


FOLDERS = pytest.mark.skipif(os.name == "nt", reason="the system locks no folders")


@FOLDERS
def test_a_lock_whose_file_is_tidied_away_still_holds(tmp_path: Path) -> None:
    with locked(tmp_path / "run", inside=True) as lock:
        (tmp_path / "run" / ".llada.lock").unlink()
        lock.check()
        with (
            pytest.raises(UserError, match="is being written by another process"),
            locked(tmp_path / "run", inside=True),
        ):
            pass
    with locked(tmp_path / "run", inside=True):
        pass


def test_where_folders_cannot_be_locked_the_file_must_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_lock_folder", lambda *_: None)
    with locked(tmp_path / "run", inside=True) as lock:
        lock.check()
        (tmp_path / "run" / ".llada.lock").unlink()
        with pytest.raises(UserError, match="which keeps other processes away, was removed") as caught:
            lock.check()
        assert_one_sentence(caught.value)


@pytest.mark.parametrize("number", [errno.EBADF, errno.EOPNOTSUPP])
def test_a_disk_that_locks_no_folders_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    lock = lock_descriptor

    def only_files(descriptor: int, **options: Any) -> bool:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        return lock(descriptor, **options)

    monkeypatch.setattr(locks, "lock_descriptor", only_files)
    with locked(tmp_path / "run", inside=True) as held:
        held.check()
        with pytest.raises(UserError, match=f"is being written by process {os.getpid()} "):
            locked(tmp_path / "run", inside=True).__enter__()


@FOLDERS
def test_a_folder_that_is_renamed_removed_or_replaced_is_noticed(tmp_path: Path) -> None:
    """A parent's new name counts as well; where it is now is said, where the system knows it."""

    def replace(run: Path) -> None:
        os.rename(run, run.with_name("moved"))
        run.mkdir()
        (run / ".llada.lock").write_bytes(b"of another")

    def rename_parent(run: Path) -> None:
        os.rename(run.parent, run.parent.with_name("other"))

    def move(run: Path) -> None:
        os.rename(run, run.with_name("moved"))

    harms: tuple[Callable[[Path], object], ...] = (move, shutil.rmtree, replace, rename_parent)
    for number, harm in enumerate(harms):
        run = tmp_path / f"{number}" / "below" / "run"
        with locked(run, inside=True) as lock:
            lock.check()
            harm(run)
            with pytest.raises(UserError, match=r"was renamed, removed or replaced while it was written") as caught:
                lock.check()
            assert_one_sentence(caught.value)
            if sys.platform == "linux" and harm is not shutil.rmtree:
                moved = next((tmp_path / f"{number}").rglob("moved"), tmp_path / f"{number}" / "other" / "run")
                assert f"it is {moved} now" in str(caught.value)
        assert harm is not replace or (run / ".llada.lock").read_bytes() == b"of another"


def test_a_lock_that_could_not_be_written_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "ftruncate", fail)
        with pytest.raises(OSError, match="No space left"):
            locked(tmp_path / "run").__enter__()
    with locked(tmp_path / "run"):
        pass


def test_the_root_of_a_disk_is_refused() -> None:
    with pytest.raises(UserError, match="is the root of a disk: choose a folder in it"), locked(Path("/")):
        pass
