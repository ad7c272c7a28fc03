"""The reverse process: a canvas with MASK in some places becomes text, a few tokens a step, in any order.

One loop (`unmask`) does it all. Infilling is the loop on a template; generation is infilling of masks appended to a
prompt; semi-autoregressive decoding is the loop on one window after another; guidance and suppression turn a predictor
into another predictor. Argument names are LLaDA's public ones (arXiv 2502.09992, section 2.4, algorithms 4 and 5).

Shape letters: B batch, L length, V vocabulary rows, S steps, N open positions.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from llada.system.device import fp64_device, to_fp64
from llada.system.errors import UserError
from llada.system.literals import check_literals

NOT_FINITE = "The model's predictions are not finite numbers: it is broken, use an earlier checkpoint."

Predict = Callable[[Tensor], Tensor]
"""A mask predictor: token ids (B, L), MASK among them, to logits (B, L, V)."""
Remasking = Literal["low_confidence", "random"]


@dataclass(frozen=True)
class SamplerConfig:
    """How a canvas is filled; LLaDA's public argument names."""

    steps: int = 128
    """Predictions in all: at least one a block, and no more than there are tokens to fill."""
    block_length: int | None = None
    """Fill windows of this length from left to right, which share the steps evenly; None is one window."""
    temperature: float = 0.0
    """Of the tokens; 0 takes the likeliest, 1 samples from the model."""
    cfg_scale: float = 0.0
    """Strength of classifier-free guidance, which doubles the cost; 0 is none."""
    remasking: Remasking = "low_confidence"
    """Which predictions stay at each step: the most confident (the others are masked again), or random ones."""

    def __post_init__(self) -> None:
        check_literals(self)
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")
        if self.block_length is not None and self.block_length < 1:
            raise ValueError(f"block_length must be at least 1, not {self.block_length}")
        if not (0 <= self.temperature < math.inf and 0 <= self.cfg_scale < math.inf):
            raise ValueError("temperature and cfg_scale must be numbers from 0 up")


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
    x_t = template
    windows = _windows(template == mask_id, config.block_length)
    for window, window_steps in zip(windows, _share_evenly(config.steps, len(windows)), strict=True):
        to_fill = torch.zeros_like(template, dtype=torch.bool)
        to_fill[:, window] = x_t[:, window] == mask_id
        budget = unmask_budget(to_fill.sum(1), window_steps)
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


def unmask_budget(n_masked: Tensor, steps: int) -> Tensor:
    """How many tokens to fill at each step: (B, S), even, with the remainder in the first steps, as LLaDA does.

    Args:
        n_masked: (B,) tokens to fill in each row.
        steps: at most so many steps; S is smaller where no row has as many tokens, since a step without any is wasted.
    """
    steps = min(steps, int(n_masked.max())) if n_masked.numel() else 0
    if steps == 0:
        return torch.zeros(len(n_masked), 0, dtype=torch.long, device=n_masked.device)
    step = torch.arange(steps, device=n_masked.device)
    return n_masked[:, None] // steps + (step < n_masked[:, None] % steps)


class CountedPredictor:
    """A predictor that counts its calls."""

    def __init__(self, predict: Predict) -> None:
        self.predict = predict
        self.nfe = 0

    def __call__(self, x_t: Tensor) -> Tensor:
        self.nfe += 1
        return self.predict(x_t)


def guide(predict: Predict, given: Tensor, mask_id: int, cfg_scale: float) -> Predict:
    """Unsupervised classifier-free guidance: logits move away from those of the canvas without its `given` tokens.

    logits = unconditional + (cfg_scale + 1) * (conditional - unconditional); two calls a step (arXiv
    2410.18514, section 3; `given` is (B, L) bool).
    """

    def guided(x_t: Tensor) -> Tensor:
        conditional = predict(x_t)
        unconditional = predict(x_t.masked_fill(given, mask_id))
        # Where a token is suppressed both are -inf, and their difference would be NaN.
        difference = torch.where(conditional.isneginf(), 0.0, conditional - unconditional)
        return torch.where(conditional.isneginf(), conditional, unconditional + (cfg_scale + 1) * difference)

    return guided


def suppress(predict: Predict, rows: Sequence[int]) -> Predict:
    """A predictor that never gives any probability to the tokens of these rows (columns of the logits)."""
    columns = torch.tensor(list(rows), dtype=torch.long)

    def suppressed(x_t: Tensor) -> Tensor:
        nonlocal columns
        logits = predict(x_t)
        columns = columns.to(logits.device)  # once
        return logits.index_fill(-1, columns, -torch.inf)

    return suppressed


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
