"""What a text is filled by, step after step: windows from left to right, and how many tokens at each step.

Shape letters: B batch, L length, S steps.
"""

import torch
from torch import Tensor

from llada.forward_process import LINEAR, MaskSchedule, schedule_by_name
from llada.sampling.config import SamplerConfig
from llada.sampling.policies import most_confident

ROUNDING_DECIMALS = 9  # of parts of a budget, which fp64 has with an error of about 1e-13
ROUNDING = 10.0**-ROUNDING_DECIMALS
FIRST, END, BUDGET, NEXT = range(4)
"""Columns of a plan."""


def plans_of(is_masked: Tensor, config: SamplerConfig) -> Tensor:
    """The steps of each row, (B, S + 1, 4), which do not depend on the other rows.

    The columns are the first position of the step's window, the first behind it, how many tokens the step reveals at
    least, and the step at which the next window begins. After its steps a row stays at one that fills nothing.

    Args:
        is_masked: (B, L) bool, where a token is to be filled in.
    """
    if not is_masked.numel():
        return torch.zeros(len(is_masked), 1, 4, dtype=torch.long, device=is_masked.device)
    layouts, layout_of_row = torch.unique(is_masked, dim=0, return_inverse=True)
    plans = [_plan(layout, config) for layout in layouts.cpu()]
    longest = max(map(len, plans))
    padded = torch.zeros(len(plans), longest, 4, dtype=torch.long)
    for row, plan in enumerate(plans):
        padded[row, : len(plan)] = torch.tensor(plan)
    return padded.to(is_masked.device)[layout_of_row]


def _plan(is_masked: Tensor, config: SamplerConfig) -> list[tuple[int, int, int, int]]:
    """The steps of a row (L,), with one at the end that fills nothing and is followed by itself."""
    schedule, windows = schedule_by_name(config.mask_schedule), _windows(is_masked, config.block_length)
    steps: list[tuple[int, int, int, int]] = []
    shares = _share_evenly(config.steps or int(is_masked.sum()), len(windows))
    for window, n_steps in zip(windows, shares, strict=True):
        n_masked = is_masked[window].sum()
        if config.remasks:
            budget = _thin_budget(int(n_masked), n_steps, schedule)
        else:
            budget = unmask_budget(n_masked[None], n_steps, schedule)[0].tolist()
        steps += [(window.start, window.stop, n_now, len(steps) + len(budget)) for n_now in budget]
    return [*steps, (0, 0, 0, len(steps))]


def unmask_budget(n_masked: Tensor, steps: int, schedule: MaskSchedule = LINEAR) -> Tensor:
    """How many tokens to fill at each step: (B, S), the parts that the schedule reveals in S equal intervals of time.

    A step that reveals nothing would be wasted, so each reveals one token at least where there are enough of them. The
    parts are rounded so that they add up: down, with one more for those that lose most by it, the first ones in case of
    a tie. For the linear schedule that is an even split with the remainder in the first steps, as LLaDA does.

    Args:
        n_masked: (B,) tokens to fill in each row.
        steps: at most so many steps; S is smaller where no row has as many tokens.
        schedule: the part that is masked at each time; time runs from 1 to 0.
    """
    steps = min(steps, int(n_masked.max())) if n_masked.numel() else 0
    n = n_masked[:, None].cpu()
    masked = schedule.fraction(torch.arange(steps, -1, -1, dtype=torch.float64) / max(1, steps))
    wanted = _at_least_one(n * (masked[:-1] - masked[1:]), n >= steps)
    whole = (wanted + ROUNDING).floor()
    lost = (wanted - whole).round(decimals=ROUNDING_DECIMALS)
    budget = whole.long() + most_confident(lost, n[:, 0] - whole.sum(1))
    return budget.to(n_masked.device)


def _thin_budget(n_masked: int, steps: int, schedule: MaskSchedule) -> list[int]:
    """How many tokens each step fills in more than it masks again, which may be none; the first step fills one."""
    masked = schedule.fraction(torch.arange(steps, -1, -1, dtype=torch.float64) / steps)
    written = (n_masked * (1 - masked) - ROUNDING).ceil().clamp(0, n_masked).long()
    written[1:].clamp_(min=1)
    return written.diff().tolist()


def _at_least_one(parts: Tensor, has_enough: Tensor) -> Tensor:
    """Parts (B, S) of unchanged sums: where a row has enough (B, 1), those below 1 are 1, and the others less alike."""
    is_low, raised = torch.zeros_like(parts, dtype=torch.bool), parts
    while bool((is_new := has_enough & ~is_low & (raised < 1 - ROUNDING)).any()):
        is_low = is_low | is_new
        rest = parts.masked_fill(is_low, 0)
        scale = (parts.sum(1, keepdim=True) - is_low.sum(1, keepdim=True)) / rest.sum(1, keepdim=True)
        raised = torch.where(has_enough, torch.where(is_low, 1.0, rest * scale), parts)
    return raised


def _windows(is_masked: Tensor, block_length: int | None) -> list[slice]:
    """Slices of at most `block_length` of a row (L,) from its first mask to its last, without those that hold none."""
    places = is_masked.nonzero()[:, 0]
    if len(places) == 0:
        return []
    start, end = int(places[0]), int(places[-1]) + 1
    length = block_length or end - start
    windows = [slice(a, min(a + length, end)) for a in range(start, end, length)]
    return [window for window in windows if bool(is_masked[window].any())]


def _share_evenly(total: int, n_parts: int) -> list[int]:
    """Whole numbers of at least 1 that add up to `total` (to `n_parts`, if that is more)."""
    return [max(1, total // n_parts + (i < total % n_parts)) for i in range(n_parts)]
