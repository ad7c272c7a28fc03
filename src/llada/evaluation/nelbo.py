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

from llada.evaluation.distributed import ALONE, Share
from llada.evaluation.standard_errors import Estimate, bins_of, estimate_mean, mean_stderr, over_windows
from llada.evaluation.windows import TextSize
from llada.forward_process import NoisyBatch, mask_exact_count, score_all
from llada.models import MaskPredictor
from llada.models.head import nll_of_features
from llada.objective import masked_nll, sequence_bounds
from llada.sampling.unmask import NOT_FINITE
from llada.system.device import Precision, to_fp64
from llada.system.errors import UserError

NllAt = Callable[[NoisyBatch, Tensor, Tensor | None], Tensor]
"""A noisy batch, its clean ids (B, L), and `attended` (B, L) where some are padding, to cross-entropies (N,)."""
MOST_MASKS = 4096  # of a window, however small an error is asked for
N_TIMES = 10  # rows of the table by t


@dataclass(frozen=True)
class AtTime:
    """The cross-entropy where a share of masked tokens in (t_from, t_to] was hidden."""

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
    share: Tensor
    """(W, R, P) fp64: masked tokens, as a share of the maskable ones."""
    same_counts: bool = True
    """Whether all windows have as many maskable tokens."""

    def estimate(self) -> Estimate:
        """The mean and its errors."""
        return estimate_mean(self.values, self.share, self.same_counts)


def nll_by_logits(predict_at: Callable[[Tensor, Tensor], Tensor]) -> NllAt:
    """From (x_t, is_masked), each (B, L), to the logits (N, V) of the N masked positions: any predictor at all."""
    return lambda noisy, x_0, attended: masked_nll(predict_at(noisy.x_t, noisy.is_masked), x_0, noisy)


def nll_by_model(model: MaskPredictor, precision: Precision) -> NllAt:
    """From a model, without the logits of all positions being there at a time."""

    def nll_at(noisy: NoisyBatch, x_0: Tensor, attended: Tensor | None) -> Tensor:
        with precision.autocast(x_0.device):
            features = model.features(noisy.x_t, attended, noisy.is_masked)
            targets = x_0[noisy.is_masked]
            return nll_of_features(model.network.head, features, targets, model.network.config.vocab_size)[0]

    return nll_at


def estimate_nelbo(
    nll_at: NllAt,
    windows: Tensor,
    mask_id: int,
    *,
    maskable: Tensor | None = None,
    attended: Tensor | None = None,
    masks_per_window: int = 8,
    target_stderr: float | None = None,
    is_causal: bool = False,
    batch_size: int = 32,
    seed: int = 0,
    device: torch.device | str = "cpu",
    share: Share = ALONE,
    on_progress: Callable[[float, float], None] = lambda share, running_mean: None,
) -> Nelbo:
    """The bound over all windows (W, L): the mean over them of nats per maskable token.

    The arguments are those of `draw_bounds`.
    """
    start = time.perf_counter()
    bounds = draw_bounds(
        nll_at, windows, mask_id, maskable=maskable, attended=attended, masks_per_window=masks_per_window,
        target_stderr=target_stderr, is_causal=is_causal, batch_size=batch_size, seed=seed, device=device, share=share,
        on_progress=on_progress,
    )  # fmt: skip
    estimate = bounds.estimate()
    return Nelbo(
        nelbo_nats_per_token=estimate.mean,
        nelbo_stderr=estimate.stderr,
        mask_stderr=0.0 if is_causal else estimate.mask_stderr,
        bits_per_token=estimate.mean / math.log(2),
        windows=len(windows),
        masks_per_window=bounds.values[0].numel(),
        sequence_length=windows.shape[1],
        tokens_scored=windows.numel() if maskable is None else int(maskable.sum()),
        seconds=time.perf_counter() - start,
        is_exact=is_causal,
        by_t=() if is_causal else _by_time(bounds),
    )


@torch.inference_mode()
def draw_bounds(
    nll_at: NllAt,
    windows: Tensor,
    mask_id: int,
    *,
    maskable: Tensor | None = None,
    attended: Tensor | None = None,
    masks_per_window: int = 8,
    target_stderr: float | None = None,
    is_causal: bool = False,
    batch_size: int = 32,
    seed: int = 0,
    device: torch.device | str = "cpu",
    share: Share = ALONE,
    on_progress: Callable[[float, float], None] = lambda share, running_mean: None,
) -> Bounds:
    """The bound of each window (W, L) under each of its masks.

    Args:
        nll_at: the model; see `nll_by_logits` and `nll_by_model`.
        maskable: (W, L) bool, False where a token is given and not scored, a prompt for example.
        attended: (W, L) bool, False where a token is padding.
        masks_per_window: M; even, because masks come in pairs.
        target_stderr: draw masks, M at first and `MOST_MASKS` at most, until `mask_stderr` is this or less.
        is_causal: the model sees only what is before a token; one pass, without masks.
        seed: fixes every mask, whatever the batch size and the share; the first rounds are the same for any M.
        share: which windows are computed in this process.
        on_progress: told the share done and the mean so far, after each batch.

    Raises:
        ValueError: an odd number of masks, or an impossible batch size or target.
        UserError: the model gave a bound that is not a number.
    """
    if masks_per_window < 2 or masks_per_window % 2:
        raise ValueError(f"masks come in complementary pairs: take an even number of them, not {masks_per_window}")
    if batch_size < 1 or (target_stderr is not None and not target_stderr > 0):
        raise ValueError(f"batch_size must be at least 1 and target_stderr above 0, not {batch_size}, {target_stderr}")
    wanted, most = (1, 1) if is_causal else (masks_per_window // 2, MOST_MASKS // 2)
    if target_stderr is not None and not is_causal:
        wanted = max(2, wanted)  # one round says nothing of its error
    values: list[Tensor] = []
    shares: list[Tensor] = []
    same_counts = maskable is None or bool((maskable.sum(1) == maskable[0].sum()).all())
    for noisy, rows in _rounds(windows, mask_id, maskable, Generator().manual_seed(seed), is_causal):
        show = _progress_of_round(on_progress, values, wanted)
        x_0, seen = windows[rows], None if attended is None else attended[rows]
        bounds = share.sum(_row_bounds(nll_at, noisy, x_0, seen, share.of(rows), batch_size, device, show))
        if not bool(bounds.isfinite().all()):
            raise UserError(NOT_FINITE)
        values.append(_by_window(bounds, rows, len(windows)))
        shares.append(_by_window(noisy.p_mask[:, 0].double(), rows, len(windows)))
        if len(values) >= wanted and target_stderr is not None and not is_causal:
            reached = Bounds(torch.stack(values, 1), torch.stack(shares, 1), same_counts).estimate().mask_stderr or 0.0
            times = min(reached / target_stderr, float(most))
            wanted = min(most, max(wanted, math.ceil(len(values) * times**2)))
        if len(values) >= wanted:
            break
    return Bounds(torch.stack(values, 1), torch.stack(shares, 1), same_counts)


def _progress_of_round(
    on_progress: Callable[[float, float], None], values: Sequence[Tensor], wanted: int
) -> Callable[[float, float, int], None]:
    """From the progress of one round, after the rounds `values` (W, P) of some `wanted`, to that of all."""
    n_rounds, total, n_rows = len(values), sum(float(value.sum()) for value in values), sum(map(torch.numel, values))
    return lambda part, more, n: on_progress((n_rounds + part) / wanted, (total + more) / (n_rows + n))


def _row_bounds(
    nll_at: NllAt,
    noisy: NoisyBatch,
    x_0: Tensor,
    attended: Tensor | None,
    own: Tensor,
    batch_size: int,
    device: torch.device | str,
    show: Callable[[float, float, int], None],
) -> Tensor:
    """The bounds (N,) fp64 of the rows `own` of a noisy batch, 0 in the others.

    Args:
        show: told the share done, the sum so far, and of how many rows.
    """
    bounds = torch.zeros(len(x_0), dtype=torch.float64)
    # Counts rise with the rows; mixed, the mean so far is one of all counts, and batches cost alike.
    own = own[torch.randperm(len(own), generator=Generator().manual_seed(0))]
    for first in range(0, len(own), batch_size):
        rows, done = own[first : first + batch_size], own[: first + batch_size]
        batch, clean = noisy.take(rows).to(torch.device(device)), x_0[rows].to(device)
        seen = None if attended is None else attended[rows].to(device)
        bounds[rows] = to_fp64(sequence_bounds(nll_at(batch, clean, seen), batch)).cpu()
        show(len(done) / len(own), float(bounds[done].sum()), len(done))
    return bounds


def _rounds(
    windows: Tensor, mask_id: int, maskable: Tensor | None, generator: Generator, is_causal: bool
) -> Iterator[tuple[NoisyBatch, Tensor]]:
    """All windows masked, again and again, and which window each row (P W) is."""
    while True:
        if is_causal:
            yield score_all(windows, maskable), torch.arange(len(windows))
            continue
        order = torch.randperm(len(windows), generator=generator)  # so that counts are not tied to places in the text
        rows = torch.cat((order, order))
        free = None if maskable is None else maskable[rows]
        yield mask_exact_count(windows[rows], mask_id, generator, free, complementary=True), rows


def _by_window(of_rows: Tensor, rows: Tensor, n_windows: int) -> Tensor:
    """Values of rows (P W), in rounds over the windows, as (W, P)."""
    result = torch.empty(n_windows, len(rows) // n_windows, dtype=of_rows.dtype)
    for part, (value, row) in enumerate(zip(of_rows.view(-1, n_windows), rows.view(-1, n_windows), strict=True)):
        result[row, part] = value
    return result


def _by_time(bounds: Bounds) -> tuple[AtTime, ...]:
    """The mean cross-entropy of the draws in bins of t."""
    values, bins = bounds.values.flatten(), bins_of(bounds.share, N_TIMES).flatten()
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
