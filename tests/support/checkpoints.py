"""Small checkpoints, what spoils them, and how that is reported."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llada.checkpoints.folder import make_predictor, read_checkpoint, save_weights
from llada.models import NetworkConfig
from llada.system.errors import UserError
from tests.support.configurations import TINY_ENCODER, TINY_ILLADA, TINY_LLADA, TINY_MOE, TINY_TIED, TOKENIZER
from tests.support.sentences import assert_one_sentence

X_T = torch.tensor([[1, 3, 126336, 8, 2], [126336, 126336, 4, 0, 0]])  # (B, L) = (2, 5)

BOTH = pytest.mark.parametrize(
    "config",
    [
        pytest.param(TINY_LLADA, id="llada"),
        pytest.param(TINY_TIED, id="tied"),
        pytest.param(TINY_ILLADA, id="illada"),
        pytest.param(TINY_MOE, id="moe"),
        pytest.param(TINY_ENCODER, id="encoder"),
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
    save_new(folder, TINY_LLADA)
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
