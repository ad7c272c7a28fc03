"""Predicted memory next to the peaks that benchmarks/memory.py measured (docs/EXPERIMENTS.md, 4 and 8), in MB."""

from dataclasses import replace
from typing import Any

import pytest

from llada.costs.activations import TrainingSetting
from llada.costs.fit import with_length
from llada.costs.memory import training_memory
from llada.models import EncoderConfig, LLaDAConfig, NetworkConfig
from llada.models.head import LOGITS_AT_ONCE
from llada.optim.adamw import MOMENT_BYTES

MEASURED_LLADA = LLaDAConfig(
    d_model=384, n_heads=6, n_layers=6, vocab_size=69, mask_token_id=68, pad_token_id=0, eos_token_id=2,
    mlp_hidden_size=1024, max_sequence_length=1024,
)  # fmt: skip
MEASURED_WIDE = replace(MEASURED_LLADA, d_model=768, n_heads=12, mlp_hidden_size=2048)
MEASURED_BASE = replace(MEASURED_WIDE, vocab_size=32_000, mask_token_id=31_999)
MEASURED_ENCODER = EncoderConfig(
    vocab_size=69, mask_token_id=68, max_sequence_length=1024, d_model=384, n_heads=6, n_layers=6, dropout=0.0
)


def predicted(config: NetworkConfig, batch: int, length: int, more: dict[str, Any]) -> float:
    setting = TrainingSetting(batch, length, logits_at_once=LOGITS_AT_ONCE, **more)
    return training_memory(with_length(config, length), setting).total / 1e6


FP32: dict[str, Any] = {}
BF16 = {"bf16": True}
CHECKPOINTING = {"activation_checkpointing": True}
FROM_SCRATCH = [
    (MEASURED_LLADA, 16, 256, FP32, 953),
    (MEASURED_LLADA, 1, 4096, CHECKPOINTING, 340),
    (MEASURED_LLADA, 4, 1024, BF16, 725),
    (MEASURED_LLADA, 16, 256, {**BF16, **CHECKPOINTING}, 293),
    (MEASURED_ENCODER, 4, 1024, FP32, 783),
    (MEASURED_ENCODER, 16, 256, CHECKPOINTING, 312),
    (MEASURED_ENCODER, 1, 4096, {**BF16, **CHECKPOINTING}, 291),
    (replace(MEASURED_ENCODER, dropout=0.1), 8, 512, FP32, 1482),
    (MEASURED_WIDE, 2, 256, {**BF16, "optimizer": "muon", "ema": True}, 1293),
]
FINE_TUNED = [
    (BF16, 2121, 1549),
    ({**BF16, "bf16_weights": True}, 1692, 1265),
    ({**BF16, "bf16_weights": True, "moment_bytes": MOMENT_BYTES["8bit"]}, 1125, 732),
    ({**BF16, "method": "lora"}, 891, 420),
    ({"method": "lora"}, 1383, 665),
    ({**BF16, "method": "qlora"}, 823, 350),
]


@pytest.mark.parametrize(("config", "batch", "length", "more", "measured"), FROM_SCRATCH)
def test_from_scratch_within_five_per_cent(
    config: NetworkConfig, batch: int, length: int, more: dict[str, Any], measured: float
) -> None:
    assert predicted(config, batch, length, more) == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize(("more", "measured", "measured_with_checkpointing"), FINE_TUNED)
def test_fine_tuned_within_thirteen_per_cent(
    more: dict[str, Any], measured: float, measured_with_checkpointing: float
) -> None:
    assert predicted(MEASURED_BASE, 2, 1024, more) == pytest.approx(measured, rel=0.13)
    assert predicted(MEASURED_BASE, 2, 1024, {**more, **CHECKPOINTING}) == pytest.approx(
        measured_with_checkpointing, rel=0.13
    )
