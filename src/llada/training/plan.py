"""What follows from a configuration and a text before anything is built: device, network, length of the run."""

import math
from dataclasses import dataclass

import torch

from llada.errors import UserError
from llada.hardware import Precision, choose_device, choose_precision
from llada.models import NetworkConfig
from llada.text.dataset import PreparedText, check_window
from llada.training.config import TrainConfig


@dataclass(frozen=True)
class RunPlan:
    """A run that could be started."""

    config: TrainConfig
    data: PreparedText
    device: torch.device
    precision: Precision
    network_config: NetworkConfig
    length: int
    """Tokens of a sequence."""
    total_steps: int | None
    """None if only the time limits the run."""

    @classmethod
    def of(cls, config: TrainConfig, data: PreparedText, network_config: NetworkConfig | None = None) -> "RunPlan":
        """The plan of a configuration on a text.

        Args:
            network_config: of the checkpoint that the run starts from; built from the configuration if there is none.

        Raises:
            UserError: the network cannot be built, is not made for sequences of this length, or the device is not
                there.
        """
        device = choose_device(config.device)
        length = config.data.sequence_length if config.data.windows == "random" else data.sequence_length
        if config.data.windows == "random":
            check_window(data, length)
        shortest = min(len(data.tokens("train")), len(data.tokens("val")))
        if length > shortest:
            raise UserError(
                f"Sequences of {length:,} are longer than the validation text of {len(data.tokens('val')):,} tokens: "
                f"add --windows random --sequence_length {shortest}, or use a longer text."
            )
        if network_config is None:
            network_config = config.network.build_config(data.tokenizer, length)
        elif length > network_config.max_sequence_length:
            raise UserError(
                f"Sequences of {length:,} are longer than the {network_config.max_sequence_length:,} tokens of the "
                f"checkpoint: add --windows random --sequence_length {network_config.max_sequence_length}."
            )
        return cls(
            config=config,
            data=data,
            device=device,
            precision=choose_precision(config.precision, device),
            network_config=network_config,
            length=length,
            total_steps=count_steps(config, data, length),
        )

    @property
    def tokens_per_step(self) -> int:
        return self.config.sequences_per_step * self.length


def count_steps(config: TrainConfig, data: PreparedText, length: int) -> int | None:
    """Steps of the whole run; None if only the time limits it. An epoch is as many tokens as the training text has."""
    if config.epochs is None:
        return config.steps
    if config.data.windows == "stored":
        sequences = len(data.rows["train"])
    else:
        sequences = math.ceil(len(data.tokens("train")) / length)
    return max(1, math.ceil(config.epochs * sequences / config.distinct_sequences))
