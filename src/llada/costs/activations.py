"""What autograd keeps of a forward pass, and what a layer's backward pass takes: measured on fake tensors."""

from dataclasses import dataclass
from typing import Literal

from llada.costs.fake_run import LayerCosts, RunSetting, layer_costs
from llada.models.config_json import NetworkConfig, kinds_of_layers

FP32_BYTES, BF16_BYTES = 4, 2


@dataclass(frozen=True)
class TrainingSetting:
    """What a training step's memory depends on in addition to the network."""

    batch_size: int
    """Sequences that go through the network together."""
    length: int
    """Tokens of a sequence."""
    accumulates: bool = False
    """Whether gradients of earlier batches of the step are kept meanwhile."""
    processes: int = 1
    """Number of processes that share out the matrices of the network, with what belongs to them."""
    keeps_gradients_whole: bool = False
    """Whether gradients are accumulated as wholes where matrices are shared out, which spares sending them."""
    sent_at_once: int = 0
    """Greatest number of gradients that are copied at a time while several processes add up what each has whole."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    ema: bool = False
    """Whether a moving average of the weights is kept."""
    bf16: bool = False
    """Whether matmuls run under bf16 autocast."""
    method: Literal["full", "lora", "qlora"] = "full"
    """Whether all weights are trained, or adapters of frozen ones in the type of the matmuls or in 4 bits."""
    lora_rank: int = 16
    """Rank of the adapters, which are in fp32 with their gradients and moments."""
    lora_on_attention_only: bool = False
    """Whether the feed-forward part has no adapters."""
    bf16_weights: bool = False
    """Whether the weights that "full" trains, and their gradients, are in bf16; in fp32 if not."""
    moment_bytes: float = FP32_BYTES
    """Bytes of each of the optimizer's moments of a weight."""
    logits_at_once: int | None = None
    """Greatest number of logits that exist at a time; None is those of all positions."""
    activation_checkpointing: bool = False
    """Whether only the inputs of the layers are stored (activation checkpointing)."""
    on_cpu: bool = True
    """On a CPU, attention with dropout is not fused and stores its weights."""

    within_documents: bool = False
    """Whether attention stays within documents, by a mask of all pairs of positions."""

    @property
    def tokens(self) -> int:
        """Number of tokens that go through the network together."""
        return self.batch_size * self.length

    @property
    def has_bf16_stream(self) -> bool:
        """Whether the residual stream is in bf16: it has the type of the weights, not of the matmuls."""
        return self.bf16_weights or self.method == "qlora" or (self.method == "lora" and self.bf16)


def kept_by_layers(config: NetworkConfig, setting: TrainingSetting) -> int:
    """Bytes that autograd keeps of all layers, for all tokens that go through the network together."""
    kinds = costs_of_kinds(config, setting)
    return round(setting.batch_size * sum(times * costs.kept for costs, times in kinds))


def kept_by_layer(config: NetworkConfig, setting: TrainingSetting) -> int:
    """Bytes that autograd keeps of the layer that keeps most."""
    return round(setting.batch_size * max(costs.kept for costs, _ in costs_of_kinds(config, setting)))


def layer_inputs(config: NetworkConfig, setting: TrainingSetting) -> int:
    """Bytes of the inputs of all layers, which are what activation checkpointing keeps."""
    kinds = costs_of_kinds(config, setting)
    return round(setting.batch_size * sum(times * costs.stream for costs, times in kinds))


def kept_outside_layers(config: NetworkConfig, setting: TrainingSetting) -> int:
    """Bytes that autograd keeps of the embedding, the norms around the layers, and the features that the head reads."""
    return round(setting.batch_size * max(costs.outside for costs, _ in costs_of_kinds(config, setting)))


def working_bytes(config: NetworkConfig, setting: TrainingSetting) -> int:
    """Bytes that a layer's backward pass takes at its peak, on top of what was kept for it."""
    return round(setting.batch_size * max(costs.working for costs, _ in costs_of_kinds(config, setting)))


def costs_of_kinds(config: NetworkConfig, setting: TrainingSetting) -> list[tuple[LayerCosts, int]]:
    """What a layer of each kind takes for a sequence, and how many layers of that kind there are."""
    run = RunSetting(
        setting.length,
        bf16=setting.bf16,
        stores_bf16=setting.has_bf16_stream,
        lora_rank=None if setting.method == "full" else setting.lora_rank,
        lora_on_attention_only=setting.lora_on_attention_only,
        on_cpu=setting.on_cpu,
        within_documents=setting.within_documents,
    )
    return [(layer_costs(kind, run), times) for kind, times in kinds_of_layers(config).items()]
