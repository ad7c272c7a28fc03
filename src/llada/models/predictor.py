"""From a network over rows to a mask predictor over token ids.

A vocabulary's MASK may have an id far above the others, while a network has one row for
each id that exists, MASK's being named by its configuration. The predictor translates on the way in, so that everything
outside of the networks knows one MASK only. For the public checkpoints, id and row are the same.

Shape letters: B batch, L length, V vocabulary rows, N selected positions.
"""

from torch import Tensor, nn

from llada.models.encoder import Encoder
from llada.models.llada import LLaDA


class MaskPredictor(nn.Module):
    """`predict(x_t)`: token ids (B, L) to logits (B, L, V), whose column v is the token id v.

    The only column that is not an id is MASK's own, which no sampler may choose.
    """

    def __init__(self, network: LLaDA | Encoder, mask_id: int, mask_row: int) -> None:
        super().__init__()
        self.network = network
        self.mask_id, self.mask_row = mask_id, mask_row

    def forward(self, x_t: Tensor, attention_mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Logits everywhere, (B, L, V), or at the N `positions` of a (B, L) bool tensor only, (N, V).

        Args:
            x_t: (B, L) token ids.
            attention_mask: (B, L), 0 where a token is padding that must not be attended to.
            positions: the head is computed at these positions alone, which training needs: with LLaDA's vocabulary
                of 126,464, the logits of all positions would outweigh the rest of the network.

        Raises:
            IndexError: an id that is neither MASK nor a row of the network.
        """
        rows = x_t.masked_fill(x_t == self.mask_id, self.mask_row)
        features = self.network.features(rows, attention_mask)
        if positions is not None:
            features = features[positions]
        return self.network.head(features)
