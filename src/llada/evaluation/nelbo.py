"""The number that we report: the negative evidence lower bound in nats per token, with its standard error.

Every non-overlapping window of a text is masked M times, each time at exactly k random positions with k uniform on
1..L; the mean of (1/k) * sum of the cross-entropies there bounds the negative log-likelihood of a window from above.
Counts are stratified over the windows and masks come in complementary pairs, which takes variance out and leaves the
expectation as it is.

Shape letters: W windows, L length, B batch.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Generator, Tensor

from llada.errors import UserError
from llada.forward_process import NoisyBatch, mask_exact_count
from llada.hardware import Precision
from llada.models import MaskPredictor
from llada.objective import masked_nll, nll_of_features, sequence_bounds
from llada.text.dataset import Ids

Item = TypeVar("Item")
NllAt = Callable[[NoisyBatch, Tensor, Tensor | None], Tensor]
"""A noisy batch, its clean ids (B, L), and `attended` (B, L) where some are padding, to cross-entropies (N,)."""


@dataclass(frozen=True)
class Nelbo:
    """An estimate of the bound."""

    nelbo_nats_per_token: float
    nelbo_stderr: float | None
    """Standard error of the mean over windows: the text's randomness and the masks'. None if there is one window."""
    bits_per_token: float
    windows: int
    masks_per_window: int
    sequence_length: int
    tokens_scored: int
    seconds: float

    def with_error(self, digits: int) -> str:
        """The bound and its standard error for people."""
        error = "(one window, no error)" if self.nelbo_stderr is None else f"± {self.nelbo_stderr:.{digits}f}"
        return f"{self.nelbo_nats_per_token:.{digits}f} {error}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def cut_windows(tokens: Ids, length: int, at_most: int | None = None) -> Tensor:
    """The non-overlapping windows (W, L) of a text; its last, shorter piece is left out.

    With `at_most`, only so many, spread evenly over the text. `length` is at least 1.

    Raises:
        UserError: the text is shorter than one window.
    """
    n_windows = len(tokens) // length
    if n_windows == 0:
        raise UserError(
            f"The text of {len(tokens):,} tokens is shorter than a window of {length}: "
            "shorten --sequence_length, or use a longer text."
        )
    windows = torch.from_numpy(np.asarray(tokens[: n_windows * length]).reshape(n_windows, length).astype(np.int64))
    return windows if at_most is None else windows[evenly_spread(range(n_windows), at_most)]


def evenly_spread(items: Sequence[Item], at_most: int) -> list[Item]:
    """All items, or only so many of them, from the first to the last."""
    if at_most >= len(items):
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, at_most).round().astype(int)]


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


@torch.inference_mode()
def estimate_nelbo(
    nll_at: NllAt,
    windows: Tensor,
    mask_id: int,
    *,
    maskable: Tensor | None = None,
    attended: Tensor | None = None,
    masks_per_window: int = 8,
    batch_size: int = 32,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_progress: Callable[[float, float], None] = lambda share, running_mean: None,
) -> Nelbo:
    """The bound over all windows (W, L): the mean over them of nats per maskable token.

    Args:
        nll_at: the model; see `nll_by_logits` and `nll_by_model`.
        maskable: (W, L) bool, False where a token is given and not scored, a prompt for example.
        attended: (W, L) bool, False where a token is padding.
        masks_per_window: M; even, because masks come in pairs.
        seed: fixes every mask, whatever the batch size.
        on_progress: told the share done and the mean so far, after each batch.

    Raises:
        ValueError: an odd number of masks.
        UserError: the model gave a bound that is not a number.
    """
    if masks_per_window < 2 or masks_per_window % 2:
        raise ValueError(f"masks come in complementary pairs: take an even number of them, not {masks_per_window}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    start = time.perf_counter()
    generator = Generator().manual_seed(seed)
    n_windows, n_rounds = len(windows), masks_per_window // 2
    total = torch.zeros(n_windows, dtype=torch.float64)
    for n_rounds_done in range(n_rounds):
        order = torch.randperm(n_windows, generator=generator)  # so that counts are not tied to places in the text
        twice = torch.cat((order, order))
        free = None if maskable is None else maskable[twice]
        noisy = mask_exact_count(windows[twice], mask_id, generator, free, complementary=True)
        for first in range(0, len(twice), batch_size):
            rows = slice(first, first + batch_size)
            batch, x_0 = noisy.rows(rows).to(torch.device(device)), windows[twice[rows]].to(device)
            seen = None if attended is None else attended[twice[rows]].to(device)
            nll = nll_at(batch, x_0, seen)
            total.index_add_(0, twice[rows], sequence_bounds(nll, batch).double().cpu())
            share = (n_rounds_done + min(1.0, rows.stop / len(twice))) / n_rounds
            on_progress(share, float(total.mean()) / masks_per_window / share)
    per_window = total / masks_per_window
    mean = float(per_window.mean())
    if not math.isfinite(mean):
        raise UserError("The model's predictions are not finite numbers: it is broken, use an earlier checkpoint.")
    return Nelbo(
        nelbo_nats_per_token=mean,
        nelbo_stderr=float(per_window.std()) / n_windows**0.5 if n_windows > 1 else None,
        bits_per_token=mean / math.log(2),
        windows=n_windows,
        masks_per_window=masks_per_window,
        sequence_length=windows.shape[1],
        tokens_scored=windows.numel() if maskable is None else int(maskable.sum()),
        seconds=time.perf_counter() - start,
    )
