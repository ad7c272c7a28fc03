"""How much a network computes, counted by torch on a run of the network itself, and the time that this takes.

Shape letters: L length, D width.
"""

from llada.costs.fake_run import RunSetting, has_dropout, layer_costs, network_flops
from llada.models.config_json import NetworkConfig, kinds_of_layers

# Measured, docs/EXPERIMENTS.md: a whole step reaches 0.4 to 0.95 of the speed of large matmuls on a CPU.
MATMUL_SHARE = 0.5
DROPOUT_SECONDS = 10e-9  # a CPU's, for an attention weight with its noise, forward and backward


def active_parameters(config: NetworkConfig) -> int:
    """Weights that a token is multiplied with: all linear layers but the experts that it is not sent to."""
    return training_flops_per_token(config, 0) // 6


def training_flops_per_token(config: NetworkConfig, length: int) -> int:
    """FLOPs of forward and backward; in LLaDA, 6 for each weight in a matmul, and 12 L D for each layer's attention.

    A forward pass alone is a third; activation checkpointing adds another third.
    """
    flops = network_flops(config)
    return flops.constant + flops.per_length * length


def attention_flops_per_token(config: NetworkConfig, length: int) -> int:
    """Return the part of these FLOPs that grows with the length."""
    return network_flops(config).per_length * length


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
        flops_per_second: speed of large matmuls.
        on_cpu: a CPU holds and drops each attention weight.
    """
    flops = tokens * training_flops_per_token(config, length) * (4 / 3 if activation_checkpointing else 1)
    seconds = flops / (MATMUL_SHARE * flops_per_second)
    if on_cpu:
        seconds += tokens * dropped_scores_per_token(config, length) * DROPOUT_SECONDS
    return seconds


def dropped_scores_per_token(config: NetworkConfig, length: int) -> float:
    """Attention weights for which a CPU draws dropout's noise."""
    if not has_dropout(config):
        return 0.0
    setting = RunSetting(length)
    kinds = kinds_of_layers(config).items()
    return sum(times * layer_costs(kind, setting).dropped_scores for kind, times in kinds) / length
