"""How much memory a network takes while it is trained, fine-tuned or used: what its parts take, put together.

What a whole step takes is measured by benchmarks/memory.py.

Shape letters: B batch, L length, V vocabulary rows, D width.
"""

import math
from dataclasses import dataclass

from llada.costs.activations import (
    BF16_BYTES,
    FP32_BYTES,
    TrainingSetting,
    kept_by_layer,
    kept_by_layers,
    kept_outside_layers,
    layer_inputs,
    working_bytes,
)
from llada.costs.fake_run import forward_bytes
from llada.costs.parameters import (
    kept_parameters,
    layer_matrices,
    layer_parameters,
    lora_parameters,
    matrix_parameters,
    outside_parameters,
    total_parameters,
)
from llada.models.config_json import NetworkConfig, kinds_of_layers
from llada.optim.adamw import AT_ONCE

# 4-bit weights with 8-bit scales for blocks of 64 and a second scale for each 256 of those (QLoRA, arXiv 2305.14314).
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
LOGITS_IN_LOSS = 3  # logits or their log-softmax, its gradient, and the gradient of the logits, in fp32
LOGITS_IN_SAMPLER = 3  # probabilities, noise and their sum, in fp64
FP64_BYTES = 8
PIECEWISE_UPDATE = 6 * FP32_BYTES * AT_ONCE  # fp32 copies of the weights that adamw.AdamW16 updates at a time


@dataclass(frozen=True)
class TrainingMemory:
    """Expected bytes of a training step. Activations and gradients do not peak together, so the total is less."""

    weights: int
    optimizer: int
    ema: int
    gradients: int
    activations: int
    """Bytes at the end of the forward pass, copies of the weights in bf16 included."""
    logits: int
    """Bytes at the loss, if every position is masked."""
    working: int
    """What comes and goes within a layer's backward pass."""
    gathered: int
    """Weights that are brought together where processes share out the network."""
    sent: int
    """Copies of gradients while they are added up over the processes that keep them whole."""
    update: int
    """What the optimizer needs in addition to its state."""
    total: int
    """Bytes at the peak of the step."""

    @property
    def fixed(self) -> int:
        """What no smaller batch can save."""
        return self.weights + self.optimizer + self.ema + self.gradients + self.update


def training_memory(config: NetworkConfig, setting: TrainingSetting) -> TrainingMemory:
    """Memory of a training step in each process, without torch itself, if what is freed is given back at once.

    Its peak is at the loss, in the backward pass of the last layer, in that of the first one (when the gradients of all
    others are there), where processes add up their gradients, or in the optimizer.
    """
    weights, optimizer, ema, gradients, update = _fixed(config, setting)
    layer, kept = kept_by_layer(config, setting), kept_by_layers(config, setting)
    outside = kept_outside_layers(config, setting)
    copies = _bf16_copies(config, setting)
    computed_again = 0
    if setting.activation_checkpointing:
        kept = layer_inputs(config, setting)
        computed_again = layer + copies // config.n_layers
    logits = _at_the_loss(config, setting)
    working = working_bytes(config, setting)
    if setting.method == "qlora":  # one matrix at a time is what it was, which bitsandbytes' own kernels do
        working += BF16_BYTES * max(math.prod(shape) for shape in layer_matrices(config))
    activations = outside + kept + copies
    backward = activations + computed_again + working
    if setting.activation_checkpointing:
        backward -= copies  # gone with the forward pass, and made anew layer by layer
    gathered, scattered, scattered_last = _on_their_way(config, setting)
    sent = 0
    if setting.method != "full" or setting.processes == 1:  # else all but vectors are sent in the backward pass
        sent = min(gradients, setting.sent_at_once * _gradient_bytes(setting))
    accumulated = trained_parameters(config, setting) * FP32_BYTES if setting.keeps_gradients_whole else gradients
    at_start = gathered + max(activations + logits, backward + scattered) + (accumulated if setting.accumulates else 0)
    last_layer = accumulated + scattered + (computed_again or layer) + working
    at_end = gathered + max(last_layer, gradients + scattered_last)
    return TrainingMemory(
        weights=weights,
        optimizer=optimizer,
        ema=ema,
        gradients=gradients,
        activations=activations,
        logits=logits,
        working=computed_again + working,
        gathered=gathered,
        sent=sent,
        update=update,
        total=weights + optimizer + ema + max(at_start, at_end, gradients + sent, gradients + update),
    )


def least_memory(config: NetworkConfig, setting: TrainingSetting) -> int:
    """Bytes that a training step takes whatever its batch, its length and its activations are."""
    return sum(_fixed(config, setting)) + _on_their_way(config, setting)[0]


def _fixed(config: NetworkConfig, setting: TrainingSetting) -> tuple[int, int, int, int, int]:
    """Bytes of weights, optimizer state, moving average and gradients, and of the optimizer's own work."""
    trained = _trained_here(config, setting)
    return (
        _stored_for_training(config, setting),
        _optimizer_state(config, setting),
        trained * FP32_BYTES if setting.ema else 0,
        trained * _gradient_bytes(setting),
        _update(config, setting),
    )


def trained_parameters(config: NetworkConfig, setting: TrainingSetting) -> int:
    """Return the number of parameters that have gradients."""
    if setting.method == "full":
        return total_parameters(config)
    return lora_parameters(config, setting.lora_rank, setting.lora_on_attention_only)


def _trained_here(config: NetworkConfig, setting: TrainingSetting) -> int:
    """Return the number of these that a process keeps: a part of matrices that are shared out, and all of adapters."""
    if setting.method == "full":
        return kept_parameters(config, setting.processes).total
    return trained_parameters(config, setting)


def _stored_for_training(config: NetworkConfig, setting: TrainingSetting) -> int:
    """Bytes of the weights, frozen or not, with their adapters."""
    adapters = 0 if setting.method == "full" else trained_parameters(config, setting) * FP32_BYTES
    if setting.method == "qlora":
        return stored_weights(config, quantised=True) + adapters
    return kept_parameters(config, setting.processes).total * _weight_bytes(setting) + adapters


def _weight_bytes(setting: TrainingSetting) -> int:
    """Bytes of a weight as it is stored, without 4 bits."""
    is_bf16 = setting.bf16_weights if setting.method == "full" else setting.bf16
    return BF16_BYTES if is_bf16 else FP32_BYTES


def _gradient_bytes(setting: TrainingSetting) -> int:
    """Bytes of a gradient, which has the type of the weight that is trained."""
    return BF16_BYTES if setting.bf16_weights else FP32_BYTES


def _on_their_way(config: NetworkConfig, setting: TrainingSetting) -> tuple[int, int, int]:
    """Bytes of what is whole for a while where matrices are shared out.

    Returns:
        The weights: two layers, the one that is computed and the next, each with the memory that it is received in, and
        embeddings and head. Their gradients in the backward pass: of two layers, and of embeddings and head, which are
        the last to be sent. And what the latter take as they are sent.
    """
    if setting.processes == 1:
        return 0, 0, 0
    weight = _weight_bytes(setting)
    two_layers = 2 * max(layer_parameters(kind) for kind in kinds_of_layers(config))
    outside = outside_parameters(config)
    gathered = 2 * two_layers * (BF16_BYTES if setting.bf16 else weight) + outside * weight
    if setting.method != "full":
        return gathered, 0, 0
    return gathered, two_layers * FP32_BYTES + outside * weight, outside * (weight + FP32_BYTES)


def _bf16_copies(config: NetworkConfig, setting: TrainingSetting) -> int:
    """Bytes of the bf16 copies of fp32 weights that autocast makes."""
    if not setting.bf16 or setting.bf16_weights:
        return 0
    if setting.method != "full":
        return trained_parameters(config, setting) * BF16_BYTES
    if setting.processes > 1:  # layers are sent in bf16
        return (matrix_parameters(config) - layer_parameters(config)) * BF16_BYTES
    return matrix_parameters(config) * BF16_BYTES


def _at_the_loss(config: NetworkConfig, setting: TrainingSetting) -> int:
    """Bytes of the logits; if made in pieces, the head's gradient from a piece adds to the sum so far."""
    at_once = setting.tokens
    pieces = 0
    if setting.logits_at_once is not None and setting.logits_at_once < setting.tokens * config.vocab_size:
        at_once = max(1, setting.logits_at_once // config.vocab_size)
        if setting.method == "full":
            pieces = 2 * config.vocab_size * config.d_model * _gradient_bytes(setting)
    return at_once * config.vocab_size * FP32_BYTES * LOGITS_IN_LOSS + pieces


def _optimizer_state(config: NetworkConfig, setting: TrainingSetting) -> int:
    """Two tensors of the weights' size for AdamW; Muon keeps one for the matrices of the layers, which are its own."""
    trained, n_by_muon = _trained_here(config, setting), 0
    if setting.optimizer == "muon":
        n_by_muon = kept_parameters(config, setting.processes).in_layers if setting.method == "full" else trained
    return math.ceil((2 * trained - n_by_muon) * setting.moment_bytes)


def _update(config: NetworkConfig, setting: TrainingSetting) -> int:
    """Bytes of the optimizer's own work."""
    if setting.optimizer == "muon":
        return _muon_update(config)
    return PIECEWISE_UPDATE if setting.bf16_weights or setting.moment_bytes < FP32_BYTES else 0


def _muon_update(config: NetworkConfig) -> int:
    """Muon's working copies of all matrices of one shape: gradients, momenta and six of the iteration."""
    return 8 * FP32_BYTES * max(times * math.prod(shape) for shape, times in layer_matrices(config).items())


def stored_weights(config: NetworkConfig, quantised: bool = False) -> int:
    """Bytes of the weights in bf16, or with the linear layers in 4 bits."""
    n_quantised = layer_parameters(config) if quantised else 0
    return math.ceil((total_parameters(config) - n_quantised) * BF16_BYTES + n_quantised * NF4_BYTES)


def inference_memory(config: NetworkConfig, batch_size: int, length: int, weight_bytes: int = BF16_BYTES) -> int:
    """Bytes for sampling: weights, one layer at work, and the logits of all positions, from which tokens are drawn."""
    layer = max(forward_bytes(kind, length, weight_bytes == BF16_BYTES) for kind in kinds_of_layers(config))
    logits = length * config.vocab_size * (weight_bytes + LOGITS_IN_SAMPLER * FP64_BYTES)
    return total_parameters(config) * weight_bytes + round(batch_size * max(layer, logits))
