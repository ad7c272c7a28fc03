"""Small networks with adapters; tests that import this are skipped without peft and bitsandbytes."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from llada.checkpoints.lora import LoraOptions, adapter_weights, add_adapter, save_adapter
from llada.models import Network, NetworkConfig, build_network
from tests.support.configurations import WIDE_ENCODER, WIDE_ILLADA, WIDE_LLADA, WIDE_MOE

bitsandbytes = pytest.importorskip("bitsandbytes")
peft = pytest.importorskip("peft")

ALL = pytest.mark.parametrize(
    "config",
    [
        pytest.param(config, id=type(config).__name__.removesuffix("Config"))
        for config in (WIDE_LLADA, WIDE_ILLADA, WIDE_MOE, WIDE_ENCODER)
    ],
)
ROWS = torch.tensor([[1, 3, 9, 8, 2, 7], [9, 9, 4, 0, 0, 5]])  # (B, L) = (2, 6)
OPTIONS = LoraOptions(lora_rank=4, lora_alpha=12)


def build(config: NetworkConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> Network:
    """The same network for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_network(config).to(dtype)


def adapted(config: NetworkConfig) -> Network:
    """A network with an adapter that changes something."""
    network = build(config)
    add_adapter(network, OPTIONS, seed=0)
    draw(adapter_weights(network).values())
    return network


def draw(weights: Iterable[Tensor]) -> None:
    """As if they had been trained."""
    generator = torch.Generator().manual_seed(1)
    for weight in weights:
        weight.data.normal_(std=0.05, generator=generator)


def stored(folder: Path, config: NetworkConfig = WIDE_LLADA) -> Path:
    """A folder with such an adapter."""
    folder.mkdir()
    save_adapter(folder, adapted(config), "the/base")
    return folder


@torch.no_grad()
def logits(network: nn.Module) -> Tensor:
    return network(ROWS)
