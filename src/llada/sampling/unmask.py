"""The reverse process: a canvas with MASK in some places becomes text, a few tokens a step, in any order.

One loop (`unmask`) over one step (`filling.advance_together`) does it all. Infilling is the loop on a template;
generation is infilling of masks appended to a prompt; semi-autoregressive decoding is the loop on one window after
another; suppression turns a predictor into another predictor (guidance.py). Argument names are LLaDA's public ones
(config.py; arXiv 2502.09992, section 2.4, algorithms 4 and 5).

Shape letters: B batch, L length, V vocabulary rows, N asked positions.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llada.models.predictor import PredictAt
from llada.sampling.config import SamplerConfig
from llada.sampling.draws import Generators
from llada.sampling.filling import advance_together, begin
from llada.sampling.guidance import Predict
from llada.sampling.predictions import Predictions


@dataclass(frozen=True)
class Canvas:
    """The state of the reverse process after a step."""

    x_t: Tensor
    """(B, L) token ids, MASK where nothing is decided."""
    nfe: int
    """Number of function evaluations of the mask predictor so far."""
    revealed: Tensor | None = None
    """(B, L) bool: what this step revealed; None before the first."""
    asked: Tensor | None = None
    """(B, L) bool: the N positions at which there are predictions."""
    predicted: Predictions | None = None
    """The predictions at the asked positions, in row order, as the model has them."""
    nfe_saved: int = 0
    """Evaluations that ends made needless in every row (`end_ids`), at most."""

    @property
    def log_p(self) -> Tensor | None:
        """The log-probabilities at the asked positions, (N, V)."""
        return None if self.predicted is None else self.predicted.log_p


def generate(
    predict: Predict | PredictAt,
    prompt: Tensor,
    gen_length: int,
    mask_id: int,
    config: SamplerConfig,
    generator: Generators = None,
    attention_mask: Tensor | None = None,
) -> Canvas:
    """Text (B, P + gen_length) that goes on from a prompt (B, P): the infilling of masks appended to it.

    Args:
        attention_mask: (B, P) bool, False where a prompt is padded, on whichever side.
    """
    check_shape(prompt)
    masks = torch.full((len(prompt), gen_length), mask_id, dtype=prompt.dtype, device=prompt.device)
    if attention_mask is not None:
        attention_mask = F.pad(attention_mask, (0, gen_length), value=True)
    return infill(predict, torch.cat((prompt, masks), dim=1), mask_id, config, generator, attention_mask)


def infill(
    predict: Predict | PredictAt,
    template: Tensor,
    mask_id: int,
    config: SamplerConfig,
    generator: Generators = None,
    attention_mask: Tensor | None = None,
) -> Canvas:
    """A template (B, L) with every MASK replaced by a token and every other token kept: the last state of `unmask`."""
    canvas = Canvas(template, 0)
    for state in unmask(predict, template, mask_id, config, generator, attention_mask):
        canvas = state
    return canvas


@torch.no_grad()
def unmask(
    predict: Predict | PredictAt,
    template: Tensor,
    mask_id: int,
    config: SamplerConfig,
    generator: Generators = None,
    attention_mask: Tensor | None = None,
    end_ids: Collection[int] = (),
) -> Iterator[Canvas]:
    """Fill a template step by step, yielding the canvas after each step.

    Args:
        predict: token ids (B, L) to logits (B, L, V); gives -inf to what may not be produced (`suppress`).
        template: (B, L) token ids; what is not MASK is given and never rewritten.
        generator: source of randomness, on the CPU; the global one if None. With one for each row, a row is filled as
            it would be alone.
        attention_mask: (B, L) bool, False where a token is padding; the predictor must know it, as a `PredictAt` does.
        end_ids: tokens that end a text: as soon as one is written and nothing is open before it, the row is done, and
            what is open behind it stays MASK. Where tokens are masked again, that is when its window is left. The text
            up to there is the one without this argument.

    Raises:
        ValueError: the template has another number of dimensions, or the generators are not one for each row.
        UserError: the predictions are not finite numbers.
    """
    check_shape(template)
    filling, nfe = begin(template, mask_id, config, generator, attention_mask, end_ids), 0
    while not bool(filling.is_done().all()):
        (chosen,) = advance_together(predict, [filling])
        nfe += 2 if config.cfg_scale else 1
        saved = int(filling.saved.min()) * (2 if config.cfg_scale else 1) if end_ids else 0
        yield Canvas(filling.x_t, nfe, chosen.revealed, chosen.asked, chosen.predicted, saved)


def check_shape(ids: Tensor) -> None:
    """Refuse ids that are not a batch, those of a single text above all.

    Raises:
        ValueError: they are not (B, L).
    """
    if ids.dim() != 2:
        raise ValueError(
            f"token ids must have the shape (B, L), not {tuple(ids.shape)}: ids[None] makes a batch of one text"
        )
