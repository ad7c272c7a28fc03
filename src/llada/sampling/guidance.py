"""Predictors made from a predictor: asked at some positions, guided, without some tokens, counted.

Shape letters: B batch, L length, N asked positions, V vocabulary rows.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from llada.models.predictor import PredictAt

Predict = Callable[[Tensor], Tensor]
"""A mask predictor: token ids (B, L), MASK among them, to logits (B, L, V)."""


class _Wrapper:
    """A predictor that is made from one: callable with whole canvases, or with the positions that are asked."""

    takes_positions = True

    def __init__(self, predict: Predict | PredictAt) -> None:
        self.predict_at = at_positions(predict)

    def __call__(self, x_t: Tensor, *, attention_mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Logits (N, V) at the positions, a (B, L) bool; without them everywhere, (B, L, V)."""
        if positions is not None:
            return self._logits(x_t, attention_mask, positions)
        everywhere = torch.ones_like(x_t, dtype=torch.bool)
        return self._logits(x_t, attention_mask, everywhere).view(*x_t.shape, -1)

    def _logits(self, x_t: Tensor, attention_mask: Tensor | None, positions: Tensor) -> Tensor:
        return self.predict_at(x_t, attention_mask=attention_mask, positions=positions)


class _WholeCanvas:
    """A function of whole canvases, of which the asked positions are taken."""

    takes_positions = True

    def __init__(self, predict: Predict) -> None:
        self.predict = predict

    def __call__(self, x_t: Tensor, *, attention_mask: Tensor | None = None, positions: Tensor) -> Tensor:
        if attention_mask is not None:
            raise ValueError("a predictor that is a function of x_t alone knows no padding")
        return self.predict(x_t)[positions]


def takes_positions(predict_at: PredictAt) -> PredictAt:
    """Mark a function as one that is asked at some positions only (decorator)."""
    predict_at.takes_positions = True  # type: ignore[attr-defined]
    return predict_at


def at_positions(predict: Predict | PredictAt) -> PredictAt:
    """The predictor as one that is asked at some positions only.

    Any function of whole canvases will do. One that says `takes_positions`, as a `MaskPredictor` does, computes nothing
    elsewhere that can be left out.
    """
    return predict if getattr(predict, "takes_positions", False) else _WholeCanvas(predict)  # type: ignore


class CountedPredictor(_Wrapper):
    """A predictor that counts its calls."""

    nfe = 0

    def _logits(self, x_t: Tensor, attention_mask: Tensor | None, positions: Tensor) -> Tensor:
        self.nfe += 1
        return super()._logits(x_t, attention_mask, positions)


class Guided(_Wrapper):
    """A predictor with unsupervised classifier-free guidance (`guide`)."""

    def __init__(self, predict: Predict | PredictAt, given: Tensor, mask_id: int, cfg_scale: float) -> None:
        super().__init__(predict)
        self.given, self.mask_id, self.cfg_scale = given, mask_id, cfg_scale

    def _logits(self, x_t: Tensor, attention_mask: Tensor | None, positions: Tensor) -> Tensor:
        conditional = super()._logits(x_t, attention_mask, positions)
        unconditional = super()._logits(x_t.masked_fill(self.given, self.mask_id), attention_mask, positions)
        # Where a token is suppressed both are -inf, and their difference would be NaN.
        difference = torch.where(conditional.isneginf(), 0.0, conditional - unconditional)
        return torch.where(conditional.isneginf(), conditional, unconditional + (self.cfg_scale + 1) * difference)


class Suppressed(_Wrapper):
    """A predictor that never gives any probability to some tokens (`suppress`)."""

    def __init__(self, predict: Predict | PredictAt, rows: Sequence[int]) -> None:
        super().__init__(predict)
        self.columns = torch.tensor(list(rows), dtype=torch.long)

    def _logits(self, x_t: Tensor, attention_mask: Tensor | None, positions: Tensor) -> Tensor:
        logits = super()._logits(x_t, attention_mask, positions)
        self.columns = self.columns.to(logits.device)  # once
        return logits.index_fill(-1, self.columns, -torch.inf)


def guide(predict: Predict | PredictAt, given: Tensor, mask_id: int, cfg_scale: float) -> Guided:
    """Unsupervised classifier-free guidance: logits move away from those of the canvas without its `given` tokens.

    logits = unconditional + (cfg_scale + 1) * (conditional - unconditional); two calls a step (arXiv
    2410.18514, section 3; `given` is (B, L) bool).
    """
    return Guided(predict, given, mask_id, cfg_scale)


def suppress(predict: Predict | PredictAt, rows: Sequence[int]) -> Suppressed:
    """A predictor that never gives any probability to the tokens of these rows (columns of the logits)."""
    return Suppressed(predict, rows)
