"""The objective: what a mask predictor is trained on, and the likelihood bound that it is measured by.

Both are one formula. For a row with n maskable tokens, of which some are masked with probability p each,

    bound(x_0) = (1/n) * sum over masked positions i of -log p_theta(x_0[i] | x_t) / p        (nats per token)

and its expectation over the forward process is an upper bound on -log p_theta(x_0) / n (arXiv 2502.09992, eq. 3 and 4).
Training averages it over a batch; with exactly k masked tokens, p = k/n, it reads (1/k) * sum of cross-entropies, the
estimator of lower variance that we report (eq. 14).

Shape letters: B batch, L length, V vocabulary rows, N masked positions of the whole batch.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from llada.forward_process import NoisyBatch

MaskPredictor = Callable[[Tensor], Tensor]
"""`predict(x_t)`: token ids (B, L) to logits (B, L, V)."""
Weighting = Literal["elbo", "uniform"]
Average = Literal["tokens", "sequences"]


def masked_nll(logits: Tensor, x_0: Tensor, noisy: NoisyBatch) -> Tensor:
    """Cross-entropy (N,) in nats at the masked positions, in row order, computed in fp32.

    Args:
        logits: (B, L, V), or (N, V) if only the masked positions were computed.
        x_0: (B, L) clean token ids.
    """
    if logits.dim() == 3:
        logits = logits[noisy.is_masked]
    return F.cross_entropy(logits.float(), x_0[noisy.is_masked], reduction="none")


def sequence_bounds(nll: Tensor, noisy: NoisyBatch) -> Tensor:
    """The bound above for each row: (B,) nats per maskable token, from the (N,) result of `masked_nll`."""
    row = noisy.is_masked.nonzero()[:, 0]
    return torch.zeros(len(noisy.x_t), device=nll.device).index_add(0, row, nll * bound_weights(noisy)[row, 0])


def bound_weights(noisy: NoisyBatch) -> Tensor:
    """(B, 1): the weight 1/(p n) of a masked token's cross-entropy in its row's bound."""
    return 1 / (noisy.p_mask * noisy.n_maskable)


def loss_weights(noisy: NoisyBatch, weighting: Weighting = "elbo", average: Average = "tokens") -> Tensor:
    """(B, 1): the weight of a masked token's cross-entropy in the training loss of the whole batch.

    Args:
        weighting: "elbo" makes the loss the bound. "uniform" is the mean over the masked tokens, no likelihood, but of
            lower variance, which learns faster at first (arXiv 2510.03280; docs/EXPERIMENTS.md).
        average: of the bounds, by "tokens" (without given tokens LLaDA's pre-training loss, sum(CE / p) / (B L)), or by
            "sequences" (its fine-tuning loss, each answer's sum divided by its length). Both: GUIDELINES.md.
    """
    if weighting == "uniform":
        return (1 / noisy.is_masked.sum().clamp(min=1)).expand(len(noisy.x_t), 1)
    if average == "sequences":
        return bound_weights(noisy) / len(noisy.x_t)
    return bound_weights(noisy) * noisy.n_maskable / noisy.n_maskable.sum()


def weighted_loss(nll: Tensor, noisy: NoisyBatch, weights: Tensor) -> Tensor:
    """The training loss, a scalar: the sum of the (N,) cross-entropies under the rows' (B, 1) weights.

    Weights of a batch can be cut with its rows; the losses of the pieces then add up to the loss of the batch.
    """
    return (nll * weights.expand_as(noisy.is_masked)[noisy.is_masked]).sum()
