"""The mask predictor over token ids, made from a network over embedding rows.

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
    """A mask predictor that is evaluated at some positions only, as evaluations need it; `MaskPredictor` is one."""

    def __call__(self, x_t: Tensor, *, attention_mask: Tensor | None = None, positions: Tensor) -> Tensor:
        """Compute logits (N, V) at the N positions, in row order.

        Args:
            x_t: (B, L) token ids.
            attention_mask: (B, L) bool, False where a token is padding, or integers, the numbers of the documents
                (models/documents.py); None if there are neither.
            positions: (B, L) bool.
        """


class MaskPredictor(nn.Module):
    """A mask predictor: token ids (B, L) to logits (B, L, V), whose column v belongs to the token id v.

    The only column that does not belong to an id of a text is MASK's own, which no sampler may choose.
    """

    takes_positions = True
    """Whether a sampler may ask at some positions only, as with a `PredictAt`."""
    gives_new_logits = True
    """Whether a result belongs to the caller, who may write into it."""

    def __init__(self, network: Network, mask_id: int, mask_row: int) -> None:
        super().__init__()
        self.network = network
        self.mask_id, self.mask_row = mask_id, mask_row

    @property
    def is_causal(self) -> bool:
        """Whether the logits at a position see only what comes before it, as in an autoregressive model."""
        return is_causal(self.network.config)

    def forward(self, x_t: Tensor, attention_mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Compute logits everywhere, (B, L, V), or at N `positions` only, (N, V).

        Args:
            x_t: (B, L) token ids.
            attention_mask: (B, L), 0 where a token is padding that must not be attended to. Other integers are the
                numbers of documents, each of which attends to itself alone (models/documents.py).
            positions: the head is computed at these positions alone; with LLaDA's vocabulary of 126,464, the logits of
                all positions would outweigh the rest of the network. Either (B, L) bool, or (N,) indices b L + i, which
                spare a GPU's host the wait until it knows how many they are.

        Raises:
            ValueError: the ids are not (B, L), or L exceeds the length that the model was trained on.
            IndexError: an id is neither MASK nor a row of the network. On a GPU this is not checked in training, since
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
        """Translate token ids (B, L) to the network's rows (B, L)."""
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
        """Refuse ids for which the network would compute nonsense or fail with an obscure error."""
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
    """Return the sampler's block length for this model; a causal one fills positions one by one, from left to right.

    Raises:
        ValueError: another block length is wanted for a causal model.
    """
    if not model.is_causal:
        return wanted
    if wanted not in (None, 1):
        raise ValueError(f"a causal network fills one position after another, not blocks of {wanted}")
    return 1


def flat_positions(chosen: Tensor) -> Tensor:
    """Return the indices b L + i (N,) of what is true in (B, L), in row order; this waits for the device."""
    return chosen.flatten().nonzero()[:, 0]


def checkpoint_activations(network: Network) -> None:
    """Turn on activation checkpointing: keep only the inputs of the layers, and compute the rest again in the backward
    pass.

    A step then takes a third more matmuls and a fraction of the memory (arXiv 1604.06174); its result is the same.
    """
    for layer in network.layers:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
