"""Non-finite losses and gradients: the step is left out, then the run goes back, then it stops with a sentence."""

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llada.data.prepared import PreparedText
from llada.optim import adamw
from llada.optim import muon as optim
from llada.optim.adamw import AdamW16
from llada.optim.ema import ExponentialAverage
from llada.optim.muon import Muon
from llada.system.errors import UserError
from llada.training.config import DataOptions, TrainConfig
from llada.training.diagnostics import SPIKE_WINDOW, SpikeWatch
from llada.training.metrics import read_metrics
from llada.training.nan_guard import FEW, Guard, finite_or_none, norms_by_layer
from llada.training.trainer import Trainer
from tests.support.runs import CLOCK, break_losses, run_to, trainer_of, weights

NAN, INF = math.nan, math.inf


def everything(trainer: Trainer) -> list[Tensor]:
    """Weights, moments, counts of steps, moving average."""
    moments = [
        value.detach().clone()
        for optimizer in trainer.optimizers
        for state in optimizer.state.values()
        for value in state.values()
    ]
    assert trainer.average
    return [weights(trainer).clone(), *moments, *(w.clone() for w in trainer.average.weights.values())]


# What is decided on the device


@pytest.mark.parametrize(("loss", "norm"), [(NAN, 1.0), (1.0, NAN), (INF, 1.0), (1.0, -INF), (NAN, INF)])
def test_the_guard_counts_by_hand(loss: float, norm: float) -> None:
    guard, good = Guard(torch.device("cpu")), torch.tensor(1.0)
    bad = (torch.tensor(loss), torch.tensor(norm))
    verdicts = [float(guard.judge(*(bad if step in (1, 3, 4) else (good, good)), step)) for step in range(6)]
    assert verdicts == [0, 1, 0, 1, 1, 0]
    assert guard.ask_in_a_row() == 0
    guard.take()
    assert (guard.skipped, guard.most_in_a_row, guard.last_step) == (3, 2, 4)
    guard.take()
    assert (guard.skipped, guard.most_in_a_row) == (0, 0)
    for step in range(FEW):
        assert not guard.has_few
        guard.judge(good, torch.tensor(NAN), step)
        guard.take()
    assert guard.has_few


def make_parameter(dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).to(dtype))


OPTIMIZERS = {
    "muon": lambda p: Muon([p], lr=0.02, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW([p], lr=0.01, weight_decay=0.1, fused=True),
    "adamw16": lambda p: AdamW16([p], lr=0.01, weight_decay=0.1),
}


def ask_no_device(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """What `skip_on_device` gives on a GPU: the verdict itself."""
    found_inf = getattr(optimizer, "found_inf", None)
    return None if found_inf is None else found_inf.bool()


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_step_that_is_left_out_changes_nothing(kind: str, on_device: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and moments, bit for bit; and the steps before and after are those of an optimizer that never saw it.

    Where only the device knows, AdamW16 counts the step.
    """
    if on_device:
        for module in (optim, adamw):
            monkeypatch.setattr(module, "must_skip", lambda optimizer: False)
            monkeypatch.setattr(module, "skip_on_device", ask_no_device)
    generator = torch.Generator().manual_seed(2)
    gradients = [torch.randn(6, 4, generator=generator) for _ in range(4)]
    seen, unseen = make_parameter(), make_parameter()
    one: Any = OPTIMIZERS[kind](seen)
    other = OPTIMIZERS[kind](unseen)
    for number, gradient in enumerate(gradients):
        seen.grad, one.found_inf = gradient.clone(), torch.zeros(())
        one.step()
        unseen.grad = gradient.clone()
        if number < 2 or kind != "adamw16" or not on_device:
            other.step()
            assert torch.equal(seen, unseen)
        if number == 1:
            before = seen.detach().clone()
            moments = {name: part for name, part in one.state[seen].items() if name != "step"}
            kept = {name: _copy(part) for name, part in moments.items()}
            seen.grad, one.found_inf = torch.full((6, 4), NAN), torch.ones(())
            one.step()
            assert torch.equal(seen, before)
            for name, part in kept.items():
                assert _equal(one.state[seen][name], part), name


def _copy(part: Any) -> Any:
    return {key: value.clone() for key, value in part.items()} if isinstance(part, dict) else part.clone()


def _equal(one: Any, other: Any) -> bool:
    if isinstance(other, dict):
        return all(torch.equal(one[key], other[key]) for key in other)
    return torch.equal(one, other)


def test_the_moving_average_leaves_it_out_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Linear(3, 2)
    average = ExponentialAverage(network, 0.9)
    nn.init.constant_(network.weight, 7.0)
    before = average.weights["weight"].clone()
    average.update(network, torch.ones(()))
    assert torch.equal(average.weights["weight"], before)
    assert average.n_updates == 0
    average.update(network, torch.zeros(()))
    assert torch.allclose(average.weights["weight"], before + 0.9 * (7 - before))  # after no update the decay is 1/10


# What a run does


def test_a_single_step_is_left_out_and_counted(small_run: TrainConfig, data: PreparedText) -> None:
    trainer = trainer_of(small_run, data)
    break_losses(trainer, lambda step, _: step == 4)
    states = []
    step = trainer.train_step

    def stepping(by_time: Any) -> Any:
        done = step(by_time)
        states.append(everything(trainer))
        return done

    trainer.train_step = stepping  # type: ignore[method-assign]
    run_to(trainer)
    is_same = [all(map(torch.equal, a, b)) for a, b in itertools.pairwise(states)]
    assert is_same == [False] * 3 + [True] + [False] * 7
    rows = [row for row in read_metrics(small_run.output_dir / "metrics.jsonl") if "loss" in row]
    assert [row.get("skipped_steps", 0) for row in rows] == [0] * 4 + [1] + [0] * 7
    assert rows[4]["loss"] is None
    assert rows[4]["nll"] is not None  # the cross-entropy itself was finite
    assert "NaN" not in (small_run.output_dir / "metrics.jsonl").read_text()
    assert torch.isfinite(weights(trainer)).all()


@pytest.mark.parametrize("windows", ["random", "stored"])
def test_after_a_few_the_run_goes_back_and_on_with_other_data(
    windows: Any, small_run: TrainConfig, data: PreparedText, tmp_path: Path
) -> None:
    config = replace(small_run, steps=18, data=DataOptions((data.folder,), windows=windows, sequence_length=24))
    plain = trainer_of(replace(config, output_dir=tmp_path / "plain"), data)
    run_to(plain)
    trainer = trainer_of(config, data)
    break_losses(trainer, lambda step, order: step >= 8 and order == 0)
    run_to(trainer)
    rows = read_metrics(config.output_dir / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 19))
    (went_back,) = (row for row in rows if "went_back_from" in row)
    assert went_back == {"step": 6, "went_back_from": 8 + FEW, "data_order": 1}
    assert trainer.progress.data_order == 1
    assert not torch.equal(trainer.steps.make_batch(9)[0].x_0, plain.steps.make_batch(9)[0].x_0)
    rows_of = [read_metrics(each.folder.path / "metrics.jsonl") for each in (trainer, plain)]
    losses = [[row["loss"] for row in rows if "loss" in row] for rows in rows_of]
    assert losses[0][:6] == losses[1][:6]
    assert losses[0][6] != losses[1][6]


def test_a_run_that_went_back_goes_on_after_a_kill_as_if_nothing_had_happened(
    small_run: TrainConfig, data: PreparedText, tmp_path: Path
) -> None:
    def trained(folder: Path, stops: tuple[int, ...]) -> Trainer:
        config = replace(small_run, steps=18, output_dir=folder)
        for stop in (*stops, None):
            trainer = trainer_of(config, data, resume=(folder / "checkpoints").exists())
            break_losses(trainer, lambda step, order: step >= 8 and order == 0)
            _die_at(trainer, stop)
            try:
                run_to(trainer)
            except KilledError:
                continue
        return trainer

    whole, parts = trained(tmp_path / "whole", ()), trained(tmp_path / "parts", (10, 9, 14))
    assert torch.equal(weights(whole), weights(parts))
    assert whole.progress.data_order == parts.progress.data_order == 1
    rows_of = [read_metrics(each.folder.path / "metrics.jsonl") for each in (whole, parts)]
    timeless = [[{k: v for k, v in row.items() if k not in CLOCK} for row in rows] for rows in rows_of]
    assert timeless[0] == timeless[1]


def test_a_run_that_is_told_to_stop_among_steps_that_are_left_out_goes_back_first(
    small_run: TrainConfig, data: PreparedText
) -> None:
    """Else it would say that it saved what it did not."""
    trainer = trainer_of(replace(small_run, steps=18, log_every=100), data)
    break_losses(trainer, lambda step, order: step >= 8 and order == 0)
    draw = trainer.steps.make_batch

    def make_batch(step: int) -> Any:
        trainer.stop.is_made = trainer.stop.is_made or step == 10
        return draw(step)

    trainer.steps.make_batch = make_batch  # type: ignore[method-assign]
    run_to(trainer)
    assert (trainer.folder.last_step, trainer.progress.data_order) == (7, 1)


class KilledError(Exception):
    pass


def _die_at(trainer: Trainer, stop: int | None) -> None:
    """An end of the process at the `stop`-th call for a batch, as far as one process can have it."""
    draw, calls = trainer.steps.make_batch, []

    def make_batch(step: int) -> Any:
        calls.append(step)
        if len(calls) == stop:
            raise KilledError
        return draw(step)

    trainer.steps.make_batch = make_batch  # type: ignore[method-assign]


def test_if_it_repeats_the_run_stops_and_tells_what_it_saw(small_run: TrainConfig, data: PreparedText) -> None:
    config = replace(small_run, steps=40)
    trainer = trainer_of(config, data)
    break_losses(trainer, lambda step, order: step >= 8)
    with pytest.raises(UserError) as caught:
        run_to(trainer)
    sentence = str(caught.value)
    assert "The loss became nan and its gradient nan by step 13, also after going back to step 6" in sentence
    assert "`muon_learning_rate`: try 0.007, and go on from the last checkpoint with `resume=" in sentence
    assert "\n" not in sentence
    assert sentence.endswith(".")
    trouble = json.loads((config.output_dir / "trouble.json").read_text())
    batch, noisy = trainer.steps.make_batch(12)
    assert trouble["step"] == 12
    assert trouble["t"] == noisy.t.tolist()
    assert trouble["ids"] == batch.x_0.tolist()
    assert {"model.transformer.blocks.0", "model.transformer.wte"} <= set(trouble["gradient_norms"])
    assert all(math.isnan(norm) for norm in trouble["gradient_norms"].values())
    resumed = trainer_of(config, data, resume=True)
    assert resumed.progress.step == 6
    assert torch.isfinite(weights(resumed)).all()


def first_complaint(config: TrainConfig, data: PreparedText, spoil: Callable[[Trainer], None]) -> str:
    """What a run says whose first steps are all non-finite."""
    trainer = trainer_of(replace(config, steps=40), data)
    spoil(trainer)
    with pytest.raises(UserError) as caught:
        run_to(trainer)
    return str(caught.value)


def test_before_any_weight_has_changed_no_rate_is_blamed(small_run: TrainConfig, data: PreparedText) -> None:
    """It is the weights, the precision, or the data and their weighting, found by computing the step again."""

    def spoil_weight(trainer: Trainer) -> None:
        nn.init.constant_(dict(trainer.model.network.named_parameters())["model.transformer.wte.weight"], NAN)

    weights_ = first_complaint(small_run, data, spoil_weight)
    assert "the cause is in the weights, of which model.transformer.wte.weight is non-finite" in weights_
    data_ = first_complaint(replace(small_run, output_dir=small_run.output_dir / "b"), data, break_all)
    assert "no weight has changed yet, the weights are finite" in data_
    bf16 = replace(small_run, precision="bf16", output_dir=small_run.output_dir / "c")

    def spoil_bf16(trainer: Trainer) -> None:
        """As an overflow that fp32 does not have."""
        loss = trainer.steps.loss

        def losses(*arguments: Any) -> torch.Tensor:
            return loss(*arguments) * (NAN if trainer.steps.precision.dtype == torch.bfloat16 else 1.0)

        trainer.steps.loss = losses  # type: ignore[method-assign, assignment]

    assert 'the same step is finite in fp32: add `precision="fp32"`' in first_complaint(bf16, data, spoil_bf16)
    for sentence in (weights_, data_):
        assert "learning_rate" not in sentence
        assert "start again" in sentence


def break_all(trainer: Trainer) -> None:
    break_losses(trainer, lambda step, order: True)


def test_weights_that_are_broken_are_never_saved(small_run: TrainConfig, data: PreparedText) -> None:
    """They may become so by no fault of a step; every loss from then on is none, and the good checkpoint stays."""
    trainer = trainer_of(replace(small_run, steps=20), data)
    draw = trainer.steps.make_batch
    is_broken: list[bool] = []

    def make_batch(step: int) -> Any:
        if step == 7 and not is_broken:
            is_broken.append(True)
            nn.init.constant_(next(trainer.model.parameters()), NAN)
        return draw(step)

    trainer.steps.make_batch = make_batch  # type: ignore[method-assign]
    run_to(trainer)
    assert trainer.progress.step == 20
    assert torch.isfinite(weights(trainer)).all()


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(small_run: TrainConfig, data: PreparedText) -> None:
    trainer = trainer_of(replace(small_run, steps=40), data)
    break_losses(trainer, lambda step, order: step >= 1, INF)
    with pytest.raises(UserError, match="start again"):
        run_to(trainer)
    assert not trainer.folder.has_checkpoint()


def test_norms_by_layer_by_hand() -> None:
    gradients = {
        "blocks.0.a.weight": torch.tensor([3.0]),
        "blocks.0.b.weight": torch.tensor([4.0]),
        "blocks.10.a.weight": torch.tensor([5.0, 12.0]),
        "head.weight": None,
        "bias": torch.tensor([NAN]),
    }
    norms = norms_by_layer(gradients)
    assert math.isnan(norms.pop("bias"))
    assert norms == {"blocks.0": 5.0, "blocks.10": 13.0, "head": 0.0}
    assert [finite_or_none(value) for value in (1.5, NAN, INF)] == [1.5, None, None]


def test_spikes_are_told_from_noise() -> None:
    watch = SpikeWatch()
    noise = [2.0 + 0.1 * math.sin(i) for i in range(2 * SPIKE_WINDOW)]
    assert [watch.add(value) for value in noise] == [None] * len(noise)
    assert watch.add(None) is None
    assert watch.add(3.2) == pytest.approx(2.0, abs=0.05)
    assert watch.add(2.05) is None
    still = SpikeWatch()
    assert [still.add(2.0) for _ in range(SPIKE_WINDOW)] == [None] * SPIKE_WINDOW
    assert still.add(2.19) is None  # less than a tenth
    assert still.add(2.21) == 2.0


def test_a_spike_in_a_run_is_logged(small_run: TrainConfig, data: PreparedText) -> None:
    trainer = trainer_of(replace(small_run, steps=20, evaluate_every=100), data)
    draw = trainer.steps.make_batch

    def make_batch(step: int) -> Any:
        if step == 15:
            nn.init.normal_(dict(trainer.model.network.named_parameters())["model.transformer.ff_out.weight"], std=30.0)
        return draw(step)

    trainer.steps.make_batch = make_batch  # type: ignore[method-assign]
    run_to(trainer)
    rows = [row for row in read_metrics(small_run.output_dir / "metrics.jsonl") if "loss" in row]
    assert next(row["step"] for row in rows if "spike_from" in row) == 16
