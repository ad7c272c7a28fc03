"""Exact likelihoods: the chain rule along an order in which a text is unmasked.

Where the next position depends only on what is unmasked so far, the probabilities of the tokens in that order multiply
to that of the text, under the sampler that unmasks in this order and draws each token from the model (arXiv
2603.01367). Several positions at a time are drawn independently of each other, as a sampler does, and the product is
exact for that sampler. None of these is the bound: the bound is over all orders. They are named by their order.

As in the bound, tokens are drawn from all rows of the model. `llada sample` forbids some, MASK for example, which makes
a text likelier by what the model would have given them.

Shape letters: W windows, B batch, L length, V vocabulary rows, N asked positions, S steps.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from llada.data.batches import TokenBatch
from llada.evaluation.distributed import ALONE, Shard
from llada.evaluation.standard_errors import mean_stderr, over_windows
from llada.models import PredictAt
from llada.sampling.unmask import NOT_FINITE, most_confident
from llada.system.device import fp64_device, to_fp64
from llada.system.errors import UserError
from llada.system.literals import check_literal

Order = Literal["left_to_right", "confidence", "margin", "entropy"]
ORDERS: Sequence[Order] = get_args(Order)


@dataclass(frozen=True)
class ExactNll:
    """The likelihood of a text under one order."""

    order: Order
    positions_per_step: int
    nll_nats_per_token: float
    nll_stderr: float | None
    """Over windows; None if there is one."""
    bits_per_token: float
    windows: int
    tokens_scored: int
    nfe: int
    """Passes of the network for a window."""
    seconds: float

    def with_error(self, digits: int) -> str:
        """The mean and its standard error for people."""
        return over_windows(self.nll_nats_per_token, self.nll_stderr, digits)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_exact_nll(
    predict_at: PredictAt,
    windows: TokenBatch,
    mask_id: int,
    *,
    order: Order,
    positions_per_step: int = 1,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    shard: Shard = ALONE,
    on_progress: Callable[[float, float], None] = lambda fraction_done, running_mean: None,
) -> ExactNll:
    """The mean over windows (W, L) of `exact_nll` a maskable token; no randomness is in it.

    The arguments are those of `exact_nll` and of `nelbo.BoundOptions`.
    """
    start = time.perf_counter()
    n_maskable = windows.is_maskable.sum(1)
    per_window = torch.zeros(len(windows), dtype=torch.float64)
    own = shard.of(per_window)
    for first in range(0, len(own), batch_size):
        rows = own[first : first + batch_size]
        done = own[: first + len(rows)]

        def show(part: float, first: int = first, n: int = len(rows), done: Tensor = done) -> None:
            mean = float(per_window[done].sum()) / first if first else math.nan  # nothing is known in the first batch
            on_progress((first + part * n) / len(own), mean)

        nll = exact_nll(
            predict_at, windows.rows(rows).to(device), mask_id, order=order, positions_per_step=positions_per_step,
            on_progress=show,
        )  # fmt: skip
        per_window[rows] = nll.cpu() / n_maskable[rows]
    per_window = shard.sum(per_window)
    mean = float(per_window.mean())
    return ExactNll(
        order=order,
        positions_per_step=positions_per_step,
        nll_nats_per_token=mean,
        nll_stderr=mean_stderr(per_window),
        bits_per_token=mean / math.log(2),
        windows=len(windows),
        tokens_scored=int(n_maskable.sum()),
        nfe=-(-int(n_maskable.max()) // positions_per_step),
        seconds=time.perf_counter() - start,
    )


@torch.inference_mode()
def exact_nll(
    predict_at: PredictAt,
    batch: TokenBatch,
    mask_id: int,
    *,
    order: Order,
    positions_per_step: int = 1,
    on_progress: Callable[[float], None] = lambda fraction_done: None,
) -> Tensor:
    """-log p(x_0) of each row under the order: (B,) fp64, in nats, of the maskable tokens given the others.

    It is on the device of the batch, or on the CPU if that has no fp64 (`fp64_device`).

    Args:
        order: which open position comes next: the first; the one whose likeliest token is most probable; the one with
            the greatest margin between its two likeliest tokens; the one of least entropy. In a tie, the first.
        positions_per_step: so many at once; S is L divided by it.

    Raises:
        ValueError: an order that does not exist, or no position a step.
        UserError: the model's predictions are not numbers.
    """
    check_literal("order", order, Order)
    if positions_per_step < 1:
        raise ValueError(f"positions_per_step must be at least 1, not {positions_per_step}")
    x_0, is_open = batch.x_0, batch.is_maskable.clone()
    total = torch.zeros(len(x_0), dtype=torch.float64, device=fp64_device(x_0.device))
    n_open = int(is_open.sum(1).max())
    budget = torch.full((len(x_0),), positions_per_step, device=x_0.device)
    for done in range(0, n_open, positions_per_step):
        # From left to right, what comes next is known beforehand, and the head needs to be computed there only.
        asked = is_open & (is_open.cumsum(1) <= positions_per_step) if order == "left_to_right" else is_open
        x_t = x_0.masked_fill(is_open, mask_id)
        logits = predict_at(x_t, attention_mask=batch.attention_mask, positions=asked)
        log_p = logits.float().log_softmax(-1)
        chosen = asked
        if order != "left_to_right":
            nowhere = torch.full(x_0.shape, -torch.inf, device=x_0.device)
            chosen = most_confident(nowhere.masked_scatter(asked, urgency(log_p, order)), budget) & asked
        nll = to_fp64(-log_p.gather(-1, x_0[asked][:, None])[:, 0])
        everywhere = torch.zeros(x_0.shape, dtype=nll.dtype, device=nll.device)
        everywhere = everywhere.masked_scatter(asked.to(nll.device), nll)
        total += everywhere.masked_fill(~chosen.to(nll.device), 0.0).sum(1)
        is_open &= ~chosen
        on_progress(min(1.0, (done + positions_per_step) / n_open))
    if not bool(total.isfinite().all()):
        raise UserError(NOT_FINITE)
    return total


def urgency(log_p: Tensor, order: Order) -> Tensor:
    """(N,): what is unmasked first is highest, from the log-probabilities (N, V)."""
    if order == "confidence":
        return log_p.amax(-1)
    if order == "margin":
        best = log_p.exp().topk(2, dim=-1).values
        return best[..., 0] - best[..., 1]
    return torch.special.entr(log_p.exp()).sum(-1).neg()
