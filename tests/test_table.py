"""The table of vectors, and its gradient."""

import pytest
import torch
from torch import nn

from llada.models.table import Table
from llada.training.compilation import can_compile


def test_the_gradient_of_a_row_is_the_sum_over_its_places() -> None:
    table, keys = Table(4, 2), torch.tensor([[3, 0, 3], [3, 1, 0]])
    factors = torch.tensor([[[1.0, 2], [4, 8], [16, 32]], [[64, 128], [256, 512], [1024, 2048]]])
    found = table(keys)
    assert torch.equal(found, table.weight[keys])
    (found * factors).sum().backward()
    assert torch.equal(table.weight.grad, torch.tensor([[1028.0, 2056], [256, 512], [0, 0], [81, 162]]))


def test_a_frozen_table_has_no_gradient_and_one_of_bf16_keeps_its_type() -> None:
    keys, scale = torch.tensor([1, 1]), torch.ones(2, requires_grad=True)
    frozen = Table(3, 2).requires_grad_(False)
    (frozen(keys) * scale).sum().backward()
    assert frozen.weight.grad is None
    assert torch.equal(scale.grad, 2 * frozen.weight[1])
    low = Table(3, 2, dtype=torch.bfloat16)
    low(keys).sum().backward()
    assert torch.equal(low.weight.grad, torch.tensor([[0, 0], [2, 2], [0, 0]], dtype=torch.bfloat16))


@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="there is no C++ compiler")
def test_compiled_it_adds_up_in_the_same_order_every_time() -> None:
    """Most tokens are the same one, so that threads meet; `nn.Embedding` differs from one call to the next here."""
    torch.manual_seed(0)
    table = Table(50, 64)
    keys = torch.randint(50, (8, 256)).masked_fill(torch.rand(8, 256) < 0.9, 49)
    factors = torch.randn(8, 256, 64)

    def gradient(table: nn.Module) -> torch.Tensor:
        (result,) = torch.autograd.grad((table(keys).tanh() * factors).sum(), list(table.parameters()))
        return result

    expected = gradient(table)
    compiled = torch.compile(table, dynamic=False)
    first = gradient(compiled)
    torch.testing.assert_close(first, expected)
    assert all(torch.equal(gradient(compiled), first) for _ in range(20))
