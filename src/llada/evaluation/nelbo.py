"""The number that we report: the negative evidence lower bound in nats per token, with its standard errors.

Every window of a text is masked M times, each time at exactly k random positions with k uniform on 1..L; the mean of
(1/k) * sum of the cross-entropies there bounds the negative log-likelihood of a window from above. Counts are
stratified over the windows and masks come in complementary pairs, which takes variance out and leaves the expectation
as it is. A network that sees only what is before a token (`is_causal`) needs no masks: one pass gives its likelihood.

Shape letters: W windows, L length, B batch, R rounds, P masks of a round.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
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
from llada.sampling.unmask import NOT_FINITE
from llada.system.device import Precision, to_fp64
from llada.system.errors import UserError

MOST_MASKS = 4096  # of a window, however small an error is asked for
N_TIMES = 10  # rows of the table by t


@dataclass(frozen=True)
class AtTime:
    """The cross-entropy where the ratio of masked tokens was in (t_from, t_to]."""

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
    """Over windows: the text's randomness and the masks'. None if there is one window."""
    mask_stderr: float | None
    """The masks' alone. None if there is one round of them; 0 if the number is exact."""
    bits_per_token: float
    windows: int
    masks_per_window: int
    sequence_length: int
    tokens_scored: int
    seconds: float
    is_exact: bool = False
    """Whether it is no bound, but the negative log-likelihood."""
    by_t: tuple[AtTime, ...] = ()

    @property
    def name(self) -> str:
        return "NLL" if self.is_exact else "NELBO"

    def with_error(self, digits: int) -> str:
        """The bound and its standard error for people."""
        return over_windows(self.nelbo_nats_per_token, self.nelbo_stderr, digits)

    def bits_per(self, size: TextSize) -> dict[str, float]:
        """Bits of a character, a byte and a word of the text that was scored."""
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
    """(W, R, P) fp64: masked tokens to maskable ones."""
    same_counts: bool = True
    """Whether all windows have as many maskable tokens."""

    def estimate(self) -> Estimate:
        """The mean and its errors."""
        return estimate_mean(self.values, self.mask_ratio, self.same_counts)


@dataclass(frozen=True)
class TokenNll:
    """A model as this module sees it: the cross-entropies at the masked positions of a noisy batch."""

    at_masked: Callable[[NoisyBatch, TokenBatch], Tensor]
    """From a noisy batch and the clean one to (N,), in row order."""
    mask_id: int
    is_causal: bool = False
    """Whether it sees only what is before a token; then one pass without masks gives the likelihood itself."""


def nll_by_logits(predict_at: PredictAt, mask_id: int, is_causal: bool = False) -> TokenNll:
    """From any predictor at all."""

    def at_masked(noisy: NoisyBatch, batch: TokenBatch) -> Tensor:
        logits = predict_at(noisy.x_t, attention_mask=batch.attention_mask, positions=noisy.is_masked)
        return masked_nll(logits, batch.x_0, noisy)

    return TokenNll(at_masked, mask_id, is_causal)


def nll_by_model(model: MaskPredictor, precision: Precision) -> TokenNll:
    """From a model, without the logits of all positions being there at a time."""

    def at_masked(noisy: NoisyBatch, batch: TokenBatch) -> Tensor:
        with precision.autocast(batch.x_0.device):
            features = model.features(noisy.x_t, batch.attention_mask, noisy.is_masked)
            targets = batch.x_0[noisy.is_masked]
            return nll_of_features(model.network.head, features, targets, model.network.config.vocab_size)[0]

    return TokenNll(at_masked, model.mask_id, model.is_causal)


@dataclass(frozen=True)
class BoundOptions:
    """How a bound is estimated.

    Raises:
        ValueError: an odd number of masks, or an impossible batch size or target.
    """

    masks_per_window: int = 8
    """M; even, because masks come in pairs."""
    target_stderr: float | None = None
    """Draw masks, M at first and `MOST_MASKS` at most, until `mask_stderr` is this or less."""
    batch_size: int = 32
    seed: int = 0
    """Fixes every mask, whatever the batch size and the shard; the first rounds are the same for any M."""
    device: torch.device | str = "cpu"
    shard: Shard = ALONE
    """Which windows are computed in this process."""

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
"""Given the fraction done and the mean so far, after each batch."""


def estimate_nelbo(
    nll: TokenNll,
    windows: TokenBatch,
    options: BoundOptions = DEFAULTS,
    on_progress: OnProgress = lambda fraction_done, running_mean: None,
) -> Nelbo:
    """The bound over all windows: the mean over them of nats per maskable token.

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
        by_t=() if nll.is_causal else _by_time(bounds),
    )


@torch.inference_mode()
def draw_bounds(
    nll: TokenNll,
    windows: TokenBatch,
    options: BoundOptions = DEFAULTS,
    on_progress: OnProgress = lambda fraction_done, running_mean: None,
) -> Bounds:
    """The bound of each window under each of its masks.

    Args:
        nll: the model; see `nll_by_logits` and `nll_by_model`.
        windows: (W, L), of which tokens that are not maskable, a prompt for example, are given and not scored.

    Raises:
        UserError: the model gave a bound that is not a number.
    """
    wanted, most, target = options.masks_per_window // 2, MOST_MASKS // 2, options.target_stderr
    if nll.is_causal:
        wanted, target = 1, None
    elif target is not None:
        wanted = max(2, wanted)  # one round says nothing of its error
    values: list[Tensor] = []
    ratios: list[Tensor] = []
    n_maskable = windows.is_maskable.sum(1)
    same_counts = bool((n_maskable == n_maskable[0]).all())
    for noisy, rows in _rounds(nll, windows, options.seed):
        show = _progress_of_round(on_progress, values, wanted)
        bounds = _row_bounds(nll, noisy, windows.rows(rows), options, show)
        if not bool(bounds.isfinite().all()):
            raise UserError(NOT_FINITE)
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
    on_progress: OnProgress, values: Sequence[Tensor], wanted: int
) -> Callable[[float, float, int], None]:
    """From the progress of one round, after the rounds `values` (W, P) of some `wanted`, to that of all."""
    n_rounds, total, n_rows = len(values), sum(float(value.sum()) for value in values), sum(map(torch.numel, values))
    return lambda part, more, n: on_progress((n_rounds + part) / wanted, (total + more) / (n_rows + n))


def _row_bounds(
    nll: TokenNll,
    noisy: NoisyBatch,
    clean: TokenBatch,
    options: BoundOptions,
    show: Callable[[float, float, int], None],
) -> Tensor:
    """The bounds (N,) fp64 of the rows of a noisy batch, those of this process being computed here.

    Args:
        show: given the fraction done, the sum so far, and of how many rows, after each batch.
    """
    bounds = torch.zeros(len(clean), dtype=torch.float64)
    own = options.shard.of(bounds)
    # Counts rise with the rows; mixed, the mean so far is one of all counts, and batches cost alike.
    own = own[torch.randperm(len(own), generator=Generator().manual_seed(0))]
    for first in range(0, len(own), options.batch_size):
        rows, done = own[first : first + options.batch_size], own[: first + options.batch_size]
        batch = noisy.take(rows).to(torch.device(options.device))
        nats = nll.at_masked(batch, clean.rows(rows).to(options.device))
        bounds[rows] = to_fp64(sequence_bounds(nats, batch)).cpu()
        show(len(done) / len(own), float(bounds[done].sum()), len(done))
    return options.shard.sum(bounds)


def _rounds(nll: TokenNll, windows: TokenBatch, seed: int) -> Iterator[tuple[NoisyBatch, Tensor]]:
    """All windows masked, again and again, and which window each row (P W) is."""
    generator = Generator().manual_seed(seed)
    while True:
        if nll.is_causal:
            yield score_all(windows.x_0, windows.maskable), torch.arange(len(windows))
            continue
        order = torch.randperm(len(windows), generator=generator)  # so that counts are not tied to places in the text
        rows = torch.cat((order, order))
        clean = windows.rows(rows)
        yield mask_exact_count(clean.x_0, nll.mask_id, generator, clean.maskable, complementary=True), rows


def _by_window(of_rows: Tensor, rows: Tensor, n_windows: int) -> Tensor:
    """Values of rows (P W), in rounds over the windows, as (W, P)."""
    result = torch.empty(n_windows, len(rows) // n_windows, dtype=of_rows.dtype)
    for part, (value, row) in enumerate(zip(of_rows.view(-1, n_windows), rows.view(-1, n_windows), strict=True)):
        result[row, part] = value
    return result


def _by_time(bounds: Bounds) -> tuple[AtTime, ...]:
    """The mean cross-entropy of the draws in bins of t."""
    values, bins = bounds.values.flatten(), bins_of(bounds.mask_ratio, N_TIMES).flatten()
    window = torch.arange(len(bounds.values)).repeat_interleave(bounds.values[0].numel())
    rows = []
    for i in range(N_TIMES):
        is_here = bins == i
        here = values[is_here]
        # Draws of one window are alike, so what scatters is the windows' means.
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
