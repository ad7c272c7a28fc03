"""The formulas of size and cost against networks that are built, run and counted.

Shape letters: B batch, L length, V vocabulary rows, D width, H heads, M width of the feed-forward layer.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llada.models import EncoderConfig, LLaDAConfig, NetworkConfig, build_network
from llada.models.size import TrainingMemory, count_parameters, training_flops_per_token, training_memory

LLADA = LLaDAConfig(
    d_model=48,
    n_heads=4,
    n_layers=3,
    vocab_size=69,
    mask_token_id=68,
    pad_token_id=0,
    eos_token_id=2,
    mlp_hidden_size=112,
    max_sequence_length=64,
)
ENCODER = EncoderConfig(
    vocab_size=69, mask_token_id=68, max_sequence_length=64, d_model=48, n_heads=4, n_layers=3, dropout=0.0
)
LLADA_8B = replace(
    LLADA,
    d_model=4096,
    n_heads=32,
    n_layers=32,
    vocab_size=126_464,
    mask_token_id=126_336,
    mlp_hidden_size=12_288,
    max_sequence_length=4096,
    n_kv_heads=32,
)
SHAPES = {
    "llada": LLADA,
    "llada, grouped heads": replace(LLADA, n_kv_heads=2),
    "llada, one key-value head, tied": replace(LLADA, n_kv_heads=1, weight_tying=True),
    "encoder": ENCODER,
    "encoder, wider than deep": replace(ENCODER, d_model=96, n_heads=3, n_layers=1, max_sequence_length=7),
}
all_shapes = pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())


def part_of(name: str) -> str:
    """Where a reader would look for this tensor in the table of parts."""
    if "norm" in name or "ln_f" in name:
        return "norms"
    if "embedding" in name or "wte" in name:
        return "embedding"
    if name.startswith("output.") or name == "model.transformer.ff_out.weight":
        return "head"
    is_attention = any(part in name for part in ("q_proj", "k_proj", "v_proj", "attn_out", "qkv", "attention_out"))
    return "attention" if is_attention else "feed-forward"


# --- parameters


@all_shapes
def test_each_part_has_as_many_parameters_as_in_the_built_network(config: NetworkConfig) -> None:
    built = dict.fromkeys(("embedding", "attention", "feed-forward", "norms", "head"), 0)
    for name, parameter in build_network(config).named_parameters():
        built[part_of(name)] += parameter.numel()
    assert count_parameters(config) == built


def test_parameters_of_published_networks() -> None:
    """LLaDA-8B with its 6.98B outside of the tables, and another project's network of 100M in the same layout."""
    parts = count_parameters(LLADA_8B)
    assert sum(parts.values()) == 8_015_581_184
    assert sum(parts.values()) - parts["embedding"] - parts["head"] == 6_979_588_096
    assert (parts["attention"] + parts["feed-forward"] + parts["norms"] - 4096) // 32 == 218_112_000
    small = replace(LLADA, d_model=448, n_heads=7, n_layers=6, mlp_hidden_size=768, vocab_size=126_464)
    assert sum(count_parameters(small).values()) == 124_327_616


def test_llada_8b_has_the_tensors_and_bytes_of_the_published_files() -> None:
    with torch.device("meta"):
        network = build_network(LLADA_8B)
    tensors = network.bfloat16().state_dict().values()
    assert all(tensor.is_meta for tensor in tensors)
    assert len(tensors) == 291
    assert sum(tensor.numel() for tensor in tensors) == 8_015_581_184
    assert sum(tensor.nbytes for tensor in tensors) == 16_031_162_368


# --- FLOPs


def counted_flops_per_token(config: NetworkConfig, length: int) -> float:
    """Forward and backward by PyTorch's counter; its table lacks the CPU's fused attention, hence plain products."""
    network, n_rows = build_network(config), 2
    rows = torch.randint(0, config.vocab_size, (n_rows, length), generator=Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(rows).sum().backward()
    return counter.get_total_flops() / (n_rows * length)


@all_shapes
@pytest.mark.parametrize("length", [3, 7])
def test_flops_are_those_that_pytorch_counts(config: NetworkConfig, length: int) -> None:
    """Exactly, but for an encoder's 9 D biases a layer, which the formula takes for weights and a product only adds."""
    formula, counted = training_flops_per_token(config, length), counted_flops_per_token(config, length)
    n_biases = 9 * config.n_layers * config.d_model if isinstance(config, EncoderConfig) else 0
    assert formula == counted + 6 * n_biases
    assert formula == pytest.approx(counted, rel=0.02)


def test_attention_is_the_only_part_that_grows_with_the_length() -> None:
    """By 12 L D a layer: two products forward and four backward, of 2 L D each, over 32 layers of 4096."""
    longer = training_flops_per_token(LLADA_8B, 4096) - training_flops_per_token(LLADA_8B, 1024)
    assert longer == 12 * 32 * (4096 - 1024) * 4096
    in_products = 8_015_581_184 - 126_464 * 4096 - 65 * 4096  # neither the embedding, which is looked up, nor the norms
    assert training_flops_per_token(LLADA_8B, 0) == 6 * in_products


# --- memory


def memory_of(
    config: NetworkConfig,
    batch_size: int = 0,
    length: int = 1,
    activation_bytes: int = 4,
    optimizer_states: int = 2,
    with_ema: bool = False,
    attention_is_stored: bool = False,
) -> TrainingMemory:
    return training_memory(
        config, batch_size, length, activation_bytes, optimizer_states, with_ema, attention_is_stored
    )


def kept_for_backward(config: NetworkConfig, n_rows: int, length: int) -> int:
    """Bytes that autograd keeps in one training step: every storage that is saved, once, without the weights."""
    torch.manual_seed(0)
    network = build_network(config).train()
    rows = torch.randint(0, config.vocab_size, (n_rows, length))
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in weights:
            kept[address] = tensor  # holding it keeps its address from being used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = network(rows)
        loss = F.cross_entropy(logits.flatten(0, 1), rows.flatten())
    assert loss.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_fixed_memory_by_hand() -> None:
    """All in fp32: weights and gradients, two states of AdamW or one of Muon, a running average."""
    n_weights = 8_015_581_184
    adamw = memory_of(LLADA_8B, batch_size=1, length=4096)
    assert (adamw.weights, adamw.gradients, adamw.optimizer, adamw.ema) == (
        32_062_324_736,
        32_062_324_736,
        64_124_649_472,
        0,
    )
    assert adamw.fixed == 16 * n_weights == 128_249_298_944
    assert memory_of(LLADA_8B, optimizer_states=1).fixed == 12 * n_weights
    assert memory_of(LLADA_8B, with_ema=True).fixed == 20 * n_weights
    assert adamw.activations > 0
    assert adamw.total == adamw.fixed + adamw.activations


def test_activations_grow_with_tokens_and_halve_in_bf16_except_for_the_logits() -> None:
    one, many = memory_of(LLADA, batch_size=1).activations, memory_of(LLADA, batch_size=64).activations
    assert many == 64 * one
    in_bf16 = memory_of(LLADA, batch_size=1, activation_bytes=2).activations
    logits = 3 * 4 * 69  # logits, their softmax and its gradient, in fp32
    assert one - logits == 2 * (in_bf16 - logits)


MEASURED = {
    "llada": LLADA,
    "llada, wide": replace(LLADA, d_model=128, n_heads=4, n_layers=2, mlp_hidden_size=384),
    "llada, grouped heads, tied": replace(LLADA, n_kv_heads=2, weight_tying=True, n_layers=6),
    "encoder": ENCODER,
    "encoder, wide": replace(ENCODER, d_model=128, n_layers=2),
}
CASES = [
    pytest.param(config, length, id=f"{name}, {length}") for name, config in MEASURED.items() for length in (16, 64)
]
DROPOUT = pytest.param(replace(ENCODER, dropout=0.1), 16, id="encoder, dropout, 16")
LONG_WITH_DROPOUT = pytest.param(
    replace(ENCODER, dropout=0.1, max_sequence_length=256), 256, id="encoder, dropout, 256"
)


@pytest.mark.parametrize(("config", "length"), [*CASES, DROPOUT, LONG_WITH_DROPOUT])
def test_activations_are_what_autograd_keeps_within_a_factor_of_1_5(config: NetworkConfig, length: int) -> None:
    """Of a small vocabulary: autograd keeps V of the 3 V that the formula counts for the moment of the loss."""
    stored = isinstance(config, EncoderConfig) and config.dropout > 0  # on the CPU
    expected = memory_of(config, batch_size=4, length=length, attention_is_stored=stored).activations
    kept = kept_for_backward(config, 4, length)
    assert 1 / 1.5 < expected / kept < 1.5, f"expected {expected:,} bytes, kept {kept:,}"
