"""The bound of one given text, with the error that comes from the masks.

The bound of a whole corpus (nelbo.py) masks each of its many windows a few times. Here there is one text, masked many
times: its copies are the windows, so that counts are stratified over them.

Shape letters: C copies, L length.
"""

import math
from dataclasses import dataclass

import torch

from llada.data.batches import TokenBatch
from llada.evaluation.nelbo import BoundOptions, draw_bounds, nll_by_model
from llada.models import MaskPredictor
from llada.system.device import choose_precision
from llada.system.errors import UserError
from llada.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class TextBound:
    """An upper bound on the negative log-likelihood of a text; for a causal network, the likelihood itself."""

    nats_per_token: float
    stderr: float
    """Standard error over other masks of this very text; 0 if the number is exact."""
    n_tokens: int
    n_characters: int
    unit: str
    """Meaning of a token: "character" or "token"."""
    is_exact: bool

    @property
    def nats(self) -> float:
        """The bound of the whole text in nats."""
        return self.nats_per_token * self.n_tokens

    @property
    def bits_per_character(self) -> float:
        return self.nats / math.log(2) / self.n_characters

    def __str__(self) -> str:
        name = "NLL" if self.is_exact else "NELBO"
        return f"{name} {self.nats_per_token:.4f} ± {self.stderr:.4f} nats per {self.unit}"


def bound_of_text(
    model: MaskPredictor, tokenizer: Tokenizer, text: str, *, masks: int = 128, batch_size: int = 32, seed: int = 0
) -> TextBound:
    """Bound the negative log-likelihood of a text, computed in the type of the model's weights.

    Args:
        text: a text longer than the model's length is cut into pieces of it, each scored by itself, as `llada evaluate`
        does.
        masks: an even number; the error falls with its square root.

    Raises:
        UserError: the text is empty, or has a character that the vocabulary lacks.
        ValueError: the number of masks is odd or below 4.
    """
    if masks < 4 or masks % 2:
        raise ValueError(f"masks come in pairs, and two pairs show the error: take an even number, not {masks}")
    ids, longest = torch.tensor(tokenizer.encode(text)), model.network.config.max_sequence_length
    if len(ids) == 0:
        raise UserError("An empty text has no likelihood: give one of a character or more.")
    device, n_copies = next(model.parameters()).device, 1 if model.is_causal else masks // 2
    nll, variance = 0.0, 0.0  # sums over the whole text
    for number, start in enumerate(range(0, len(ids), longest)):
        piece = ids[start : start + longest]
        options = BoundOptions(masks_per_window=2, batch_size=batch_size, seed=seed + number, device=device)
        nll_at = nll_by_model(model, choose_precision("fp32", device))
        bounds = draw_bounds(nll_at, TokenBatch(piece.expand(n_copies, -1)), options)
        estimate = bounds.estimate()
        nll += estimate.mean * len(piece)
        variance += ((estimate.stderr or 0.0) * len(piece)) ** 2
    n = len(ids)
    return TextBound(nll / n, variance**0.5 / n, n, len(text), tokenizer.unit, model.is_causal)
