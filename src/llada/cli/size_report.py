"""The numbers of `llada size`, from its options to the object that `--json` prints."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal, NamedTuple

import torch
from tyro.conf import arg

from llada.checkpoints.hub import read_published_config
from llada.cli.options import check_positive
from llada.costs.activations import TrainingSetting
from llada.costs.fit import Rung, largest_networks, ways_to_fit, with_length
from llada.costs.memory import inference_memory, training_memory
from llada.costs.flops import attention_flops_per_token, training_flops_per_token, training_seconds
from llada.costs.parameters import count_parameters, lora_parameters, total_parameters
from llada.models import NetworkConfig
from llada.models.head import LOGITS_AT_ONCE
from llada.optim.adamw import MOMENT_BYTES
from llada.system.device import choose_device, matmul_flops_per_second
from llada.training.config import NetworkName, NetworkOptions

TINY_SHAKESPEARE_TOKENS = 1_003_854  # its first 90 %, in characters
TINY_SHAKESPEARE_ROWS = 69  # 65 characters, PAD, BOS, EOS and MASK
# Of a device's memory, for tensors; the rest is for torch itself and the gaps between tensors.
USABLE_SHARE = 0.9
FOUNDING_DROPOUT = 0.1
HEAD_WIDTH = 64  # of the networks that are suggested, as in the founding document's


class CharacterRows(NamedTuple):
    """A character vocabulary of which nothing but the size is known."""

    vocab_size: int
    mask_row: int
    pad_id: int = 0
    eos_id: int = 2


@dataclass(frozen=True)
class SizeOptions:
    network: NetworkName = "llada"
    """"llada": RMSNorm, rotary positions, SwiGLU. "local": tables of neighbours and convolutions before attention.
    "encoder": learned positions, LayerNorm, GELU, dropout."""
    n_layers: Annotated[int, arg(aliases=["--layers"])] = 24
    """Transformer layers."""
    d_model: int = 768
    """Width."""
    n_heads: int = 12
    """Attention heads."""
    mlp_hidden_size: int | None = None
    """Width of the feed-forward layers of "llada"; None is 8/3 of d_model, rounded up to a multiple of 32."""
    dropout: float | None = None
    """Of "encoder"; 0.1 if left out."""
    vocab_size: int = TINY_SHAKESPEARE_ROWS
    """Rows of the embedding; Tiny Shakespeare's if left out."""
    checkpoint: str | None = None
    """The network of this checkpoint instead: a folder, its config.json, or a name like GSAI-ML/LLaDA-8B-Base."""
    batch_size: int = 4
    """Sequences that go through the network together."""
    accumulate: int = 1
    """Batches whose gradients make one step."""
    sequence_length: int = 4096
    """Tokens of a sequence."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """It keeps two numbers for each weight, or one."""
    ema: bool = False
    """Keep a moving average of the weights."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of matrix products in training."""
    activation_checkpointing: bool = False
    """Keep the inputs of the layers only and compute the rest twice."""
    lora_rank: int = 16
    """Of the adapters, for LoRA and QLoRA."""
    hardware: Literal["gpu", "cpu"] = "gpu"
    """Where it is to be trained."""
    hardware_memory: float | None = None
    """Its memory in GB; what fits into it is suggested."""
    tflops: float | None = None
    """Speed of its matrix products in TFLOP/s; that of this machine, measured, if left out."""
    text_tokens: int = TINY_SHAKESPEARE_TOKENS
    """Tokens of the training text; Tiny Shakespeare's characters if left out."""
    epochs: float = 10
    """Passes over it."""
    json: bool = False
    """Print one JSON object."""

    def __post_init__(self) -> None:
        shape = ("n_layers", "d_model", "n_heads", "mlp_hidden_size", "vocab_size", "sequence_length")
        check_positive(self, *shape, "batch_size", "accumulate", "lora_rank", "text_tokens", "epochs")
        check_positive(self, "hardware_memory", "tflops")

    @property
    def name(self) -> str:
        return self.network if self.checkpoint is None else self.checkpoint

    def network_config(self) -> NetworkConfig:
        """The network that is meant, for sequences of the given length.

        Raises:
            UserError: a shape that cannot be built, or a checkpoint that is not there.
        """
        if self.checkpoint is not None:
            return with_length(read_published_config(self.checkpoint), self.sequence_length)
        return self.make_config(self.n_layers, self.d_model, self.n_heads, self.mlp_hidden_size)

    def make_config(self, layers: int, width: int, heads: int, hidden: int | None = None) -> NetworkConfig:
        """A network of another shape, otherwise as the options say."""
        default_dropout = FOUNDING_DROPOUT if self.network == "encoder" else 0.0
        dropout = default_dropout if self.dropout is None else self.dropout
        options = NetworkOptions(self.network, width, heads, layers, hidden, dropout=dropout)
        return options.build_config(CharacterRows(self.vocab_size, self.vocab_size - 1), self.sequence_length)

    def setting(self) -> TrainingSetting:
        return TrainingSetting(
            batch_size=self.batch_size,
            length=self.sequence_length,
            accumulates=self.accumulate > 1,
            optimizer=self.optimizer,
            ema=self.ema,
            bf16=self.precision == "bf16",
            activation_checkpointing=self.activation_checkpointing,
            on_cpu=self.hardware == "cpu",
            logits_at_once=LOGITS_AT_ONCE,
        )


def make_report(options: SizeOptions) -> dict[str, Any]:
    """All numbers: bytes, FLOPs, seconds.

    Raises:
        UserError: the options describe no network.
    """
    config, setting = options.network_config(), options.setting()
    checkpointed = replace(setting, activation_checkpointing=True)
    alone = replace(checkpointed, batch_size=1, optimizer="adamw", bf16=True, lora_rank=options.lora_rank)
    parts = count_parameters(config)
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
        "work": _work(options, config),
    }
    if options.hardware_memory is not None:
        report["fits"] = _fits(options, config, setting, options.hardware_memory)
    return report


def _work(options: SizeOptions, config: NetworkConfig) -> dict[str, Any]:
    sequences = math.ceil(options.text_tokens / options.sequence_length)
    in_a_step = options.batch_size * options.accumulate
    steps = max(1, math.ceil(options.epochs * sequences / in_a_step))
    tokens = steps * in_a_step * options.sequence_length
    on_cpu = options.hardware == "cpu"
    if options.tflops is None:  # then the time is this machine's, whatever memory was asked for
        device = choose_device("auto")
        on_cpu = device.type == "cpu"
        dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
        speed = matmul_flops_per_second(device, dtype)
    else:
        speed = options.tflops * 1e12
    per_token = training_flops_per_token(config, options.sequence_length)
    return {
        "training_flops_per_token": per_token,
        "of_which_attention": attention_flops_per_token(config, options.sequence_length),
        "sampling_flops_per_token": per_token // 3,
        "steps": steps,
        "tokens": tokens,
        "training_flops": tokens * per_token,
        "flops_per_second": speed,
        "flops_per_second_measured": options.tflops is None,
        "seconds": training_seconds(
            config,
            options.sequence_length,
            tokens,
            flops_per_second=speed,
            activation_checkpointing=options.activation_checkpointing,
            on_cpu=on_cpu,
        ),
    }


def _fits(options: SizeOptions, config: NetworkConfig, setting: TrainingSetting, gigabytes: float) -> dict[str, Any]:
    limit = USABLE_SHARE * gigabytes * 1e9
    total = training_memory(config, setting).total
    rungs = []
    if options.checkpoint is None:  # whose vocabulary and kind of network the ladder does not have
        rungs = largest_networks(
            lambda layers, width: options.make_config(layers, width, width // HEAD_WIDTH), setting, limit
        )
    ways = (
        []
        if total <= limit
        else ways_to_fit(config, setting, limit, options.accumulate, is_fine_tuning=options.checkpoint is not None)
    )
    return {
        "for_tensors": limit,
        "total": total,
        "fits": total <= limit,
        "ways_to_fit": [{"flags": list(way.flags), "total": way.memory} for way in ways],
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
