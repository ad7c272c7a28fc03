"""Tensors on their way into a file, piece by piece: those of this process, and those that others have parts of.

No more than a piece is in memory in addition to what is kept anyway, whatever is written, and from whatever device.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

PIECE = 2**24  # numbers at once: 64 MB in fp32


class InParts(ABC):
    """A tensor that is stored as a whole, and of which several processes have some rows each."""

    shape: torch.Size
    """Shape of the whole."""
    dtype: torch.dtype

    @abstractmethod
    def pieces(self) -> Iterator[Tensor]:
        """Iterate over its numbers, in order, in flat pieces in the host's memory.

        Each may overwrite the one before.
        """


Stored = Tensor | InParts


def bytes_of(tensor: Stored) -> int:
    """Return the bytes of a whole tensor."""
    return tensor.shape.numel() * tensor.dtype.itemsize


def pieces_of(tensor: Stored) -> Iterator[Tensor]:
    """Iterate over the numbers of a tensor, in order, in flat pieces in the host's memory."""
    if not isinstance(tensor, Tensor):
        yield from tensor.pieces()
        return
    for piece in tensor.detach().reshape(-1).split(PIECE):
        yield piece.cpu()


def whole_on_host(tensor: Stored) -> Tensor:
    """Copy all of a tensor into the host's memory."""
    whole = torch.empty(tensor.shape, dtype=tensor.dtype)
    done, flat = 0, whole.view(-1)
    for piece in pieces_of(tensor):
        flat[done : done + len(piece)].copy_(piece)
        done += len(piece)
    return whole


def raw(piece: Tensor) -> memoryview:
    """Return the bytes of a flat piece in the host's memory."""
    return piece.view(torch.uint8).numpy().data
