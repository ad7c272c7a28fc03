"""Predictors made from a predictor: asked at some positions, guided, without some tokens.

Shape letters: B batch, L length, N asked positions, V vocabulary rows.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from llada.models.predictor import PredictAt
from llada.system.errors import UserError

Predict = Callable[[Tensor], Tensor]
"""A mask predictor: token ids (B, L), MASK among them, to logits (B, L, V)."""


TokensAt = Mapping[int, Collection[int]]
"""Token ids by position."""
NONE: TokensAt = MappingProxyType({})


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


class Guided(_Wrapper):
    """A predictor with unsupervised classifier-free guidance (`guide`)."""

    def __init__(self, predict: Predict | PredictAt, given: Tensor, mask_id: int, cfg_scale: float) -> None:
        super().__init__(predict)
        self.given, self.mask_id, self.cfg_scale = given, mask_id, cfg_scale

    def _logits(self, x_t: Tensor, attention_mask: Tensor | None, positions: Tensor) -> Tensor:
        conditional = super()._logits(x_t, attention_mask, positions)
        unconditional = super()._logits(x_t.masked_fill(self.given, self.mask_id), attention_mask, positions)
        return guided_logits(conditional, unconditional, self.cfg_scale)


class Suppressed(_Wrapper):
    """A predictor that never gives any probability to some tokens (`suppress`)."""

    gives_new_logits = True

    def __init__(self, predict: Predict | PredictAt, rows: Sequence[int]) -> None:
        super().__init__(predict)
        self.columns = torch.tensor(list(rows), dtype=torch.long)

    def _logits(self, x_t: Tensor, attention_mask: Tensor | None, positions: Tensor) -> Tensor:
        logits = super()._logits(x_t, attention_mask, positions)
        self.columns = self.columns.to(logits.device)  # once
        if logits.requires_grad or not getattr(self.predict_at, "gives_new_logits", False):
            return logits.index_fill(-1, self.columns, -torch.inf)
        return logits.index_fill_(-1, self.columns, -torch.inf)  # a copy would take as long as a small network's head


class Constrained(_Wrapper):
    """A predictor that gives some tokens no probability at some positions (`constrain`)."""

    def __init__(self, predict: Predict | PredictAt, length: int, banned: TokensAt, required: TokensAt) -> None:
        super().__init__(predict)
        self.banned, self.required = banned, required
        self.columns = sorted({*banned, *required})
        self.line_of_column = torch.full((length,), len(self.columns))
        self.line_of_column[self.columns] = torch.arange(len(self.columns))
        self.is_forbidden: Tensor | None = None  # (columns and a last line for all others, V)

    def _logits(self, x_t: Tensor, attention_mask: Tensor | None, positions: Tensor) -> Tensor:
        logits = super()._logits(x_t, attention_mask, positions)
        if self.is_forbidden is None:
            self.is_forbidden = self._forbidden(logits.shape[-1]).to(logits.device)
            self.line_of_column = self.line_of_column.to(logits.device)
        line = self.line_of_column[positions.nonzero()[:, 1]]
        return logits.masked_fill(self.is_forbidden[line], -torch.inf)

    def _forbidden(self, n_tokens: int) -> Tensor:
        asked = {token for tokens in (*self.banned.values(), *self.required.values()) for token in tokens}
        if asked and not 0 <= min(asked) <= max(asked) < n_tokens:
            raise UserError(
                f"The tokens asked for are {min(asked)} to {max(asked)}, and those of this model 0 to {n_tokens - 1}: "
                "use the vocabulary of the model."
            )
        forbidden = torch.zeros(len(self.columns) + 1, n_tokens, dtype=torch.bool)
        for line, column in enumerate(self.columns):
            if column in self.required:
                forbidden[line] = True
                forbidden[line, list(self.required[column])] = False
            forbidden[line, list(self.banned.get(column, ()))] = True
        return forbidden


def constrain(
    predict: Predict | PredictAt, template: Tensor, mask_id: int, *, banned: TokensAt = NONE, required: TokensAt = NONE
) -> Constrained:
    """A predictor that never gives the banned tokens of a position, and nothing but those required there.

    Args:
        template: (B, L) what is to be filled; a position is a column of it, in all rows.
        banned: token ids by position.
        required: token ids by position, one of which must stand there.

    Raises:
        UserError: a position is outside of the template, has another token already, or has none left.
    """
    length = template.shape[1]
    for column in (*banned, *required):
        if not 0 <= column < length:
            raise UserError(f"Position {column} is not among the {length} of the template: choose one from 0 on.")
    for column, tokens in required.items():
        if not set(tokens) - set(banned.get(column, ())):
            raise UserError(f"All tokens required at position {column} are banned there: allow one of them.")
        for there in set(template[:, column].tolist()):
            if there != mask_id and there not in tokens:
                raise UserError(
                    f"The template has the token {there} at position {column}, where another is required: put MASK "
                    "there, or require what it has."
                )
    return Constrained(predict, length, banned, required)


def penalized(
    logits: Tensor, x_t: Tensor, positions: Tensor, mask_id: int, penalty: float, attention_mask: Tensor | None = None
) -> Tensor:
    """Log-probabilities (N, V) with those of the tokens that a row already has raised to the power `penalty`.

    That is the repetition penalty of CTRL (arXiv 1909.05858, section 4.1) on log-probabilities, where it does not
    depend on the constant that logits leave open. It sees visible tokens only: likelihoods stay exact.

    Args:
        logits: (N, V) at the positions, a (B, L) bool.
        x_t: (B, L) token ids, of which neither MASK nor padding counts.
    """
    log_p = logits.log_softmax(-1)
    is_text = x_t != mask_id
    if attention_mask is not None:
        is_text = is_text & attention_mask.bool()
    row, column = is_text.nonzero()[:, 0], x_t[is_text]
    is_there = torch.zeros(len(x_t), log_p.shape[-1], dtype=torch.bool, device=log_p.device)
    is_there[row, column] = True
    return torch.where(is_there[positions.nonzero()[:, 0]], log_p * penalty, log_p)


def guided_logits(conditional: Tensor, unconditional: Tensor, cfg_scale: float) -> Tensor:
    """Logits (N, V) that move away from the unconditional ones: u + (cfg_scale + 1) (c - u)."""
    # Where a token is suppressed both are -inf, and their difference would be NaN.
    difference = torch.where(conditional.isneginf(), 0.0, conditional - unconditional)
    return torch.where(conditional.isneginf(), conditional, unconditional + (cfg_scale + 1) * difference)


def guide(predict: Predict | PredictAt, given: Tensor, mask_id: int, cfg_scale: float) -> Guided:
    """Unsupervised classifier-free guidance: logits move away from those of the canvas without its `given` tokens.

    logits = unconditional + (cfg_scale + 1) * (conditional - unconditional); two calls a step (arXiv
    2410.18514, section 3; `given` is (B, L) bool).
    """
    return Guided(predict, given, mask_id, cfg_scale)


def suppress(predict: Predict | PredictAt, rows: Sequence[int]) -> Suppressed:
    """A predictor that never gives any probability to the tokens of these rows (columns of the logits)."""
    return Suppressed(predict, rows)
