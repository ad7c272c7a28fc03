"""How large a network is and what it costs, by formula: parameters, training memory, FLOPs.

Shape letters: L length, V vocabulary rows, D width, M width of the feed-forward layer.
"""

from dataclasses import dataclass

from llada.models.configuration import NetworkConfig
from llada.models.llada import LLaDAConfig

FP32_BYTES = 4


def count_parameters(config: NetworkConfig) -> dict[str, int]:
    """Parameters by part; their sum equals the built network's to the last one."""
    width, vocab = config.d_model, config.vocab_size
    if isinstance(config, LLaDAConfig):
        attention = 2 * width * width + 2 * width * config.kv_heads * config.head_dim
        return {
            "embedding": vocab * width,
            "attention": config.n_layers * attention,
            "feed-forward": config.n_layers * 3 * width * config.mlp_hidden_size,
            "norms": (2 * config.n_layers + 1) * width,
            "head": 0 if config.weight_tying else vocab * width,
        }
    return {
        "embedding": (vocab + config.max_sequence_length) * width,
        "attention": config.n_layers * (4 * width * width + 4 * width),
        "feed-forward": config.n_layers * (8 * width * width + 5 * width),
        "norms": (2 * config.n_layers + 2) * 2 * width,
        "head": vocab * width + vocab,
    }


def training_flops_per_token(config: NetworkConfig, length: int) -> float:
    """FLOPs of forward and backward: 6 for each parameter in a product, 12 L D for each layer's attention.

    Source: arXiv 2001.08361, section 2.1, with every token attending to all others.
    """
    parts = count_parameters(config)
    in_products = parts["attention"] + parts["feed-forward"] + config.vocab_size * config.d_model
    return 6 * in_products + 12 * config.n_layers * length * config.d_model


@dataclass(frozen=True)
class TrainingMemory:
    """Expected bytes while training."""

    weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: int

    @property
    def fixed(self) -> int:
        """What no smaller batch can save."""
        return self.weights + self.gradients + self.optimizer + self.ema

    @property
    def total(self) -> int:
        return self.fixed + self.activations


def training_memory(
    config: NetworkConfig,
    batch_size: int,
    length: int,
    activation_bytes: int,
    optimizer_states: int,
    with_ema: bool,
    attention_is_stored: bool = False,
) -> TrainingMemory:
    """Memory of a training step over `batch_size` sequences at once, with fp32 weights, gradients, optimizer state.

    Args:
        activation_bytes: bytes of an activation, 4 in fp32 and 2 in bf16.
        optimizer_states: tensors of the weights' size that the optimizer keeps, 2 for AdamW.
        attention_is_stored: fused attention stores no weights; the CPU's fallback for dropout does, three times.

    The activations are those that autograd keeps for the backward pass: norms, projections and residuals of width D,
    the gate, its product and their inputs of width M. At the loss, logits are there three times in fp32.
    """
    n_parameters = sum(count_parameters(config).values())
    if isinstance(config, LLaDAConfig):
        kept = (8 + 2 * config.kv_heads / config.n_heads) * config.d_model + 4 * config.mlp_hidden_size
    else:
        kept = (18 if config.dropout else 16) * config.d_model
    if attention_is_stored:
        kept += 3 * config.n_heads * length
    bytes_per_token = config.n_layers * kept * activation_bytes + 3 * config.vocab_size * FP32_BYTES
    weights = n_parameters * FP32_BYTES
    return TrainingMemory(
        weights=weights,
        gradients=weights,
        optimizer=optimizer_states * weights,
        ema=weights if with_ema else 0,
        activations=int(batch_size * length * bytes_per_token),
    )
