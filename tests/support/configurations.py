"""Small configurations of every network, in four sets: what a test is about asks for other numbers.

- `ODD_*`, for forward passes: eps and theta are far from the defaults, so that a network that ignored them would fail.
- `TINY_*`, for files: their ten rows are those of `TOKENIZER`.
- `WIDE_*`, for adapters: 64 weights in a row, the block of the four-bit format.
- `COSTED_*`, for sizes and memory: activations weigh more than what is kept once.
"""

from dataclasses import replace
from typing import Any

from llada.models import EncoderConfig, ILLaDAConfig, LLaDAConfig, LLaDAMoEConfig, LocalConfig
from llada.tokenizers.char import CharTokenizer

_ODD: dict[str, Any] = {
    "d_model": 24, "n_heads": 4, "n_layers": 2, "mlp_hidden_size": 20, "max_sequence_length": 16,
    "rope_theta": 300.0, "rms_norm_eps": 0.05, "vocab_size": 11,
}  # fmt: skip
ODD_LLADA = LLaDAConfig(**_ODD, mask_token_id=10, pad_token_id=0, eos_token_id=2)
ODD_ILLADA = ILLaDAConfig(**_ODD, mask_token_id=5, pad_token_id=1, eos_token_id=2, n_kv_heads=2, weight_tying=True)
ODD_MOE = LLaDAMoEConfig(**_ODD, mask_token_id=5, pad_token_id=1, eos_token_id=2, n_experts=5, n_experts_per_token=2)
ODD_ENCODER = EncoderConfig(vocab_size=11, mask_token_id=10, max_sequence_length=16, d_model=24, n_heads=4, n_layers=2)
ODD_CAUSAL = replace(ODD_ENCODER, is_causal=True, dropout=0.0)
ODD_LOCAL = LocalConfig(
    vocab_size=7, mask_token_id=6, pad_token_id=0, eos_token_id=2, max_sequence_length=64, d_model=16, n_heads=2,
    n_layers=4, mlp_hidden_size=48, conv_width=5, attention_every=2,
)  # fmt: skip

TOKENIZER = CharTokenizer("abcdef")  # the ids 3..8, the row 9 for MASK, ten rows in all
_TEN_ROWS: dict[str, Any] = {
    "vocab_size": 10, "mask_token_id": 9, "pad_token_id": 0, "eos_token_id": 2, "max_sequence_length": 16,
}  # fmt: skip
TINY_LLADA = LLaDAConfig(**_TEN_ROWS, d_model=8, n_heads=2, n_layers=2, mlp_hidden_size=12)
TINY_TIED = replace(TINY_LLADA, n_kv_heads=1, weight_tying=True, rope_theta=5e5)
TINY_ILLADA = ILLaDAConfig(**vars(TINY_TIED))
TINY_MOE = LLaDAMoEConfig(**vars(TINY_LLADA), n_experts=3, n_experts_per_token=2)
TINY_ENCODER = EncoderConfig(
    vocab_size=10, mask_token_id=9, max_sequence_length=16, d_model=8, n_heads=2, n_layers=1, dropout=0.5
)

WIDE_LLADA = LLaDAConfig(**_TEN_ROWS, d_model=64, n_heads=4, n_kv_heads=2, n_layers=2, mlp_hidden_size=128)
WIDE_ILLADA = ILLaDAConfig(**vars(WIDE_LLADA) | {"weight_tying": True})
WIDE_MOE = LLaDAMoEConfig(**vars(WIDE_LLADA), n_experts=4, n_experts_per_token=2)
WIDE_ENCODER = EncoderConfig(
    vocab_size=10, mask_token_id=9, max_sequence_length=16, d_model=64, n_heads=2, n_layers=2, dropout=0.0
)

_COSTED: dict[str, Any] = {
    "d_model": 128, "n_heads": 2, "n_layers": 3, "vocab_size": 69, "mask_token_id": 68, "max_sequence_length": 256,
}  # fmt: skip
COSTED_LLADA = LLaDAConfig(**_COSTED, pad_token_id=0, eos_token_id=2, mlp_hidden_size=352)
COSTED_LOCAL = LocalConfig(**_COSTED, pad_token_id=0, eos_token_id=2, mlp_hidden_size=352, attention_every=1)
COSTED_ENCODER = EncoderConfig(**_COSTED, dropout=0.0)
