"""From a network over rows to a mask predictor over token ids.

A vocabulary's MASK may have an id far above the others, while a network has one row for
each id that exists, MASK's being named by its configuration. The predictor translates on the way in, so that everything
outside of the networks knows one MASK only. For the public checkpoints, id and row are the same.

Shape letters: B batch, L length, V vocabulary rows, N selected positions.
"""

import torch
from torch import Tensor, nn

from llada.models.configuration import Network, is_causal


class MaskPredictor(nn.Module):
    """`predict(x_t)`: token ids (B, L) to logits (B, L, V), whose column v is the token id v.

    The only column that is not an id is MASK's own, which no sampler may choose.
    """

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
            IndexError: an id that is neither MASK nor a row of the network.
        """
        return self.network.head(self.features(x_t, attention_mask, positions))

    def rows(self, x_t: Tensor) -> Tensor:
        """The network's rows (B, L) of token ids (B, L)."""
        return x_t.masked_fill(x_t == self.mask_id, self.mask_row)

    def features(self, x_t: Tensor, attention_mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """What goes into the head, (B, L, D) or (N, D); the arguments are those of `forward`."""
        features = self.network.features(self.rows(x_t), attention_mask)
        if positions is None:
            return features
        if positions.dtype == torch.bool:
            positions = flat_positions(positions)
        return features.flatten(0, 1).index_select(0, positions)


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
