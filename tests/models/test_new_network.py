"""How to add a network: a module with its configuration, its class and its parts, and its registration as a family."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from llada.costs.activations import TrainingSetting
from llada.costs.flops import training_flops_per_token
from llada.costs.memory import training_memory
from llada.costs.parameters import count_parameters, lora_parameters, total_parameters
from llada.models.asked import Asked, at
from llada.models.config_json import FAMILIES, Family, build_network
from llada.models.parts import Parts


@dataclass(frozen=True)
class AverageConfig:
    vocab_size: int
    mask_token_id: int
    max_sequence_length: int
    d_model: int
    n_layers: int
    n_heads: int = 1


class AverageLayer(nn.Module):
    """A linear layer of every position, by the mean of all positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(x) * x.mean(1, keepdim=True)


class Average(nn.Module):
    PARTS: ClassVar[Parts] = Parts(
        layer=r"layers\.\d+\.", attention=("mix",), feed_forward=(), others={"embedding": "^embed", "head": "^output"}
    )

    def __init__(self, config: AverageConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(AverageLayer(config.d_model) for _ in range(config.n_layers))
        self.output = nn.Linear(config.d_model, config.vocab_size, bias=False)

    def features(self, rows: Tensor, attention_mask: Tensor | None = None, asked: Asked | None = None) -> Tensor:
        x = self.embed(rows)
        for layer in self.layers:
            x = layer(x)
        return at(x, asked)

    def head(self, features: Tensor) -> Tensor:
        return self.output(features)

    def forward(self, rows: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.head(self.features(rows, attention_mask))


def test_a_network_is_a_module_and_a_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes, adapters, FLOPs and memory follow, by hand here."""
    family = Family(Average, architectures=("LLaDAAverage",), model_type="llada_average")
    families: dict[Any, Any] = FAMILIES
    monkeypatch.setitem(families, AverageConfig, family)
    config: Any = AverageConfig(vocab_size=50, mask_token_id=49, max_sequence_length=32, d_model=16, n_layers=3)
    assert count_parameters(config) == {"embedding": 50 * 16, "attention": 3 * 16 * 16, "head": 50 * 16}
    assert total_parameters(config) == sum(p.numel() for p in build_network(config).parameters())
    assert lora_parameters(config, rank=4) == 3 * 4 * (16 + 16)
    assert training_flops_per_token(config, 32) == 6 * (3 * 16 * 16 + 16 * 50)
    memory = training_memory(config, TrainingSetting(batch_size=4, length=32))
    assert memory.weights == 4 * total_parameters(config)
    # Of each layer, its input, what is multiplied, and a mean for 32 tokens; what the head reads; the rows looked up.
    assert memory.activations == pytest.approx(4 * 32 * (3 * (2 * 64 + 2) + 64 + 8), rel=0.01)
    assert build_network(config)(torch.zeros(1, 5, dtype=torch.int64)).shape == (1, 5, 50)
