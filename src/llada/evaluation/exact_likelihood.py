"""Exact likelihoods: the chain rule along the positions that a sampling policy reveals.

Where the next positions depend only on what is visible so far, the probabilities of the revealed tokens multiply to the
probability of the text under the sampler that reveals them in this order and draws each token from the model (DUEL,
arXiv 2603.01367). Several positions of a step are drawn independently of each other, as a sampler does, and the value
is exact for that sampler. None of these is the bound, which is over all orders: each is named by its policy.

As in the bound, tokens are drawn from all rows of the model. `llada sample` forbids some, MASK for example, which makes
a text likelier by what the model would have given them.

Shape letters: W windows, B batch, L length, V vocabulary rows, N asked positions.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from llada.data.batches import TokenBatch
from llada.evaluation.distributed import ALONE, Shard
from llada.evaluation.standard_errors import mean_stderr, over_windows
from llada.models import PredictAt
from llada.sampling.config import SamplerConfig
from llada.sampling.policies import DEFAULTS, Policy, PolicyName, PolicyOptions, StepState, make_policy
from llada.sampling.predictions import Predictions
from llada.sampling.steps import NOT_FINITE, check_likelihood
from llada.system.device import fp64_device, to_fp64
from llada.system.errors import UserError


@dataclass(frozen=True)
class ExactNll:
    """The likelihood of texts under one policy."""

    policy: PolicyName
    positions_per_step: int
    """Positions that each step reveals at least."""
    nll_nats_per_token: float
    nll_stderr: float | None
    """Standard error over windows; None if there is a single window."""
    bits_per_token: float
    windows: int
    tokens_scored: int
    nfe: int
    """Evaluations of the network for the window that needs the most."""
    nfe_per_window: float
    """Mean number of evaluations per window."""
    seconds: float
    options: dict[str, Any]
    """The parameters of the policy."""
    within_documents: bool = False
    """Whether attention stayed within each document of a window."""

    def with_error(self, digits: int) -> str:
        """Write the mean and its standard error for people."""
        return over_windows(self.nll_nats_per_token, self.nll_stderr, digits)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class ScoredRows(NamedTuple):
    """The result of `exact_nll` for each row."""

    nll: Tensor
    """(B,) fp64: -log p(x_0) in nats."""
    nfe: Tensor
    """(B,) evaluations of the network until the row was complete."""


class ScoredWindows(NamedTuple):
    """What `score_windows` finds for each window."""

    nll: Tensor
    """(W,) fp64, on the CPU: nats a maskable token."""
    nfe: Tensor
    """(W,) fp64: evaluations of the network."""
    seconds: float
    """For all of them."""

    @property
    def mean(self) -> float:
        return float(self.nll.mean())

    @property
    def nfe_per_window(self) -> float:
        return float(self.nfe.mean())


def measure_exact_nll(
    predict_at: PredictAt,
    windows: TokenBatch,
    mask_id: int,
    *,
    policy: PolicyName,
    options: PolicyOptions = DEFAULTS,
    positions_per_step: int = 1,
    batch_size: int = 32,
    seed: int = 0,
    device: torch.device | str = "cpu",
    shard: Shard = ALONE,
    on_progress: Callable[[float, float], None] = lambda fraction_done, running_mean: None,
) -> ExactNll:
    """Measure the mean over windows (W, L) of `exact_nll` per maskable token.

    The arguments are those of `exact_nll` and of `nelbo.BoundOptions`; the seed is for the policy "random" only.

    Raises:
        UserError: with these options texts have no exact likelihood.
    """
    if isinstance(options, SamplerConfig):
        check_likelihood(options)
    scored = score_windows(
        predict_at, windows, mask_id, policy=make_policy(policy, options), positions_per_step=positions_per_step,
        batch_size=batch_size, seed=seed, device=device, shard=shard, on_progress=on_progress,
    )  # fmt: skip
    return ExactNll(
        policy=policy,
        positions_per_step=positions_per_step,
        nll_nats_per_token=scored.mean,
        nll_stderr=mean_stderr(scored.nll),
        bits_per_token=scored.mean / math.log(2),
        windows=len(windows),
        tokens_scored=int(windows.is_maskable.sum()),
        nfe=int(scored.nfe.max()),
        nfe_per_window=scored.nfe_per_window,
        seconds=scored.seconds,
        options={field.name: getattr(options, field.name) for field in fields(PolicyOptions)},
        within_documents=windows.is_within_documents,
    )


def score_windows(
    predict_at: PredictAt,
    windows: TokenBatch,
    mask_id: int,
    *,
    policy: Policy,
    positions_per_step: int = 1,
    batch_size: int = 32,
    seed: int = 0,
    device: torch.device | str = "cpu",
    shard: Shard = ALONE,
    on_progress: Callable[[float, float], None] = lambda fraction_done, running_mean: None,
) -> ScoredWindows:
    """Each window (W, L) by itself, which `measure_exact_nll` averages: policies are compared window by window."""
    start = time.perf_counter()
    n_maskable = windows.is_maskable.sum(1)
    priority = torch.rand(windows.x_0.shape, generator=Generator().manual_seed(seed))
    per_window, nfe = (torch.zeros(len(windows), dtype=torch.float64) for _ in range(2))
    own = shard.of(per_window)
    for first in range(0, len(own), batch_size):
        rows = own[first : first + batch_size]
        done = own[: first + len(rows)]

        def show(part: float, first: int = first, n: int = len(rows), done: Tensor = done) -> None:
            mean = float(per_window[done].sum()) / first if first else math.nan  # no value is known in the first batch
            on_progress((first + part * n) / len(own), mean)

        scored = exact_nll(
            predict_at, windows.rows(rows).to(device), mask_id, policy=policy, positions_per_step=positions_per_step,
            priority=priority[rows], on_progress=show,
        )  # fmt: skip
        per_window[rows] = scored.nll.cpu() / n_maskable[rows]
        nfe[rows] = scored.nfe.cpu().double()
    return ScoredWindows(shard.sum(per_window), shard.sum(nfe), time.perf_counter() - start)


@torch.inference_mode()
def exact_nll(
    predict_at: PredictAt,
    batch: TokenBatch,
    mask_id: int,
    *,
    policy: Policy,
    positions_per_step: int = 1,
    priority: Tensor | None = None,
    on_progress: Callable[[float], None] = lambda fraction_done: None,
) -> ScoredRows:
    """Compute -log p(x_0) of each row under a policy, of the maskable tokens given the others.

    The results are on the device of the batch, or on the CPU if that has no fp64 (`fp64_device`).

    Args:
        policy: chooses the open positions that are revealed next.
        positions_per_step: positions revealed at least; exactly so many by a policy with a fixed budget.
        priority: (B, L) numbers that decide the order of the policy "random"; zeros if left out.

    Raises:
        ValueError: `positions_per_step` is below 1.
        UserError: the model's predictions are non-finite.
    """
    if positions_per_step < 1:
        raise ValueError(f"positions_per_step must be at least 1, not {positions_per_step}")
    is_open, device = batch.is_maskable.clone(), batch.x_0.device
    total = torch.zeros(len(batch), dtype=torch.float64, device=fp64_device(device))
    nfe = torch.zeros(len(batch), dtype=torch.long, device=total.device)
    priority = torch.zeros(batch.x_0.shape) if priority is None else priority
    budget = torch.full((len(batch),), positions_per_step, device=device)
    state, n_open = StepState(budget, priority.to(device)), int(is_open.sum())
    while len(left := is_open.any(1).nonzero()[:, 0]):  # rows that are complete cost nothing
        is_left = is_open[left]
        nll, revealed = _score_step(predict_at, batch.rows(left), is_left, mask_id, policy, state.rows(left))
        total.index_add_(0, left.to(total.device), nll)
        nfe[left.to(total.device)] += 1
        is_open[left] = is_left & ~revealed
        on_progress(1 - int(is_open.sum()) / n_open)
    if not bool(total.isfinite().all()):
        raise UserError(NOT_FINITE)
    return ScoredRows(total, nfe)


def _score_step(
    predict_at: PredictAt, batch: TokenBatch, is_open: Tensor, mask_id: int, policy: Policy, state: StepState
) -> tuple[Tensor, Tensor]:
    """Score one step: what it adds to the negative log-likelihoods, (B,) fp64, and what it reveals, (B, L) bool."""
    x_t = batch.x_0.masked_fill(is_open, mask_id)
    asked = policy.foresee(is_open, state) if policy.foresee else is_open  # the head is computed there only
    logits = predict_at(x_t, attention_mask=batch.attention_mask, positions=asked)
    predicted = Predictions(logits)
    revealed = asked if policy.foresee else policy.choose(predicted, is_open, state)
    nll = to_fp64(-predicted.log_p_of(batch.x_0[asked]))
    row = asked.nonzero()[:, 0].to(nll.device)
    per_row = torch.zeros(len(batch), dtype=torch.float64, device=nll.device)
    return per_row.index_add(0, row, nll.masked_fill(~revealed[asked].to(nll.device), 0.0)), revealed
