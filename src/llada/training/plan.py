"""What follows from a configuration and a text before anything is built: device, network, length of the run."""

import math
from dataclasses import dataclass, replace

import torch

from llada.costs.flops import training_flops_per_token
from llada.data.batches import check_window
from llada.data.mixture import Mixture, texts_of
from llada.data.prepared import PreparedText
from llada.data.sft import Answers
from llada.evaluation.distributed import ALONE, Shard
from llada.models import NetworkConfig, is_causal
from llada.optim.schedule import learning_rate_factor
from llada.system.device import Precision, choose_device, choose_precision
from llada.system.errors import UserError
from llada.system.toolchains import has_compiler
from llada.training.config import TrainConfig
from llada.training.share import Share

# On a CPU: a run as long as it takes to compile, several times over.
COMPILING_PAYS_MINUTES = 2.0
COMPILING_PAYS_FLOPS = 2e13
EVALUATIONS, LINES = 10, 100  # in a run, about, unless set
LARGEST_LOG_EVERY = 10
UNKNOWN_STEPS = 2000  # a run that only the time limits evaluates and logs like one of so many


@dataclass(frozen=True)
class RunPlan:
    """A run that could be started."""

    config: TrainConfig
    data: PreparedText | Mixture | Answers
    device: torch.device
    precision: Precision
    network_config: NetworkConfig
    length: int
    """Tokens of a sequence."""
    total_steps: int | None
    """Number of steps of the run; None if only the time limits it."""
    rank: int = 0
    """Number of this process, from 0."""
    processes: int = 1
    """Number of processes that share each step."""
    processes_here: int = 1
    """Number of these that are on this machine."""
    is_sharded: bool = False
    """Whether each process keeps a part of every matrix only."""
    keeps_gradients_whole: bool = False
    """Whether the gradients of what is shared out are sent once a step, and accumulated as wholes until then."""

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        data: PreparedText | Mixture | Answers,
        network_config: NetworkConfig | None = None,
        shard: Shard = ALONE,
        processes_here: int = 1,
    ) -> "RunPlan":
        """The plan of a configuration on a text, a mixture of texts, or dialogues.

        Args:
            network_config: of the checkpoint that the run starts from; built from the configuration if there is none.
            shard: which process of how many this is.
            processes_here: how many of them are on this machine.

        Raises:
            UserError: the network cannot be built, is not made for sequences of this length, the device is not
                there, or the processes cannot share a step equally.
        """
        Share.of(config.batch_size, config.accumulate, shard.rank, shard.processes)
        device = shard.device(choose_device(config.device))
        _check_device(device, config)
        length = data.sequence_length if isinstance(data, Answers) else _window_length(config, data)
        if network_config is None:
            network_config = config.network.build_config(data.tokenizer, length)
        elif length > network_config.max_sequence_length:
            shorter = '`windows="random"` `sequence_length' if not isinstance(data, Answers) else "`chat_length"
            raise UserError(
                f"Sequences of {length:,} are longer than the {network_config.max_sequence_length:,} tokens of the "
                f"checkpoint: add {shorter}={network_config.max_sequence_length}`."
            )
        if is_causal(network_config) and isinstance(data, Answers):
            raise UserError("A causal network learns no dialogues here: choose another `network`, or leave out `chat`.")
        return cls(
            config=config,
            data=data,
            device=device,
            precision=choose_precision(config.precision, device),
            network_config=network_config,
            length=length,
            total_steps=count_steps(config, data, length),
            rank=shard.rank,
            processes=shard.processes,
            processes_here=processes_here,
            is_sharded=config.parallel == "fsdp" and shard.processes > 1,
        )

    @property
    def share(self) -> Share:
        """The rows of a step that this process computes."""
        return Share.of(self.config.batch_size, self.config.accumulate, self.rank, self.processes)

    def after(self, step: int, samples: int) -> "RunPlan":
        """The plan of a run that goes on after so many steps, and samples of another number a step than now.

        A length in epochs is one in samples, so that those that were not seen are still learned, and none twice.
        """
        config = self.config
        if config.epochs is None or samples == step * config.distinct_sequences:
            return self
        left = config.epochs * _sequences(config, self.data, self.length) - samples
        return replace(self, total_steps=step + max(0, math.ceil(left / config.distinct_sequences)))

    def fraction_done(self, step: int, seconds: float) -> float:
        """The part of the run that is done after so many steps and so much time, by steps or by time, whichever is
        further."""
        shares = [0.0]
        if self.total_steps is not None:
            shares.append(step / self.total_steps)
        if self.config.minutes is not None:
            shares.append(seconds / (60 * self.config.minutes))
        return min(1.0, max(shares))

    def learning_rate_factor(self, step: int, seconds: float) -> float:
        """The learning rate of a step, as a part of its peak."""
        options = self.config.optimizer
        return learning_rate_factor(
            options.schedule,
            progress=self.fraction_done(step, seconds),
            step=step,
            warmup_steps=options.warmup_steps,
            decay=options.decay,
            final=options.final_rate,
        )

    @property
    def tokens_per_step(self) -> int:
        """Greatest number of tokens in a step; dialogues differ in length."""
        return self.config.sequences_per_step * self.length

    @property
    def evaluate_every(self) -> int:
        """Steps between evaluations: as set, or a tenth of the run."""
        return self.config.evaluate_every or max(1, math.ceil((self.total_steps or UNKNOWN_STEPS) / EVALUATIONS))

    @property
    def log_every(self) -> int:
        """Steps between lines of metrics.jsonl: as set, or so that even a short run has many."""
        steps = self.total_steps or UNKNOWN_STEPS
        return self.config.log_every or min(LARGEST_LOG_EVERY, max(1, steps // LINES))

    @property
    def should_compile(self) -> bool:
        """Whether to compile the network: as set, or where it pays. Never on Apple's GPUs, where nobody has tried.

        Adapters break it in pieces, and dialogues have another length at every step.
        """
        config = self.config
        if self.device.type == "mps" or self.is_sharded:
            return False
        if config.compile is not None:
            return config.compile
        if config.method != "full" or isinstance(self.data, Answers) or not has_compiler(self.device):
            return False
        if self.device.type == "cuda":
            return True
        if self.total_steps is None:
            is_long = config.minutes is not None and config.minutes >= COMPILING_PAYS_MINUTES
        else:
            tokens = self.total_steps * self.tokens_per_step
            is_long = tokens * training_flops_per_token(self.network_config, self.length) >= COMPILING_PAYS_FLOPS
        return is_long and self.precision.dtype == torch.bfloat16  # element-wise work outweighs matmuls only there

    @property
    def epochs(self) -> float | None:
        """Length of the run in passes over the data; None if only the time limits it."""
        if self.total_steps is None:
            return None
        sequences = self.total_steps * self.config.distinct_sequences
        if isinstance(self.data, Answers):
            return sequences / _sequences(self.config, self.data, self.length)
        # The last sequence of a text may be shorter.
        return sequences * self.length / sum(len(text.tokens("train")) for text in texts_of(self.data))


def _check_device(device: torch.device, config: TrainConfig) -> None:
    """Refuse on Apple's GPUs what needs kernels that are written for NVIDIA's and for CPUs.

    Raises:
        UserError: it is asked for.
    """
    if device.type != "mps":
        return
    for option, is_given in {
        "`compile`": bool(config.compile),
        '`method="qlora"`': config.method == "qlora",
        '`optimizer_state="8bit"`': config.optimizer.optimizer_state == "8bit",
    }.items():
        if is_given:
            raise UserError(f"{option} is not for Apple's GPUs: leave it out, or add `device=cpu`.")


def _window_length(config: TrainConfig, data: PreparedText | Mixture) -> int:
    """Return the length of the sequences of a text or a mixture.

    Raises:
        UserError: a text has not so many tokens, or those of a mixture have stored sequences of different lengths.
    """
    if isinstance(data, PreparedText):
        return _window_length_of(config, data)
    lengths = [_window_length_of(config, text) for text in data.texts]
    for folder, length in zip(data.folders, lengths, strict=True):
        if length != lengths[0]:
            raise UserError(
                f"The stored sequences of {data.folders[0]} have {lengths[0]:,} tokens and those of {folder} "
                f'{length:,}: prepare both with one `sequence_length`, or add `windows="random"`.'
            )
    return lengths[0]


def _window_length_of(config: TrainConfig, data: PreparedText) -> int:
    length = config.data.sequence_length if config.data.windows == "random" else data.sequence_length
    if config.data.windows == "random":
        check_window(data, length)
    shortest = min(len(data.tokens("train")), len(data.tokens("val")))
    if length > shortest:
        remedy = f'add `windows="random"` `sequence_length={shortest}`'
        if data.metadata.get("packing") == "documents":  # which random windows do not keep apart
            remedy = f"prepare it with `sequence_length={shortest}` or less"
        raise UserError(
            f"Sequences of {length:,} are longer than the validation text of {len(data.tokens('val')):,} tokens in "
            f"{data.folder}: {remedy}, or use a longer text."
        )
    return length


def count_steps(config: TrainConfig, data: PreparedText | Mixture | Answers, length: int) -> int | None:
    """Steps of the whole run; None if only the time limits it.

    An epoch is each answer once, or as many tokens as the training text has, or all texts of a mixture have together.
    """
    if config.epochs is None:
        return config.steps
    return max(1, math.ceil(config.epochs * _sequences(config, data, length) / config.distinct_sequences))


def _sequences(config: TrainConfig, data: PreparedText | Mixture | Answers, length: int) -> int:
    """Return the number of sequences in an epoch."""
    if isinstance(data, Answers):
        return len(data.pairs["train"])
    return sum(sequences_in(config, text, length) for text in texts_of(data))


def sequences_in(config: TrainConfig, text: PreparedText, length: int) -> int:
    """Return the number of sequences in an epoch of a text."""
    if config.data.windows == "stored":
        return len(text.rows["train"])
    return math.ceil(len(text.tokens("train")) / length)
