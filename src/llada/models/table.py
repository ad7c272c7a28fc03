"""A table of vectors whose gradient is added up in one order, so that a run can be repeated bit for bit.

torch.compile writes the gradient of a lookup as additions to memory that all threads share, in the order in which they
happen to come: two runs of one seed differ in the last bit after a step, and soon altogether. It is also slow where
many tokens are the same one, as masked ones are. The operator below is not looked into by the compiler, and does what a
lookup that is not compiled does.

Shape letters: B batch, L length, V rows of the table, D width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.library.custom_op("llada::table_gradient", mutates_args=())
def table_gradient(gradient: Tensor, keys: Tensor, rows: int) -> Tensor:
    """The gradient (V, D) of a table of `rows` V, from that of what was looked up (B, L, D) at `keys` (B, L)."""
    return torch.ops.aten.embedding_dense_backward(gradient, keys, rows, -1, False)


@table_gradient.register_fake
def _(gradient: Tensor, keys: Tensor, rows: int) -> Tensor:
    return gradient.new_empty(rows, gradient.shape[-1])


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, keys: Tensor) -> Tensor:
        ctx.save_for_backward(keys)
        ctx.rows = len(table)
        return F.embedding(keys, table)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (keys,) = ctx.saved_tensors
        return table_gradient(gradients[0], keys, ctx.rows), None


class Table(nn.Embedding):
    """`nn.Embedding` without its options, from keys (B, L) to vectors (B, L, D)."""

    def forward(self, keys: Tensor) -> Tensor:
        found: Tensor = _LookUp.apply(self.weight, keys)  # type: ignore[no-untyped-call]
        return found
