"""Disks without links, and run folders that were copied without them or with whole folders in their place."""

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llada.checkpoints import run_layout
from llada.checkpoints.folder import read_checkpoint
from llada.checkpoints.load import find_adapter
from llada.checkpoints.lora_files import ADAPTER_CONFIG_FILE
from llada.checkpoints.run_layout import followed, newest_first
from llada.data.prepared import PreparedText
from llada.system.errors import UserError
from llada.system.files import flush_to_disk
from llada.system.temporary_names import aside_of
from llada.training.config import TrainConfig
from llada.training.rehearsal import rehearse
from llada.training.run_folder import RunFolder
from tests.support.runs import train_until, weights
from tests.support.sentences import assert_one_sentence

STEPS = ["step-00000006", "step-00000008"]


def trained_weights(
    config: TrainConfig, data: PreparedText, resume: bool = False, stop_after: int | None = None
) -> torch.Tensor:
    """Train a run in its folder; its weights."""
    return weights(train_until(config, data, resume, stop_after))


def kinds(folder: RunFolder) -> dict[str, str]:
    """What each thing in `checkpoints` is."""
    kind = {
        path.name: "link" if path.is_symlink() else "file" if path.is_file() else "folder"
        for path in sorted(folder.checkpoints.iterdir())
    }
    return kind


@pytest.fixture
def stopped(small_run: TrainConfig, data: PreparedText) -> RunFolder:
    """A run of 12 steps that was stopped after 8; `best` is step 6, the only one that was measured."""
    trained_weights(small_run, data, stop_after=8)
    return RunFolder(small_run.output_dir)


def without_links(run: Path, copy: Path) -> None:
    """As by programs and disks that know no links."""
    shutil.copytree(run, copy, ignore=lambda place, names: [name for name in names if Path(place, name).is_symlink()])


def with_links_followed(run: Path, copy: Path) -> None:
    """As by `cp -rL`, `scp -r`, or an archive."""
    shutil.copytree(run, copy, symlinks=False)


def with_pointers(run: Path, copy: Path) -> None:
    """As written on a disk without links."""
    without_links(run, copy)
    for name in ("last", "best"):
        target = os.readlink(run / "checkpoints" / name)
        (copy / "checkpoints" / name).write_text(f"{target}\n", encoding="utf-8")


COPIES = pytest.mark.parametrize("copied", [without_links, with_links_followed, with_pointers])


@COPIES
def test_a_copy_is_opened_like_the_run(
    stopped: RunFolder, tmp_path: Path, copied: Callable[[Path, Path], None], llada: Any
) -> None:
    copied(stopped.path, tmp_path / "copy")
    original, copy = read_checkpoint(stopped.path), read_checkpoint(tmp_path / "copy")
    assert (original.folder.name, copy.folder.name) == (STEPS[0], STEPS[0])
    weights, twins = original.model.network.state_dict(), copy.model.network.state_dict()
    assert all(torch.equal(weight, twins[name]) for name, weight in weights.items())
    options = ["--gen_length", 12, "--steps", 6, "--temperature", 1, "--seed", 3, "--device", "cpu"]
    texts = [llada("sample", "--checkpoint", run, *options).out for run in (stopped.path, tmp_path / "copy")]
    assert texts[0] == texts[1]
    assert texts[0].strip()


@COPIES
def test_a_copy_goes_on_like_the_run(
    stopped: RunFolder, small_run: TrainConfig, data: PreparedText, tmp_path: Path, copied: Callable[[Path, Path], None]
) -> None:
    copied(stopped.path, tmp_path / "copy")
    expected = trained_weights(small_run, data, resume=True)
    copy = replace(small_run, output_dir=tmp_path / "copy")
    assert torch.equal(trained_weights(copy, data, resume=True), expected)
    folders = [stopped, RunFolder(copy.output_dir)]
    assert kinds(folders[0]) == kinds(folders[1])
    assert [folder.last_step for folder in folders] == [12, 12]
    best = [followed(folder.checkpoints / "best").resolve().name for folder in folders]
    assert best[0] == best[1]


@pytest.mark.parametrize("name", ["last", "best"])
@COPIES
def test_a_name_itself_can_be_opened(
    stopped: RunFolder, tmp_path: Path, copied: Callable[[Path, Path], None], name: str
) -> None:
    copied(stopped.path, tmp_path / "copy")
    path = tmp_path / "copy" / "checkpoints" / name
    if copied is without_links:
        with pytest.raises(UserError, match="is not there"):
            read_checkpoint(path)
        return
    assert read_checkpoint(path).folder.name == STEPS[name == "last"]


# Disks without links


def not_permitted(*_: object, **__: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


def not_known(*_: object, **__: object) -> None:
    raise NotImplementedError("links are not supported on this system")


def leads_nowhere(link: Path, target: str) -> None:
    os.symlink(f"{target}-elsewhere", link)


@pytest.mark.parametrize("disk", [not_permitted, not_known, leads_nowhere, "windows"])
def test_where_no_links_are_to_be_had_small_files_stand_for_checkpoints(
    small_run: TrainConfig, data: PreparedText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: Any, llada: Any
) -> None:
    with_links = replace(small_run, output_dir=tmp_path / "with_links")
    expected = trained_weights(with_links, data)
    if disk == "windows":
        monkeypatch.setattr(run_layout, "IS_WINDOWS", True)
    else:
        monkeypatch.setattr(Path, "symlink_to", disk)
    rehearse(small_run.output_dir)
    trained_weights(small_run, data, stop_after=8)
    folder = RunFolder(small_run.output_dir)
    assert kinds(folder) == {"best": "file", "last": "file", STEPS[0]: "folder", STEPS[1]: "folder"}
    assert (folder.checkpoints / "last").read_bytes() == b"step-00000008\n"
    assert (folder.last, folder.last_step) == (folder.checkpoints / STEPS[1], 8)
    assert read_checkpoint(folder.path).folder.name == STEPS[0]
    assert torch.equal(trained_weights(small_run, data, resume=True), expected)
    assert folder.last_step == 12
    assert kinds(folder)["last"] == "file"


def test_a_run_that_comes_to_a_disk_with_links_has_links_again(
    stopped: RunFolder, small_run: TrainConfig, data: PreparedText, tmp_path: Path
) -> None:
    with_pointers(stopped.path, tmp_path / "copy")
    trained_weights(replace(small_run, output_dir=tmp_path / "copy"), data, resume=True)
    assert kinds(RunFolder(tmp_path / "copy"))["last"] == "link"


@pytest.mark.parametrize(
    "content", [b"", b"step-00000006/../../x", b"../step-00000006", b"step-6", b"\xff" * 9, b"step-00000006 " * 20]
)
def test_a_file_that_is_no_pointer_is_not_followed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "step-00000006").mkdir()
    (tmp_path / "last").write_bytes(content)
    assert followed(tmp_path / "last") == tmp_path / "last"
    (tmp_path / "last").write_bytes(b"step-00000006\n")
    assert followed(tmp_path / "last") == tmp_path / "step-00000006"


def test_an_adapter_is_found_by_each_kind_of_name(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step-00000004"
    folder.mkdir(parents=True)
    (folder / ADAPTER_CONFIG_FILE).write_text("{}", encoding="utf-8")
    assert find_adapter(tmp_path) == folder  # by its step
    (folder.parent / "best").write_text("step-00000004\n", encoding="utf-8")
    assert find_adapter(tmp_path) == folder
    assert find_adapter(folder.parent / "best") == folder
    (folder.parent / "best").unlink()
    (folder.parent / "best").symlink_to("step-00000004")
    assert find_adapter(tmp_path) == folder.parent / "best"


# Folders in the place of names


def test_folders_that_equal_their_steps_become_names_again(stopped: RunFolder, tmp_path: Path) -> None:
    with_links_followed(stopped.path, tmp_path / "copy")
    copy = RunFolder(tmp_path / "copy")
    assert kinds(copy)["last"] == "folder"
    said = copy.recover()
    assert [sentence.rpartition(" was the same as ")[2] for sentence in said] == [
        "step-00000008, and is a name of it again.",
        "step-00000006, and is a name of it again.",
    ]
    assert kinds(copy) == {"last": "link", STEPS[0]: "folder", STEPS[1]: "folder"}  # `best` comes with the state
    assert copy.recover() == []


def test_a_checkpoint_that_is_there_as_a_name_only_is_not_lost(stopped: RunFolder, tmp_path: Path) -> None:
    with_links_followed(stopped.path, tmp_path / "copy")
    copy = RunFolder(tmp_path / "copy")
    for step in STEPS:
        shutil.rmtree(copy.checkpoints / step)
    assert copy.has_checkpoint()
    said = copy.recover()
    assert [sentence.rpartition("kept as ")[2] for sentence in said] == ["step-00000008.", "step-00000006."]
    assert copy.last_step == 8


def test_a_whole_copy_takes_the_place_of_a_damaged_step(stopped: RunFolder, tmp_path: Path) -> None:
    with_links_followed(stopped.path, tmp_path / "copy")
    copy = RunFolder(tmp_path / "copy")
    model = copy.checkpoints / STEPS[1] / "model.safetensors"
    whole = model.read_bytes()
    model.write_bytes(whole[:-3] + b"abc")
    copy.recover()
    assert copy.last_step == 8
    assert model.read_bytes() == whole
    assert kinds(copy)[f"damaged-{STEPS[1]}"] == "folder"


def test_another_folder_in_the_place_of_a_name_is_kept(stopped: RunFolder, tmp_path: Path) -> None:
    with_links_followed(stopped.path, tmp_path / "copy")
    copy = RunFolder(tmp_path / "copy")
    (copy.checkpoints / "last" / "notes.txt").write_text("mine", encoding="utf-8")
    (copy.checkpoints / "copy-of-last").mkdir()
    (sentence, _) = copy.recover()
    assert sentence.endswith("kept as copy-of-last-2.")
    assert (copy.checkpoints / "copy-of-last-2" / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert copy.last_step == 8


def test_a_persons_copy_of_a_step_is_no_step(stopped: RunFolder) -> None:
    for name in ("step-00000009-backup", "step-old", "step-00000099.good"):
        shutil.copytree(stopped.checkpoints / STEPS[0], stopped.checkpoints / name)
    assert [folder.name for folder in newest_first(stopped.checkpoints)] == STEPS[::-1]
    assert stopped.recover() == []
    stopped.prune(1)
    assert stopped.last_step == 8
    assert {"step-00000009-backup", "step-old", "step-00000099.good"} <= kinds(stopped).keys()


# What a disk cannot do


def test_a_rehearsal_leaves_nothing(tmp_path: Path) -> None:
    rehearse(tmp_path / "run")
    assert [path.name for path in tmp_path.rglob("*")] == ["run"]
    aside_of(tmp_path / "run" / "rehearsal").mkdir()  # as a kill leaves it
    RunFolder(tmp_path / "run").recover()
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_what_a_disk_cannot_do_is_found_before_the_first_step(
    stopped: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llada: Any, call: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    config, new = stopped.path / "config.json", tmp_path / "new"
    result = llada("train", "--config", config, "--output_dir", new)
    assert result.code == 2
    (sentence,) = [line for line in result.err.splitlines() if line.startswith("llada: ")]
    assert "new is on a disk that cannot keep checkpoints" in sentence
    assert "Input/output error" in sentence
    assert not new.exists()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EACCES, errno.EBADF, errno.EOPNOTSUPP])
def test_a_system_that_cannot_flush_folders_still_flushes_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (tmp_path / "file").write_bytes(b"1")

    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    flush_to_disk(tmp_path)
    with pytest.raises(OSError, match=r"\[Errno"):
        flush_to_disk(tmp_path / "file")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"):
        flush_to_disk(tmp_path)


def test_the_refusal_of_a_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", not_permitted)
    with pytest.raises(UserError, match="Operation not permitted") as caught:
        rehearse(tmp_path)
    assert_one_sentence(caught.value)
    assert list(tmp_path.iterdir()) == []
