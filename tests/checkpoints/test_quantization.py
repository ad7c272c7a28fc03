"""Layers in four bits: as close and as small as promised, trained with an adapter, and merged into a plain network."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llada.checkpoints.lora import adapter_weights, add_adapter, load_adapter, merge_adapter, quantise, save_adapter
from llada.costs.memory import NF4_BYTES, stored_weights
from llada.models import Network, NetworkConfig
from tests.support.configurations import WIDE_LLADA
from tests.support.small_adapters import ALL, OPTIONS, ROWS, build, draw, logits

pytestmark = pytest.mark.usefixtures("one_thread")


@ALL
def test_layers_are_in_four_bits_and_all_else_is_not(config: NetworkConfig) -> None:
    network = build(config)
    quantise(network)
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            is_outside = name in ("model.transformer.ff_out", "lm_head", "output") or name.endswith("mlp.gate")
            assert (type(module) is nn.Linear) == is_outside, name
    assert {parameter.dtype for parameter in network.parameters()} == {torch.uint8, torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in network.parameters())


@ALL
def test_four_bits_are_close(config: NetworkConfig) -> None:
    """Normal weights rounded to the nearest of 16 levels are off by 9 % of their size, and so is what they make.

    In two random layers this adds up to a third or so of the logits.
    """
    network = build(config, dtype=torch.bfloat16)
    expected = logits(network).float()
    exact = {name: weight.float() for name, weight in network.state_dict().items()}
    maps = {name for name, module in network.named_modules() if module in set(linears(network))}
    inputs = torch.randn(50, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    quantise(network)
    for name in maps:
        weight = exact[f"{name}.weight"]
        before = F.linear(inputs[:, : weight.shape[1]].float(), weight)
        error = (through(network, name, inputs) - before).norm() / before.norm()
        assert error < 0.01 if name.endswith("mlp.gate") else 0.08 < error < 0.105, name
    assert (logits(network).float() - expected).norm() < 0.5 * expected.norm()


def test_a_map_that_ends_within_a_block_is_left_alone() -> None:
    network = build(replace(WIDE_LLADA, mlp_hidden_size=96))
    quantise(network)
    in_bf16 = [linear for linear in linears(network) if type(linear) is nn.Linear]
    assert in_bf16 == [layer.ff_out for layer in network.layers]


def linears(network: Network) -> list[nn.Linear]:
    return [module for module in network.layers.modules() if isinstance(module, nn.Linear)]


def test_bytes_of_a_weight_in_four_bits() -> None:
    config = replace(WIDE_LLADA, d_model=512, n_layers=1, mlp_hidden_size=1024)
    network = build(config)
    quantise(network)
    n_weights = n_bytes = 0
    for linear in linears(network):
        weight: Any = linear.weight
        state = weight.quant_state
        tensors = (linear.weight, state.absmax, state.state2.absmax)
        n_weights += linear.in_features * linear.out_features
        n_bytes += sum(tensor.nbytes for tensor in tensors)
        # Beside these, a table of 16 and one of 256 levels and an offset, whatever the size.
        assert state.code.nbytes + state.state2.code.nbytes + state.offset.nbytes == 4 * (16 + 256 + 1)
    assert n_bytes / n_weights == pytest.approx(NF4_BYTES, rel=1e-3)
    in_bf16 = sum(parameter.nbytes for parameter in network.parameters() if parameter.dtype == torch.bfloat16)
    assert in_bf16 + n_bytes == pytest.approx(stored_weights(config, quantised=True), rel=1e-3)


@ALL
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_training_beside_four_bits(config: NetworkConfig, autocast: bool) -> None:
    """Evaluated first, as in a run: the loss falls, the adapter alone has gradients, the base stays as it is."""
    network = build(config, dtype=torch.bfloat16)
    quantise(network)
    add_adapter(network, OPTIONS, seed=0)
    base = {name: weight.clone() for name, weight in network.named_parameters() if not weight.requires_grad}
    logits(network.eval())
    network.train()
    optimizer = torch.optim.AdamW(adapter_weights(network).values(), lr=3e-2)
    losses = []
    for _ in range(8):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = network(ROWS)
        loss = F.cross_entropy(output.float().flatten(0, 1), ROWS.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad == ("lora_" in name), name
        if name in base:
            assert torch.equal(parameter, base[name]), name


def test_gradients_beside_four_bits_are_those_of_the_restored_network() -> None:
    """In bf16 the two differ by rounding only, after evaluation too, in which a CPU may rearrange 4-bit weights."""
    in_four_bits, restored = (build(WIDE_LLADA, dtype=torch.bfloat16) for _ in range(2))
    quantise(in_four_bits)
    quantise(restored)
    add_adapter(restored, OPTIONS, seed=0)
    merge_adapter(restored)
    gradients = []
    for network in (in_four_bits, restored):
        add_adapter(network, OPTIONS, seed=3)
        logits(network.eval())
        network.train()
        network(ROWS).float().square().sum().backward()
        found = [weight.grad for weight in adapter_weights(network).values()]
        gradients.append(torch.cat([gradient.flatten() for gradient in found if gradient is not None]))
    assert (gradients[0] - gradients[1]).norm() < 0.02 * gradients[1].norm()


@ALL
def test_merging_into_four_bits_gives_a_plain_network(config: NetworkConfig) -> None:
    network = build(config, dtype=torch.bfloat16)
    quantise(network)
    add_adapter(network, OPTIONS, seed=0)
    draw(adapter_weights(network).values())
    names = {name.removeprefix("base_model.model.").split(".lora_")[0] for name in adapter_weights(network)}
    inputs = torch.randn(20, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected, base = {name: through(network, name, inputs) for name in names}, build(config)
    merge_adapter(network)
    assert {name: weight.shape for name, weight in network.state_dict().items()} == {
        name: weight.shape for name, weight in base.state_dict().items()
    }
    assert {weight.dtype for weight in network.state_dict().values()} == {torch.bfloat16}
    for name in names:  # both in bf16
        assert (through(network, name, inputs) - expected[name]).norm() < 0.01 * expected[name].norm()
    assert set(vars(network)) == set(vars(base))


@torch.no_grad()
def through(network: Network, name: str, inputs: Tensor) -> Tensor:
    """What a map of the network makes of the first of these inputs, as many as it takes."""
    linear: Any = network.get_submodule(name)
    return linear(inputs[:, : linear.in_features]).float()


def test_adapter_of_four_bits_is_an_adapter_of_the_base(tmp_path: Path) -> None:
    network = build(WIDE_LLADA, dtype=torch.bfloat16)
    quantise(network)
    add_adapter(network, OPTIONS, seed=0)
    save_adapter(tmp_path, network, "base")
    fresh, in_four_bits = build(WIDE_LLADA), build(WIDE_LLADA)
    load_adapter(fresh, tmp_path)
    quantise(in_four_bits)
    load_adapter(in_four_bits, tmp_path, trainable=True)
    for name, weight in adapter_weights(network).items():
        assert torch.equal(adapter_weights(fresh)[name], weight)
        assert torch.equal(adapter_weights(in_four_bits)[name], weight)
