"""Checkpoints after kills, damage and full disks: the newest whole one is used, and nothing whole is lost."""

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llada.checkpoints import folder as checkpoint
from llada.checkpoints import load as loading
from llada.checkpoints.folder import read_checkpoint
from llada.data.corpus import Corpus
from llada.data.prepared import PreparedText, prepare
from llada.system.errors import UserError
from llada.system.temporary_names import aside_of
from llada.system.toolchains import has_compiler
from llada.training import plan as plan_module
from llada.training.config import TrainConfig
from llada.training.metrics import read_metrics
from llada.training.plan import RunPlan
from llada.training.presets import PRESETS
from llada.training.pruning import keep_for
from llada.training.run_folder import RunFolder
from llada.training.state import STATE_FILE, Progress, changed_settings
from llada.training.trainer import Trainer
from tests.support.runs import metrics_without_clock, run_to, weights
from tests.support.runs import train_until as train

FILES = ["checksums.json", "config.json", "model.safetensors", "training_state.pt", "vocab.json"]


def names(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.checkpoints.iterdir())


@pytest.fixture
def stopped(small_run: TrainConfig, data: PreparedText) -> RunFolder:
    """A run of 12 steps that has checkpoints of the steps 6 and 8."""
    train(small_run, data, stop_after=8)
    folder = RunFolder(small_run.output_dir)
    assert names(folder) == ["best", "last", "step-00000006", "step-00000008"]
    return folder


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


# Damage


@pytest.mark.parametrize("harm", [flip_a_bit, cut, Path.unlink], ids=["flip", "cut", "gone"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    stopped: RunFolder, name: str, harm: Callable[[Path], None]
) -> None:
    harm(stopped.checkpoints / "step-00000008" / name)
    (sentence,) = stopped.recover() or [""]
    if (name, harm) == ("checksums.json", Path.unlink):  # as in the checkpoints of before
        assert not sentence
        return
    assert "step-00000008 is damaged" in sentence
    assert name in sentence or (name, harm) == ("checksums.json", flip_a_bit)  # then a file does not fit it
    assert "step-00000006 is used" in sentence
    assert names(stopped) == ["best", "damaged-step-00000008", "last", "step-00000006"]
    assert stopped.last_step == 6
    assert stopped.recover() == []


def test_a_run_whose_newest_checkpoint_is_damaged_ends_like_an_undamaged_one(
    small_run: TrainConfig, data: PreparedText, tmp_path: Path
) -> None:
    whole = replace(small_run, output_dir=tmp_path / "whole")
    expected = train(whole, data)
    train(small_run, data, stop_after=8)
    flip_a_bit(small_run.output_dir / "checkpoints" / "last" / "model.safetensors")
    resumed = train(small_run, data, resume=True)
    assert torch.equal(weights(resumed), weights(expected))
    assert metrics_without_clock(small_run) == metrics_without_clock(whole)


def test_if_all_are_damaged_they_are_named_and_left_alone(stopped: RunFolder) -> None:
    for step in (6, 8):
        flip_a_bit(stopped.checkpoints / f"step-{step:08d}" / STATE_FILE)
    before = names(stopped)
    with pytest.raises(UserError, match=r"step-00000008: training_state.pt .*; step-00000006: ") as caught:
        stopped.recover()
    assert str(caught.value).endswith(".")
    assert names(stopped) == before


def test_a_damaged_checkpoint_is_not_opened_for_use_either(stopped: RunFolder) -> None:
    read_checkpoint(stopped.path)
    flip_a_bit(stopped.checkpoints / "best" / "model.safetensors")
    with pytest.raises(UserError, match=r"step-00000006 is damaged \(model.safetensors has another checksum"):
        read_checkpoint(stopped.path)


# Kills


def test_what_a_kill_left_behind_goes_and_nothing_else(stopped: RunFolder) -> None:
    steps = [stopped.checkpoints / f"step-{step:08d}" for step in (10, 2)]
    for path in (aside_of(steps[0]), aside_of(steps[1], "leaving")):
        path.mkdir()
        (path / "file").write_bytes(b"1")
    aside_of(stopped.checkpoints / "last").symlink_to("step-00000002")
    files = ("metrics.jsonl", "curves.png", "config.json", "samples/step-00000002.txt")
    for name in files:
        aside_of(stopped.path / name).write_bytes(b"1")
        (stopped.path / name).with_name(f".{Path(name).name}.swp").write_bytes(b"1")
    (stopped.checkpoints / ".step-00000002.old").mkdir()
    assert stopped.recover() == []
    assert names(stopped) == [".step-00000002.old", "best", "last", "step-00000006", "step-00000008"]
    assert sorted(path.name for path in stopped.path.rglob(".*")) == [
        ".config.json.swp", ".curves.png.swp", ".metrics.jsonl.swp", ".step-00000002.old", ".step-00000002.txt.swp",
    ]  # fmt: skip


def test_a_checkpoint_that_no_link_points_to_yet_is_used(stopped: RunFolder, data: PreparedText) -> None:
    """Killed between its rename and the link; or before the first link of all."""
    for link in ("last", "best"):
        (stopped.checkpoints / link).unlink()
    assert stopped.has_checkpoint()
    stopped.recover()
    assert stopped.last_step == 8
    Trainer(RunPlan.of(stopped.read_config(stopped.path), data), stopped, resume=True)
    assert (stopped.checkpoints / "best").resolve().name == "step-00000006"


def test_a_checkpoint_that_was_taken_away_to_be_replaced_is_put_back(stopped: RunFolder) -> None:
    os.rename(stopped.last.resolve(), aside_of(stopped.last.resolve(), "old"))
    stopped.recover()
    assert names(stopped) == ["best", "last", "step-00000006", "step-00000008"]


def test_metrics_between_two_lines_survive_a_stop(small_run: TrainConfig, data: PreparedText, tmp_path: Path) -> None:
    """A line is of several steps; stopped between two of them, the sums so far are part of the checkpoint."""
    whole = replace(small_run, log_every=5, output_dir=tmp_path / "whole")
    parts = replace(whole, output_dir=tmp_path / "parts")
    train(whole, data)
    train(parts, data, stop_after=3)
    train(parts, data, resume=True, stop_after=9)
    train(parts, data, resume=True)
    assert [row["step"] for row in metrics_without_clock(whole) if "loss" in row] == [5, 10, 12]
    assert metrics_without_clock(parts) == metrics_without_clock(whole)


def test_a_line_of_nonsense_ends_the_metrics(tmp_path: Path) -> None:
    good = b'{"step": 1, "loss": 2.0}\n'
    for bad in (b'{"step": 2, "lo', b"\xff\xfe\x00", b"[1]\n", b'{"loss": 1}\n', b'{"step": "2"}\n', b"[" * 100_000):
        (tmp_path / "metrics.jsonl").write_bytes(good + bad)
        assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.0}]


# Which stay


@pytest.mark.parametrize(("keep", "expected"), [(1, [2, 12]), (2, [2, 10, 12]), (4, [2, 6, 8, 10, 12])])
def test_the_newest_and_the_best_stay(
    keep: int, expected: list[int], small_run: TrainConfig, data: PreparedText
) -> None:
    config = replace(small_run, keep=keep, evaluate_every=2)
    folder = RunFolder(config.output_dir)
    folder.start(config)
    trainer = Trainer(RunPlan.of(config, data), folder)
    bounds = iter([3.0, 4.0, 4.0, 4.0, 4.0, 4.0])
    estimate, own = trainer.evaluations.estimate_nelbo, trainer.evaluations
    own.estimate_nelbo = lambda: replace(estimate(), nelbo_nats_per_token=next(bounds))  # type: ignore[method-assign]
    run_to(trainer)
    assert names(folder) == ["best", "last", *(f"step-{step:08d}" for step in expected)]
    assert (folder.checkpoints / "best").resolve().name == "step-00000002"
    assert folder.last_step == 12


# Disks


def test_a_disk_without_room_is_told_before_anything_is_written(
    stopped: RunFolder, data: PreparedText, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = names(stopped)
    trainer = Trainer(RunPlan.of(stopped.read_config(stopped.path), data), stopped, resume=True)
    needed = sum(path.stat().st_size for path in stopped.last.iterdir())
    assert needed / 2 < trainer.state.expected_bytes() < needed  # all but names and layout, of a tiny network
    usage = shutil.disk_usage(stopped.path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=2_000_000 + needed // 2))
    with pytest.raises(UserError, match=r"free some space and go on with `resume=.*unharmed\.$"):
        run_to(trainer)
    assert names(stopped) == before
    assert stopped.recover() == []


# What must not change on the way


def test_changed_data_are_refused_unless_asked_for(
    stopped: RunFolder, data: PreparedText, text: str, tmp_path: Path
) -> None:
    other = prepare(Corpus(text[:-9] + text[-9:][::-1], "file", "end reversed"), tmp_path / "other", 100)
    plan = RunPlan.of(stopped.read_config(stopped.path), other)
    with pytest.raises(UserError, match=r"changed: text, validation split\)"):
        Trainer(plan, stopped, resume=True)
    assert Trainer(plan, stopped, resume=True, allow_changed_data=True).progress.step == 8
    recut = prepare(Corpus(text, "file", "the same"), tmp_path / "recut", 50)
    Trainer(RunPlan.of(plan.config, recut), stopped, resume=True)


def test_a_longer_run_does_not_begin_to_compile(
    stopped: RunFolder, data: PreparedText, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled products are rounded otherwise; whoever asks for it gets it."""
    monkeypatch.setattr(plan_module.RunPlan, "should_compile", property(lambda plan: plan.config.compile is not False))
    config = replace(stopped.read_config(stopped.path), steps=10**6)
    assert not Trainer(RunPlan.of(config, data), stopped, resume=True).is_compiled
    assert Trainer(RunPlan.of(replace(config, compile=True), data), stopped, resume=True).is_compiled


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(torch.device("cpu")), reason="there is no C++ compiler")
@pytest.mark.usefixtures("two_threads")
def test_a_compiled_run_of_several_threads_goes_on_bit_for_bit(data: PreparedText, tmp_path: Path) -> None:
    """The laptop preset's network; 2048 tokens a step, so that threads share the gradients of its tables."""
    preset = PRESETS["laptop"]
    network, text = replace(preset.network, d_model=64), replace(preset.data, sequence_length=64)
    config = replace(preset, network=network, data=text, batch_size=32, steps=40, evaluate_every=10, compile=True)
    whole, stopped = (replace(config, output_dir=tmp_path / name) for name in ("whole", "stopped"))
    expected = train(whole, data)
    train(stopped, data, stop_after=28)
    assert torch.equal(weights(train(stopped, data, resume=True)), weights(expected))
    assert metrics_without_clock(stopped) == metrics_without_clock(whole)


def test_changed_settings_are_told(stopped: RunFolder, data: PreparedText) -> None:
    config = stopped.read_config(stopped.path)
    assert Trainer(RunPlan.of(config, data), stopped, resume=True).resumed.changed_settings == []
    config = replace(config, steps=20, optimizer=replace(config.optimizer, learning_rate=0.5))
    changes = Trainer(RunPlan.of(config, data), stopped, resume=True).resumed.changed_settings
    assert sorted(changes) == ["`learning_rate` 0.003 -> 0.5", "`steps` 12 -> 20"]
    assert changed_settings({"a": 1}, {"a": 1, "new": 2}) == []


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("went_off"),)


@pytest.mark.parametrize("content", ["object", "list", "nothing", "noise", "other"])
def test_a_strangers_state_can_do_nothing_but_be_refused(
    stopped: RunFolder, data: PreparedText, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = stopped.last / STATE_FILE
    saved = torch.load(path, weights_only=True)
    values = {"object": {**saved, "bomb": Bomb()}, "list": [1, 2], "nothing": {}, "other": {**saved, "optimizers": [1]}}
    if content == "noise":
        path.write_bytes(random.Random(0).randbytes(5000))
    else:
        torch.save(values[content], path)
    with pytest.raises(UserError, match=r"training_state\.pt cannot be resumed from .*\.$") as caught:
        Trainer(RunPlan.of(stopped.read_config(stopped.path), data), stopped, resume=True)
    assert "\n" not in str(caught.value)
    assert not Path("went_off").exists()


# Folders of others


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_run_takes_no_folder_that_holds_something_else(
    stopped: RunFolder, data: PreparedText, tmp_path: Path, llada: Any
) -> None:
    """Also if all names are those of a run: config.json, a network's among them, could be anybody's."""
    exported = tmp_path / "exported"
    assert llada("export", "--checkpoint", stopped.path, "--output_dir", exported).code == 0
    for number, name in enumerate(("config.json", "metrics.jsonl", "curves.png", "samples", "notes.txt", ".hidden")):
        mine = tmp_path / f"mine-{number}"
        mine.mkdir()
        (mine / name).write_text('{"steps": 3}', encoding="utf-8")
    options = ["--data_dir", data.folder, "--device", "cpu"]
    for folder in [exported, *sorted(tmp_path.glob("mine-*"))]:
        before = all_bytes(folder)
        for start in (["train"], ["finetune", "--checkpoint", exported]):
            result = llada(*start, *options, "--output_dir", folder)
            assert result.code == 2
            assert "which is not of a run: choose a new folder, or an empty one" in result.err
            assert result.err.count("\n") == 1
            assert all_bytes(folder) == before
    assert read_checkpoint(exported).config.vocab_size


def test_a_run_that_ended_before_its_first_checkpoint_can_be_started_again(
    small_run: TrainConfig, data: PreparedText
) -> None:
    folder = RunFolder(small_run.output_dir)
    folder.check_free()
    folder.path.mkdir()
    for name in (".llada.lock", ".lock", ".rehearsal.abc", ".config.json.4711"):  # also of older versions
        (folder.path / name).write_bytes(b"1")
    aside_of(folder.path / "rehearsal").mkdir()
    folder.check_free()
    folder.start(small_run)
    for name in ("metrics.jsonl", "curves.png", "trouble.json"):
        (folder.path / name).write_bytes(b"")
    assert {"samples", "checkpoints"} <= {path.name for path in folder.path.iterdir()}
    folder.check_free()
    (folder.path / "thesis.tex").write_bytes(b"1")
    with pytest.raises(UserError, match=r"holds thesis\.tex, which is not of a run: "):
        folder.check_free()


def test_a_link_in_the_place_of_a_step_is_not_followed_when_that_is_saved(
    stopped: RunFolder, data: PreparedText, small_run: TrainConfig, tmp_path: Path
) -> None:
    shutil.copytree(stopped.path / "samples", tmp_path / "victim")
    before = all_bytes(tmp_path / "victim")
    (stopped.checkpoints / "step-00000012").symlink_to(tmp_path / "victim")
    trainer = Trainer(RunPlan.of(small_run, data), stopped, resume=True)
    run_to(trainer)
    assert all_bytes(tmp_path / "victim") == before
    assert stopped.last_step == 12
    assert (stopped.checkpoints / "copy-of-step-00000012").is_symlink()


def test_a_base_is_marked_only_where_a_run_could_remove_it(stopped: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(stopped.last.resolve(), tmp_path / "step-00000008")
    for folder in (tmp_path / "step-00000008", stopped.last.resolve()):
        keep_for(tmp_path / "run", folder)
    assert not (tmp_path / "step-00000008" / "adapters.txt").exists()
    assert (stopped.last / "adapters.txt").read_text(encoding="utf-8") == f"{(tmp_path / 'run').resolve()}\n"


def test_an_adapter_cannot_stand_on_a_checkpoint_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"step-00000006 is gone.*repeat the command"):
        keep_for(tmp_path / "run", tmp_path / "checkpoints" / "step-00000006")


@pytest.mark.parametrize("name", ["samples", "checkpoints"])
def test_folders_of_a_run_are_no_links(stopped: RunFolder, name: str, tmp_path: Path, llada: Any) -> None:
    elsewhere = tmp_path / "elsewhere"
    os.rename(stopped.path / name, elsewhere)
    (stopped.path / name).symlink_to(elsewhere)
    aside_of(elsewhere / "thing").write_bytes(b"1")
    before = all_bytes(elsewhere)
    result = llada("train", "--resume", stopped.path, "--steps", 20)
    assert result.code == 2
    assert f"{name} is a link, which is not followed to write there" in result.err
    assert all_bytes(elsewhere) == before


def test_a_checkpoint_that_goes_while_it_is_read_is_looked_for_again(
    stopped: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a run does that saves and prunes: `best` is another one by then. A damaged one that stays is refused."""
    read_tokenizer, read = checkpoint.read_tokenizer, []

    def pruning(folder: Path) -> Any:
        read.append(folder.name)
        if len(read) == 1:
            (stopped.checkpoints / "best").unlink()
            (stopped.checkpoints / "best").symlink_to("step-00000008")
            shutil.rmtree(folder)
        return read_tokenizer(folder)

    monkeypatch.setattr(checkpoint, "read_tokenizer", pruning)
    assert read_checkpoint(stopped.path).folder.name == "step-00000008"
    assert read == ["step-00000006", "step-00000008"]
    (stopped.last / "vocab.json").unlink()
    with pytest.raises(UserError, match=r"vocab\.json is missing"):
        read_checkpoint(stopped.path)
    stopped.last.resolve().rename(stopped.checkpoints / "gone")
    with pytest.raises(UserError, match="holds no checkpoint"):
        read_checkpoint(stopped.path)


def test_a_vocabulary_that_goes_while_it_is_read_is_looked_for_again(
    stopped: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in `compare`, which reads it before the weights, next to a run that saves and prunes."""
    read_config, read = checkpoint.read_config, []

    def pruning(folder: Path) -> Any:
        read.append(folder.name)
        if len(read) == 1:
            (stopped.checkpoints / "best").unlink()
            (stopped.checkpoints / "best").symlink_to("step-00000008")
            shutil.rmtree(folder)
        return read_config(folder)

    expected = loading.read_vocabulary(stopped.path)
    monkeypatch.setattr(loading, "read_config", pruning)
    assert loading.read_vocabulary(stopped.path) == expected
    assert read == ["step-00000006", "step-00000008"]


def test_a_checkpoint_that_lacks_a_file_is_named_and_not_passed_over(stopped: RunFolder) -> None:
    """The next one would be other weights, without a word."""
    for name in ("model.safetensors", "config.json"):
        kept = (stopped.checkpoints / "best" / name).read_bytes()
        (stopped.checkpoints / "best" / name).unlink()
        with pytest.raises(UserError, match=rf"step-00000006 is damaged \({name} is missing\): use another checkpoint"):
            loading.open_model(stopped.path)
        (stopped.checkpoints / "best" / name).write_bytes(kept)
    assert loading.open_model(stopped.path).folder.name == "step-00000006"


def test_a_name_that_leads_to_itself_is_replaced(stopped: RunFolder) -> None:
    best = stopped.checkpoints / "best"
    best.unlink()
    best.symlink_to("best")
    stopped.point_best(Progress(step=8, best_step=6))
    assert best.resolve() == (stopped.checkpoints / "step-00000006").resolve()
    stopped.prune(1)
    assert names(stopped) == ["best", "last", "step-00000006", "step-00000008"]
