"""The negative evidence lower bound (NELBO) in nats per token, the number that we report, with its standard errors.

Every window of a text is masked M times, each time at exactly k random positions with k uniform on 1..L; the mean of
(1/k) * sum of the cross-entropies there bounds the negative log-likelihood of a window from above. Counts are
stratified over the windows and masks come in complementary pairs, which takes variance out and leaves the expectation
as it is. A network that sees only what precedes a token (`is_causal`) needs no masks: one pass gives its likelihood.

Shape letters: W windows, L length, B batch, R rounds, P masks of a round.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from llada.data.batches import TokenBatch
from llada.evaluation.distributed import ALONE, Shard
from llada.evaluation.standard_errors import Estimate, bins_of, estimate_mean, mean_stderr, over_windows
from llada.evaluation.windows import TextSize
from llada.forward_process import NoisyBatch, mask_exact_count, score_all
from llada.models import MaskPredictor, PredictAt
from llada.models.head import nll_of_features
from llada.objective import masked_nll, sequence_bounds
from llada.sampling.steps import NOT_FINITE
from llada.system.device import Precision, to_fp64
from llada.system.errors import UserError

MOST_MASKS = 4096  # masks of a window at most, however small an error is asked for
N_TIMES = 10  # number of bins of t in the report


@dataclass(frozen=True)
class AtTime:
    """The cross-entropy at masked positions, for ratios of masked tokens in (t_from, t_to]."""

    t_from: float
    t_to: float
    nats: float | None
    stderr: float | None
    draws: int


@dataclass(frozen=True)
class Nelbo:
    """An estimate of the bound, or of the likelihood itself for a causal network."""

    nelbo_nats_per_token: float
    nelbo_stderr: float | None
    """Standard error over windows, from the randomness of text and masks; None if there is a single window."""
    mask_stderr: float | None
    """Standard error from the masks alone; None if there is one round of them, 0 if the number is exact."""
    bits_per_token: float
    windows: int
    masks_per_window: int
    sequence_length: int
    tokens_scored: int
    seconds: float
    is_exact: bool = False
    """Whether it is not a bound, but the negative log-likelihood itself."""
    within_documents: bool = False
    """Whether attention stayed within each document of a window."""
    by_t: tuple[AtTime, ...] = ()

    @property
    def name(self) -> str:
        return "NLL" if self.is_exact else "NELBO"

    @property
    def metrics(self) -> dict[str, float | None]:
        """Numbers for metrics.jsonl, by their names there."""
        return {"nelbo": self.nelbo_nats_per_token, "nelbo_stderr": self.nelbo_stderr}

    def with_error(self, digits: int) -> str:
        """Write the bound and its standard error for people."""
        return over_windows(self.nelbo_nats_per_token, self.nelbo_stderr, digits)

    def bits_per(self, size: TextSize) -> dict[str, float]:
        """Return bits per character, byte and word of the text that was scored."""
        bits = self.bits_per_token * self.tokens_scored
        return {
            "bits_per_character": bits / max(1, size.characters),
            "bits_per_byte": bits / max(1, size.bytes),
            "bits_per_word": bits / max(1, size.words),
        }

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Bounds:
    """The bounds of all single draws."""

    values: Tensor
    """(W, R, P) fp64, in nats per maskable token."""
    mask_ratio: Tensor
    """Ratio of masked tokens to maskable ones, (W, R, P) fp64."""
    same_counts: bool = True
    """Whether all windows have the same number of maskable tokens."""

    def estimate(self) -> Estimate:
        """Estimate the mean and its standard errors."""
        return estimate_mean(self.values, self.mask_ratio, self.same_counts)


@dataclass(frozen=True)
class TokenNll:
    """A model as this module needs it: the cross-entropies at the masked positions of a noisy batch."""

    at_masked: Callable[[NoisyBatch, TokenBatch], Tensor]
    """A function from a noisy batch and the clean one to cross-entropies (N,), in row order."""
    mask_id: int
    is_causal: bool = False
    """Whether it sees only what comes before a token; then one pass without masks gives the likelihood itself."""


def nll_by_logits(predict_at: PredictAt, mask_id: int, is_causal: bool = False) -> TokenNll:
    """Make a `TokenNll` from any predictor."""

    def at_masked(noisy: NoisyBatch, batch: TokenBatch) -> Tensor:
        logits = predict_at(noisy.x_t, attention_mask=batch.attention_mask, positions=noisy.is_masked)
        return masked_nll(logits, batch.x_0, noisy)

    return TokenNll(at_masked, mask_id, is_causal)


def nll_by_model(model: MaskPredictor, precision: Precision) -> TokenNll:
    """Make a `TokenNll` from a model, without holding the logits of all positions at once."""

    def at_masked(noisy: NoisyBatch, batch: TokenBatch) -> Tensor:
        with precision.autocast(batch.x_0.device):
            features = model.features(noisy.x_t, batch.attention_mask, noisy.is_masked)
            targets = batch.x_0[noisy.is_masked]
            return nll_of_features(model.network.head, features, targets, model.network.config.vocab_size)[0]

    return TokenNll(at_masked, model.mask_id, model.is_causal)


@dataclass(frozen=True)
class BoundOptions:
    """Options of the estimate of a bound.

    Raises:
        ValueError: the number of masks is odd, or the batch size or the target is impossible.
    """

    masks_per_window: int = 8
    """Number of masks M, even because masks come in pairs."""
    target_stderr: float | None = None
    """Error to reach: draw masks, M at first and `MOST_MASKS` at most, until `mask_stderr` is this or less."""
    batch_size: int = 32
    seed: int = 0
    """Seed of every mask, whatever the batch size and the shard; the first rounds are the same for any M."""
    device: torch.device | str = "cpu"
    shard: Shard = ALONE
    """Windows that are computed in this process."""

    def __post_init__(self) -> None:
        masks, target = self.masks_per_window, self.target_stderr
        if masks < 2 or masks % 2:
            raise ValueError(f"masks come in complementary pairs: take an even number of them, not {masks}")
        if self.batch_size < 1 or (target is not None and not target > 0):
            raise ValueError(
                f"batch_size must be at least 1 and target_stderr above 0, not {self.batch_size}, {target}"
            )


DEFAULTS = BoundOptions()
OnProgress = Callable[[float, float], None]
"""A function that is called with the fraction done and the mean so far, after each batch."""


def estimate_nelbo(
    nll: TokenNll,
    windows: TokenBatch,
    options: BoundOptions = DEFAULTS,
    on_progress: OnProgress = lambda fraction_done, running_mean: None,
) -> Nelbo:
    """Estimate the bound: the mean over all windows of nats per maskable token.

    The arguments are those of `draw_bounds`.
    """
    start = time.perf_counter()
    bounds = draw_bounds(nll, windows, options, on_progress)
    estimate = bounds.estimate()
    return Nelbo(
        nelbo_nats_per_token=estimate.mean,
        nelbo_stderr=estimate.stderr,
        mask_stderr=0.0 if nll.is_causal else estimate.mask_stderr,
        bits_per_token=estimate.mean / math.log(2),
        windows=len(windows),
        masks_per_window=bounds.values[0].numel(),
        sequence_length=windows.x_0.shape[1],
        tokens_scored=int(windows.is_maskable.sum()),
        seconds=time.perf_counter() - start,
        is_exact=nll.is_causal,
        within_documents=windows.is_within_documents,
        by_t=() if nll.is_causal else _by_time(bounds),
    )


@torch.inference_mode()
def draw_bounds(
    nll: TokenNll,
    windows: TokenBatch,
    options: BoundOptions = DEFAULTS,
    on_progress: OnProgress = lambda fraction_done, running_mean: None,
) -> Bounds:
    """Compute the bound of each window under each of its masks.

    Args:
        nll: the model; see `nll_by_logits` and `nll_by_model`.
        windows: (W, L); tokens that are not maskable, a prompt for example, are given and not scored.

    Raises:
        UserError: the model gave a non-finite bound.
    """
    wanted, most, target = options.masks_per_window // 2, MOST_MASKS // 2, options.target_stderr
    if nll.is_causal:
        wanted, target = 1, None
    elif target is not None:
        wanted = max(2, wanted)  # one round does not show its error
    values: list[Tensor] = []
    ratios: list[Tensor] = []
    n_maskable = windows.is_maskable.sum(1)
    same_counts = bool((n_maskable == n_maskable[0]).all())
    total = 0.0
    for noisy, rows in _rounds(nll, windows, options.seed):
        show = _progress_of_round(on_progress, len(values), wanted, total, len(values) * len(rows))
        bounds = _row_bounds(nll, noisy, windows.rows(rows), options, show)
        if not bool(bounds.isfinite().all()):
            raise UserError(NOT_FINITE)
        total += float(bounds.sum())
        values.append(_by_window(bounds, rows, len(windows)))
        ratios.append(_by_window(noisy.p_mask[:, 0].double(), rows, len(windows)))
        if len(values) >= wanted and target is not None:
            reached = Bounds(torch.stack(values, 1), torch.stack(ratios, 1), same_counts).estimate().mask_stderr or 0.0
            times = min(reached / target, float(most))
            wanted = min(most, max(wanted, math.ceil(len(values) * times**2)))
        if len(values) >= wanted:
            break
    return Bounds(torch.stack(values, 1), torch.stack(ratios, 1), same_counts)


def _progress_of_round(
    on_progress: OnProgress, n_rounds: int, wanted: int, total: float, n_rows: int
) -> Callable[[float, float, int], None]:
    """Convert progress within one round into progress over all `wanted` rounds; `total` nats of `n_rows` are done."""
    return lambda part, more, n: on_progress((n_rounds + part) / wanted, (total + more) / (n_rows + n))


def _row_bounds(
    nll: TokenNll,
    noisy: NoisyBatch,
    clean: TokenBatch,
    options: BoundOptions,
    show: Callable[[float, float, int], None],
) -> Tensor:
    """Compute the bounds (N,) fp64 of a noisy batch's rows, each process its own share of them.

    Args:
        show: called with the fraction done, the sum so far and its number of rows, after each batch.
    """
    bounds = torch.zeros(len(clean), dtype=torch.float64)
    own = options.shard.computed(bounds)
    # Counts rise with the rows; in random order, the mean so far covers all counts, and batches cost the same.
    own = own[torch.randperm(len(own), generator=Generator().manual_seed(0))]
    for first in range(0, len(own), options.batch_size):
        rows, done = own[first : first + options.batch_size], own[: first + options.batch_size]
        batch = noisy.take(rows).to(torch.device(options.device))
        nats = nll.at_masked(batch, clean.rows(rows).to(options.device))
        bounds[rows] = to_fp64(sequence_bounds(nats, batch)).cpu()
        show(len(done) / len(own), float(bounds[done].sum()), len(done))
    counted, rows = torch.zeros_like(bounds), options.shard.of(bounds)
    counted[rows] = bounds[rows]
    return options.shard.sum(counted)


def _rounds(nll: TokenNll, windows: TokenBatch, seed: int) -> Iterator[tuple[NoisyBatch, Tensor]]:
    """Mask all windows again and again, and give the window of each row (P W)."""
    generator = Generator().manual_seed(seed)
    while True:
        if nll.is_causal:
            yield score_all(windows.x_0, windows.maskable), torch.arange(len(windows))
            continue
        order = torch.randperm(len(windows), generator=generator)  # so that counts do not depend on places in the text
        rows = torch.cat((order, order))
        clean = windows.rows(rows)
        yield mask_exact_count(clean.x_0, nll.mask_id, generator, clean.maskable, complementary=True), rows


def _by_window(of_rows: Tensor, rows: Tensor, n_windows: int) -> Tensor:
    """Rearrange values of rows (P W), in rounds over the windows, as (W, P)."""
    result = torch.empty(n_windows, len(rows) // n_windows, dtype=of_rows.dtype)
    for part, (value, row) in enumerate(zip(of_rows.view(-1, n_windows), rows.view(-1, n_windows), strict=True)):
        result[row, part] = value
    return result


def _by_time(bounds: Bounds) -> tuple[AtTime, ...]:
    """Average the cross-entropies of the draws in bins of t."""
    values, bins = bounds.values.flatten(), bins_of(bounds.mask_ratio, N_TIMES).flatten()
    window = torch.arange(len(bounds.values)).repeat_interleave(bounds.values[0].numel())
    rows = []
    for i in range(N_TIMES):
        is_here = bins == i
        here = values[is_here]
        # Draws of one window are correlated, so the error comes from the scatter of the windows' means.
        n_drawn = torch.zeros(len(bounds.values)).double().index_add(0, window[is_here], torch.ones_like(here))
        sums = torch.zeros(len(bounds.values)).double().index_add(0, window[is_here], here)
        means = (sums / n_drawn)[n_drawn > 0]
        rows.append(
            AtTime(
                i / N_TIMES,
                (i + 1) / N_TIMES,
                float(here.mean()) if len(here) else None,
                mean_stderr(means),
                len(here),
            )
        )
    return tuple(rows)
