"""Small networks of the layouts of iLLaDA and LLaDA-MoE."""

from dataclasses import replace

import pytest

from llada.models import ILLaDAConfig
from tests.support.configurations import ODD_ILLADA, ODD_MOE

NETWORKS = {
    "illada": ODD_ILLADA,
    "illada, own head": replace(ODD_ILLADA, weight_tying=False, n_kv_heads=1),
    "moe": ODD_MOE,
    "moe, grouped heads": replace(ODD_MOE, n_kv_heads=2),
    "moe, tied head, all experts": replace(ODD_MOE, weight_tying=True, n_experts_per_token=5),
}
all_networks = pytest.mark.parametrize("config", NETWORKS.values(), ids=NETWORKS.keys())
both_layouts = pytest.mark.parametrize("config", [ODD_ILLADA, ODD_MOE], ids=["illada", "moe"])
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
