"""Shape letters: B batch, L length."""

import itertools
import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llada.checkpoints.folder import read_checkpoint
from llada.data.corpus import Corpus
from llada.data.prepared import PreparedText, prepare
from llada.system.compile import Compiled
from llada.system.compile_check import Finding, Subject
from llada.system.errors import UserError
from llada.system.toolchains import Toolchain
from llada.training import compilation
from llada.training.config import (
    DataOptions,
    NetworkOptions,
    NoiseOptions,
    OptimizerOptions,
    TrainConfig,
)
from llada.training.metrics import LossByTime, read_metrics
from llada.training.plan import RunPlan, count_steps
from llada.training.presets import PRESETS
from llada.training.run_folder import RunFolder
from llada.training.seeds import KEY_PURPOSES, PURPOSES, key_of, seed_of
from llada.training.trainer import Trainer
from tests.support.runs import display, losses, train, weights

CONFIGURATIONS = {
    "muon": {},
    "adamw with cosine": {"optimizer": OptimizerOptions(optimizer="adamw", schedule="cosine", warmup_steps=2)},
    "no average": {"optimizer": OptimizerOptions(ema=0.0)},
    "bernoulli": {"noise": NoiseOptions(masking="bernoulli", weight_power=1.0)},
    "plain mean": {"noise": NoiseOptions(weight_power=0.0)},
    "cosine in a bell": {"noise": NoiseOptions(mask_schedule="cosine", time_sampling="bell")},
    "accumulation": {"batch_size": 2, "accumulate": 3},
    "encoder with dropout": {"network": NetworkOptions("encoder", d_model=16, n_heads=2, n_layers=1, dropout=0.2)},
}


def test_the_same_seed_gives_the_same_run(small_run: TrainConfig, data: PreparedText, tmp_path: Path) -> None:
    other = replace(small_run, output_dir=tmp_path / "other")
    assert torch.equal(weights(train(small_run, data)), weights(train(other, data)))
    assert losses(small_run) == losses(other)
    different = replace(small_run, output_dir=tmp_path / "different", seed=1)
    train(different, data)
    assert losses(different) != losses(small_run)


@pytest.mark.parametrize("changes", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    changes: dict[str, object], small_run: TrainConfig, data: PreparedText, tmp_path: Path
) -> None:
    """Bit for bit: weights, averaged weights, losses, and the best checkpoint."""
    whole = replace(small_run, output_dir=tmp_path / "whole", **changes)  # type: ignore[arg-type]
    parts = replace(whole, output_dir=tmp_path / "parts")
    expected = train(whole, data)
    stopped = train(parts, data, stop_at=7)
    # The step that was under way is finished, or not counted if it has several pieces.
    assert stopped.progress.step == (7 if whole.accumulate > 1 else 8)
    resumed = train(RunFolder.read_config(parts.output_dir), data, resume=True)
    assert torch.equal(weights(resumed), weights(expected))
    assert losses(parts) == losses(whole)
    assert (resumed.progress.best_step, resumed.progress.best_nelbo) == (
        expected.progress.best_step,
        expected.progress.best_nelbo,
    )
    for name in ("last", "best"):
        one, other = (read_checkpoint(config.output_dir / "checkpoints" / name) for config in (whole, parts))
        for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
            assert torch.equal(a, b)


def test_a_run_that_is_stopped_where_it_would_be_measured_is(
    small_run: TrainConfig, data: PreparedText, tmp_path: Path
) -> None:
    whole, parts = (replace(small_run, output_dir=tmp_path / name) for name in ("whole", "parts"))
    train(whole, data)
    assert train(parts, data, stop_at=5).progress.step == 6 == small_run.evaluate_every
    train(parts, data, resume=True)
    bounds = [
        [(row["step"], row["nelbo"]) for row in read_metrics(config.output_dir / "metrics.jsonl") if "nelbo" in row]
        for config in (whole, parts)
    ]
    assert bounds[0] == bounds[1]
    assert [step for step, _ in bounds[0]] == [6, 12]


def test_a_run_goes_on_with_a_moving_average_or_without_as_it_began(small_run: TrainConfig, data: PreparedText) -> None:
    train(small_run, data, stop_at=3)
    without = replace(small_run, optimizer=replace(small_run.optimizer, ema=0.0))
    with pytest.raises(UserError, match=r"`ema` was 0\.98, not 0\.0"):
        RunFolder(small_run.output_dir).check_continues(without)
    RunFolder(small_run.output_dir).check_continues(replace(small_run, optimizer=replace(small_run.optimizer, ema=0.9)))


def test_the_base_of_an_adapter_may_have_moved_and_that_of_all_weights_not(tmp_path: Path) -> None:
    for method in ("lora", "full"):
        config = replace(PRESETS["finetune"], base="here", method=method, output_dir=tmp_path / method)
        folder = RunFolder(config.output_dir)
        folder.start(config)
        if method == "lora":
            folder.check_continues(replace(config, base="there"))
        else:
            with pytest.raises(UserError, match="`base` was here, not there"):
                folder.check_continues(replace(config, base="there"))


@pytest.mark.parametrize("masking", ["exact_count", "bernoulli"])
def test_accumulated_batches_equal_one_large_batch(
    masking: str, small_run: TrainConfig, data: PreparedText, tmp_path: Path
) -> None:
    """Four batches of B against one of 4B, to 1e-5, in losses and weights after several steps of AdamW."""
    common = replace(
        small_run,
        noise=NoiseOptions(masking=masking, complementary=masking == "exact_count"),  # type: ignore[arg-type]
        optimizer=OptimizerOptions(optimizer="adamw", learning_rate=1e-3),
        steps=5,
    )
    one = replace(common, output_dir=tmp_path / "one", batch_size=8)
    four = replace(common, output_dir=tmp_path / "four", batch_size=2, accumulate=4)
    a, b = train(one, data), train(four, data)
    assert losses(one) == pytest.approx(losses(four), abs=1e-5)
    assert torch.allclose(weights(a), weights(b), atol=1e-5)


@pytest.mark.parametrize("network", ["llada", "encoder"])
def test_one_batch_can_be_learned_by_heart(network: str, small_run: TrainConfig, data: PreparedText) -> None:
    config = replace(
        small_run,
        network=NetworkOptions(network, d_model=64, n_heads=2, n_layers=2),  # type: ignore[arg-type]
        optimizer=OptimizerOptions(warmup_steps=10),
        steps=150,
        log_every=50,
    )
    trainer = Trainer(RunPlan.of(config, data), RunFolder(config.output_dir))
    batch = trainer.steps.make_batch(0)
    trainer.steps.make_batch = lambda step: batch  # type: ignore[method-assign]
    by_time = LossByTime(trainer.device)
    first = float(trainer.train_step(by_time).loss)
    for _ in range(config.steps - 1):  # type: ignore[operator]
        last = float(trainer.train_step(by_time).loss)
    assert first > 2.0
    assert last < 0.1


def test_epochs_count_the_training_text(small_run: TrainConfig, data: PreparedText) -> None:
    n_tokens = len(data.tokens("train"))
    random = replace(small_run, epochs=2, steps=None, noise=NoiseOptions())
    assert count_steps(random, data, 24) == math.ceil(2 * math.ceil(n_tokens / 24) / 4)
    pairs = replace(small_run, epochs=2, steps=None)
    assert count_steps(pairs, data, 24) == math.ceil(2 * math.ceil(n_tokens / 24) / 2)
    stored = replace(random, data=DataOptions((data.folder,), windows="stored"), epochs=3)
    assert count_steps(stored, data, 100) == math.ceil(3 * len(data.rows["train"]) / 4)


def test_stored_sequences_train_without_their_padding(small_run: TrainConfig, data: PreparedText) -> None:
    config = replace(
        small_run, data=DataOptions((data.folder,), windows="stored"), epochs=1.0, steps=None, batch_size=16
    )
    trainer = Trainer(RunPlan.of(config, data), RunFolder(config.output_dir))
    assert trainer.plan.length == 100
    assert trainer.plan.network_config.max_sequence_length == 100
    n_text = 0
    for step in range(count_steps(config, data, 100) or 0):
        batch, noisy = trainer.steps.make_batch(step)
        if batch.maskable is not None:
            assert not (noisy.is_masked & (batch.x_0 == data.tokenizer.pad_id)).any()
            assert batch.attention_mask is not None
            assert torch.equal(batch.attention_mask, batch.maskable)
            n_text += int(batch.maskable.sum()) // 2  # each sequence is there twice
        else:
            n_text += batch.x_0.numel() // 2
    assert n_text >= len(data.tokens("train"))
    train(config, data)


def test_time_limit_ends_the_run_with_its_schedule(
    small_run: TrainConfig, data: PreparedText, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock by which each step takes a second, 10 seconds are 10 steps, and the rate falls by a tenth at each."""
    ticks = itertools.count()
    monkeypatch.setattr("llada.training.progress_bar.time.perf_counter", lambda: float(next(ticks)))
    config = replace(small_run, steps=None, minutes=10 / 60, evaluate_every=1_000_000)
    assert train(config, data).progress.step == 10
    factors = [r["learning_rate_factor"] for r in read_metrics(config.output_dir / "metrics.jsonl") if "loss" in r]
    assert factors == pytest.approx([0.5, *(1 - n / 10 for n in range(1, 10))])  # the first step still warms up


def test_run_folder_holds_what_the_design_says(small_run: TrainConfig, data: PreparedText) -> None:
    train(small_run, data)
    folder = small_run.output_dir
    assert TrainConfig.from_json(json.loads((folder / "config.json").read_text())) == small_run
    assert (folder / "curves.png").stat().st_size > 10_000
    assert sorted(path.name for path in (folder / "samples").iterdir()) == ["step-00000006.txt", "step-00000012.txt"]
    for name in ("last", "best"):
        names = {path.name for path in (folder / "checkpoints" / name).iterdir()}
        assert names == {"config.json", "model.safetensors", "vocab.json", "training_state.pt", "checksums.json"}
    assert len(list((folder / "checkpoints").glob("step-*"))) == 2  # of three saved
    rows = read_metrics(folder / "metrics.jsonl")
    training = [row for row in rows if "loss" in row]
    assert [row["step"] for row in training] == list(range(1, 13))
    assert {"tokens", "seconds", "nll", "nll_by_t", "grad_norm", "learning_rate_factor"} <= set(training[0])
    assert [row["fraction_done"] for row in training] == pytest.approx([step / 12 for step in range(1, 13)], abs=1e-6)
    assert all(row["memory_bytes"] > 10_000_000 for row in training)  # of a process that has torch
    assert [row["step"] for row in rows if "nelbo" in row] == [6, 12]


def test_loss_by_time_is_the_mean_in_each_bin(small_run: TrainConfig, data: PreparedText) -> None:
    trainer = Trainer(RunPlan.of(small_run, data), RunFolder(small_run.output_dir))
    _, noisy = trainer.steps.make_batch(0)
    by_time = LossByTime(trainer.device)
    nll = torch.rand(int(noisy.is_masked.sum()), generator=torch.Generator().manual_seed(0))
    by_time.add(nll, noisy)
    expected: list[list[float]] = [[] for _ in range(10)]
    for row, value in zip(noisy.is_masked.nonzero()[:, 0].tolist(), nll.tolist(), strict=True):
        expected[min(9, int(float(noisy.p_mask[row, 0]) * 10))].append(value)
    mean, by_bin = by_time.take()
    assert mean == pytest.approx(float(nll.mean()))
    assert by_bin == [pytest.approx(sum(v) / len(v)) if v else None for v in expected]
    assert by_time.take() == (None, [None] * 10)


def test_a_resumed_run_takes_changed_rates(small_run: TrainConfig, data: PreparedText) -> None:
    """As the advice for a non-finite loss says; with a rate of zero, the weights stay."""
    before = weights(train(small_run, data, stop_at=5))
    optimizer = OptimizerOptions(learning_rate=0.0, muon_learning_rate=0.0, warmup_steps=0)
    after = weights(train(replace(small_run, optimizer=optimizer), data, resume=True))
    assert torch.equal(before, after)


@pytest.mark.slow
def test_compiled_network_trains_alike(small_run: TrainConfig, data: PreparedText, tmp_path: Path) -> None:
    compiled = replace(small_run, compile=True, output_dir=tmp_path / "compiled")
    train(small_run, data)
    train(compiled, data)
    assert losses(compiled) == pytest.approx(losses(small_run), rel=1e-3)


def test_a_signal_between_step_and_save_loses_nothing(
    small_run: TrainConfig, data: PreparedText, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes while step 8 is being logged, after the decision whether to save: step 9 follows and is saved."""
    config = replace(small_run, steps=20, evaluate_every=100)
    folder = RunFolder(config.output_dir)
    folder.start(config)
    trainer = Trainer(RunPlan.of(config, data), folder)
    log = trainer._log

    def log_and_interrupt(*arguments: Any) -> None:
        log(*arguments)
        if trainer.progress.step == 8:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(trainer, "_log", log_and_interrupt)
    assert trainer.run(display()).step == 9
    assert Trainer(RunPlan.of(config, data), folder, resume=True).progress.step == 9


def test_a_signal_in_the_last_step_still_evaluates(small_run: TrainConfig, data: PreparedText) -> None:
    assert train(small_run, data, stop_at=11).progress.best_nelbo < math.inf


def test_a_validation_text_too_short_for_a_window_is_refused_at_the_start(
    small_run: TrainConfig, data: PreparedText
) -> None:
    config = replace(small_run, data=replace(small_run.data, sequence_length=2000))
    with pytest.raises(UserError, match="Sequences of 2,000 are longer than the validation text"):
        Trainer(RunPlan.of(config, data), RunFolder(config.output_dir))


def test_resuming_with_another_text_is_refused(
    small_run: TrainConfig, data: PreparedText, text: str, tmp_path: Path
) -> None:
    """Of the same characters, so that only the text itself can tell."""
    train(small_run, data, stop_at=3)
    other = prepare(Corpus(text[::-1], "file", "reversed"), tmp_path / "other", 100)
    with pytest.raises(UserError, match=r"changed: text, training split, validation split\).*add `changed_data`"):
        Trainer(RunPlan.of(small_run, other), RunFolder(small_run.output_dir), resume=True)


def test_dropout_and_noise_share_no_randomness() -> None:
    seeds = {
        seed_of(seed, step, purpose, order, rank)
        for seed in (0, 1)
        for step in (0, 1)
        for purpose in PURPOSES
        for order in (0, 1)
        for rank in (0, 1)
    }
    assert len(seeds) == 2**4 * len(PURPOSES)
    keys = {key_of(seed, purpose, order) for seed in (0, 1) for purpose in KEY_PURPOSES for order in (0, 1)}
    assert len(keys) == 2**2 * len(KEY_PURPOSES)
    assert not keys & seeds


def test_damaged_state_is_named(small_run: TrainConfig, data: PreparedText) -> None:
    train(small_run, data)
    state = small_run.output_dir / "checkpoints" / "last" / "training_state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"training_state\.pt cannot be resumed from"):
        Trainer(RunPlan.of(small_run, data), RunFolder(small_run.output_dir), resume=True)


def test_resuming_with_another_network_is_refused(small_run: TrainConfig, data: PreparedText) -> None:
    train(small_run, data)
    other = replace(small_run, network=NetworkOptions(d_model=32, n_heads=2, n_layers=1))
    with pytest.raises(UserError, match="do not fit"):
        Trainer(RunPlan.of(other, data), RunFolder(small_run.output_dir), resume=True)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name: str) -> None:
    assert TrainConfig.from_json(json.loads(json.dumps(PRESETS[name].to_json()))) == PRESETS[name]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"stepz": 3}, "stepz"),
        ({"steps": "many"}, "steps"),
        ({"network": {"network": "lama"}}, "network.network"),
        ({"output_dir": None}, "cannot be used"),
        ({"minutes": 10**400}, "at most 1e\\+12"),
    ],
)
def test_unknown_keys_and_values_are_refused(content: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainConfig.from_json(content)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"batch_size": 3}, "even number of sequences, not 3"),
        ({"noise": NoiseOptions(masking="bernoulli", complementary=True)}, '`masking="exact_count"`'),
        ({"steps": None}, "needs an end"),
        ({"epochs": 2.0}, "`epochs` and `steps`"),
        ({"steps": 0}, "`steps` must be at least 1"),
        ({"steps": None, "epochs": -1.0}, "`epochs` must be more than 0"),
        ({"minutes": 0.0}, "`minutes` must be more than 0"),
        ({"seed": -1}, "`seed` must be at least 0"),
        ({"optimizer": {"decay": 0.0}}, "`decay` must be more than 0"),
        ({"optimizer": {"ema": 1.5}}, "`ema` must be at most 1"),
        ({"data": {"sequence_length": 0}}, "`sequence_length` must be at least 1"),
    ],
    ids=str,
)
def test_impossible_configurations_are_refused(changes: dict[str, Any], message: str, small_run: TrainConfig) -> None:
    """Alike from Python and from a stored config.json."""
    with pytest.raises(UserError, match=message):
        replace(
            small_run,
            **{
                name: replace(getattr(small_run, name), **value) if isinstance(value, dict) else value
                for name, value in changes.items()
            },
        )
    stored = small_run.to_json()
    for name, value in changes.items():
        if isinstance(value, dict | NoiseOptions):
            stored[name] |= value if isinstance(value, dict) else vars(value)
        else:
            stored[name] = value
    with pytest.raises(UserError, match=message):
        TrainConfig.from_json(stored)


def test_dropout_is_refused_where_there_is_none(small_run: TrainConfig, data: PreparedText) -> None:
    config = replace(small_run, network=replace(small_run.network, dropout=0.1))
    with pytest.raises(UserError, match='`network="encoder"`'):
        Trainer(RunPlan.of(config, data), RunFolder(config.output_dir))


def test_only_the_shape_of_the_run_is_compiled(
    small_run: TrainConfig, data: PreparedText, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch cut to a random length, an evaluation and a sample take the network as it is written."""
    compiled_for = []

    def compile_nothing(subject: Subject, *_: object) -> Compiled:
        def run(rows: torch.Tensor) -> torch.Tensor:
            compiled_for.append(tuple(rows.shape))
            return subject.function(rows)

        return Compiled(run, Toolchain("native"), Finding(True, "nothing was compiled"))

    monkeypatch.setattr(compilation, "compile_checked", compile_nothing)
    noise = NoiseOptions(random_length=0.5)
    run = replace(small_run, compile=True, noise=noise)
    train(run, data)
    assert set(compiled_for) == {(4, 24)}
    assert run.steps is not None
    assert len(compiled_for) < run.steps
    plain = replace(run, compile=False, output_dir=run.output_dir.with_name("plain"))
    train(plain, data)
    assert losses(run) == losses(plain)
