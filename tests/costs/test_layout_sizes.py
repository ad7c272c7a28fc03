"""Parameters, operations and memory of iLLaDA and LLaDA-MoE, against networks that are built, run and counted."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llada.checkpoints.hub import LLADA_MOE
from llada.costs.activations import TrainingSetting, kept_by_layer
from llada.costs.flops import active_parameters, training_flops_per_token
from llada.costs.memory import stored_weights, training_memory
from llada.costs.parameters import (
    count_parameters,
    layer_parameters,
    lora_parameters,
    matrix_parameters,
    total_parameters,
)
from llada.models import LLaDAConfig, Network, build_network, tied_head
from tests.support.configurations import ODD_ILLADA, ODD_MOE
from tests.support.layouts import ILLADA_8B, all_networks
from tests.support.networks import kept_for_backward, random_rows


def on_meta(config: LLaDAConfig) -> Network:
    with torch.device("meta"):
        return build_network(config).bfloat16()


def test_illada_8b_has_the_parameters_of_the_published_one() -> None:
    tensors = on_meta(ILLADA_8B).state_dict()
    assert sum(tensor.numel() for tensor in tensors.values()) == total_parameters(ILLADA_8B) == 7_615_025_152
    tied = tied_head(ILLADA_8B)
    assert tied is not None
    assert tied.is_stored
    assert len({*tensors, tied.head}) == 291  # of the published file, which holds the tied head, too
    assert total_parameters(replace(ILLADA_8B, weight_tying=False)) == 8_250_462_208


def test_llada_moe_has_the_parameters_and_bytes_of_the_published_one() -> None:
    tensors = on_meta(LLADA_MOE).state_dict().values()
    assert sum(tensor.numel() for tensor in tensors) == total_parameters(LLADA_MOE) == 7_356_880_896
    assert sum(tensor.nbytes for tensor in tensors) == stored_weights(LLADA_MOE) == 14_713_761_792
    assert tied_head(LLADA_MOE) is None


@all_networks
def test_each_part_has_as_many_parameters_as_in_the_built_network(config: LLaDAConfig) -> None:
    def part_of(name: str) -> str:
        for part, sign in (("norms", "norm"), ("head", "lm_head"), ("embedding", "embed_tokens"), ("router", "gate.w")):
            if sign in name:
                return part
        return "attention" if "self_attn" in name else "experts" if "experts" in name else "feed-forward"

    parts = count_parameters(config)
    built = dict.fromkeys(parts, 0)
    network = build_network(config)
    for name, parameter in network.named_parameters():
        built[part_of(name)] += parameter.numel()
    assert parts == built
    inside = sum(p.numel() for p in network.layers.parameters() if p.dim() == 2)
    assert layer_parameters(config) == inside
    assert matrix_parameters(config) == inside + config.vocab_size * config.d_model


@all_networks
def test_flops_are_those_that_pytorch_counts(config: LLaDAConfig) -> None:
    """Of the experts, only those that a token is sent to."""
    network, rows = build_network(config), random_rows(2, 7)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(rows).sum().backward()
    assert training_flops_per_token(config, 7) == counter.get_total_flops() / rows.numel()


def test_active_parameters_by_hand() -> None:
    """1.4B of LLaDA-MoE's 7B: 16 layers of attention, router and 8 experts, and the head."""
    layer = 4 * 2048**2 + 64 * 2048 + 8 * 3 * 2048 * 1024
    assert active_parameters(LLADA_MOE) == 16 * layer + 157_184 * 2048
    assert active_parameters(ILLADA_8B) == matrix_parameters(ILLADA_8B)


def test_adapters_are_those_of_attention_in_a_network_of_experts() -> None:
    assert lora_parameters(LLADA_MOE, 8) == 16 * 4 * 8 * (2048 + 2048)
    widths = 2 * (4096 + 4096) + 2 * (1024 + 4096) + 3 * (4096 + 14_336)
    assert lora_parameters(ILLADA_8B, 8) == 32 * 8 * widths


def kept_by(config: LLaDAConfig, rows: Tensor, bf16: bool) -> int:
    torch.manual_seed(0)
    return kept_for_backward(build_network(config).train(), rows, bf16)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "config",
    [
        replace(ODD_ILLADA, d_model=128, n_heads=4, mlp_hidden_size=352),
        replace(ODD_MOE, d_model=128, n_heads=4, mlp_hidden_size=96),
        replace(ODD_MOE, d_model=128, n_heads=4, n_kv_heads=2, mlp_hidden_size=64, n_experts=8, n_experts_per_token=3),
    ],
    ids=["illada", "moe", "moe, grouped heads"],
)
def test_a_layer_keeps_what_it_keeps_on_fake_tensors(config: LLaDAConfig, bf16: bool) -> None:
    """The difference of three layers and two; under autocast, bf16 copies of a layer's matrices are kept with it."""
    rows = torch.randint(0, config.vocab_size, (4, 256), generator=Generator().manual_seed(1))
    setting = TrainingSetting(batch_size=4, length=256, bf16=bf16)
    three, two = (kept_by(replace(config, n_layers=n), rows, bf16) for n in (3, 2))
    more = matrix_parameters(replace(config, n_layers=3)) - matrix_parameters(replace(config, n_layers=2))
    copies = 2 * more if bf16 else 0
    assert three - two == pytest.approx(kept_by_layer(config, setting) + copies, rel=0.001)


def test_memory_of_training_is_dominated_by_weights_that_no_token_needs() -> None:
    memory = training_memory(LLADA_MOE, TrainingSetting(batch_size=1, length=64))
    assert memory.weights == 4 * 7_356_880_896
    assert memory.optimizer == 2 * memory.weights
    assert math.isclose(memory.total, 4 * memory.weights, rel_tol=0.01)
