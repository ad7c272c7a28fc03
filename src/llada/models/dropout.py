"""Dropout whose masks belong to the rows of a batch, whatever other rows go through the network with them.

A mask is a function of the row's key, of the layer that drops, and of the place within the row. So a step drops the
same numbers however it is cut into batches or shared among processes, and also when activation checkpointing computes
a layer again. Without keys, dropout is torch's own, whose masks depend on what was drawn before.

Shape letters: B batch, H heads, Q queries, L length, C channels of a head, N numbers in the last dimension.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GAMMA = 0x9E3779B97F4A7C15 - 2**64  # of SplitMix64, as a signed word
FACTORS = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
LANES = 4
"""Numbers that are decided on with a word of 64 bits, by 16 bits each."""
STEPS = 2**16
"""Probabilities are multiples of 1 / STEPS."""


class Rows:
    """The rows that go through a network, as all of its dropout layers know them."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        """A random word (B,) for each row, int64, on the network's device; None has torch draw the masks."""
        self.seeds: Sequence[int] = []
        """The same words, for the host."""

    @contextmanager
    def known_by(self, keys: Tensor, seeds: Sequence[int]) -> Iterator[None]:
        """Draw masks by keys (B,) of the rows; forward and backward pass both belong inside.

        Args:
            seeds: the same numbers, which the host would have to wait for otherwise.
        """
        self.know(keys, seeds)
        try:
            yield
        finally:
            self.know(None, [])

    def know(self, keys: Tensor | None, seeds: Sequence[int]) -> None:
        """Draw masks by keys from now on, or by torch again."""
        self.keys, self.seeds = keys, seeds


class Dropout(nn.Dropout):
    """Zero numbers with probability p in training, and divide the others by 1 - p.

    With keys, p is rounded to a multiple of 1/65,536, also where it is divided by: the expectation is exact.
    """

    def __init__(self, p: float) -> None:
        super().__init__(p)
        self.rows, self.place = Rows(), 0
        self.attend_row_by_row = _not_compiled() if p > 0 else attend_row_by_row

    @property
    def keys(self) -> Tensor | None:
        """Keys (B,) of the rows, if masks are drawn by them now."""
        return self.rows.keys if self.training and self.p > 0 else None

    @property
    def scale(self) -> float:
        """What the numbers are multiplied by that are kept, with keys."""
        return STEPS / (STEPS - self._n_dropped)

    @property
    def _n_dropped(self) -> int:
        return min(round(self.p * STEPS), STEPS - 1)

    def forward(self, input: Tensor) -> Tensor:
        """Apply dropout to a tensor (B, ..., N)."""
        keys = self.keys
        if keys is None:
            return super().forward(input)
        return torch.where(self.kept(keys, input.shape), input * self.scale, 0.0)

    def kept(self, keys: Tensor, shape: Sequence[int]) -> Tensor:
        """Return which numbers of a tensor (B, ..., N) are kept: a bool of that shape.

        Raises:
            ValueError: there is not a key for each row.
        """
        if shape[0] != len(keys):
            raise ValueError(f"dropout knows {len(keys)} rows, and {shape[0]} go through the network")
        words = random_words(keys, self.place, (*shape[1:-1], -(-shape[-1] // LANES)))
        return words.view(torch.int16)[..., : shape[-1]] >= self._n_dropped - STEPS // 2


def random_words(keys: Tensor, place: int, shape: Sequence[int]) -> Tensor:
    """Return random words (B, *shape), int64, each a function of the row's key, of a place, and of its indices alone.

    SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), nested: the word at an index is the key of the next index. What is
    at an index does not depend on the shape.
    """
    words = _mixed(keys + (GAMMA * (place + 1) + 2**63) % 2**64 - 2**63)
    for size in shape:
        steps = torch.arange(1, size + 1, device=keys.device) * GAMMA
        words = _mixed(words[..., None] + steps)
    return words


def _mixed(words: Tensor) -> Tensor:
    """Scramble 64-bit words one to one, in place, by SplitMix64's output function."""
    for shift, factor in zip((30, 27), FACTORS, strict=True):
        words.bitwise_xor_(_shifted(words, shift)).mul_(factor)
    return words.bitwise_xor_(_shifted(words, 31))


def _shifted(words: Tensor, n_bits: int) -> Tensor:
    """Shift words to the right, with zeros from the left, where torch would repeat the sign."""
    return (words >> n_bits).bitwise_and_((1 << (64 - n_bits)) - 1)


def share_rows(network: nn.Module) -> None:
    """Number a network's dropout layers, and have them know the same rows."""
    rows = Rows()
    for place, layer in enumerate(_dropouts(network)):
        layer.rows, layer.place = rows, place


def rows_of(network: nn.Module) -> Rows | None:
    """What the dropout layers of a network know of the rows; None if nothing is dropped."""
    return next((layer.rows for layer in _dropouts(network) if layer.p > 0), None)


def _dropouts(network: nn.Module) -> Iterator[Dropout]:
    return (module for module in network.modules() if isinstance(module, Dropout))


def attend(q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None, dropout: Dropout) -> Tensor:
    """Attention (B, H, Q, C) of queries (B, H, Q, C) to keys and values (B, H, L, C), with dropout on its weights.

    Args:
        attention_mask: False where a key is hidden, or a bias that hides it; broadcast to (B, H, Q, L).
    """
    keys = dropout.keys
    if keys is None:
        p = dropout.p if dropout.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask, dropout_p=p)
    if q.is_cuda:
        return dropout.attend_row_by_row(q, k, v, attention_mask, dropout)
    # A CPU has no fused attention with dropout: torch, too, computes all of the weights.
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if attention_mask is not None:
        is_bias = attention_mask.is_floating_point()
        scores = scores + attention_mask if is_bias else scores.masked_fill(~attention_mask, -torch.inf)
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    kept = torch.where(dropout.kept(keys, weights.shape), weights, 0.0)
    return kept.to(v.dtype) @ (v * dropout.scale)


def attend_row_by_row(q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None, dropout: Dropout) -> Tensor:
    """The same on a GPU, whose fused kernel draws its masks from a seed: each row is given its own."""
    mixed = []
    for row, seed in enumerate(dropout.rows.seeds):
        one = slice(row, row + 1)
        mask = attention_mask if attention_mask is None or len(attention_mask) == 1 else attention_mask[one]
        torch.manual_seed((seed + dropout.place) % 2**63)
        mixed.append(F.scaled_dot_product_attention(q[one], k[one], v[one], attn_mask=mask, dropout_p=dropout.p))
    return torch.cat(mixed)


@functools.cache
def _not_compiled() -> Callable[..., Tensor]:
    """`attend_row_by_row` as compiled code leaves it alone.

    To have that of every network, a decorator, would load torch._dynamo, for a second, as soon as any command starts.
    """
    alone: Callable[..., Tensor] = torch.compiler.disable(attend_row_by_row)
    return alone
