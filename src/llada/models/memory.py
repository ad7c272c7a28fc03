"""How much memory a network takes while it is trained, fine-tuned or used, by formula.

The activations are counted tensor by tensor as autograd keeps them, and equal what it keeps to the last byte but for
rounding (tests/test_memory.py); what a whole step takes is measured by benchmarks/memory.py.

Shape letters: B batch, L length, V vocabulary rows, D width, H heads, K key-value heads, C channels of a head,
M width of the feed-forward layer.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from llada.models.configuration import NetworkConfig
from llada.models.encoder import EncoderConfig
from llada.models.llada import LLaDAConfig
from llada.models.size import layer_matrices, layer_parameters, matrix_parameters, total_parameters

FP32_BYTES, BF16_BYTES = 4, 2
# 4-bit weights with 8-bit scales for blocks of 64 and a second scale for each 256 of those (QLoRA, arXiv 2305.14314).
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
LOGITS_IN_LOSS = 3  # logits or their log-softmax, its gradient, and the gradient of the logits, in fp32
LOGITS_IN_SAMPLER = 3  # probabilities, noise and their sum, in fp64
FP64_BYTES = 8


@dataclass(frozen=True)
class TrainingSetting:
    """What a training step's memory depends on beside the network."""

    batch_size: int
    """Sequences that go through the network together."""
    length: int
    """Tokens of a sequence."""
    accumulates: bool = False
    """Whether gradients of earlier batches of the step are kept meanwhile."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    ema: bool = False
    """Whether a moving average of the weights is kept."""
    bf16: bool = False
    """Matrix products under bf16 autocast; weights, gradients and optimizer state stay in fp32."""
    activation_checkpointing: bool = False
    """Keep the inputs of the layers only, and recompute the rest (`recompute`)."""
    on_cpu: bool = True
    """On a CPU, attention with dropout is not fused and stores its weights."""

    @property
    def tokens(self) -> int:
        """That go through the network together."""
        return self.batch_size * self.length


@dataclass(frozen=True)
class TrainingMemory:
    """Expected bytes of a training step. Activations and gradients do not peak together, so the total is no sum."""

    weights: int
    optimizer: int
    ema: int
    gradients: int
    activations: int
    """At the end of the forward pass, copies of the weights in bf16 included."""
    logits: int
    """At the loss, if every position is masked."""
    working: int
    """What comes and goes within a layer's backward pass."""
    update: int
    """What the optimizer needs beside its state."""
    total: int
    """At the peak of the step."""

    @property
    def fixed(self) -> int:
        """What no smaller batch can save."""
        return self.weights + self.optimizer + self.ema + self.gradients + self.update


def training_memory(config: NetworkConfig, setting: TrainingSetting) -> TrainingMemory:
    """Memory of a training step, without torch itself, if what is freed is given back at once.

    Its peak is at the loss, in the backward pass of the last layer, in that of the first one (when the gradients of all
    others are there), or in the optimizer.
    """
    weights = total_parameters(config) * FP32_BYTES
    layer = setting.tokens * kept_by_layer(config, setting)
    kept = config.n_layers * layer
    outside = setting.tokens * kept_outside_layers(config)
    copies = matrix_parameters(config) * BF16_BYTES if setting.bf16 else 0
    recomputed = 0
    if setting.activation_checkpointing:
        kept = config.n_layers * setting.tokens * config.d_model * FP32_BYTES
        recomputed = layer + copies // config.n_layers
    logits = setting.tokens * config.vocab_size * FP32_BYTES * LOGITS_IN_LOSS
    working = setting.tokens * _working_bytes(config, setting)
    update = _muon_update(config) if setting.optimizer == "muon" else 0
    activations = outside + kept + copies
    backward = activations + recomputed + working
    if setting.activation_checkpointing:
        backward -= copies  # gone with the forward pass, and made anew layer by layer
    at_start = max(activations + logits, backward) + (weights if setting.accumulates else 0)
    at_end = weights + (recomputed or layer) + working
    optimizer = _optimizer_state(config, setting)
    ema = weights if setting.ema else 0
    return TrainingMemory(
        weights=weights,
        optimizer=optimizer,
        ema=ema,
        gradients=weights,
        activations=activations,
        logits=logits,
        working=recomputed + working,
        update=update,
        total=weights + optimizer + ema + max(at_start, at_end, weights + update),
    )


def kept_by_layer(config: NetworkConfig, setting: TrainingSetting) -> int:
    """Bytes a token that autograd keeps of one layer; under autocast each linear map keeps its own bf16 input."""
    width = config.d_model
    product = BF16_BYTES if setting.bf16 else FP32_BYTES
    log_sum = config.n_heads * FP32_BYTES
    if isinstance(config, LLaDAConfig):
        norms = 2 * (2 * width * FP32_BYTES + FP32_BYTES)  # input, normed, root of the mean square
        inputs = (3 + 2 if setting.bf16 else 1 + 1) * width * product  # of q, k and v, and of gate and up
        attention = (2 * width + 2 * config.kv_heads * config.head_dim) * product + log_sum
        return norms + inputs + attention + 4 * config.mlp_hidden_size * product
    norms = 2 * (width * FP32_BYTES + 2 * FP32_BYTES)  # input, mean, deviation
    inputs, feed_forward, mixed = 2 * width * product, 8 * width * product, width * product
    if not config.dropout:
        return norms + inputs + feed_forward + 3 * width * product + mixed + log_sum
    noise = 2 * width * product
    if not setting.on_cpu:
        return norms + inputs + feed_forward + 3 * width * product + mixed + log_sum + noise
    # The fallback works in fp32: q, k, v, and for each head attention, its noise, their product.
    stored = 3 * width * FP32_BYTES + 3 * config.n_heads * setting.length * FP32_BYTES
    return norms + inputs + feed_forward + stored + mixed + noise


def kept_outside_layers(config: NetworkConfig) -> int:
    """Bytes a token of the norms and the embedding, and the features that go into the head."""
    n_dropouts = 1 if isinstance(config, EncoderConfig) and config.dropout else 0
    return (3 + n_dropouts) * config.d_model * FP32_BYTES


def _working_bytes(config: NetworkConfig, setting: TrainingSetting) -> int:
    """Bytes a token of the gradients that are alive at once within a layer."""
    if isinstance(config, LLaDAConfig):
        return (config.mlp_hidden_size + 2 * config.d_model) * FP32_BYTES
    product = BF16_BYTES if setting.bf16 else FP32_BYTES
    in_feed_forward = 4 * config.d_model * product + 2 * config.d_model * FP32_BYTES
    if not config.dropout or not setting.on_cpu:
        return in_feed_forward
    # The gradient of the stored attention comes when what the feed-forward part kept is gone.
    gradients = (config.n_heads * setting.length + 3 * config.d_model) * FP32_BYTES
    return max(in_feed_forward, gradients - 8 * config.d_model * product)


def _optimizer_state(config: NetworkConfig, setting: TrainingSetting) -> int:
    """Two tensors of the weights' size for AdamW; Muon keeps one for the matrices of the layers, which are its own."""
    n_parameters = total_parameters(config)
    n_by_muon = layer_parameters(config) if setting.optimizer == "muon" else 0
    return (2 * n_parameters - n_by_muon) * FP32_BYTES


def _muon_update(config: NetworkConfig) -> int:
    """Muon's working copies of all matrices of one shape: gradients, momenta and six of the iteration."""
    by_shape: dict[tuple[int, int], int] = {}
    for matrices in layer_matrices(config).values():
        for shape in matrices:
            by_shape[shape] = by_shape.get(shape, 0) + config.n_layers * math.prod(shape)
    return 8 * FP32_BYTES * max(by_shape.values())


def lora_parameters(config: NetworkConfig, rank: int) -> int:
    """Weights of the adapters of all linear maps in the layers (LoRA, arXiv 2106.09685): rank (in + out) each."""
    shapes = (shape for matrices in layer_matrices(config).values() for shape in matrices)
    return config.n_layers * rank * sum(map(sum, shapes))


def lora_memory(config: NetworkConfig, setting: TrainingSetting, rank: int, quantised: bool = False) -> int:
    """Bytes for training adapters on a frozen bf16 network: no gradients or optimizer state but for the adapters.

    Args:
        setting: batch, length and checkpointing; precision and optimizer are LoRA's own, bf16 and AdamW in fp32.
        quantised: the maps in the layers stored in 4 bits (QLoRA, arXiv 2305.14314), tables and norms in bf16.
    """
    in_bf16 = replace(setting, bf16=True)
    layer = setting.tokens * kept_by_layer(config, in_bf16)
    kept = config.n_layers * layer
    if setting.activation_checkpointing:
        kept = config.n_layers * setting.tokens * config.d_model * BF16_BYTES + layer
    logits = setting.tokens * config.vocab_size * FP32_BYTES * LOGITS_IN_LOSS
    adapters = lora_parameters(config, rank) * 4 * FP32_BYTES  # weights, gradients, two moments
    working = setting.tokens * _working_bytes(config, in_bf16)
    return stored_weights(config, quantised) + adapters + max(kept + working, kept - layer + logits)


def stored_weights(config: NetworkConfig, quantised: bool = False) -> int:
    """Bytes of the weights in bf16, or with the maps in the layers in 4 bits."""
    n_quantised = layer_parameters(config) if quantised else 0
    return math.ceil((total_parameters(config) - n_quantised) * BF16_BYTES + n_quantised * NF4_BYTES)


def inference_memory(config: NetworkConfig, batch_size: int, length: int, weight_bytes: int = BF16_BYTES) -> int:
    """Bytes for sampling: weights, one layer at work, and the logits of all positions, from which tokens are drawn."""
    hidden = config.mlp_hidden_size if isinstance(config, LLaDAConfig) else 4 * config.d_model
    layer = (8 * config.d_model + 3 * hidden) * weight_bytes
    logits = config.vocab_size * (weight_bytes + LOGITS_IN_SAMPLER * FP64_BYTES)
    return total_parameters(config) * weight_bytes + batch_size * length * max(layer, logits)
