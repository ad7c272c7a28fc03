"""What processes keep in parts, brought to process 0 as it is written, and handed out from there when it is drawn.

Process 0 asks the others for their rows of one tensor after the other, in whatever order it writes them, and gets them
piece by piece. So no tensor is whole anywhere, and no process holds more than a few pieces in addition to its part. All
goes through the hosts' memory, by gloo, also where the parts are on GPUs: the way ends on a disk.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llada.checkpoints.pieces import PIECE, InParts
from llada.optim.parts import Rows, bounds, kept_of, rows_of
from llada.training.group import Group, OtherFailedError

END, FAILED = -1, -2  # in the place of a tensor's number: nothing more is needed


@dataclass(frozen=True)
class Gathered(InParts):
    """A tensor of which each process has some rows, and process 0 gets all of them."""

    number: int
    """The number by which process 0 asks for it."""
    shape: torch.Size
    own: Tensor
    """This process's part."""
    n_rows: int
    """Rows of the whole, which may be stored flat."""
    group: Group

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.own.dtype

    def pieces(self) -> Iterator[Tensor]:
        """Iterate over all of its numbers, in process 0, while all others are in `Gathering.send_parts`.

        Raises:
            UserError: a process is missing.
        """
        for piece in self.own.reshape(-1).split(PIECE):
            yield piece.cpu()
        n_in_row = self.shape.numel() // max(1, self.n_rows)
        buffer = torch.empty(PIECE, dtype=self.dtype)
        for rank in range(1, self.group.processes):
            first_row, last_row = bounds(self.n_rows, rank, self.group.processes)
            for first, piece in _pieces_in(buffer, (last_row - first_row) * n_in_row):
                with self.group.watched():
                    _ask(rank, self.number, first)
                    dist.recv(piece, rank)
                yield piece


class Gathering:
    """One exchange: all processes name the same tensors in the same order, of which process 0 then asks for any.

    Process 0 does so in a `with` block, and all others in `send_parts`.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self._named: list[Gathered] = []

    def values_of(self, parameter: Tensor, values: Tensor) -> Tensor | InParts:
        """Name values that an optimizer or an average keeps of a parameter, in its shape or flat.

        A scalar is the same in all processes, and returned as it is.
        """
        return self._name(values, rows_of(parameter) if values.dim() else None)

    def weights(self, network: nn.Module) -> dict[str, Tensor | InParts]:
        """Name the weights of a network, and return them by their names there."""
        return {name: self._name(*kept_of(weight)) for name, weight in network.state_dict().items()}

    def _name(self, own: Tensor, rows: Rows | None) -> Tensor | InParts:
        """Name a tensor that is shared out; another one is returned as it is."""
        if rows is None:
            return own
        shape = rows.shape if own.shape == rows.own_shape else torch.Size([rows.shape.numel()])
        self._named.append(Gathered(len(self._named), shape, own.detach(), rows.shape[0], self.group))
        return self._named[-1]

    def send_parts(self) -> None:
        """Send the parts that process 0 asks for, until it needs no more.

        Raises:
            OtherFailedError: what process 0 did with them failed, which it reports.
        """
        if not self._named:
            return
        asked = torch.empty(2, dtype=torch.int64)
        while True:
            dist.recv(asked, 0)
            number, first = asked.tolist()
            if number == END:
                return
            if number == FAILED:
                raise OtherFailedError
            dist.send(self._named[number].own.reshape(-1)[first : first + PIECE].cpu(), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Let the others go."""
        for rank in range(1, self.group.processes if self._named else 1):
            with contextlib.suppress(*([] if kind is None else [RuntimeError])):  # it may be what is missing
                _ask(rank, END if kind is None else FAILED)


def _ask(rank: int, number: int, first: int = 0) -> None:
    """Ask a process for a piece of its part of a tensor, from its first number on."""
    dist.send(torch.tensor([number, first]), rank)


def _pieces_in(buffer: Tensor, n: int) -> Iterator[tuple[int, Tensor]]:
    """Iterate over pieces of n numbers: where each begins, and as much of the buffer."""
    for first in range(0, n, PIECE):
        yield first, buffer[: min(PIECE, n - first)]


@torch.no_grad()
def hand_out(weights: Mapping[str, Tensor] | None, network: nn.Module, group: Group) -> None:
    """Fill a network that is shared out with the weights that process 0 has, of which each process gets its rows.

    Args:
        weights: whole, by name; None in all processes but the first.
    """
    for name, tensor in network.state_dict().items():
        own, rows = kept_of(tensor)
        if weights is None:
            buffer = torch.empty(min(PIECE, own.numel()), dtype=own.dtype)
            for first, piece in _pieces_in(buffer, own.numel()):
                dist.recv(piece, 0)
                own.view(-1)[first : first + PIECE].copy_(piece)
            continue
        whole = weights[name].to(own.dtype)
        own.copy_(whole if rows is None else rows.own(whole))
        for rank in range(1, group.processes):
            first_row, last_row = (0, None) if rows is None else bounds(rows.shape[0], rank, group.processes)
            for piece in whole[first_row:last_row].reshape(-1).split(PIECE) if whole.dim() else [whole.view(1)]:
                if len(piece):
                    dist.send(piece, rank)
