"""From a network over rows to a mask predictor over token ids.

A vocabulary's MASK may have an id far above the others, while a network has one row for
each id that exists, MASK's being named by its configuration. The predictor translates on the way in, so that everything
outside of the networks knows one MASK only. For the public checkpoints, id and row are the same.

Shape letters: B batch, L length, V vocabulary rows, N selected positions.
"""

import functools
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llada.models.asked import asked_at, round_up
from llada.models.config_json import Network, is_causal


class PredictAt(Protocol):
    """A mask predictor that is asked at some positions only: what evaluations need. `MaskPredictor` is one."""

    def __call__(self, x_t: Tensor, *, attention_mask: Tensor | None = None, positions: Tensor) -> Tensor:
        """Logits (N, V) at the N positions, in row order.

        Args:
            x_t: (B, L) token ids.
            attention_mask: (B, L) bool, False where a token is padding; None if there is none.
            positions: (B, L) bool.
        """


class MaskPredictor(nn.Module):
    """`predict(x_t)`: token ids (B, L) to logits (B, L, V), whose column v is the token id v.

    The only column that is not an id is MASK's own, which no sampler may choose.
    """

    takes_positions = True
    """A sampler may ask it at some positions only, as a `PredictAt`."""

    def __init__(self, network: Network, mask_id: int, mask_row: int) -> None:
        super().__init__()
        self.network = network
        self.mask_id, self.mask_row = mask_id, mask_row

    @property
    def is_causal(self) -> bool:
        """Whether the logits at a position see only what is before it: an autoregressive model."""
        return is_causal(self.network.config)

    def forward(self, x_t: Tensor, attention_mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Logits everywhere, (B, L, V), or at N `positions` only, (N, V).

        Args:
            x_t: (B, L) token ids.
            attention_mask: (B, L), 0 where a token is padding that must not be attended to.
            positions: the head is computed at these positions alone; with LLaDA's vocabulary of 126,464, the logits of
                all positions would outweigh the rest of the network. Either (B, L) bool, or (N,) indices b L + i, which
                spare a GPU's host the wait until it knows how many they are.

        Raises:
            ValueError: ids that are not (B, L), or rows that are longer than those the model was trained on.
            IndexError: an id that is neither MASK nor a row of the network. A GPU is not asked while it trains, since
                the host would have to wait for it.
        """
        return self.head(self.features(x_t, attention_mask, positions))

    def head(self, features: Tensor) -> Tensor:
        """Logits (..., V) of features (..., D); those of a position do not depend on how many there are."""
        if features.dim() != 2 or features.device.type != "cpu" or torch.is_grad_enabled():
            return self.network.head(features)
        n = len(features)
        return self.network.head(F.pad(features, (0, 0, 0, round_up(n) - n)))[:n]

    def rows(self, x_t: Tensor) -> Tensor:
        """The network's rows (B, L) of token ids (B, L)."""
        return x_t.masked_fill(x_t == self.mask_id, self.mask_row)

    def checked_rows(self, x_t: Tensor) -> Tensor:
        """The rows, unless the network would compute nonsense from them; the errors are those of `forward`."""
        rows = self.rows(x_t)
        self._check(rows)
        return rows

    def features(self, x_t: Tensor, attention_mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """What goes into the head, (B, L, D) or (N, D); the arguments are those of `forward`."""
        rows = self.checked_rows(x_t)
        if positions is not None and positions.dtype == torch.bool and not torch.is_grad_enabled():
            # With gradients, all of the last layer: what a step of training computes is to stay what it was.
            asked = asked_at(positions)
            if asked is not None:
                return asked.only(self.network.features(rows, attention_mask, asked))
        features = self.network.features(rows, attention_mask)
        if positions is None:
            return features
        if positions.dtype == torch.bool:
            positions = flat_positions(positions)
        return features.flatten(0, 1).index_select(0, positions)

    def _check(self, rows: Tensor) -> None:
        """Refuse what the network would compute nonsense from, or fail at in words of its own."""
        config = self.network.config
        if rows.dim() != 2:
            raise ValueError(
                f"token ids must have the shape (B, L), not {tuple(rows.shape)}: ids[None] makes a batch of one text"
            )
        if rows.shape[1] > config.max_sequence_length:
            raise ValueError(
                f"{rows.shape[1]} tokens are more than the {config.max_sequence_length} that this model was trained "
                "on: shorten the text"
            )
        if rows.device.type == "cpu" or (not self.training and not rows.is_meta):
            strange = rows[(rows < 0) | (rows >= config.vocab_size)]
            if len(strange):
                raise IndexError(
                    f"{int(strange[0])} is not a token id of this model: they are 0 to {config.vocab_size - 1}, and "
                    f"{self.mask_id} for MASK"
                )


def block_length_of(model: MaskPredictor, wanted: int | None) -> int | None:
    """The sampler's block length for this model: a causal one fills its positions one by one, from left to right.

    Raises:
        ValueError: another one is wanted.
    """
    if not model.is_causal:
        return wanted
    if wanted not in (None, 1):
        raise ValueError(f"a causal network fills one position after another, not blocks of {wanted}")
    return 1


def flat_positions(chosen: Tensor) -> Tensor:
    """(N,) indices b L + i of what is true in (B, L), in row order. Waits for the device that it is on."""
    return chosen.flatten().nonzero()[:, 0]


def checkpoint_activations(network: Network) -> None:
    """Keep the inputs of the layers only, and compute their activations again in the backward pass.

    A step then takes a third more matmuls and a fraction of the memory (arXiv 1604.06174); its result is the same.
    """
    for layer in network.layers:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
