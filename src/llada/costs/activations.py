"""What autograd keeps of a forward pass, by formula: counted tensor by tensor, and equal to the last byte but for
rounding (tests/costs/test_memory.py).

Shape letters: D width, H heads, K key-value heads, C channels of a head, M width of the feed-forward layer or of an
expert, E experts.
"""

from dataclasses import dataclass
from typing import Literal

from llada.models.config_json import NetworkConfig
from llada.models.encoder import EncoderConfig
from llada.models.llada import LLaDAConfig
from llada.models.llada_moe import LLaDAMoEConfig
from llada.models.local import LONGEST_PRODUCTS, NEIGHBOURS, LocalConfig

FP32_BYTES, BF16_BYTES, INT64_BYTES = 4, 2, 8


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
    """Matrix products under bf16 autocast."""
    method: Literal["full", "lora", "qlora"] = "full"
    """Whether all weights are trained, or adapters beside frozen ones, in the type of the products or in 4 bits."""
    lora_rank: int = 16
    """Of the adapters, which are in fp32 with all that belongs to them."""
    lora_on_attention_only: bool = False
    """Whether the feed-forward part has no adapters."""
    bf16_weights: bool = False
    """Whether the weights that "full" trains, and their gradients, are in bf16; in fp32 if not."""
    moment_bytes: float = FP32_BYTES
    """Of each of the optimizer's moments of a weight."""
    logits_at_once: int | None = None
    """Greatest number of logits that exist at a time; None is those of all positions."""
    activation_checkpointing: bool = False
    """Keep the inputs of the layers only, and recompute the rest (`recompute`)."""
    on_cpu: bool = True
    """On a CPU, attention with dropout is not fused and stores its weights."""

    @property
    def tokens(self) -> int:
        """That go through the network together."""
        return self.batch_size * self.length

    @property
    def has_bf16_stream(self) -> bool:
        """Whether the residual stream is in bf16: it has the type of the weights, not of the products."""
        return self.bf16_weights or self.method == "qlora" or (self.method == "lora" and self.bf16)

    @property
    def stream_bytes(self) -> int:
        """Of a number of the residual stream."""
        return BF16_BYTES if self.has_bf16_stream else FP32_BYTES


def kept_by_layers(config: NetworkConfig, setting: TrainingSetting) -> int:
    """Bytes a token that autograd keeps of all layers."""
    layer = kept_by_layer(config, setting)
    if not isinstance(config, LocalConfig):
        return config.n_layers * layer
    without_attention = layer - _kept_by_local_attention(config, setting)
    return config.n_attending * layer + (config.n_layers - config.n_attending) * without_attention


def kept_by_layer(config: NetworkConfig, setting: TrainingSetting) -> int:
    """Bytes a token that autograd keeps of one layer; of one that attends, if not all do.

    Under autocast from fp32, each linear map keeps its own bf16 copy of its input; so does each adapter, which is given
    it in fp32. In a bf16 stream without adapters they share it.
    """
    width = config.d_model
    product = BF16_BYTES if setting.bf16 else FP32_BYTES
    log_sum = config.n_heads * FP32_BYTES
    has_copies = setting.bf16 and not setting.bf16_weights
    if isinstance(config, LLaDAConfig):
        # Input in fp32, what is normed if its scale is trained, root of the mean square.
        normed = setting.stream_bytes if setting.method == "full" else 0
        norms = 2 * (width * (FP32_BYTES + normed) + FP32_BYTES)
        attention = (2 * width + 2 * config.kv_heads * config.head_dim) * product + log_sum
        if isinstance(config, LLaDAMoEConfig):
            inputs = (3 + 1 if has_copies else 1 + 1) * width * product  # of q, k and v, and of the router
            return norms + inputs + attention + _kept_by_head_norms(config, product) + _kept_by_experts(config, setting)
        inputs = (3 + 2 if has_copies else 1 + 1) * width * product  # of q, k and v, and of gate and up
        if has_copies and setting.method != "full":
            inputs += width * product  # of the map behind attention, whose own is kept as attention's output
        return norms + inputs + attention + 4 * config.mlp_hidden_size * product
    if isinstance(config, LocalConfig):
        return _kept_by_local_layer(config, setting)
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


def _kept_by_local_layer(config: LocalConfig, setting: TrainingSetting) -> int:
    """If it is not compiled, which keeps less; its residual stream is in the type of the products."""
    product = BF16_BYTES if setting.bf16 else FP32_BYTES
    norm = config.d_model * FP32_BYTES + FP32_BYTES
    # The stream, what is convolved, with its edges, and what comes of it, and inside the feed-forward part.
    edges = config.d_model * product * (config.conv_width - 1) // setting.length
    rest = 3 * config.d_model * product + 2 * config.mlp_hidden_size * product
    return norm + rest + edges + _kept_by_local_attention(config, setting)


def _kept_by_local_attention(config: LocalConfig, setting: TrainingSetting) -> int:
    """Norms of the stream, q and k; q twice, k, v twice, what goes out and into the next part; and the scores."""
    product = BF16_BYTES if setting.bf16 else FP32_BYTES
    norms = 3 * config.d_model * FP32_BYTES + (1 + 2 * config.n_heads) * FP32_BYTES
    by_products = setting.on_cpu and setting.length <= LONGEST_PRODUCTS
    of_score = FP32_BYTES + (BF16_BYTES if setting.bf16 else 0) if by_products else 0
    return norms + 7 * config.d_model * product + config.n_heads * setting.length * of_score


def _kept_by_head_norms(config: LLaDAMoEConfig, product: int) -> int:
    """Of queries and keys: inputs in fp32, what is normed, and the root of the mean square of each head."""
    heads = config.n_heads + config.kv_heads
    return heads * config.head_dim * (FP32_BYTES + product) + heads * FP32_BYTES


def _kept_by_experts(config: LLaDAMoEConfig, setting: TrainingSetting) -> int:
    """Of the router's choice, and of the experts of a token: their inputs, inner widths, outputs and weights."""
    product = BF16_BYTES if setting.bf16 else FP32_BYTES
    inputs = (
        (2 if setting.bf16 and setting.method == "full" and not setting.bf16_weights else 1) * config.d_model * product
    )  # of gate and up
    expert = inputs + 4 * config.mlp_hidden_size * product + config.d_model * product + FP32_BYTES
    order = 4 * INT64_BYTES  # number of the expert, token, place among the choices, and back
    return config.n_experts * FP32_BYTES + config.n_experts_per_token * (expert + order)


def kept_outside_layers(config: NetworkConfig) -> int:
    """Bytes a token of the norms and the embedding, and the features that go into the head."""
    n_dropouts = 1 if isinstance(config, EncoderConfig) and config.dropout else 0
    keys = (1 + len(NEIGHBOURS)) * INT64_BYTES if isinstance(config, LocalConfig) else 0
    return (3 + n_dropouts) * config.d_model * FP32_BYTES + keys


def working_bytes(config: NetworkConfig, setting: TrainingSetting) -> int:
    """Bytes a token of the gradients that are alive at once within a layer."""
    if isinstance(config, LLaDAMoEConfig):  # gradients of the experts' inputs and outputs, and one expert at work
        return (2 * (config.n_experts_per_token + 1) * config.d_model + config.mlp_hidden_size) * FP32_BYTES
    if isinstance(config, LLaDAConfig):
        return (config.mlp_hidden_size + 2 * config.d_model) * FP32_BYTES
    if isinstance(config, LocalConfig):
        by_products = config.n_attending and setting.on_cpu and setting.length <= LONGEST_PRODUCTS
        scores = config.n_heads * setting.length if by_products else 0
        return max(2 * scores, config.mlp_hidden_size + 2 * config.d_model) * FP32_BYTES
    product = BF16_BYTES if setting.bf16 else FP32_BYTES
    in_feed_forward = 4 * config.d_model * product + 2 * config.d_model * FP32_BYTES
    if not config.dropout or not setting.on_cpu:
        return in_feed_forward
    # The gradient of the stored attention comes when what the feed-forward part kept is gone.
    gradients = (config.n_heads * setting.length + 3 * config.d_model) * FP32_BYTES
    return max(in_feed_forward, gradients - 8 * config.d_model * product)
