"""Why a run ends whose loss or gradient is non-finite: the evidence, in a file, and what it supports, in a sentence.

Before any weight has changed, no learning rate has acted. Then the cause is in the weights, the precision, or the data
and the weighting of the loss, and the step is computed again to find out which; compiled code was left out before.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llada.checkpoints.run_layout import TROUBLE_FILE
from llada.optim.ema import trained_weights
from llada.optim.parts import rows_of
from llada.system.errors import UserError
from llada.system.files import write_text_whole
from llada.training.diagnostics import likely_setting
from llada.training.log import StepResult
from llada.training.metrics import LossByTime
from llada.training.nan_guard import first_non_finite, norms_by_layer
from llada.training.plan import RunPlan
from llada.training.step import Steps


def record_step(steps: Steps, step: int, loss: float, folder: Path) -> Path:
    """Write down what a step consisted of that was left out: t, masks and ids of all its rows, norms of its gradients.

    The step is computed once more, from weights that have not changed since. All processes do this together, and
    process 0 writes; gradients are left.
    """
    rows, norms = _rows_of(steps, step), _norms_of(steps, step)
    content: dict[str, Any] = {"step": step, "loss": loss}
    content |= {name: [row[name] for row in rows] for name in ("t", "masked", "ids")}
    content["gradient_norms"] = norms
    path = folder / TROUBLE_FILE
    if steps.group.is_main:
        write_text_whole(path, json.dumps(content) + "\n")  # nan, inf as Python's json writes them: they are the point
    return path


def _rows_of(steps: Steps, step: int) -> list[dict[str, Any]]:
    """The rows of a step, those of all processes, in the order of their numbers in the step."""
    batch, noisy = steps.make_batch(step)
    columns = noisy.t.tolist(), noisy.is_masked.sum(-1).tolist(), batch.x_0.tolist()
    own = [{"t": t, "masked": masked, "ids": ids} for t, masked, ids in zip(*columns, strict=True)]
    numbered = zip(steps.share.rows.tolist(), own, strict=True)
    everybody = [pair for pairs in steps.group.all_of(list(numbered)) for pair in pairs]
    return [row for _, row in sorted(everybody, key=lambda pair: pair[0])]


def _norms_of(steps: Steps, step: int) -> dict[str, float]:
    """Norms of the gradients of a step by layer, added up over the processes."""
    weights = trained_weights(steps.model.network)
    loss, _ = steps.backward(step, LossByTime(steps.device))
    steps.group.sum_gradients(weights, loss)
    whole = norms_by_layer({name: weight.grad for name, weight in weights.items() if rows_of(weight) is None})
    parts = norms_by_layer({name: weight.grad for name, weight in weights.items() if rows_of(weight) is not None})
    everybody = steps.group.all_of(parts)
    return {**whole, **{layer: math.hypot(*(each[layer] for each in everybody)) for layer in parts}}


def first_step_cause(weights: Mapping[str, Tensor], plan: RunPlan, is_finite_in_fp32: Callable[[], bool]) -> str:
    """What makes a step non-finite that starts from the weights as they were loaded or initialised.

    Args:
        weights: all weights of the network, by name.
        is_finite_in_fp32: computes the same step again, not compiled and in fp32.
    """
    bad = first_non_finite(weights)
    if bad is not None:
        start = "start from another checkpoint" if plan.config.base else "look at the initialisation"
        return f"the cause is in the weights, of which {bad} is non-finite: {start}"
    if plan.precision.dtype == torch.bfloat16 and is_finite_in_fp32():
        return 'the cause is the precision, since the same step is finite in fp32: add `precision="fp32"`'
    power, clip = plan.config.noise.weight_power, plan.config.optimizer.clip
    return (
        "no weight has changed yet, the weights are finite, and fp32 without compiling gives the same: look at the "
        f"data and at the weighting of the loss (`weight_power={power:g}`, `clip={clip:g}`)"
    )


def describe_end(
    plan: RunPlan, done: StepResult, step: int, again: str, cause: str | None, path: Path, has_checkpoint: bool
) -> UserError:
    """The end of the run.

    Args:
        done: its last step.
        step: how many steps are done.
        again: a clause on what was tried already, or nothing.
        cause: of a first step; otherwise a likely setting is named.
        path: the file with what the step consisted of.
    """
    goes_on = f'go on from the last checkpoint with `resume="{plan.config.output_dir}"`'
    return UserError(
        f"The loss became {float(done.loss)} and its gradient {float(done.grad_norm)} by step {step}{again}; "
        f"{cause or likely_setting(plan, is_too_fast=True)}, and "
        f"{goes_on if has_checkpoint else 'start again'} ({path} has t, tokens and gradients of it)."
    )
