"""The table of vectors, and its gradient."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._inductor.decomposition import select_decomp_table

from llada.models import NetworkConfig, build_network
from llada.models.embedding import DeterministicEmbedding
from llada.system.toolchains import has_compiler
from tests.support.configurations import ODD_CAUSAL, ODD_ENCODER, ODD_LLADA, ODD_LOCAL, ODD_MOE
from tests.support.networks import random_rows


def assert_equal(found: torch.Tensor | None, expected: torch.Tensor) -> None:
    assert found is not None
    assert torch.equal(found, expected)


def test_the_gradient_of_a_row_is_the_sum_over_its_places() -> None:
    table, keys = DeterministicEmbedding(4, 2), torch.tensor([[3, 0, 3], [3, 1, 0]])
    factors = torch.tensor([[[1.0, 2], [4, 8], [16, 32]], [[64, 128], [256, 512], [1024, 2048]]])
    found = table(keys)
    assert torch.equal(found, table.weight[keys])
    (found * factors).sum().backward()
    assert_equal(table.weight.grad, torch.tensor([[1028.0, 2056], [256, 512], [0, 0], [81, 162]]))


def test_a_frozen_table_has_no_gradient() -> None:
    keys, scale = torch.tensor([1, 1]), torch.ones(2, requires_grad=True)
    frozen = DeterministicEmbedding(3, 2).requires_grad_(False)
    (frozen(keys) * scale).sum().backward()
    assert frozen.weight.grad is None
    assert_equal(scale.grad, 2 * frozen.weight[1])


def test_weights_in_bf16_have_a_gradient_that_is_added_up_in_fp32() -> None:
    """In bf16 the sum would stay at 256, to which 1 adds nothing."""
    table = DeterministicEmbedding(5, 2, dtype=torch.bfloat16)
    table(torch.tensor([[4] * 1000 + [1] * 24])).sum().backward()
    expected = torch.tensor([0, 24, 0, 0, 1000], dtype=torch.bfloat16)
    assert_equal(table.weight.grad, expected[:, None].expand(5, 2))


@pytest.mark.skipif(not has_compiler(torch.device("cpu")), reason="there is no C++ compiler")
@pytest.mark.usefixtures("two_threads")
def test_compiled_it_adds_up_in_the_same_order_every_time() -> None:
    """Most tokens are the same one, so that threads meet; `nn.Embedding` differs from one call to the next here."""
    torch.manual_seed(0)
    table = DeterministicEmbedding(50, 64)
    keys = torch.randint(50, (8, 256)).masked_fill(torch.rand(8, 256) < 0.9, 49)
    factors = torch.randn(8, 256, 64)

    def gradient(function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        (result,) = torch.autograd.grad((function(keys).tanh() * factors).sum(), list(table.parameters()))
        return result

    expected = gradient(table)
    compiled = torch.compile(table, dynamic=False)
    first = gradient(compiled)
    torch.testing.assert_close(first, expected)
    assert all(torch.equal(gradient(compiled), first) for _ in range(20))


def backward_operators(features: Callable[..., torch.Tensor], rows: torch.Tensor) -> list[str]:
    """What the compiler makes of the backward pass, before it writes code: operators, with what they are given."""
    found: list[str] = []

    def forward(graph: torch.fx.GraphModule, _: Any) -> Any:
        return make_boxed_func(graph.forward)

    def backward(graph: torch.fx.GraphModule, _: Any) -> Any:
        found.extend(f"{node.target} {node.args}" for node in graph.graph.nodes if node.op == "call_function")
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=forward, bw_compiler=backward, decompositions=select_decomp_table())
    torch.compile(features, backend=backend, dynamic=False)(rows).sum().backward()
    return found


ADDING = ("aten.index_put", "aten._unsafe_index_put", "aten.index_add", "aten.scatter_add", "aten.scatter_reduce")


@pytest.mark.parametrize(
    "config", [ODD_LLADA, ODD_LOCAL, ODD_ENCODER, ODD_CAUSAL], ids=["llada", "local", "encoder", "causal"]
)
def test_no_network_adds_to_shared_memory_when_compiled(config: NetworkConfig) -> None:
    rows = random_rows(2, 8) % config.vocab_size
    operators = backward_operators(build_network(config).features, rows)
    assert any(each.startswith("llada.table_gradient") for each in operators)
    assert [each for each in operators if each.startswith(ADDING)] == []


def test_experts_add_only_where_every_place_has_one_value() -> None:
    """To put choices in order and back; the tokens, of which each has several choices, are looked up."""
    operators = backward_operators(build_network(ODD_MOE).features, random_rows(2, 8) % ODD_MOE.vocab_size)
    assert len([each for each in operators if each.startswith("llada.table_gradient")]) == 1 + ODD_MOE.n_layers
    assert len([each for each in operators if each.startswith(ADDING)]) == 2 * ODD_MOE.n_layers
