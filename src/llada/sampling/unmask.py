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
from torch import Generator, Tensor

from llada.forward_process import LINEAR, MaskSchedule, schedule_by_name
from llada.sampling.config import SamplerConfig
from llada.sampling.guidance import CountedPredictor, Predict, guide
from llada.system.device import fp64_device, to_fp64
from llada.system.errors import UserError

ROUNDING_DECIMALS = 9  # of parts of a budget, which fp64 has with an error of about 1e-13
ROUNDING = 10.0**-ROUNDING_DECIMALS
NOT_FINITE = "The model's predictions are not finite numbers: it is broken, use an earlier checkpoint."


@dataclass(frozen=True)
class Canvas:
    """The state of the reverse process after a step."""

    x_t: Tensor
    """(B, L) token ids, MASK where nothing is decided."""
    nfe: int
    """Number of function evaluations of the mask predictor so far."""


def generate(
    predict: Predict,
    prompt: Tensor,
    gen_length: int,
    mask_id: int,
    config: SamplerConfig,
    generator: Generator | None = None,
) -> Canvas:
    """Text (B, P + gen_length) that goes on from a prompt (B, P): the infilling of masks appended to it."""
    check_shape(prompt)
    masks = torch.full((len(prompt), gen_length), mask_id, dtype=prompt.dtype, device=prompt.device)
    return infill(predict, torch.cat((prompt, masks), dim=1), mask_id, config, generator)


def infill(
    predict: Predict, template: Tensor, mask_id: int, config: SamplerConfig, generator: Generator | None = None
) -> Canvas:
    """A template (B, L) with every MASK replaced by a token and every other token kept: the last state of `unmask`."""
    canvas = Canvas(template, 0)
    for state in unmask(predict, template, mask_id, config, generator):
        canvas = state
    return canvas


@torch.no_grad()
def unmask(
    predict: Predict, template: Tensor, mask_id: int, config: SamplerConfig, generator: Generator | None = None
) -> Iterator[Canvas]:
    """Fill a template step by step, yielding the canvas after each step.

    Args:
        predict: token ids (B, L) to logits (B, L, V); gives -inf to what may not be produced (`suppress`).
        template: (B, L) token ids; what is not MASK is given and never rewritten.
        generator: source of randomness, on the CPU; the global one if None.

    Raises:
        ValueError: the template has another number of dimensions.
        UserError: the predictions are not finite numbers.
    """
    check_shape(template)
    counted = CountedPredictor(predict)
    guided = guide(counted, template != mask_id, mask_id, config.cfg_scale) if config.cfg_scale else counted
    schedule, x_t = schedule_by_name(config.mask_schedule), template
    windows = _windows(template == mask_id, config.block_length)
    steps = config.steps or (int((template == mask_id).sum(1).max()) if windows else 0)
    for window, window_steps in zip(windows, _share_evenly(steps, len(windows)), strict=True):
        to_fill = torch.zeros_like(template, dtype=torch.bool)
        to_fill[:, window] = x_t[:, window] == mask_id
        budget = unmask_budget(to_fill.sum(1), window_steps, schedule)
        for n_now in budget.T:
            is_open = to_fill & (x_t == mask_id)
            # Elsewhere nothing is drawn: a whole canvas of LLaDA's logits in fp64 is 1 MB a token.
            token, confidence = _predict_tokens(guided(x_t)[is_open], config, generator)
            place = confidence.device  # the CPU, if that of x_t has no fp64
            everywhere = torch.full(x_t.shape, -torch.inf, dtype=confidence.dtype, device=place)
            everywhere = everywhere.masked_scatter(is_open.to(place), confidence)
            chosen = most_confident(everywhere, n_now.to(place)).to(x_t.device) & is_open
            x_t = torch.where(chosen, x_t.masked_scatter(is_open, token), x_t)
            yield Canvas(x_t, counted.nfe)


def check_shape(ids: Tensor) -> None:
    """Refuse ids that are no batch, those of a single text above all.

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


def _predict_tokens(logits: Tensor, config: SamplerConfig, generator: Generator | None) -> tuple[Tensor, Tensor]:
    """A token for each of N positions and the confidence in it, both (N,), from logits (N, V).

    The confidence is in fp64, where the device has it (`fp64_device`). Tokens are drawn by the Gumbel trick in fp64; in
    fp32 it acts like a lower temperature (arXiv 2409.02908).

    Raises:
        UserError: a position has a logit that is NaN or infinitely high, or none above minus infinity.
    """
    if not bool(logits.amax(-1).isfinite().all()):  # what is suppressed is minus infinity, which no maximum shows
        raise UserError(NOT_FINITE)
    if config.temperature > 0:
        uniform = torch.rand(logits.shape, dtype=torch.float64, generator=generator).to(fp64_device(logits.device))
        gumbel = -torch.log(-torch.log(uniform.clamp_min(torch.finfo(torch.float64).tiny)))
        token = (to_fp64(logits) / config.temperature + gumbel).argmax(-1).to(logits.device)
    else:
        token = logits.argmax(-1)
    if config.remasking == "random":
        return token, torch.rand(token.shape, generator=generator).to(logits.device)
    probability = to_fp64(logits).softmax(-1)  # bf16 confidences tie near 1, and ties make the order depend on hardware
    return token, probability.gather(-1, token[..., None].to(probability.device))[..., 0]


def most_confident(confidence: Tensor, count: Tensor) -> Tensor:
    """(B, L) bool: in each row the `count` (B,) positions of highest confidence, the first ones in case of a tie."""
    rank = confidence.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return rank < count[:, None]


def _windows(is_masked: Tensor, block_length: int | None) -> list[slice]:
    """Slices of at most `block_length` from the first masked column to the last, without those that hold no mask."""
    columns = is_masked.any(0).nonzero()[:, 0]
    if len(columns) == 0:
        return []
    start, end = int(columns[0]), int(columns[-1]) + 1
    length = block_length or end - start
    windows = [slice(a, min(a + length, end)) for a in range(start, end, length)]
    return [window for window in windows if bool(is_masked[:, window].any())]


def _share_evenly(total: int, n_parts: int) -> list[int]:
    """Whole numbers of at least 1 that add up to `total` (to `n_parts`, if that is more)."""
    return [max(1, total // n_parts + (i < total % n_parts)) for i in range(n_parts)]
