"""Predictors made from a predictor: guided, without some tokens, counted.

Shape letters: B batch, L length, V vocabulary rows.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Predict = Callable[[Tensor], Tensor]
"""A mask predictor: token ids (B, L), MASK among them, to logits (B, L, V)."""


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
