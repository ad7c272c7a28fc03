"""How large a network is and how much it computes, by formula: matrices, parameters, FLOPs; for memory see `memory`.

Shape letters: L length, V vocabulary rows, D width, M width of the feed-forward layer or of an expert, E experts.
"""

import math

from llada.models.config_json import NetworkConfig
from llada.models.encoder import EncoderConfig
from llada.models.llada import LLaDAConfig
from llada.models.llada_moe import LLaDAMoEConfig
from llada.models.local import NEIGHBOURS, LocalConfig

# Measured, docs/EXPERIMENTS.md: a whole step reaches 0.4 to 0.95 of the speed of large products on a CPU.
MATMUL_SHARE = 0.5
DROPOUT_SECONDS = 20e-9  # a CPU's, for an attention weight with its noise, forward and backward

Matrices = list[tuple[int, int]]
"""Shapes (out, in) of linear maps."""


def layer_matrices(config: NetworkConfig) -> dict[str, Matrices]:
    """The linear maps of one layer, by part."""
    width = config.d_model
    if isinstance(config, LLaDAConfig):
        kv_width, hidden = config.kv_heads * config.head_dim, config.mlp_hidden_size
        attention = [(width, width), (kv_width, width), (kv_width, width), (width, width)]
        feed_forward = [(hidden, width), (hidden, width), (width, hidden)]
        if isinstance(config, LLaDAMoEConfig):
            router = [(config.n_experts, width)]
            return {"attention": attention, "router": router, "experts": config.n_experts * feed_forward}
        return {"attention": attention, "feed-forward": feed_forward}
    feed_forward = [(config.mlp_hidden_size, width), (width, config.mlp_hidden_size)]
    if isinstance(config, LocalConfig):
        return {"attention": 4 * [(width, width)], "feed-forward": feed_forward}
    return {"attention": [(3 * width, width), (width, width)], "feed-forward": feed_forward}


def layers_with(config: NetworkConfig, part: str) -> int:
    """Number of layers that have a part of `layer_matrices`."""
    return config.n_attending if isinstance(config, LocalConfig) and part == "attention" else config.n_layers


def count_parameters(config: NetworkConfig) -> dict[str, int]:
    """Parameters by part; their sum equals the built network's to the last one."""
    width, vocab = config.d_model, config.vocab_size
    has_biases = isinstance(config, EncoderConfig)
    layer = {
        part: sum(rows * columns + (rows if has_biases else 0) for rows, columns in matrices)
        for part, matrices in layer_matrices(config).items()
    }
    in_layers = {part: layers_with(config, part) * n for part, n in layer.items()}
    if isinstance(config, LLaDAConfig):
        return {
            "embedding": vocab * width,
            **in_layers,
            "norms": (2 * config.n_layers + 1) * width + _head_norms(config),
            "head": 0 if config.weight_tying else vocab * width,
        }
    if isinstance(config, LocalConfig):
        return {
            "embedding": vocab * width,
            "pairs": len(NEIGHBOURS) * config.n_pairs * width,
            **in_layers,
            "convolutions": config.n_layers * config.conv_width * width,
            "shares": 2 * config.n_layers + 3 * config.n_attending,
            "head": vocab * width,
        }
    return {
        "embedding": (vocab + config.max_sequence_length) * width,
        **in_layers,
        "norms": (2 * config.n_layers + (1 if config.is_causal else 2)) * 2 * width,
        "head": vocab * width + vocab,
    }


def _head_norms(config: NetworkConfig) -> int:
    """Parameters of the norms over the channels of queries and keys."""
    return 2 * config.n_layers * config.head_dim if isinstance(config, LLaDAMoEConfig) else 0


def total_parameters(config: NetworkConfig) -> int:
    return sum(count_parameters(config).values())


def layer_parameters(config: NetworkConfig) -> int:
    """Weights of the linear maps in all layers, without biases."""
    return sum(
        layers_with(config, part) * math.prod(shape)
        for part, matrices in layer_matrices(config).items()
        for shape in matrices
    )


def matrix_parameters(config: NetworkConfig) -> int:
    """Weights of all linear maps: those of the layers and of the head, tied or not."""
    return layer_parameters(config) + config.vocab_size * config.d_model


def active_parameters(config: NetworkConfig) -> int:
    """Of these, the weights that a token is multiplied with: all but the experts that it is not sent to."""
    if not isinstance(config, LLaDAMoEConfig):
        return matrix_parameters(config)
    in_expert = 3 * config.d_model * config.mlp_hidden_size
    return matrix_parameters(config) - config.n_layers * in_expert * (config.n_experts - config.n_experts_per_token)


def training_flops_per_token(config: NetworkConfig, length: int) -> int:
    """FLOPs of forward and backward: 6 for each weight in a product, 12 L D for each layer's attention.

    Source: arXiv 2001.08361, section 2.1, with every token attending to all others. A forward pass alone is a third;
    recomputed activations (`recompute`) add another third.
    """
    return 6 * active_parameters(config) + attention_flops_per_token(config, length)


def attention_flops_per_token(config: NetworkConfig, length: int) -> int:
    """The part of them that grows with the length."""
    return 12 * layers_with(config, "attention") * length * config.d_model


def training_seconds(
    config: NetworkConfig,
    length: int,
    tokens: int,
    flops_per_second: float,
    activation_checkpointing: bool = False,
    on_cpu: bool = False,
) -> float:
    """Expected time for training on so many tokens.

    Args:
        flops_per_second: speed of large matrix products.
        on_cpu: a CPU draws dropout's noise one number after the other, for each attention weight.
    """
    flops = tokens * training_flops_per_token(config, length) * (4 / 3 if activation_checkpointing else 1)
    seconds = flops / (MATMUL_SHARE * flops_per_second)
    if on_cpu and isinstance(config, EncoderConfig) and config.dropout:
        seconds += tokens * config.n_layers * config.n_heads * length * DROPOUT_SECONDS
    return seconds
