"""Tokens drawn from predictions, each row of a batch with a generator of its own.

Shape letters: B batch, R positions in row order, V vocabulary rows.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from llada.sampling.predictions import SEGMENT, Predictions
from llada.system.device import to_fp64

Generators = Generator | Sequence[Generator] | None
"""A generator for all rows, one for each row, or torch's global one."""
COLDEST = 1e-30
"""Divided by less, the log-probability of the likeliest token too is minus infinity in fp32, and nothing is left to
draw from. At this temperature already, all that are less likely by a rounding error are never drawn."""


def shaped(log_p: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Log-probabilities (R, V) as they are drawn from: first the temperature, then the likeliest tokens only.

    Args:
        log_p: (R, V) log-probabilities of the model; minus infinity for what may not be drawn.
        temperature: divides them; 0 leaves the likeliest token alone, the first of several. One below `COLDEST` acts as
            `COLDEST`.
        top_k: keep so many of the likeliest tokens.
        top_p: keep the fewest of the likeliest tokens that have this probability together (arXiv 1904.09751).
    """
    if temperature == 0:
        likeliest = log_p.argmax(-1, keepdim=True)
        return torch.full_like(log_p, -math.inf).scatter(-1, likeliest, 0.0)
    if temperature != 1:
        log_p = (log_p / max(temperature, COLDEST)).log_softmax(-1)
    if top_k is not None and top_k < log_p.shape[-1]:
        log_p = _kept(log_p, log_p.topk(top_k, dim=-1).indices)
    if top_p is not None and top_p < 1:
        falling, order = log_p.sort(dim=-1, descending=True, stable=True)
        is_behind = falling.exp().cumsum(-1) - falling.exp() >= top_p
        is_behind[..., 0] = False  # at least one stays
        is_dropped = torch.zeros_like(is_behind).scatter(-1, order, is_behind)
        log_p = log_p.masked_fill(is_dropped, -math.inf).log_softmax(-1)
    return log_p


def _kept(log_p: Tensor, indices: Tensor) -> Tensor:
    """The distributions with all other tokens left out."""
    nothing = torch.full_like(log_p, -math.inf)
    return nothing.scatter(-1, indices, log_p.gather(-1, indices)).log_softmax(-1)


def draw(log_p: Tensor, uniform: Tensor) -> Tensor:
    """A token for each position, (R,), by the inverse of the cumulative distribution, in fp64.

    In fp32 the smallest probabilities would be lost, which acts like a lower temperature (arXiv 2409.02908).

    Args:
        log_p: (R, V) log-probabilities; minus infinity is never drawn.
        uniform: (R,) fp64 numbers in [0, 1), one for each position.
    """
    p = to_fp64(log_p).exp()
    uniform = uniform.to(p.device)
    if p.shape[1] <= 2 * SEGMENT:
        cumulative = p.cumsum(1)
        return _first_above(cumulative, uniform * cumulative[:, -1]).to(log_p.device)
    # First the segment, then the token in it: sums take less time than cumulative sums.
    segments = F.pad(p, (0, -p.shape[1] % SEGMENT)).unflatten(1, (-1, SEGMENT))
    cumulative = segments.sum(-1).cumsum(1)
    threshold = uniform * cumulative[:, -1]
    segment = _first_above(cumulative, threshold)[:, None]
    before = F.pad(cumulative, (1, 0)).gather(1, segment)[:, 0]
    inner = segments.gather(1, segment[:, :, None].expand(-1, -1, SEGMENT))[:, 0].cumsum(1)
    return (segment[:, 0] * SEGMENT + _first_above(inner, threshold - before)).to(log_p.device)


def _first_above(cumulative: Tensor, threshold: Tensor) -> Tensor:
    """The first column (R,) of cumulative sums (R, n) that is above a threshold (R,)."""
    column = torch.searchsorted(cumulative, threshold[:, None], right=True)[:, 0]
    last = (cumulative < cumulative[:, -1:]).sum(1)  # rounding may reach the total itself
    return column.minimum(last)


def draw_at(
    predicted: Predictions,
    places: Tensor,
    uniform: Tensor | None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """A token for each of R positions, (R,): `draw` from `shaped`, a few positions at a time.

    Args:
        places: (R,) indices of the positions among those predicted.
        uniform: (R,) fp64 numbers in [0, 1); None will do at temperature 0.
    """
    if temperature == 0:
        return predicted.likeliest_at(places)
    assert uniform is not None
    if len(places) == 0:
        return places
    n = predicted.rows_at_once
    parts = zip(places.split(n), uniform.split(n), strict=True)
    return torch.cat([draw(shaped(predicted.at(some), temperature, top_k, top_p), numbers) for some, numbers in parts])


def uniforms(counts: Sequence[int], generators: Generators) -> Tensor:
    """Numbers in [0, 1) fp64, so many for each row, one row after the other.

    Args:
        counts: positions of each row.
        generators: one for each row, so that a row's numbers do not depend on the others; or one for all.
    """
    if generators is None or isinstance(generators, Generator):
        return torch.rand(sum(counts), dtype=torch.float64, generator=generators)
    return torch.cat(
        [
            torch.rand(n, dtype=torch.float64, generator=generator)
            for n, generator in zip(counts, generators, strict=True)
        ]
    )
