"""Checkpoints by steps, by time and between the pieces of a step; none of it changes what is learned."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llada.cli.flags import in_flags
from llada.data.prepared import PreparedText
from llada.evaluation.distributed import Shard
from llada.system.errors import UserError
from llada.training.agenda import Action, Agenda
from llada.training.config import NoiseOptions, OptimizerOptions, TrainConfig
from llada.training.forecast import warm_up_warning
from llada.training.plan import RunPlan
from tests.support.runs import break_losses, metrics_without_clock, run_and_listen, trainer_of, weights

NAN, INF = float("nan"), float("inf")


def test_the_agenda_by_hand() -> None:
    now = 0.0
    agenda = Agenda(evaluate_every=100, save_minutes=10, clock=lambda: now)
    assert agenda.decide(1, False, False) is Action.NOTHING
    assert agenda.decide(100, False, False) is Action.EVALUATE_AND_SAVE
    assert agenda.decide(101, True, False) is Action.EVALUATE_AND_SAVE
    assert agenda.decide(101, False, True) is Action.SAVE
    assert agenda.decide(100, False, True) is Action.EVALUATE_AND_SAVE
    now = 599.0
    assert agenda.decide(7, False, False) is Action.NOTHING
    now = 600.0
    assert agenda.decide(8, False, False) is Action.SAVE
    agenda.note_saved()
    assert agenda.decide(9, False, False) is Action.NOTHING
    assert agenda.postpone(Action.EVALUATE_AND_SAVE)
    assert not agenda.postpone(Action.EVALUATE_AND_SAVE)
    assert agenda.decide(10, False, False) is Action.EVALUATE_AND_SAVE
    agenda.note_saved()
    assert agenda.decide(11, False, False) is Action.NOTHING


def test_checkpoints_by_time_change_nothing(small_run: TrainConfig, data: PreparedText, tmp_path: Path) -> None:
    plain = trainer_of(small_run, data)
    run_and_listen(plain)
    often = replace(small_run, output_dir=tmp_path / "often", save_minutes=1e-9, evaluate_every=1000, keep=100)
    trainer = trainer_of(often, data)
    run_and_listen(trainer)
    saved = sorted(path.name for path in trainer.folder.checkpoints.glob("step-*"))
    assert saved == [f"step-{step:08d}" for step in range(1, 13)]
    assert torch.equal(weights(plain), weights(trainer))
    assert [row for row in metrics_without_clock(often) if "loss" in row] == [
        row for row in metrics_without_clock(small_run) if "loss" in row
    ]


def test_a_run_stops_between_the_pieces_of_a_step(small_run: TrainConfig, data: PreparedText, tmp_path: Path) -> None:
    """The step is not counted, and the resumed run ends like one that was not stopped, its metrics, too."""
    config = replace(small_run, accumulate=3, log_every=2)
    whole = trainer_of(config, data)
    run_and_listen(whole)
    parts = replace(config, output_dir=tmp_path / "parts")
    trainer, calls = trainer_of(parts, data), []
    loss = trainer.steps.loss

    def counted(*arguments: Any) -> Tensor:
        calls.append(trainer.progress.step)
        trainer.stop.is_made = len(calls) == 3 * 5 + 1  # in the first of the three pieces of the sixth step
        return loss(*arguments)

    trainer.steps.loss = counted  # type: ignore[method-assign, assignment]
    run_and_listen(trainer)
    assert len(calls) == 3 * 5 + 1
    assert (trainer.folder.last_step, trainer.progress.step) == (5, 5)
    resumed = trainer_of(parts, data, resume=True)
    run_and_listen(resumed)
    assert torch.equal(weights(whole), weights(resumed))
    assert metrics_without_clock(parts) == metrics_without_clock(config)


def test_the_first_step_is_finished_since_there_is_nothing_to_save(small_run: TrainConfig, data: PreparedText) -> None:
    trainer = trainer_of(replace(small_run, accumulate=3), data)
    trainer.stop.is_made = True
    run_and_listen(trainer)
    assert trainer.folder.last_step == 1


def test_a_checkpoint_due_at_a_step_that_is_left_out_is_made_after_the_next(
    small_run: TrainConfig, data: PreparedText
) -> None:
    trainer = trainer_of(replace(small_run, keep=100), data)
    break_losses(trainer, lambda step, order: step == 5)  # the sixth step, after which it is due
    said = run_and_listen(trainer)
    saved = sorted(int(path.name[5:]) for path in trainer.folder.checkpoints.glob("step-*"))
    assert saved == [7, 12]
    assert any(line.startswith("Step 6 was left out: the checkpoint due") for line in said)
    assert any(line.startswith("1 of the steps since it was started were left out") for line in said)


@pytest.mark.parametrize("steps", [10, 40])
@pytest.mark.parametrize("evaluate_every", [3, 10, 1000])
def test_four_bad_steps_of_five_for_ever_end_the_run(
    steps: int, evaluate_every: int, small_run: TrainConfig, data: PreparedText
) -> None:
    trainer = trainer_of(replace(small_run, steps=steps, evaluate_every=evaluate_every), data)
    break_losses(trainer, lambda step, order: step % 5 != 0)
    with pytest.raises(UserError, match="The loss became"):
        run_and_listen(trainer)


def test_weights_that_no_text_shows_are_not_saved(small_run: TrainConfig, data: PreparedText) -> None:
    trainer = trainer_of(small_run, data)
    draw = trainer.steps.make_batch

    def make_batch(step: int) -> Any:
        if step == 3:
            weight = dict(trainer.model.network.named_parameters())["model.transformer.wte.weight"]
            weight.data[data.tokenizer.pad_id] = INF
        return draw(step)

    trainer.steps.make_batch = make_batch  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"model\.transformer\.wte\.weight is non-finite"):
        run_and_listen(trainer)
    assert not trainer.folder.has_checkpoint()


@pytest.mark.parametrize(("steps", "expected"), [(1, (1, 1)), (106, (11, 1)), (2200, (220, 10)), (None, (200, 10))])
def test_evaluations_and_lines_follow_from_the_length(
    steps: int | None, expected: tuple[int, int], small_run: TrainConfig, data: PreparedText
) -> None:
    config = replace(small_run, steps=steps, minutes=5.0, evaluate_every=None, log_every=None)
    plan = RunPlan.of(config, data)
    assert (plan.evaluate_every, plan.log_every) == expected
    plan = RunPlan.of(replace(config, evaluate_every=3, log_every=7), data)
    assert (plan.evaluate_every, plan.log_every) == (3, 7)


def test_a_run_that_ends_inside_its_warm_up_is_announced(small_run: TrainConfig, data: PreparedText) -> None:
    def warning(steps: int, warmup: int, **options: Any) -> str | None:
        config = replace(small_run, steps=steps, optimizer=OptimizerOptions(warmup_steps=warmup), **options)
        warning = warm_up_warning(RunPlan.of(config, data))
        return None if warning is None else in_flags(warning)

    assert warning(51, 50) is None
    assert warning(1, 0) is None
    sentence = warning(6, 50)
    assert sentence is not None
    assert "after 6 of 50 steps" in sentence
    assert "12%" in sentence
    assert sentence.endswith("Add --warmup_steps 0.")
    assert warning(50, 50) is not None


def test_less_accumulation_is_suggested_as_far_as_it_helps(small_run: TrainConfig, data: PreparedText) -> None:
    """Each epoch has some 8,000 characters in windows of 24, that is n; 4 of them make a batch."""
    n = math.ceil(len(data.tokens("train")) / 24)

    def warning(epochs: float, warmup: int, processes: int = 1) -> str:
        config = replace(
            small_run, steps=None, epochs=epochs, accumulate=64, noise=NoiseOptions(),
            optimizer=OptimizerOptions(warmup_steps=warmup),
        )  # fmt: skip
        return in_flags(warm_up_warning(RunPlan.of(config, data, shard=Shard(0, processes))) or "")

    steps = {accumulate: math.ceil(n / (4 * accumulate)) for accumulate in (1, 2, 4, 8, 16, 32, 64)}
    assert steps[64] == 2
    largest = max(accumulate for accumulate in steps if steps[accumulate] >= 10 * 2)
    assert f"Add --accumulate {largest} or --warmup_steps 0." in warning(1, 2)
    assert largest < 16
    assert "Add --accumulate 16 --warmup_steps 0 or" in warning(1, 2, processes=64)  # which share 4 x 16 sequences
    assert f"Add --accumulate 1 --warmup_steps {steps[1] // 10} or --warmup_steps 0." in warning(1, 50)


def test_moments_that_are_not_finite_are_not_saved(small_run: TrainConfig, data: PreparedText) -> None:
    """The weights are finite still: of a moment, a later step makes use."""
    trainer = trainer_of(replace(small_run, steps=6, optimizer=OptimizerOptions(optimizer="adamw")), data)
    draw, name = trainer.steps.make_batch, "model.transformer.wte.weight"

    def make_batch(step: int) -> Any:
        if step == 5:
            weight = dict(trainer.model.network.named_parameters())[name]
            trainer.optimizers[0].state[weight]["exp_avg_sq"].view(-1)[0] = INF
        return draw(step)

    trainer.steps.make_batch = make_batch  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"exp_avg_sq of model\.transformer\.wte\.weight is non-finite"):
        run_and_listen(trainer)
    assert not trainer.folder.has_checkpoint()
