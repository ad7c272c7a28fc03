"""Why a run ends whose loss or gradient is non-finite: what the evidence supports, in a sentence.

Before any weight has changed, no learning rate has acted. Then the cause is in the weights, the precision, or the data
and the weighting of the loss, and the step is computed again to find out which; compiled code was left out before.
"""

from collections.abc import Callable
from pathlib import Path

import torch

from llada.system.errors import UserError
from llada.training.diagnostics import likely_setting
from llada.training.log import StepResult
from llada.training.plan import RunPlan


def first_step_cause(bad: str | None, plan: RunPlan, is_finite_in_fp32: Callable[[], bool]) -> str:
    """What makes a step non-finite that starts from the weights as they were loaded or initialised.

    Args:
        bad: the name of a weight that is non-finite.
        is_finite_in_fp32: computes the same step again, not compiled and in fp32.
    """
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
