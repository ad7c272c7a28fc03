"""The objective: what a mask predictor is trained on, and the likelihood bound that it is measured by.

Both are one formula. For a row with n maskable tokens, of which some are masked with probability p each,

    bound(x_0) = (1/n) * sum over masked positions i of -log p_theta(x_0[i] | x_t) / p        (nats per token)

and its expectation over the forward process is an upper bound on -log p_theta(x_0) / n (arXiv 2502.09992, eq. 3 and 4).
Training averages it over a batch; with exactly k masked tokens, p = k/n, it reads (1/k) * sum of cross-entropies, the
estimator of lower variance that we report (eq. 6).

The expectation is over p uniform on (0, 1), and the bound does not depend on how p is reached. In continuous time it is
the integral over t of -alpha'(t) / (1 - alpha(t)) times the expected sum of the cross-entropies at the masked positions
(MDLM, arXiv 2406.07524; Shi et al., arXiv 2406.04329). With p = 1 - alpha(t) and so dp = -alpha'(t) dt, it becomes the
integral over p of that sum times 1/p, in which no schedule is left. A p that is drawn with another density q(p) is
weighted back by `NoisyBatch.importance` = 1/q(p), which makes the weight of a row's cross-entropies 1/(q(p) p n): for a
time t of density g that is -alpha'(t) / (1 - alpha(t)) / (g(t) n). As LLaDA's p, ours starts at eps and not at 0: the
expectation is then that of p uniform on (eps, 1), for every schedule.

Shape letters: B batch, L length, V vocabulary rows, N masked positions of the whole batch.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from llada.forward_process import MIN_MASK_PROBABILITY, NoisyBatch
from llada.system.literals import check_literal

Average = Literal["tokens", "sequences"]


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy (N,) in nats of the targets (N,) under the logits (N, V), computed in fp32."""
    return F.cross_entropy(logits.float(), targets, reduction="none")


def masked_nll(logits: Tensor, x_0: Tensor, noisy: NoisyBatch) -> Tensor:
    """Cross-entropy (N,) in nats at the masked positions, in row order, computed in fp32.

    Args:
        logits: (B, L, V), or (N, V) if only the masked positions were computed.
        x_0: (B, L) clean token ids.
    """
    if logits.dim() == 3:
        logits = logits[noisy.is_masked]
    return token_nll(logits, x_0[noisy.is_masked])


def sequence_bounds(nll: Tensor, noisy: NoisyBatch) -> Tensor:
    """The bound above for each row: (B,) nats per maskable token, from the (N,) result of `masked_nll`."""
    row = noisy.is_masked.nonzero()[:, 0]
    return torch.zeros(len(noisy.x_t), device=nll.device).index_add(0, row, nll * bound_weights(noisy)[row, 0])


def bound_weights(noisy: NoisyBatch) -> Tensor:
    """The weight (B, 1) of a masked token's cross-entropy in its row's bound: importance / (p n)."""
    return noisy.importance / (noisy.p_mask * noisy.n_maskable)


def loss_weights(
    noisy: NoisyBatch,
    power: float = 1.0,
    average: Average = "tokens",
    add_up: Callable[[Tensor], Tensor] = lambda total: total,
) -> Tensor:
    """The weight (B, 1) of a masked token's cross-entropy in the training loss of the whole batch.

    Args:
        power: weights are in proportion to importance / p^power. With 1 the loss is the bound. With less it is a
            weighted mean of cross-entropies, not a likelihood bound, but its variance is lower, and short runs learn
            faster by it (arXiv 2510.03280, 2602.15014; docs/EXPERIMENTS.md). 0 is the plain mean over masked tokens.
        average: of the bounds, by "tokens" (without given tokens LLaDA's pre-training loss, sum(CE / p) / (B L)), or by
            "sequences" (its fine-tuning loss, each answer's sum divided by its length). Source: LLaDA's GUIDELINES.md.
        add_up: adds a scalar up over everybody who has rows of the batch, if these are not all of them.
    """
    check_literal("average", average, Average)
    if power != 1.0 and average != "tokens":
        raise ValueError("only the bound (power 1) can be averaged by sequences")
    if power != 1.0:
        p_mask = noisy.p_mask.clamp(min=MIN_MASK_PROBABILITY)  # a row without masks has p = 0 and no terms
        weights = noisy.importance * p_mask**-power
        return weights / add_up((weights * noisy.is_masked).sum()).clamp(min=1)
    if average == "sequences":
        return bound_weights(noisy) / add_up(torch.tensor(float(len(noisy.x_t))))
    return bound_weights(noisy) * noisy.n_maskable / add_up(noisy.n_maskable.sum())


def weighted_loss(nll: Tensor, weights: Tensor) -> Tensor:
    """The training loss, a scalar: the weighted sum of the cross-entropies (N,).

    Args:
        nll: (N,) cross-entropies at the masked positions, as `masked_nll` returns them.
        weights: (N,) their weights: `noisy.at_masked(loss_weights(noisy))`. The weights of a batch can be cut with its
            rows; the losses of the pieces then add up to the loss of the batch.
    """
    return (nll * weights).sum()
