"""Networks that know nothing, made on their device: the shapes of their kind, and sizes that keep what goes through."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from llada.checkpoints.dummy import NORM_STD, random_network
from llada.checkpoints.hub import LLADA_8B
from llada.costs.parameters import total_parameters
from llada.models import LLaDAConfig

SMALL: LLaDAConfig = replace(
    LLADA_8B, d_model=64, n_heads=2, n_kv_heads=2, n_layers=2, mlp_hidden_size=192, vocab_size=512, mask_token_id=511,
    pad_token_id=0, eos_token_id=0, max_sequence_length=32,
)  # fmt: skip


def test_a_random_network_has_the_parameters_of_its_kind() -> None:
    network = random_network(SMALL, "cpu", torch.bfloat16)
    assert sum(weight.numel() for weight in network.parameters()) == total_parameters(SMALL)
    assert {weight.dtype for weight in network.parameters()} == {torch.bfloat16}
    # Of R x C normal numbers: 1 / sqrt(C), up to sampling and rounding; norms are about 1.
    layers: Any = network.layers
    down = layers[0].ff_out.weight.detach().float()  # (64, 192)
    assert float(down.std()) == pytest.approx(192**-0.5, rel=0.03)
    norm = layers[1].attn_norm.weight.detach().float()
    assert float(norm.mean()) == pytest.approx(1.0, abs=0.05)
    assert float(norm.std()) == pytest.approx(NORM_STD, rel=0.3)


def test_its_seed_fixes_it() -> None:
    rows = torch.tensor([[1, 5, 511, 7]])
    first, again, other = (random_network(SMALL, "cpu", torch.float32, seed) for seed in (3, 3, 4))
    assert torch.equal(first(rows), again(rows))
    assert not torch.allclose(first(rows), other(rows))
    assert bool(first(rows).isfinite().all())
