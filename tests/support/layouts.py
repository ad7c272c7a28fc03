"""Small networks of the layouts of iLLaDA and LLaDA-MoE."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from llada.models import ILLaDAConfig, LLaDAMoEConfig

# eps and theta are far from the published ones, so that a network that ignored them would not pass.
SMALL: dict[str, Any] = {
    "d_model": 24,
    "n_heads": 4,
    "n_layers": 2,
    "vocab_size": 11,
    "mask_token_id": 5,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "mlp_hidden_size": 20,
    "max_sequence_length": 16,
    "rope_theta": 300.0,
    "rms_norm_eps": 0.05,
}
ILLADA = ILLaDAConfig(**SMALL, n_kv_heads=2, weight_tying=True)
MOE = LLaDAMoEConfig(**SMALL, n_experts=5, n_experts_per_token=2)
NETWORKS = {
    "illada": ILLADA,
    "illada, own head": replace(ILLADA, weight_tying=False, n_kv_heads=1),
    "moe": MOE,
    "moe, grouped heads": replace(MOE, n_kv_heads=2),
    "moe, tied head, all experts": replace(MOE, weight_tying=True, n_experts_per_token=5),
}
all_networks = pytest.mark.parametrize("config", NETWORKS.values(), ids=NETWORKS.keys())
both_layouts = pytest.mark.parametrize("config", [ILLADA, MOE], ids=["illada", "moe"])
ILLADA_8B = ILLaDAConfig(
    d_model=4096,
    n_heads=32,
    n_kv_heads=8,
    n_layers=32,
    vocab_size=155_136,
    mask_token_id=5,
    pad_token_id=1,
    eos_token_id=2,
    mlp_hidden_size=14_336,
    max_sequence_length=8192,
    weight_tying=True,
)


def random_rows(n_rows: int, length: int) -> Tensor:
    return torch.randint(0, SMALL["vocab_size"], (n_rows, length), generator=Generator().manual_seed(1))
