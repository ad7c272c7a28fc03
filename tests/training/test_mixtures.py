"""A run on several folders. Letters: B rows of a step, L length."""

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from llada.data.batches import Numbered, random_windows, stored_sequences
from llada.data.corpus import Corpus
from llada.data.mixture import Mixture
from llada.data.prepared import PreparedText, prepare
from llada.evaluation.distributed import Shard
from llada.system.errors import UserError
from llada.training.build import build_model
from llada.training.config import DataOptions, NoiseOptions, TrainConfig
from llada.training.data_source import MixtureSource, make_source
from llada.training.diagnostics import unigram_entropy
from llada.training.plan import RunPlan
from llada.training.seeds import key_of
from llada.training.state import Progress
from llada.training.step import Steps
from tests.support.commands import RunCommand, assert_one_sentence
from tests.support.runs import (
    assert_parts_are_those_of_the_whole,
    metrics_without_clock,
    run_to,
    train_until,
    trainer_of,
    weights,
)
from tests.support.toys import chi_square_p


@pytest.fixture(scope="module")
def other(text: str, tmp_path_factory: pytest.TempPathFactory) -> PreparedText:
    """Another text with the same vocabulary, a third as long."""
    folder = tmp_path_factory.mktemp("other") / "reversed"
    return prepare(Corpus(text[: len(text) // 3][::-1], "file", "made up"), folder, sequence_length=100)


@pytest.fixture
def mixed_run(small_run: TrainConfig, data: PreparedText, other: PreparedText) -> TrainConfig:
    options = replace(small_run.data, data_dir=(data.folder, other.folder), data_weights=(2, 1))
    return replace(small_run, data=options)


def mixture_of(config: TrainConfig) -> Mixture:
    mixture = config.data.open_texts()
    assert isinstance(mixture, Mixture)
    return mixture


def plan_of(config: TrainConfig, rank: int = 0, processes: int = 1) -> RunPlan:
    return RunPlan.of(config, config.data.open_texts(), shard=Shard(rank, processes))


def steps_of(config: TrainConfig, rank: int = 0, processes: int = 1) -> Steps:
    plan = plan_of(config, rank, processes)
    return Steps(plan, build_model(plan, None), make_source(plan, 0), Progress(step=0, samples=96))


WAYS: dict[str, dict[str, Any]] = {
    "random, complementary pairs": {"noise": NoiseOptions(complementary=True)},
    "random, bernoulli": {"noise": NoiseOptions("bernoulli", random_length=0.5)},
    "stored": {"windows": "stored", "noise": NoiseOptions()},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_parts_of_a_step_are_those_of_the_whole(way: dict[str, Any], mixed_run: TrainConfig) -> None:
    """Bit for bit: ids, masks, probabilities and weights of the rows, in any number of processes."""
    options = replace(mixed_run.data, windows=way.get("windows", "random"))
    config = replace(mixed_run, batch_size=6, accumulate=2, data=options, noise=way["noise"])
    assert_parts_are_those_of_the_whole(lambda rank, processes: steps_of(config, rank, processes), at=(0, 1, 5))


def drawn(config: TrainConfig, n_rows: int) -> Tensor:
    """The first rows of a run, without those that come again as complements."""
    source = make_source(plan_of(config), 0)
    n = config.distinct_sequences
    return torch.cat([source.draw(first, Generator()).x_0[:n] for first in range(0, n_rows, n)])[:n_rows]


@pytest.mark.parametrize("windows", ["random", "stored"])
def test_each_folder_goes_on_as_if_it_were_alone(
    windows: Any, mixed_run: TrainConfig, data: PreparedText, other: PreparedText
) -> None:
    """By weights 2 and 1, every third row comes from the second folder. The first one's are those of a run on it
    alone, bit for bit; the second has a key of its own."""
    config = replace(mixed_run, data=replace(mixed_run.data, windows=windows))
    rows = drawn(config, 240)
    alone = drawn(replace(config, data=replace(config.data, data_dir=(data.folder,), data_weights=())), 160)
    folder, _ = mixture_of(config).interleaving.at(np.arange(240))
    assert folder.tolist() == [0, 1, 0] * 80 or folder.tolist() == [0, 0, 1] * 80
    assert torch.equal(rows[folder == 0], alone)
    numbered = Numbered(np.arange(80), key_of(config.seed, "data", 0, folder=1))
    of_other = random_windows(other, numbered, 24) if windows == "random" else stored_sequences(other, numbered, 0)
    assert torch.equal(rows[folder == 1], of_other(0, Generator()).x_0)
    if windows == "stored":  # each once an epoch, at the folder's own pace
        n = len(other.rows["train"])
        first, second = rows[folder == 1][:n], rows[folder == 1][n : 2 * n]
        assert sorted(first.tolist()) == sorted(second.tolist()) == sorted(other.rows["train"].tolist())
        assert not torch.equal(first, second)


def test_a_run_on_one_folder_is_what_it_was(small_run: TrainConfig) -> None:
    """Whatever its weight."""
    weighted = replace(small_run, data=replace(small_run.data, data_weights=(5,)))
    assert isinstance(weighted.data.open_texts(), PreparedText)
    assert torch.equal(drawn(weighted, 24), drawn(small_run, 24))


def test_the_t_of_a_row_does_not_depend_on_its_folder(mixed_run: TrainConfig) -> None:
    """Though row 2 of each step of 3 is always of the second folder: a third of its rows is in each stratum of t."""
    noise = NoiseOptions(random_length=0.0)
    steps = steps_of(replace(mixed_run, batch_size=3, noise=noise))
    strata = torch.zeros(3, 3, dtype=torch.long)  # by row and stratum: of 24 tokens, 1 to 8, 9 to 16, 17 to 24 masked
    for step in range(300):
        stratum = (steps.make_batch(step)[1].is_masked.sum(1) - 1) // 8
        assert sorted(stratum.tolist()) == [0, 1, 2]
        strata[torch.arange(3), stratum] += 1
    for row in strata:
        assert chi_square_p(row, torch.full((3,), 1 / 3)) > 1e-4


def test_without_weights_an_epoch_has_each_folder_once(
    mixed_run: TrainConfig, data: PreparedText, other: PreparedText
) -> None:
    """Stored sequences: 79 rows of the longer text and 27 of the other."""
    n, m = len(data.rows["train"]), len(other.rows["train"])
    options = replace(mixed_run.data, windows="stored", data_weights=())
    config = replace(mixed_run, data=options, steps=None, epochs=2.0)
    assert mixture_of(config).weights == (n, m)
    plan = plan_of(config)
    assert plan.total_steps == -(-2 * (n + m) // config.distinct_sequences)
    assert plan.epochs == pytest.approx(2, rel=0.05)
    rows = drawn(config, n + m).tolist()
    assert sorted(rows) == sorted(data.rows["train"].tolist() + other.rows["train"].tolist())
    random = replace(config, data=replace(options, windows="random"))
    assert mixture_of(random).weights == (len(data.tokens("train")), len(other.tokens("train")))


def test_the_bound_is_measured_on_each_folder(mixed_run: TrainConfig) -> None:
    config = replace(mixed_run, evaluation_windows=5)
    source = make_source(plan_of(config), 0)
    assert isinstance(source, MixtureSource)
    assert [len(windows.x_0) for windows in source.windows] == [3, 3]
    trainer = run_to(trainer_of(config, mixture_of(config)))
    lines = [line for line in metrics_without_clock(config) if "nelbo" in line]
    assert [line["step"] for line in lines] == [6, 12]
    for line in lines:
        assert line["nelbo"] == pytest.approx((2 * line["nelbo/prepared"] + line["nelbo/reversed"]) / 3)
    assert trainer.progress.best_nelbo == min(line["nelbo"] for line in lines)


def test_a_model_of_the_mixtures_counts_by_hand() -> None:
    """Of a text with ids 3 and 4 and one with 4 alone, by 1 : 1, a quarter of the tokens is 3."""
    texts = (np.array([3, 4], dtype=np.uint8), np.array([4, 4, 4], dtype=np.uint8))
    by_hand = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert unigram_entropy(*texts, shares=(0.5, 0.5)) == pytest.approx(by_hand)


def test_a_resumed_run_is_the_uninterrupted_one(mixed_run: TrainConfig, tmp_path: Path) -> None:
    texts = mixture_of(mixed_run)
    whole = run_to(trainer_of(mixed_run, texts))
    stopped = replace(mixed_run, output_dir=tmp_path / "stopped")
    train_until(stopped, texts, stop_after=5)
    resumed = train_until(stopped, mixture_of(stopped), resume=True)
    assert torch.equal(weights(resumed), weights(whole))
    assert metrics_without_clock(stopped) == metrics_without_clock(mixed_run)


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "weights": ({"data_weights": (1, 1)}, r"\(changed: weights\)"),
    "order": ({"data_dir": "reversed"}, r"\(changed: text of folder 1, .*training split of folder 2"),
    "one folder": ({"data_dir": "first", "data_weights": ()}, r"\(changed: text of folder 1, "),
}


@pytest.mark.parametrize("change", CHANGES)
def test_folders_and_weights_are_part_of_what_a_run_learns_from(change: str, mixed_run: TrainConfig) -> None:
    run_to(trainer_of(replace(mixed_run, steps=2), mixture_of(mixed_run)))
    options, sentence = CHANGES[change]
    folders = mixed_run.data.data_dir
    changed = {"reversed": folders[::-1], "first": folders[:1]}
    options = {name: changed.get(value, value) if isinstance(value, str) else value for name, value in options.items()}
    config = replace(mixed_run, data=replace(mixed_run.data, **options))
    with pytest.raises(UserError, match=sentence):
        trainer_of(config, config.data.open_texts(), resume=True)


def test_stored_sequences_of_other_lengths_are_refused_and_both_folders_named(
    mixed_run: TrainConfig, text: str, tmp_path: Path
) -> None:
    prepare(Corpus(text, "file", "made up"), tmp_path / "short", sequence_length=50)
    folders = (mixed_run.data.data_dir[0], tmp_path / "short")
    plan_of(replace(mixed_run, data=replace(mixed_run.data, data_dir=folders)))
    stored = replace(mixed_run, data=replace(mixed_run.data, data_dir=folders, windows="stored"))
    with pytest.raises(UserError, match=f"of {folders[0]} have 100 tokens and those of {folders[1]} 50: prepare both"):
        plan_of(stored)


def test_a_configuration_from_before_there_were_mixtures_opens(small_run: TrainConfig, mixed_run: TrainConfig) -> None:
    """One folder is still written as it was, so that nothing seems to have changed."""
    content = json.loads(json.dumps(small_run.to_json()))
    assert content["data"]["data_dir"] == str(small_run.data.data_dir[0])
    del content["data"]["data_weights"]
    assert TrainConfig.from_json(content) == small_run
    content = json.loads(json.dumps(mixed_run.to_json()))
    assert content["data"]["data_dir"] == list(map(str, mixed_run.data.data_dir))
    assert TrainConfig.from_json(content) == mixed_run


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "too few": ({"data_weights": (1,)}, "`data_weights` has 1 number for 2 folders: give one for each"),
    "too many": ({"data_weights": (1, 2, 3)}, "`data_weights` has 3 numbers for 2 folders"),
    "negative": ({"data_weights": (1, -2)}, "`data_weights` must be numbers above 0, not -2"),
    "zero": ({"data_weights": (0, 1)}, "above 0, not 0"),
    "nan": ({"data_weights": (float("nan"), 1)}, "above 0, not nan"),
    "infinite": ({"data_weights": (1, float("inf"))}, "above 0, not inf"),
    "nothing": ({"data_dir": ()}, "`data_dir` names nothing"),
}


@pytest.mark.parametrize(("options", "sentence"), REFUSED.values(), ids=REFUSED)
def test_bad_weights_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        DataOptions(**{"data_dir": (Path("a"), Path("b")), **options})


def test_what_a_mixture_cannot_be_is_refused(mixed_run: TrainConfig) -> None:
    with pytest.raises(UserError, match='mixed row by row: leave out `draws="by_step"`'):
        replace(mixed_run, draws="by_step")
    with pytest.raises(UserError, match="Dialogues are not mixed with texts"):
        replace(mixed_run, noise=NoiseOptions(weight_power=1.0), data=replace(mixed_run.data, chat=Path("x.jsonl")))


def check_evaluation(llada: RunCommand, run: Path, folders: tuple[Path, Path], shares: tuple[float, float]) -> None:
    """Compare what `llada evaluate` says of a mixture with what it says of each folder."""
    evaluate = ["evaluate", "--checkpoint", run, "--windows", 4, "--masks_per_window", 2]
    mixed = json.loads(llada(*evaluate, "--seed", 5, "--json").out)
    alone = [
        json.loads(llada(*evaluate, "--seed", 5 + number, "--data_dir", folder, "--json").out)
        for number, folder in enumerate(folders)
    ]
    assert without_seconds(mixed["parts"].values()) == without_seconds(alone)
    bounds = [part["nelbo_nats_per_token"] for part in alone]
    assert mixed["nelbo_nats_per_token"] == pytest.approx(sum(s * b for s, b in zip(shares, bounds, strict=True)))
    words = llada(*evaluate).out
    assert f"{folders[1]}, 25.0% of the sequences\nNELBO " in words
    assert "The mixture, each text by its share\nNELBO " in words
    assert_one_sentence(llada(*evaluate, "--policy", "random"), *map(str, folders), "--data_dir")


def without_seconds(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in result.items() if key != "seconds"} for result in results]


def test_mixtures_from_the_command_line(llada: RunCommand, mixed_run: TrainConfig, text: str, tmp_path: Path) -> None:
    """The plan, a run, what is refused, evaluating, and fine-tuning on a mixture."""
    first, second = mixed_run.data.data_dir
    small = ["--d_model", 16, "--n_heads", 2, "--n_layers", 1, "--sequence_length", 24, "--batch_size", 4, "--steps", 3]
    small += ["--evaluation_windows", 4, "--device", "cpu", "--precision", "fp32", "--compile", "False"]
    train = ["train", "--preset", "llada", *small, "--warmup_steps", 1, "--output_dir", tmp_path / "run"]
    dry = llada(*train, "--data_dir", first, second, "--data_weights", 3, 1, "--dry_run")
    assert dry.code == 0
    assert re.search(r"75\.0%\s.*25\.0%\s", dry.err, re.DOTALL)
    prepare(Corpus("other letters", "file", "made up"), tmp_path / "alien", 4)
    assert_one_sentence(llada(*train, "--data_dir", first, tmp_path / "alien"), str(first), "alien", "--tokenizer")
    assert_one_sentence(llada(*train, "--data_dir", first, second, first), "twice", "--data_weights")
    assert_one_sentence(llada(*train, "--data_dir", first, second, "--data_weights", 1, -1), "above 0, not -1")
    assert_one_sentence(llada(*train, "--data_dir", first, ""), "--data_dir has an empty value")
    lines = [json.dumps({"text": text[:length]}) for length in range(200, 220)]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines), encoding="utf-8")
    prepare_shards = ["prepare", "--input", tmp_path / "lines.jsonl", "--output_dir", tmp_path / "shards"]
    made = llada(*prepare_shards, "--tokenizer", first, "--val_share", 0.5, "--processes", 1)
    assert made.code == 0, made.err
    second = tmp_path / "shards"
    result = llada(*train, "--data_dir", first, second, "--data_weights", 3, 1)
    assert result.code == 0, result.err
    assert re.search(r"\(prepared \S+, shards \S+\) nats per character", result.err)
    check_evaluation(llada, tmp_path / "run", (first, second), (0.75, 0.25))
    assert_one_sentence(llada("train", "--resume", tmp_path / "run", "--steps", 5, "--data_weights", 1, 1), "weights")
    tuned = ["finetune", "--checkpoint", tmp_path / "run", "--windows", "random", *small[6:]]
    result = llada(*tuned, "--data_dir", first, mixed_run.data.data_dir[1], "--output_dir", tmp_path / "tuned")
    assert result.code == 0, result.err
