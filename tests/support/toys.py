"""Predictors small enough to know everything about.

Shape letters: B batch, L length, V vocabulary rows.
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from llada.models.predictor import PredictAt
from llada.sampling.guidance import takes_positions

MASK = 9  # far above the three tokens of the toys, as MASK is above the characters
N_TOKENS = 3
SCHEDULE_NAMES = ("linear", "cosine", "polynomial:2", "polynomial:0.75")
TIME_NAMES = ("uniform", "bell", "bell:0.35:0.3")


def uniform(x_t: Tensor) -> Tensor:
    return torch.zeros(*x_t.shape, N_TOKENS)


@functools.cache
def table_predictor(length: int, seed: int) -> Callable[[Tensor], Tensor]:
    """Logits looked up by the whole noisy sequence: any function of x_t at all, fixed by the seed."""
    n_states = (N_TOKENS + 1) ** length
    table = torch.randn(n_states, length, N_TOKENS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    place = (N_TOKENS + 1) ** torch.arange(length)

    def predict(x_t: Tensor) -> Tensor:
        digits = torch.where(x_t == MASK, N_TOKENS, x_t)
        return table[(digits * place).sum(1)]

    return predict


def padding_predictor(seed: int) -> PredictAt:
    """Logits looked up by what a row has besides padding, so that padding on either side of it does not matter."""

    @takes_positions
    def predict_at(x_t: Tensor, *, attention_mask: Tensor | None = None, positions: Tensor) -> Tensor:
        is_text = torch.ones_like(x_t, dtype=torch.bool) if attention_mask is None else attention_mask
        logits = torch.full((*x_t.shape, N_TOKENS), -1e3, dtype=torch.float64)
        for row, text in enumerate(is_text):
            length = int(text.sum())
            logits[row, text] = table_predictor(length, seed + 100 * length)(x_t[row, text][None])[0]
        return logits[positions]

    return predict_at


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


def tabulated(predict: Callable[[Tensor], Tensor], length: int) -> Callable[[Tensor], Tensor]:
    """The same predictor, which has computed every canvas of that length once and looks them up."""
    place = (N_TOKENS + 1) ** torch.arange(length)
    digits = torch.arange((N_TOKENS + 1) ** length)[:, None] // place % (N_TOKENS + 1)
    table = predict(torch.where(digits == N_TOKENS, MASK, digits))

    def look_up(x_t: Tensor) -> Tensor:
        return table[(torch.where(x_t == MASK, N_TOKENS, x_t) * place).sum(1)]

    return look_up


def all_texts(length: int) -> Tensor:
    """Every text of that length, (V^L, L), in the order of `text_numbers`."""
    return torch.tensor(list(itertools.product(range(N_TOKENS), repeat=length)))


def text_numbers(texts: Tensor) -> Tensor:
    """The place (B,) of texts (B, L) in `all_texts`."""
    return (texts * N_TOKENS ** torch.arange(texts.shape[1] - 1, -1, -1)).sum(1)


@dataclass(frozen=True)
class MarkovChain:
    """A chain of order 2: the next token depends on the two before it."""

    first: Tensor
    """(V, V) probabilities of the first two tokens."""
    next: Tensor
    """(V, V, V) probabilities of a token after two."""

    @classmethod
    def drawn(cls, seed: int, sharpness: float = 2.0) -> "MarkovChain":
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn((N_TOKENS,) * 3, generator=generator, dtype=torch.float64) * sharpness
        return cls(torch.full((N_TOKENS, N_TOKENS), 1 / N_TOKENS**2, dtype=torch.float64), logits.softmax(-1))

    def joint(self, length: int) -> Tensor:
        """Probabilities of all texts, L axes of V each."""
        joint = self.first
        for _ in range(length - 2):
            joint = joint[..., None] * self.next.expand(*joint.shape, N_TOKENS)
        return joint

    def predict(self, x_t: Tensor) -> Tensor:
        """The exact log p(x[i] | what is visible), (B, L, V), by forward-backward over pairs of tokens."""
        length = x_t.shape[1]
        fits = ((x_t == MASK)[..., None] | (x_t[..., None] == torch.arange(N_TOKENS))).double()  # (B, L, V)
        forward = [fits[:, 0, :, None] * fits[:, 1, None, :] * self.first]  # (B, V, V): of the tokens at i - 1 and i
        for i in range(2, length):
            forward.append(torch.einsum("bxy,xyz,bz->byz", forward[-1], self.next, fits[:, i]))
        backward = torch.ones_like(forward[0])
        p = torch.empty_like(fits)
        for i in range(length - 1, 0, -1):
            pair = forward[i - 1] * backward
            p[:, i] = pair.sum(1)
            if i == 1:
                p[:, 0] = pair.sum(2)
            else:
                backward = torch.einsum("xyz,bz,byz->bxy", self.next, fits[:, i], backward)
        return (p / p.sum(-1, keepdim=True)).log()


def chi_square_p(observed: Tensor, probability: Tensor) -> float:
    """How probable counts (C,) at least so far from their probabilities (C,) are, rare cells taken together."""
    expected = probability.double() * observed.sum()
    is_rare = expected < 10
    observed, expected = (
        torch.cat((each[~is_rare], each[is_rare].sum()[None])) for each in (observed.double(), expected)
    )
    keep = expected > 0
    assert not bool(observed[~keep].any()), "what is impossible was drawn"
    distance = ((observed - expected) ** 2 / expected.clamp(min=1e-300))[keep].sum()
    return float(torch.special.gammaincc((keep.sum() - 1) / 2.0, distance / 2))


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
