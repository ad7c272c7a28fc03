"""The learning rate over a run."""

import math
from typing import Literal

from llada.system.literals import check_literal

ScheduleName = Literal["cosine", "cosine_after_warmup", "wsd"]


def learning_rate_factor(
    schedule: ScheduleName, progress: float, step: int, warmup_steps: int, decay: float, final: float
) -> float:
    """Return the factor on the peak learning rate.

    Args:
        schedule: "cosine" falls along half a cosine over the whole run, the warm-up included; "cosine_after_warmup"
            starts to fall where the warm-up ends, as nanoGPT's does; "wsd" (warm-up, stable, decay: arXiv 2404.06395)
            stays at the peak and falls linearly over the last part of the run.
        progress: fraction of the run that is done, 0 to 1.
        step: steps done; the factor rises linearly over the first `warmup_steps`.
        decay: the fraction of the run over which "wsd" falls; 1 is a straight line from the peak.
        final: the factor at the end.
    """
    check_literal("schedule", schedule, ScheduleName)
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if schedule == "wsd":
        fall = min(1.0, (1 - progress) / decay)
    else:
        fallen = progress if schedule == "cosine" else _share_after_warmup(progress, step, warmup_steps)
        fall = (1 + math.cos(math.pi * fallen)) / 2
    return warmup * (final + (1 - final) * fall)


def _share_after_warmup(progress: float, step: int, warmup_steps: int) -> float:
    """Return the fraction done of what follows the warm-up: 0 until it ends, 1 at the end of the run.

    The warm-up's own fraction of the run follows from the speed so far, which also holds for runs that end by time.
    """
    if step <= warmup_steps:
        return 0.0
    warmup = progress * warmup_steps / step
    return (progress - warmup) / (1 - warmup)
