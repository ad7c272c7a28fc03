"""Weights of which a process keeps some rows only, as torch's FSDP2 shares them out; all others are whole.

An optimizer, a moving average or a norm that works number by number is given the process's own part, an ordinary
parameter that shares its memory with what FSDP2 keeps. What needs a whole matrix asks `Rows` for it.

Letters: R rows of a matrix, or entries of a vector.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh  # which takes long to import, and one process does without

OWN, ROWS = "llada_own_part", "llada_rows"  # attributes of FSDP2's parameter, and of the part that is made of it


@dataclass(frozen=True)
class Rows:
    """The rows of a weight that this process keeps; all processes call the methods together."""

    shape: torch.Size
    """Shape of the whole weight."""
    first: int
    last: int
    """One more than the number of the last row."""
    mesh: "DeviceMesh"

    @property
    def own_shape(self) -> torch.Size:
        return torch.Size((self.last - self.first, *self.shape[1:]))

    def own(self, whole: Tensor) -> Tensor:
        """Return the process's own rows of something that has the weight's shape, or is flat."""
        own = whole.view(self.shape)[self.first : self.last]
        return own if whole.shape == self.shape else own.flatten()

    def whole(self, own: Tensor) -> Tensor:
        """Bring together what all processes have of something that has the weight's shape, or is flat."""
        from torch.distributed.tensor import DTensor, Shard

        stride = torch.empty(self.shape, device="meta").stride()
        parts = own.detach().contiguous().view(self.own_shape)
        whole = DTensor.from_local(
            parts, self.mesh, [Shard(0)], run_check=False, shape=self.shape, stride=stride
        ).full_tensor()
        return whole if own.shape == self.own_shape else whole.flatten()


def is_shared_out(tensor: Tensor) -> bool:
    """Whether processes keep some rows of a tensor each: whether it is one of torch's DTensors."""
    return hasattr(tensor, "device_mesh")


def whole_of(tensor: Tensor) -> Tensor:
    """Bring a tensor that is shared out together; all processes call it together."""
    whole: Tensor = tensor.full_tensor() if is_shared_out(tensor) else tensor  # type: ignore[attr-defined]
    return whole


def kept_of(tensor: Tensor) -> tuple[Tensor, Rows | None]:
    """Return what this process keeps of a tensor, which shares its memory, and which rows that is.

    A tensor that is not shared out is kept whole, and the rows are None.
    """
    if not is_shared_out(tensor):
        return tensor, None
    shared: Any = tensor
    mesh, own = shared.device_mesh, shared.to_local().detach()
    first, last = bounds(tensor.shape[0], mesh.get_local_rank(), mesh.size())
    assert len(own) == last - first
    return own, Rows(tensor.shape, first, last, mesh)


def bounds(n_rows: int, rank: int, processes: int) -> tuple[int, int]:
    """Return the first row that a process keeps of a tensor that is shared out, and one more than the last.

    All have the same number of rows, rounded up, but for the last ones, which have fewer or none: FSDP2's way.
    """
    most = -(-n_rows // processes)
    return min(rank * most, n_rows), min((rank + 1) * most, n_rows)


def own_part(parameter: nn.Parameter) -> nn.Parameter:
    """Return what this process keeps of a parameter of a network: the parameter itself, unless FSDP2 shares it out."""
    if not is_shared_out(parameter):
        return parameter
    if not hasattr(parameter, OWN):
        local, rows = kept_of(parameter)
        part = nn.Parameter(local, parameter.requires_grad)
        setattr(part, ROWS, rows)
        setattr(parameter, OWN, part)
    own: nn.Parameter = getattr(parameter, OWN)
    return own


def rows_of(parameter: Tensor) -> Rows | None:
    """Return which rows a part has; None for a parameter that is whole."""
    return getattr(parameter, ROWS, None)


def whole_shape(parameter: Tensor) -> torch.Size:
    """Return the shape of a parameter, or of the one that it is a part of."""
    rows = rows_of(parameter)
    return parameter.shape if rows is None else rows.shape


def to_whole(parameter: Tensor, values: Tensor) -> Tensor:
    """Return values of the shape of a parameter for all of it, if it is a part."""
    rows = rows_of(parameter)
    return values if rows is None else rows.whole(values)


def to_own(parameter: Tensor, values: Tensor) -> Tensor:
    """Return of values for all of a parameter those of its part, if it is one."""
    rows = rows_of(parameter)
    return values if rows is None else rows.own(values)
