"""The head over a large vocabulary: cross-entropies without holding all logits at once.

Shape letters: N positions, V vocabulary rows, D width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llada.objective import token_nll

ROWS_OF_A_SHAPE = 128
LOGITS_AT_ONCE = 2**24  # 64 MB in fp32, little compared with any network whose vocabulary makes it matter


def nll_of_features(
    head: Callable[[Tensor], Tensor], features: Tensor, targets: Tensor, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Compute the cross-entropy (N,) and the likeliest token (N,) at N positions from the head's input (N, D).

    The result equals `token_nll(head(features), targets)`, but the logits exist for some positions at a time only, in
    the forward pass and again in the backward pass (activation checkpointing): LLaDA's vocabulary of 126,464 makes 0.5
    MB of each position.

    Args:
        head: features (n, D) to logits (n, V).
        vocab_size: V, which decides how many positions are computed at a time.
    """
    at_once = max(1, LOGITS_AT_ONCE // vocab_size)

    def piece(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(_in_few_shapes(features, at_once))[: len(targets)]
        return token_nll(logits, targets), logits.detach().argmax(-1)

    if len(features) <= at_once:
        return piece(features, targets)
    parts = [slice(first, first + at_once) for first in range(0, len(features), at_once)]
    pieces = [
        checkpoint(piece, features[part], targets[part], use_reentrant=False, preserve_rng_state=False)
        if torch.is_grad_enabled()
        else piece(features[part], targets[part])
        for part in parts
    ]
    nll, likeliest = zip(*pieces, strict=True)
    return torch.cat(nll), torch.cat(likeliest)


def _in_few_shapes(features: Tensor, at_most: int) -> Tensor:
    """Pad features (N, D) with rows of zeros on a CPU, up to a multiple of `ROWS_OF_A_SHAPE` or to `at_most`.

    There, torch generates code for each shape of a bf16 matmul, and N differs at almost every step: that takes time,
    and memory for the code that is kept (system.environment.MATMULS_KEPT).
    """
    n_rows = len(features)
    if features.device.type != "cpu" or n_rows == 0:
        return features
    padded = max(n_rows, min(at_most, -(-n_rows // ROWS_OF_A_SHAPE) * ROWS_OF_A_SHAPE))
    return F.pad(features, (0, 0, 0, padded - n_rows))
