"""Some positions of each row: what a network's last layer computes, where nobody asks for more.

Shape letters: B batch, L length, Q queries of a row, N asked positions, K key-value heads, C channels of a head.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

ROWS_ALIKE = 4
"""Rows of a matmul come in multiples of so many. A CPU has other kernels for fewer, whose sums round otherwise; a
position's numbers would then depend on how many are asked with it."""


@dataclass(frozen=True)
class Asked:
    """The asked positions of each row, filled up with others to equally many in all rows."""

    places: Tensor
    """(B, Q) positions, the asked ones of a row first and in order."""
    flat: Tensor
    """(N,) indices b Q + j of the asked ones, in row order."""

    def of(self, x: Tensor) -> Tensor:
        """What stands in x (B, L, ...) at the places: (B, Q, ...)."""
        first = torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
        picked = x.flatten(0, 1).index_select(0, (self.places + first).flatten())
        return picked.view(*self.places.shape, *x.shape[2:])

    def only(self, x: Tensor) -> Tensor:
        """Select the asked positions of x (B, Q, ...): (N, ...)."""
        return x.flatten(0, 1).index_select(0, self.flat)


class KeptKeys(Protocol):
    """Keys and values of a batch that a network's layers share with its earlier passes, as a cache keeps them."""

    fed: Asked | None
    """The positions that go through the layers in this pass; None is all."""

    def merged(self, depth: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return those of all positions, (B, K, L, C), from those of the fed ones, (B, K, Q, C), of a layer.

        Args:
            depth: the number of the layer, from 0.
        """


def asked_at(positions: Tensor) -> Asked | None:
    """The asked positions, a (B, L) bool; None where leaving the others out would save nothing."""
    count, length = positions.sum(1), positions.shape[1]
    wanted = round_up(max(1, int(count.max()))) if len(positions) else length
    if wanted >= length:
        return None
    places = positions.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :wanted]
    is_asked = torch.arange(wanted, device=positions.device) < count[:, None]
    return Asked(places, is_asked.flatten().nonzero()[:, 0])


def queries_at(mask: Tensor | None, asked: Asked | None) -> Tensor | None:
    """The part of an attention mask or bias (B or 1, 1, L, L) that belongs to the asked queries, (B, 1, Q, L); one that
    is alike for all queries, (B, 1, 1, L), stays as it is."""
    if mask is None or asked is None or mask.shape[2] == 1:
        return mask
    return asked.of(mask[:, 0].expand(len(asked.places), -1, -1))[:, None]


def at(x: Tensor, asked: Asked | None) -> Tensor:
    """What stands in x (B, L, ...) at the places (B, Q, ...); all of it if there are none."""
    return x if asked is None else asked.of(x)


def round_up(n: int) -> int:
    """The least multiple of `ROWS_ALIKE` from n up."""
    return -(-n // ROWS_ALIKE) * ROWS_ALIKE
