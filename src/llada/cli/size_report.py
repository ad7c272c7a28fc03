"""The numbers of `llada size`, from its options to the object that `--json` prints."""

import functools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal, NamedTuple

import torch
from tyro.conf import arg

from llada.checkpoints.hub import read_published_config
from llada.cli.flags import in_flags
from llada.cli.options import check_positive
from llada.costs.activations import TrainingSetting
from llada.costs.fit import Rung, largest_networks, ways_to_fit, with_length
from llada.costs.flops import attention_flops_per_token, training_flops_per_token, training_seconds
from llada.costs.memory import inference_memory, training_memory
from llada.costs.parameters import count_parameters, lora_parameters, total_parameters
from llada.models import NetworkConfig
from llada.models.head import LOGITS_AT_ONCE
from llada.optim.adamw import MOMENT_BYTES
from llada.system.device import PrecisionName, choose_device, choose_precision, known_flops_per_second
from llada.training.config import NetworkName, NetworkOptions
from llada.training.forecast import options_in_words

TINY_SHAKESPEARE_TOKENS = 1_003_854  # its first 90 %, in characters
TINY_SHAKESPEARE_ROWS = 69  # 65 characters, PAD, BOS, EOS and MASK
# Fraction of a device's memory that tensors may take; the rest is for torch itself and the gaps between tensors.
USABLE_FRACTION = 0.9
HEAD_WIDTH = 64  # of the suggested networks, as in the Tiny Shakespeare scripts (shakespeare/)


SpeedOf = Callable[[torch.dtype], float | None]
"""Function from a type to the FLOP/s of matmuls in it, or None if they are unknown."""


class CharacterRows(NamedTuple):
    """A character vocabulary of which only the size is known."""

    vocab_size: int
    mask_row: int
    pad_id: int = 0
    eos_id: int = 2


@dataclass(frozen=True)
class SizeOptions:
    network: NetworkName = "llada"
    """Kind of network. "llada": RMSNorm, rotary positions, SwiGLU. "local": embeddings of neighbouring pairs and
    convolutions with little attention. "encoder": learned positions, LayerNorm, GELU, dropout. "causal": the encoder
    with causal attention."""
    n_layers: Annotated[int, arg(aliases=["--layers"])] = 24
    """Number of transformer layers."""
    d_model: int = 768
    """Width of the residual stream."""
    n_heads: int = 12
    """Number of attention heads in each layer."""
    mlp_hidden_size: int | None = None
    """Width of the feed-forward layers; if left out, 8/3 of d_model rounded up to a multiple of 32 for "llada"."""
    dropout: float = 0.0
    """Dropout probability of "encoder" and "causal"."""
    vocab_size: int = TINY_SHAKESPEARE_ROWS
    """Number of rows of the embedding; the default is Tiny Shakespeare's."""
    checkpoint: str | None = None
    """Checkpoint whose network is counted instead: a folder, its config.json, or a name like GSAI-ML/LLaDA-8B-Base."""
    batch_size: int = 4
    """Number of sequences that go through the network together."""
    accumulate: int = 1
    """Number of batches whose gradients are added up for one step."""
    sequence_length: int = 4096
    """Number of tokens in a sequence."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Optimizer of the training: "adamw" keeps two moments for each weight, "muon" keeps one for most."""
    ema: bool = False
    """Keep a moving average of the weights."""
    precision: PrecisionName = "auto"
    """Type that matmuls run in while training; "auto" is what `llada train` would choose on this machine, and bf16 on
    another."""
    activation_checkpointing: bool = False
    """Store only the inputs of the layers and compute the other activations twice."""
    lora_rank: int = 16
    """Rank of the adapters of LoRA and QLoRA."""
    hardware: Literal["auto", "gpu", "cpu"] = "auto"
    """Hardware to train on; "auto" is this machine, or a GPU if --hardware_memory is given."""
    hardware_memory: float | None = None
    """Memory of the hardware in GB; what fits into it is suggested."""
    tflops: float | None = None
    """Speed of the hardware's matmuls in TFLOP/s; if left out, this machine is measured if it is the one meant."""
    text_tokens: int = TINY_SHAKESPEARE_TOKENS
    """Number of tokens in the training text; the default is Tiny Shakespeare's in characters."""
    epochs: float = 10
    """Number of passes over the training text."""
    json: bool = False
    """Print one JSON object instead of text."""

    def __post_init__(self) -> None:
        shape = ("n_layers", "d_model", "n_heads", "mlp_hidden_size", "vocab_size", "sequence_length")
        check_positive(self, *shape, "batch_size", "accumulate", "lora_rank", "text_tokens", "epochs")
        check_positive(self, "hardware_memory", "tflops")

    @property
    def name(self) -> str:
        return self.network if self.checkpoint is None else self.checkpoint

    def network_config(self) -> NetworkConfig:
        """Return the network that the options name, for sequences of the given length.

        Raises:
            UserError: the shape cannot be built, or the checkpoint does not exist.
        """
        if self.checkpoint is not None:
            return with_length(read_published_config(self.checkpoint), self.sequence_length)
        return self.make_config(self.n_layers, self.d_model, self.n_heads, self.mlp_hidden_size)

    def make_config(self, layers: int, width: int, heads: int, hidden: int | None = None) -> NetworkConfig:
        """Return a network of another shape, otherwise as the options say."""
        options = NetworkOptions(self.network, width, heads, layers, hidden, dropout=self.dropout)
        return options.build_config(CharacterRows(self.vocab_size, self.vocab_size - 1), self.sequence_length)

    @property
    def kind(self) -> str:
        """Kind of the device that the options name: "gpu" or "cpu"."""
        if self.hardware != "auto":
            return self.hardware
        return "gpu" if self.hardware_memory is not None else kind_of(choose_device("auto"))

    @property
    def is_this_machine(self) -> bool:
        """Whether that device may be this machine's, whose speed can be measured."""
        return self.kind == kind_of(choose_device("auto"))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the matmuls in training."""
        if self.precision == "auto" and not self.is_this_machine:
            return torch.bfloat16
        return choose_precision(self.precision, choose_device("auto")).dtype

    def flops_per_second(self, dtype: torch.dtype) -> float | None:
        """Return the speed of the device's matmuls; None if it is another machine's and was not given."""
        if self.tflops is not None:
            return self.tflops * 1e12
        return known_flops_per_second(choose_device("auto"), dtype) if self.is_this_machine else None

    def setting(self) -> TrainingSetting:
        return TrainingSetting(
            batch_size=self.batch_size,
            length=self.sequence_length,
            accumulates=self.accumulate > 1,
            optimizer=self.optimizer,
            ema=self.ema,
            bf16=self.dtype == torch.bfloat16,
            activation_checkpointing=self.activation_checkpointing,
            on_cpu=self.kind == "cpu",
            logits_at_once=LOGITS_AT_ONCE,
        )


def kind_of(device: torch.device) -> str:
    return "cpu" if device.type == "cpu" else "gpu"


def make_report(options: SizeOptions) -> dict[str, Any]:
    """Return all numbers: bytes, FLOPs, seconds.

    Raises:
        UserError: the options do not describe a network.
    """
    config, setting = options.network_config(), options.setting()
    checkpointed = replace(setting, activation_checkpointing=True)
    alone = replace(checkpointed, batch_size=1, optimizer="adamw", bf16=True, lora_rank=options.lora_rank)
    parts, speed_of = count_parameters(config), functools.cache(options.flops_per_second)  # cached, because it measures
    report: dict[str, Any] = {
        "network": {
            "name": options.name,
            "n_layers": config.n_layers,
            "d_model": config.d_model,
            "n_heads": config.n_heads,
        },
        "parameters": {**parts, "total": sum(parts.values())},
        "training": asdict(training_memory(config, replace(setting, activation_checkpointing=False))),
        "training_with_activation_checkpointing": asdict(training_memory(config, checkpointed)),
        "lora": {
            "rank": options.lora_rank,
            "parameters": lora_parameters(config, options.lora_rank),
            "lora_total": training_memory(config, replace(alone, method="lora")).total,
            "qlora_total": training_memory(config, replace(alone, method="qlora")).total,
        },
        "bf16": {
            f"{state}_moments_total": training_memory(
                config, replace(alone, bf16_weights=True, moment_bytes=size)
            ).total
            for state, size in MOMENT_BYTES.items()
        },
        "sampling": {
            "bf16_total": inference_memory(config, 1, options.sequence_length),
            "fp32_total": inference_memory(config, 1, options.sequence_length, weight_bytes=4),
        },
        "work": _work(options, config, speed_of),
    }
    if options.hardware_memory is not None:
        report["fits"] = _fits(options, config, setting, options.hardware_memory, report["work"]["tokens"], speed_of)
    return report


def _work(options: SizeOptions, config: NetworkConfig, speed_of: SpeedOf) -> dict[str, Any]:
    sequences = math.ceil(options.text_tokens / options.sequence_length)
    in_a_step = options.batch_size * options.accumulate
    steps = max(1, math.ceil(options.epochs * sequences / in_a_step))
    tokens = steps * in_a_step * options.sequence_length
    setting = options.setting()
    per_token = training_flops_per_token(config, options.sequence_length)
    return {
        "training_flops_per_token": per_token,
        "of_which_attention": attention_flops_per_token(config, options.sequence_length),
        "sampling_flops_per_token": per_token // 3,
        "steps": steps,
        "tokens": tokens,
        "training_flops": tokens * per_token,
        "flops_per_second": speed_of(options.dtype),
        "flops_per_second_measured": options.tflops is None and options.is_this_machine,
        "seconds": _seconds(config, setting, tokens, speed_of),
    }


def _seconds(config: NetworkConfig, setting: TrainingSetting, tokens: int, speed_of: SpeedOf) -> float | None:
    """Return the expected time of a training as `llada train` announces it; None if the device's speed is unknown."""
    speed = speed_of(torch.bfloat16 if setting.bf16 else torch.float32)
    if speed is None:
        return None
    return training_seconds(
        config,
        setting.length,
        tokens,
        flops_per_second=speed,
        activation_checkpointing=setting.activation_checkpointing,
        on_cpu=setting.on_cpu,
    )


def _fits(
    options: SizeOptions,
    config: NetworkConfig,
    setting: TrainingSetting,
    gigabytes: float,
    tokens: int,
    speed_of: SpeedOf,
) -> dict[str, Any]:
    limit = USABLE_FRACTION * gigabytes * 1e9
    total = training_memory(config, setting).total
    rungs = []
    if options.checkpoint is None:  # whose vocabulary and kind of network the ladder does not have
        rungs = largest_networks(
            lambda layers, width: options.make_config(layers, width, width // HEAD_WIDTH), setting, limit
        )
    ways = (
        []
        if total <= limit
        else ways_to_fit(
            config,
            setting,
            limit,
            options.batch_size * options.accumulate,
            is_fine_tuning=options.checkpoint is not None,
        )
    )
    return {
        "for_tensors": limit,
        "total": total,
        "fits": total <= limit,
        "ways_to_fit": [
            {
                "flags": [in_flags(each) for each in options_in_words(way.options)],
                "total": way.memory,
                "seconds": _seconds(way.config, way.setting, tokens, speed_of),
            }
            for way in ways
        ],
        "largest_networks": [_rung_to_json(rung) for rung in rungs],
    }


def _rung_to_json(rung: Rung) -> dict[str, Any]:
    return {
        "n_layers": rung.config.n_layers,
        "d_model": rung.config.d_model,
        "n_heads": rung.config.n_heads,
        "parameters": total_parameters(rung.config),
        "batch_size": rung.setting.batch_size,
        "sequence_length": rung.setting.length,
        "activation_checkpointing": rung.setting.activation_checkpointing,
        "total": rung.memory,
    }
