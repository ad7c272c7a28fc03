"""Predictors small enough to know everything about.

Shape letters: B batch, L length, V vocabulary rows.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

MASK = 9  # far above the three tokens of the toys, as MASK is above the characters
N_TOKENS = 3
SCHEDULE_NAMES = ("linear", "cosine", "polynomial:2", "polynomial:0.75")
TIME_NAMES = ("uniform", "bell", "bell:0.35:0.3")


def uniform(x_t: Tensor) -> Tensor:
    return torch.zeros(*x_t.shape, N_TOKENS)


def table_predictor(length: int, seed: int) -> Callable[[Tensor], Tensor]:
    """Logits looked up by the whole noisy sequence: any function of x_t at all, fixed by the seed."""
    n_states = (N_TOKENS + 1) ** length
    table = torch.randn(n_states, length, N_TOKENS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    place = (N_TOKENS + 1) ** torch.arange(length)

    def predict(x_t: Tensor) -> Tensor:
        digits = torch.where(x_t == MASK, N_TOKENS, x_t)
        return table[(digits * place).sum(1)]

    return predict


def joint_predictor(joint: Tensor) -> Callable[[Tensor], Tensor]:
    """The exact conditionals log p(x[i] | unmasked) of a joint distribution, a tensor of L axes of V each."""
    length = joint.dim()
    sequences = torch.tensor(list(itertools.product(range(N_TOKENS), repeat=length)))
    probability = joint.reshape(-1)

    def predict(x_t: Tensor) -> Tensor:
        logits = torch.empty(*x_t.shape, N_TOKENS, dtype=torch.float64)
        for b, row in enumerate(x_t):
            is_consistent = ((sequences == row) | (row == MASK)).all(1)
            weight = probability * is_consistent
            for i in range(length):
                for v in range(N_TOKENS):
                    logits[b, i, v] = torch.log(weight[sequences[:, i] == v].sum() / weight.sum())
        return logits

    return predict


def enumerated_nelbo(predict: Callable[[Tensor], Tensor], x_0: Tensor) -> float:
    """E_k[(1/k) sum of cross-entropies] of one sequence (L,), over every count and every set of positions."""
    length, total = len(x_0), 0.0
    for k in range(1, length + 1):
        sets = list(itertools.combinations(range(length), k))
        for positions in sets:
            x_t = x_0.clone()
            x_t[list(positions)] = MASK
            log_p = predict(x_t[None])[0].double().log_softmax(-1)
            total += -sum(float(log_p[i, x_0[i]]) for i in positions) / k / len(sets) / length
    return total
