"""Several processes train what one does: the same losses and weights, to rounding, however a step is shared."""

import json
import os
import re
import shutil
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from llada.data.corpus import Corpus
from llada.data.prepared import PreparedText, prepare
from llada.system.toolchains import has_compiler
from llada.training import group
from llada.training.group import Group
from llada.training.plan import RunPlan
from llada.training.run_folder import RunFolder
from llada.training.trainer import Trainer
from tests.support.commands import RunCommand, assert_one_sentence
from tests.support.groups import ADAMW, FSDP, SMALL, assert_alike, flags, torchrun, weights_of
from tests.support.ranks import BROKEN, PRETENDED, REWRITE, Ended, get_ready
from tests.support.rewriting import LEFT, REFUSED, WRITTEN
from tests.support.runs import losses_of

WAYS: dict[str, list[str]] = {
    "complementary pairs, muon": ["--complementary"],
    "accumulation, bernoulli": [*ADAMW, "--accumulate", "2", "--masking", "bernoulli", "--random_length", "0.5"],
    "stored sequences": [*ADAMW, "--windows", "stored", "--accumulate", "3", "--complementary"],
    "drawn by step": [*ADAMW, "--draws", "by_step", "--ema", "0"],
}
"""Flags of runs, by what is special about them."""


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dialogues") / "dialogues.jsonl"
    lines = [{"prompt": f"say {'a' * n}", "completion": "ab" * (1 + n % 5)} for n in range(20)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def train_all_ways(
    ways: Sequence[Sequence[str]],
    llada: RunCommand,
    data: PreparedText,
    folder: Path,
    then: Sequence[Sequence[object]] = (),
) -> tuple[list[Ended], list[Ended]]:
    """Each way in one process, in two, from one to two and from two to one, these with layers that are shared out.

    Args:
        then: what else the two carry out, since processes take long to start.

    Returns:
        What the commands of the two came to, three for each way.
    """
    run_together = get_ready(2)
    for number, way in enumerate(ways):
        assert llada(*flags(way, data, folder / f"{number}-alone", 8)).code == 0
        assert llada(*flags(way, data, folder / f"{number}-more", 4)).code == 0
    commands = []
    for number, way in enumerate(ways):
        commands += [flags(way, data, folder / f"{number}-together", 8)]
        commands += [[*flags(way, data, folder / f"{number}-fewer", 4), *FSDP]]
        commands += [["train", "--resume", folder / f"{number}-more", "--steps", 8, *FSDP]]
    first, second = run_together([*commands, *then])
    assert [ended.code for ended in first[: len(commands)]] == [0] * len(commands), first
    for number in range(len(ways)):
        result = llada("train", "--resume", folder / f"{number}-fewer", "--steps", 8)
        assert result.code == 0, result.err
        for kind in ("together", "more", "fewer"):
            assert_alike(folder / f"{number}-{kind}", folder / f"{number}-alone")
    return first, second


def test_two_processes_train_like_one_and_go_on_from_each_other_and_what_differs_is_named_once(
    llada: RunCommand, data: PreparedText, text: str, tmp_path: Path
) -> None:
    """They read the same checkpoint, that of one process or of two; only the first of them says anything."""
    wrong = wrong_commands(llada, data, text, tmp_path)
    ways = ("background", "foreground", "fails")
    rewritten = [[REWRITE, tmp_path / "0-alone", tmp_path / way, way] for way in ways]
    way = WAYS["complementary pairs, muon"]
    limited = ["--minutes", "0.02", "--evaluate_every", "2", "--decay", "0.9"]
    timed = flags(limited, data, tmp_path / "timed", 10**6)
    first, second = train_all_ways([way], llada, data, tmp_path, [timed, *wrong, *rewritten])
    assert "2 at a time x 2 processes" in first[0].err
    assert [(ended.code, ended.out, ended.err) for ended in second[:3]] == [(0, "", "")] * 3
    # Rates that follow the clock are the same in both, also after an evaluation.
    assert [ended.code for ended in (first[3], second[3])] == [0, 0], first[3]
    assert 2 < len(losses_of(tmp_path / "timed")) < 10**6
    assert_named(first[4:-3], second[4:-3])
    assert_rewritten(first[-3:], second[-3:], tmp_path)
    assert_of_all_rows(tmp_path / "broken", data)


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_rewritten(first: Sequence[Ended], second: Sequence[Ended], folder: Path) -> None:
    """Two processes that have parts of a checkpoint write the bytes of the one that wrote it, or nothing."""
    assert [(ended.code, ended.err) for ended in (*first[:2], *second[:2])] == [(WRITTEN, "")] * 4
    assert (first[2].code, second[2].code, second[2].err) == (REFUSED, LEFT, "")
    assert "could not be written" in first[2].err
    assert "No space left on device" in first[2].err
    written = folder / "0-alone" / "checkpoints" / "last"
    whole = sum(weight.nbytes for weight in weights_of(folder / "0-alone").values())
    read_by_one, read_by_other = (int(ended.out.split()[0]) for ended in (first[0], second[0]))
    assert read_by_one + read_by_other < 2 * whole
    for ended in (*first[:2], *second[:2]):
        read, kept = map(int, ended.out.split())
        assert read == kept  # its own part, and nothing else
    for way in ("background", "foreground"):
        assert contents_of(folder / way / "checkpoints" / "last") == contents_of(written)
    assert not (folder / "fails" / "checkpoints" / "last").exists()
    assert os.listdir(folder / "fails" / "checkpoints") == []


def wrong_commands(llada: RunCommand, data: PreparedText, text: str, folder: Path) -> list[list[object]]:
    """What cannot begin, each for another reason."""
    shutil.copytree(data.folder, folder / "text-0")
    prepare(Corpus(text[::-1], "file", "reversed"), folder / "text-1", 100)
    shutil.copytree(data.folder, folder / "only-0")
    damaged = folder / "damaged"
    assert llada(*flags([], data, damaged, 1)).code == 0
    weights = damaged / "checkpoints" / "last" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    good = ["train", *SMALL, "--data_dir", data.folder, "--output_dir", folder / "wrong"]
    return [
        [*good, "--batch_size", 3],
        [*good, "--data_dir", folder / "only-{rank}"],
        [f"{PRETENDED}9.{{rank}}", *good, "--data_dir", folder / "text-{rank}"],
        [*good, "--output_dir", folder / "other", "--seed", "{rank}"],
        [*good, *FSDP, "--output_dir", folder / "other", "--n_layers", "1{rank}"],
        ["finetune", "--checkpoint", damaged, "--method", "lora", *FSDP, *good[-4:], "--windows", "random", *SMALL[8:]],
        ["train", "--resume", folder / "nowhere"],
        [*good, "--stepz", 3],
        [BROKEN, *good, *FSDP, "--output_dir", folder / "broken", "--steps", 8],
    ]


def assert_named(first: Sequence[Ended], second: Sequence[Ended]) -> None:
    """Each reason in one sentence of the process that it concerns, or of the first."""
    assert [ended.code for ended in (*first, *second)] == [2] * 18
    said, too = ([re.findall(r"^llada: .*", ended.err, re.MULTILINE) for ended in part] for part in (first, second))
    assert [len(lines) for lines in said] == [1, 0, 1, 1, 1, 1, 1, 1, 1]
    assert [len(lines) for lines in too] == [0, 1, 0, 0, 0, 0, 0, 0, 0]
    assert "2 processes cannot share 3 x 1 sequences" in said[0][0]
    assert re.search(r"Process 1 \(on .*\): .*only-1", too[1][0])
    for what in ("Process 1 (on ", "llada-trainer: 9.1, not 9.0", "text: ", "training split: "):
        assert what in said[2][0]
    assert "(--seed: 1, not 0)" in said[3][0]
    assert "(--n_layers: 11, not 10)" in said[4][0]
    assert "is damaged" in said[5][0]
    assert "holds no run to resume" in said[6][0]
    assert "--stepz" in said[7][0]
    assert "no weight has changed yet, the weights are finite" in said[8][0]


def assert_of_all_rows(broken: Path, data: PreparedText) -> None:
    """What is written down of a step has the rows of both processes, as one process would draw them."""
    trouble = json.loads((broken / "trouble.json").read_text(encoding="utf-8"))
    config = replace(RunFolder.read_config(broken), output_dir=broken / "again")
    batch, noisy = Trainer(RunPlan.of(config, data), RunFolder(config.output_dir)).steps.make_batch(trouble["step"])
    assert trouble["ids"] == batch.x_0.tolist()
    assert trouble["masked"] == noisy.is_masked.sum(1).tolist()
    assert trouble["t"] == noisy.t.tolist()


def test_a_dry_run_plans_for_any_number_of_processes_and_writes_nothing(
    llada: RunCommand, data: PreparedText, tmp_path: Path
) -> None:
    command = ["train", *SMALL, "--data_dir", data.folder, "--accumulate", 2, "--output_dir", tmp_path / "none"]
    for processes, words in ((4, "in 2 at a time x 4 processes"), (2, "in 4 at a time x 2 processes")):
        result = llada(*command, "--dry_run", processes)
        assert result.code == 0
        assert words in result.err
        assert "in each process," in result.err
        assert "tokens a second" in result.err
    assert "in 4 at a time x 2 accumulated" in llada(*command, "--dry_run").err
    assert_one_sentence(llada(*command, "--dry_run", 3), "3 processes cannot share 4 x 2")
    for wrong in (-2, 0, "two"):
        assert_one_sentence(llada(*command, f"--dry_run={wrong}"), f"plans for 1 process or more, not {wrong}")
    assert not (tmp_path / "none").exists()


def test_a_dry_run_under_torchrun_shares_the_memory_among_the_processes_of_this_machine(
    llada: RunCommand, data: PreparedText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", *SMALL, "--data_dir", data.folder, "--output_dir", tmp_path / "none", "--device", "cpu"]

    def planned(*dry_run: object) -> tuple[str, str]:
        words = " ".join(llada(*command, *dry_run).err.split())
        found = re.search(r"in (\d at a time x \d processes) .* in addition to torch itself, of ([\d.]+ GB)", words)
        assert found, words
        return found[1], found[2]

    by_two, by_four = planned("--dry_run", 2), planned("--dry_run", 4)
    for name, value in {"RANK": 0, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    assert planned("--dry_run") == (by_four[0], by_two[1])
    assert planned("--dry_run", 4) == by_four != by_two


@pytest.mark.slow
def test_two_processes_train_like_one_in_other_ways(
    llada: RunCommand, data: PreparedText, text: str, dialogues: Path, tmp_path: Path
) -> None:
    answers = [*ADAMW, "--accumulate", "2", "--chat", str(dialogues), "--weight_power", "1"]
    prepare(Corpus(text[: len(text) // 2][::-1], "file", "reversed"), tmp_path / "text", 100)
    mixture = [*ADAMW, "--complementary", "--data_dir", str(data.folder), str(tmp_path / "text")]
    mixture += ["--data_weights", "2", "1"]
    alone = tmp_path / "0-alone"
    tuned = ["finetune", "--checkpoint", alone, "--data_dir", data.folder, "--windows", "random", *SMALL[8:]]
    tuned += ["--steps", 3, "--epochs", "None", "--learning_rate", "1e-3", "--output_dir"]
    then = [[*tuned, tmp_path / "tuned", *FSDP], [*tuned, tmp_path / "tuned-too"]]
    first, second = train_all_ways([*list(WAYS.values())[1:], answers, mixture], llada, data, tmp_path, then)
    assert [ended.code for ended in (*first[-2:], *second[-2:])] == [0] * 4, first[-2:]
    assert llada(*tuned, tmp_path / "tuned-alone").code == 0
    for run in ("tuned", "tuned-too"):
        assert_alike(tmp_path / run, tmp_path / "tuned-alone")


FIFTY = {
    "muon": ([], [1, 2, 4]),
    "adamw": (ADAMW, [1, 2, 4]),
    "dropout": ([*ADAMW, "--network", "encoder", "--dropout", "0.2", "--accumulate", "2"], [1, 2, 4]),
    # 20 rows, of which three processes have 7, 7 and 6.
    "muon, layers shared out": (["--d_model", "20", "--n_layers", "2", "--activation_checkpointing", *FSDP], [1, 2, 3]),
    "adamw, layers shared out": ([*ADAMW, *FSDP, "--ema", "0", "--accumulate", "2"], [1, 2, 4]),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", FIFTY)
def test_any_number_of_processes_agrees_over_fifty_steps(way: str, data: PreparedText, tmp_path: Path) -> None:
    """Also if they change: many do 20 steps, one goes on to 36, and two to the end. All are started by torchrun."""
    special, numbers = FIFTY[way]

    def command(run: object, steps: int) -> list[object]:
        return flags([*special, "--batch_size", "12", "--complementary"], data, tmp_path / f"{run}", steps)

    parts = ["train", "--resume", str(tmp_path / "parts"), "--steps"]
    runs = [(processes, command(processes, 50)) for processes in numbers]
    for processes, words in [*runs, (numbers[-1], command("parts", 20)), (1, [*parts, 36]), (2, [*parts, 50])]:
        ended = torchrun(processes, words)
        assert ended.returncode == 0, ended.stderr
    assert len(losses_of(tmp_path / "1")) == 50
    for run in (*numbers[1:], "parts"):
        assert_alike(tmp_path / f"{run}", tmp_path / "1")


COMPILED: dict[str, list[object]] = {
    "llada": [],
    "encoder with dropout": ["--network", "encoder", "--dropout", "0.2", "--accumulate", "2"],
}


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(torch.device("cpu")), reason="there is no C++ compiler")
@pytest.mark.parametrize("way", COMPILED)
def test_two_processes_compile_alike_and_train_like_one_that_does_not(
    way: str, data: PreparedText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if they go on from a checkpoint of theirs."""
    monkeypatch.setenv("LLADA_COMPILE_CACHE", str(tmp_path / "cache"))
    special = [*ADAMW, *map(str, COMPILED[way]), "--batch_size", "4"]
    compiled = tmp_path / "compiled"
    for words in (
        flags([*special, "--compile", "True"], data, compiled, 4),
        ["train", "--resume", compiled, "--steps", 8],
    ):
        ended = torchrun(2, words)
        assert ended.returncode == 0, ended.stderr
        assert re.search(r"Compiled by .* in .* s: ", ended.stderr), ended.stderr
    assert RunFolder.read_config(compiled).toolchain not in (None, "none")
    ended = torchrun(1, flags(special, data, tmp_path / "plain", 8))
    assert ended.returncode == 0, ended.stderr
    assert losses_of(compiled) == pytest.approx(losses_of(tmp_path / "plain"), rel=1e-3)


class Doubling:
    """Stands for the exchange with a process that has the same numbers, and keeps track of copies of gradients."""

    def __init__(self, gradients: Sequence[torch.Tensor]) -> None:
        self.own = {gradient.data_ptr() for gradient in gradients}
        self.copies: list[weakref.ref[torch.Tensor]] = []
        self.under_way = self.most_under_way = self.most_numbers = 0

    def all_reduce(self, values: torch.Tensor, async_op: bool) -> SimpleNamespace:
        def end() -> None:
            self.under_way -= 1
            values.mul_(2)

        self.under_way += async_op
        self.most_under_way = max(self.most_under_way, self.under_way)
        if values.data_ptr() not in self.own:
            self.copies.append(weakref.ref(values))
        alive = [copy() for copy in self.copies]
        self.most_numbers = max(self.most_numbers, sum(each.numel() for each in alive if each is not None))
        return SimpleNamespace(wait=end)


def test_gradients_are_added_up_in_place_by_way_of_two_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any shape, layout and type; what is larger than a bucket is not copied."""
    gradients = [torch.arange(float(n)) for n in (4, 6, 3, 7, 5, 25, 5, 5)]
    gradients += [torch.arange(8.0).view(2, 4).T, torch.arange(12.0).view(3, 4).T, torch.tensor(3.0)]
    gradients += [torch.arange(n, dtype=torch.bfloat16) for n in (5, 4, 2)]
    weights = {str(n): nn.Parameter(torch.zeros_like(gradient)) for n, gradient in enumerate(gradients)}
    for weight, gradient in zip(weights.values(), gradients, strict=True):
        weight.grad = gradient
    doubled = [2 * gradient for gradient in gradients]
    weights["missing here"] = nn.Parameter(torch.ones(3))
    exchange = Doubling(gradients)
    monkeypatch.setattr(group, "BUCKET", 10)
    monkeypatch.setattr(torch.distributed, "all_reduce", exchange.all_reduce)
    monkeypatch.setattr(Group, "is_any", lambda self, is_it: is_it)
    monkeypatch.setattr(Group, "sum", lambda self, values: torch.ones_like(values))
    loss = Group(0, 2).sum_gradients(weights, torch.tensor(1.5))
    assert loss == 3
    for weight, gradient, expected in zip(weights.values(), gradients, doubled, strict=False):
        assert weight.grad is gradient
        assert torch.equal(gradient, expected)
    assert weights["missing here"].grad is not None
    assert (exchange.under_way, exchange.most_under_way) == (0, 2)
    assert 10 < exchange.most_numbers <= 20
