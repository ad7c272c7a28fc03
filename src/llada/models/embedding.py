"""An embedding whose gradient is added up in a fixed order, so that a run can be repeated bit for bit.

torch.compile writes the gradient of a lookup as additions to memory that all threads share, in the order in which they
happen to come: two runs of one seed differ in the last bit after a step, and soon altogether. It is also slow where
many tokens are equal, as masked ones are. The operator below is opaque to the compiler.

Shape letters: B batch, L length, V rows of the embedding, D width, U rows of it that were looked up.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.library.custom_op("llada::table_gradient", mutates_args=())
def table_gradient(gradient: Tensor, keys: Tensor, rows: int) -> Tensor:
    """The gradient (V, D) of an embedding of `rows` V, given the gradient (..., D) of what was looked up at `keys`
    (...).

    The sum is taken in fp32 and rounded once. A GPU does so by itself; a CPU would add in bf16, where 256 + 1 is 256.
    """
    add_up = torch.ops.aten.embedding_dense_backward
    if gradient.device.type != "cpu" or gradient.element_size() >= torch.float32.itemsize:
        return add_up(gradient, keys, rows, -1, False)
    used, places = torch.unique(keys, return_inverse=True)  # (U,) and (...): spares a large embedding's fp32 copy
    result = gradient.new_zeros(rows, gradient.shape[-1])
    result[used] = add_up(gradient.float(), places, len(used), -1, False).to(gradient.dtype)
    return result


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


def look_up(table: Tensor, keys: Tensor) -> Tensor:
    """Look up rows (..., D) of an embedding (V, D) by their indices (...)."""
    found: Tensor = _LookUp.apply(table, keys)  # type: ignore[no-untyped-call]
    return found


class DeterministicEmbedding(nn.Embedding):
    """`nn.Embedding` with a reproducible gradient and without options: keys (B, L) to vectors (B, L, D)."""

    def forward(self, keys: Tensor) -> Tensor:
        return look_up(self.weight, keys)
