"""Small checkpoints, what spoils them, and how that is told."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llada.checkpoints.folder import make_predictor, read_checkpoint, save_weights
from llada.models import EncoderConfig, ILLaDAConfig, LLaDAConfig, LLaDAMoEConfig, NetworkConfig
from llada.system.errors import UserError
from llada.tokenizers.char import CharTokenizer
from tests.support.sentences import assert_one_sentence

# Six characters: the ids 3..8, the row 9 for MASK, ten rows in all.
TOKENIZER = CharTokenizer("abcdef")
X_T = torch.tensor([[1, 3, 126336, 8, 2], [126336, 126336, 4, 0, 0]])  # (B, L) = (2, 5)

LLADA = LLaDAConfig(
    d_model=8,
    n_heads=2,
    n_layers=2,
    vocab_size=10,
    mask_token_id=9,
    pad_token_id=0,
    eos_token_id=2,
    mlp_hidden_size=12,
    max_sequence_length=16,
)
SMALL_KV = LLaDAConfig(**{**vars(LLADA), "n_kv_heads": 1, "weight_tying": True, "rope_theta": 5e5})
ENCODER = EncoderConfig(
    vocab_size=10, mask_token_id=9, max_sequence_length=16, d_model=8, n_heads=2, n_layers=1, dropout=0.5
)

ILLADA = ILLaDAConfig(**vars(SMALL_KV))
MOE = LLaDAMoEConfig(**vars(LLADA), n_experts=3, n_experts_per_token=2)

BOTH = pytest.mark.parametrize(
    "config",
    [
        pytest.param(LLADA, id="llada"),
        pytest.param(SMALL_KV, id="tied"),
        pytest.param(ILLADA, id="illada"),
        pytest.param(MOE, id="moe"),
        pytest.param(ENCODER, id="encoder"),
    ],
)


def save_new(folder: Path, config: NetworkConfig) -> dict[str, Tensor]:
    """Write a checkpoint with random weights, biases and norms included, and return them."""
    weights = make_predictor(config, TOKENIZER).network.state_dict()
    weights = {name: torch.randn(tensor.shape) for name, tensor in weights.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder, config, TOKENIZER, weights)
    return weights


def save_small(folder: Path) -> Path:
    """A small `llada` checkpoint."""
    save_new(folder, LLADA)
    return folder


def adapter_of(base: Path, folder: Path) -> Path:
    """A small adapter that changes what its base computes; skips the test without peft."""
    pytest.importorskip("peft")
    from llada.checkpoints.load import open_model
    from llada.checkpoints.lora import LoraOptions, adapter_weights, add_adapter, save_adapter

    network = open_model(base).model.network
    add_adapter(network, LoraOptions(lora_rank=2), seed=0)
    for weight in adapter_weights(network).values():
        torch.nn.init.normal_(weight.data, std=0.3)
    folder.mkdir(parents=True)
    save_adapter(folder, network, str(base.resolve()))
    return folder


def edit_json(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def assert_refused(path: Path, *named: str) -> None:
    """The checkpoint is refused in one sentence that names these."""
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    assert_one_sentence(caught.value)
    for name in named:
        assert name in str(caught.value)


def write_by_hand(path: Path, header: dict[str, Any], data: bytes, padding: int = 0) -> None:
    text = json.dumps(header).encode() + b" " * padding
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
