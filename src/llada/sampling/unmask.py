"""The reverse process: a canvas with MASK in some places becomes text, a few tokens a step, in any order.

One loop (`unmask`) does it all. Infilling is the loop on a template; generation is infilling of masks appended to a
prompt; semi-autoregressive decoding is the loop on one window after another; guidance and suppression turn a predictor
into another predictor (guidance.py). Argument names are LLaDA's public ones (config.py; arXiv 2502.09992, section 2.4,
algorithms 4 and 5).

Shape letters: B batch, L length, V vocabulary rows, S steps, N open positions.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llada.forward_process import LINEAR, MaskSchedule, schedule_by_name
from llada.models.predictor import PredictAt
from llada.sampling.config import SamplerConfig
from llada.sampling.draws import Generators
from llada.sampling.guidance import CountedPredictor, Predict, guide, penalize
from llada.sampling.policies import most_confident
from llada.sampling.steps import make_step

ROUNDING_DECIMALS = 9  # of parts of a budget, which fp64 has with an error of about 1e-13
ROUNDING = 10.0**-ROUNDING_DECIMALS


@dataclass(frozen=True)
class Canvas:
    """The state of the reverse process after a step."""

    x_t: Tensor
    """(B, L) token ids, MASK where nothing is decided."""
    nfe: int
    """Number of function evaluations of the mask predictor so far."""
    revealed: Tensor | None = None
    """(B, L) bool: what this step revealed; None before the first."""
    asked: Tensor | None = None
    """(B, L) bool: the N positions at which there are predictions."""
    log_p: Tensor | None = None
    """(N, V) log-probabilities at the asked positions, in row order, as the model has them."""


def generate(
    predict: Predict | PredictAt,
    prompt: Tensor,
    gen_length: int,
    mask_id: int,
    config: SamplerConfig,
    generator: Generators = None,
    attention_mask: Tensor | None = None,
) -> Canvas:
    """Text (B, P + gen_length) that goes on from a prompt (B, P): the infilling of masks appended to it.

    Args:
        attention_mask: (B, P) bool, False where a prompt is padded, on whichever side.
    """
    check_shape(prompt)
    masks = torch.full((len(prompt), gen_length), mask_id, dtype=prompt.dtype, device=prompt.device)
    if attention_mask is not None:
        attention_mask = F.pad(attention_mask, (0, gen_length), value=True)
    return infill(predict, torch.cat((prompt, masks), dim=1), mask_id, config, generator, attention_mask)


def infill(
    predict: Predict | PredictAt,
    template: Tensor,
    mask_id: int,
    config: SamplerConfig,
    generator: Generators = None,
    attention_mask: Tensor | None = None,
) -> Canvas:
    """A template (B, L) with every MASK replaced by a token and every other token kept: the last state of `unmask`."""
    canvas = Canvas(template, 0)
    for state in unmask(predict, template, mask_id, config, generator, attention_mask):
        canvas = state
    return canvas


@torch.no_grad()
def unmask(
    predict: Predict | PredictAt,
    template: Tensor,
    mask_id: int,
    config: SamplerConfig,
    generator: Generators = None,
    attention_mask: Tensor | None = None,
) -> Iterator[Canvas]:
    """Fill a template step by step, yielding the canvas after each step.

    Args:
        predict: token ids (B, L) to logits (B, L, V); gives -inf to what may not be produced (`suppress`).
        template: (B, L) token ids; what is not MASK is given and never rewritten.
        generator: source of randomness, on the CPU; the global one if None. With one for each row, a row is filled as
            it would be alone.
        attention_mask: (B, L) bool, False where a token is padding; the predictor must know it, as a `PredictAt` does.

    Raises:
        ValueError: the template has another number of dimensions, or the generators are not one for each row.
        UserError: the predictions are not finite numbers.
    """
    check_shape(template)
    counted = CountedPredictor(predict)
    guided: PredictAt = guide(counted, template != mask_id, mask_id, config.cfg_scale) if config.cfg_scale else counted
    if config.repetition_penalty != 1:
        guided = penalize(guided, mask_id, config.repetition_penalty)
    step, x_t = make_step(config, template, generator, attention_mask), template
    for to_fill, budget in _budgets(template, mask_id, config):
        for n_now in budget.T:
            is_open = to_fill & (x_t == mask_id)
            if not step.has_budget and not bool(is_open.any()):  # it needed fewer steps
                break
            chosen = step(guided, x_t, is_open, n_now, attention_mask)
            x_t = torch.where(chosen.revealed, x_t.masked_scatter(chosen.revealed, chosen.tokens), x_t)
            yield Canvas(x_t, counted.nfe, chosen.revealed, chosen.asked, chosen.log_p)


def _budgets(template: Tensor, mask_id: int, config: SamplerConfig) -> Iterator[tuple[Tensor, Tensor]]:
    """What each row fills in its next window, (B, L) bool, and how many tokens at each of its steps, (B, S).

    Windows and steps are those that a row has alone, so that rows with other gaps do not change how it is filled.
    """
    if not bool((template == mask_id).any()):
        return
    layouts, layout_of_row = torch.unique(template == mask_id, dim=0, return_inverse=True)
    plans = [list(_plan(layout, config)) for layout in layouts.cpu()]
    for number in range(max(map(len, plans), default=0)):
        now = [plan[number] if number < len(plan) else (slice(0), layouts.new_zeros(1, 0).long()) for plan in plans]
        steps = max(budget.shape[1] for _, budget in now)
        budgets = torch.cat([F.pad(budget.cpu(), (0, steps - budget.shape[1])) for _, budget in now])
        to_fill = torch.zeros_like(layouts)
        for row, (window, _) in enumerate(now):
            to_fill[row, window] = layouts[row, window]
        yield to_fill[layout_of_row], budgets.to(template.device)[layout_of_row]


def _plan(is_masked: Tensor, config: SamplerConfig) -> Iterator[tuple[slice, Tensor]]:
    """The windows of a row (L,), one after the other, and how many tokens each of their steps fills, (1, S)."""
    schedule, windows = schedule_by_name(config.mask_schedule), _windows(is_masked, config.block_length)
    for window, steps in zip(windows, _share_evenly(config.steps or int(is_masked.sum()), len(windows)), strict=True):
        yield window, unmask_budget(is_masked[window].sum()[None], steps, schedule)


def check_shape(ids: Tensor) -> None:
    """Refuse ids that are not a batch, those of a single text above all.

    Raises:
        ValueError: they are not (B, L).
    """
    if ids.dim() != 2:
        raise ValueError(
            f"token ids must have the shape (B, L), not {tuple(ids.shape)}: ids[None] makes a batch of one text"
        )


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
