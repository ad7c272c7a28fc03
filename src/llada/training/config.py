"""The settings of a run, in one dataclass for each concern; the presets are values of them (presets.py).

The type of a field declares its range (system/ranges.py). `TrainConfig` lists the settings that exclude each other.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import dacite
from tyro.conf import arg

from llada.checkpoints.lora import LoraOptions
from llada.forward_process import MaskSchedule, TimeSampling, schedule_by_name, time_sampling_by_name
from llada.optim.optimizers import OptimizerOptions
from llada.system.device import DeviceName, PrecisionName
from llada.system.errors import UserError
from llada.system.files import read_json
from llada.system.ranges import ABOVE_0, AT_LEAST_0, AT_LEAST_1, LARGEST_SEED, SEED, SHARE, Checked, Range
from llada.system.toolchains import ToolchainName
from llada.training.data_options import DIALOGUE_FLAGS, DataOptions
from llada.training.network_options import NetworkName, NetworkOptions

__all__ = [
    "LARGEST_SEED",
    "DataOptions",
    "NetworkName",
    "NetworkOptions",
    "NoiseOptions",
    "OptimizerOptions",
    "TrainConfig",
]


@dataclass(frozen=True)
class NoiseOptions(Checked):
    """The noise of the forward process. A causal network has none: it learns every token from those before it."""

    masking: Literal["bernoulli", "exact_count"] = "exact_count"
    """How positions are masked: "bernoulli", each independently, as in LLaDA; "exact_count", the same expectation with
    less variance."""
    complementary: bool = False
    """Put every sequence into the batch twice, with complementary masks ("exact_count" only)."""
    weight_power: Annotated[float, AT_LEAST_0] = 0.5
    """Power in the loss weights 1 / p^weight_power; 1 gives the bound, LLaDA's loss, and less learns faster in a short
    run."""
    random_length: Annotated[float, SHARE] = 0.01
    """Fraction of the batches that are cut to a random length, as in LLaDA."""
    mask_schedule: str = "linear"
    """Fraction of tokens masked at time t: "linear" (LLaDA's), "cosine", or "polynomial:2", where 2 is the power."""
    time_sampling: str = "uniform"
    """Distribution of the times: "uniform", or "bell:0.5:0.25" with its centre and width, which the loss weights
    correct."""

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            self.schedule, self.times  # noqa: B018
        except ValueError as error:
            name, _, complaint = str(error).partition(" ")
            raise UserError(f"`{name}` {complaint}: choose another.") from error

    @property
    def schedule(self) -> MaskSchedule:
        return schedule_by_name(self.mask_schedule)

    @property
    def times(self) -> TimeSampling:
        return time_sampling_by_name(self.time_sampling)


@dataclass(frozen=True)
class TrainConfig(Checked):
    """All settings of a training run."""

    output_dir: Path = Path("runs/laptop")
    """Folder in which the run keeps its checkpoints, metrics and samples."""
    steps: Annotated[int | None, AT_LEAST_1] = 2200
    """Length of the run in steps, that is, updates of the weights; `epochs` takes its place."""
    epochs: Annotated[float | None, Range(above=0, at_most=10**9)] = None
    """Length of the run in passes over the training data."""
    minutes: Annotated[float | None, Range(above=0, at_most=10**9)] = None
    """Stop after this many minutes at the latest; the learning rate schedule is shortened to fit."""
    batch_size: Annotated[int, Range(at_least=1, at_most=10**6)] = 8
    """Number of sequences that go through the network together."""
    accumulate: Annotated[int, Range(at_least=1, at_most=10**6)] = 1
    """Number of batches whose gradients are added up for one step."""
    base: Annotated[str | None, arg(aliases=["--checkpoint", "--model-name"])] = None
    """Checkpoint to start from instead of random weights, with its network and its tokenizer: a folder, or a name on
    the Hugging Face hub."""
    method: Literal["full", "lora", "qlora"] = "full"
    """What is trained of a checkpoint. "full": all its weights. "lora": small matrices added to its frozen linear
    layers. "qlora": the same, with the frozen layers in 4 bits."""
    weights: Literal["fp32", "bf16"] = "fp32"
    """Type of the weights that "full" trains; "bf16" takes half the memory and uses stochastic rounding."""
    seed: Annotated[int, SEED] = 0
    """Seed of the initialization, the data order and the noise."""
    draws: Literal["by_row", "by_step"] = "by_row"
    """How the data order and the noise are drawn. "by_row": each sequence of the run by its own number, so that the
    processes that share a step draw their own part of it. "by_step": all of a step together, as earlier versions did;
    their runs go on with it."""
    evaluate_every: Annotated[int | None, AT_LEAST_1] = None
    """Number of steps between evaluations, each with a sample and a checkpoint; a tenth of the run if left out."""
    evaluation_windows: Annotated[int, AT_LEAST_1] = 128
    """Number of validation windows in each evaluation; `llada evaluate` uses all."""
    save_minutes: Annotated[float, ABOVE_0] = 10.0
    """Save a checkpoint at least this often, in minutes."""
    keep: Annotated[int, AT_LEAST_1] = 2
    """Number of the newest checkpoints to keep, in addition to the best one."""
    log: tuple[str, ...] = ()
    """Where to copy the lines of metrics.jsonl: "tensorboard", "wandb", or both, separated by a space."""
    log_every: Annotated[int | None, AT_LEAST_1] = None
    """Number of steps between lines of metrics.jsonl; a hundredth of the run, 10 at most, if left out."""
    device: DeviceName = "auto"
    """Device that computes; "auto" is the GPU if there is one, and the CPU if not."""
    precision: PrecisionName = "auto"
    """Type that matmuls run in; "auto" is bf16 if the hardware has it, and fp32 if not."""
    activation_checkpointing: bool = False
    """Store only the inputs of the layers and compute the other activations twice: a third slower, with a fraction of
    the memory."""
    compile: bool | None = None
    """Compile the layers with torch.compile. If left out: on a GPU, and on a CPU with bf16 matmuls if the run is long
    enough for it to pay (docs/EXPERIMENTS.md)."""
    toolchain: ToolchainName | None = None
    """How to compile; if left out, the first way whose code is right on this machine (`llada doctor`). The run stores
    the way that it used, "none" if none was right."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """What several processes keep. "ddp": all weights, each of them. "fsdp": each a part of every matrix, with its
    gradients and the optimizer's state, by FSDP2. "auto": "ddp" if that fits the memory."""
    timeout_minutes: Annotated[float, Range(above=0, at_most=10**6)] = 30.0
    """Minutes that one of several processes waits for the others before the run ends and names those that hang."""
    force: bool = False
    """Start even if the estimate says that the memory is not enough."""
    data: DataOptions = field(default_factory=DataOptions)
    network: NetworkOptions = field(default_factory=NetworkOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    noise: NoiseOptions = field(default_factory=NoiseOptions)
    lora: LoraOptions = field(default_factory=LoraOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        for is_broken, sentence in (
            *self._conflicts(),
            *self._conflicts_of_fine_tuning(),
            *self._conflicts_of_precision(),
        ):
            if is_broken:
                raise UserError(sentence)

    def _conflicts(self) -> Iterator[tuple[bool, str]]:
        """Yield each combination of options that is refused: whether it is there, and what to do about it."""
        n_sequences, is_complementary = self.batch_size * self.accumulate, self.noise.complementary
        yield (
            self.epochs is not None and self.steps is not None,
            "`epochs` and `steps` both say how long the run is: give one of them.",
        )
        yield (
            is_complementary and self.network.network == "causal",
            "A causal network learns without masks: leave out `complementary`.",
        )
        for name in ("mask_schedule", "time_sampling"):
            is_given = getattr(self.noise, name) != getattr(NoiseOptions, name)
            yield (
                is_given and self.network.network == "causal",
                f"A causal network learns without masks: leave out `{name}`.",
            )
        yield (
            is_complementary and self.noise.masking == "bernoulli",
            'Complementary masks need `masking="exact_count"`: add it, or `complementary=False`.',
        )
        yield (
            is_complementary and n_sequences % 2 == 1,
            f"Complementary masks need an even number of sequences, not {n_sequences}: change `batch_size`, or add "
            "`complementary=False`.",
        )
        yield (
            self.base is not None and self.network != NetworkOptions(),
            "The network is that of the checkpoint: use `llada finetune`, or leave out `preset`, `network`, `d_model` "
            "and the like.",
        )
        yield (
            len(self.data.data_dir) > 1 and self.draws == "by_step",
            'Several folders are mixed row by row: leave out `draws="by_step"`, or name a single `data_dir`.',
        )
        yield (
            self.epochs is None and self.steps is None and self.minutes is None,
            "A run needs an end: give `epochs`, `steps` or `minutes`.",
        )

    def _conflicts_of_fine_tuning(self) -> Iterator[tuple[bool, str]]:
        """Yield the refused combinations that concern fine-tuning and dialogues."""
        has_dialogues = self.data.chat is not None
        yield (
            self.method != "full" and self.base is None,
            f'`method="{self.method}"` adds to a checkpoint: name it by `base`.',
        )
        yield (
            self.method == "full" and self.lora != LoraOptions(),
            '`lora_rank` and the like are for adapters: add `method="lora"` or qlora.',
        )
        yield (
            self.parallel == "fsdp" and self.method == "qlora",
            'Weights in 4 bits cannot be shared out: leave out `parallel="fsdp"`, or use `method="lora"`.',
        )
        yield (
            has_dialogues and len(self.data.data_dir) > 1,
            "Dialogues are not mixed with texts: leave out `chat`, or `data_dir`.",
        )
        for name in DIALOGUE_FLAGS:
            is_given = getattr(self.data, name) != getattr(DataOptions, name)
            yield is_given and not has_dialogues, f"`{name}` is for dialogues: add `chat=FILE`."
        yield (
            has_dialogues and self.data.within_documents,
            "A dialogue is a sequence of its own: leave out `within_documents`.",
        )
        yield (
            has_dialogues and bool(self.compile),
            "Dialogues have another length at every step, so nothing can be compiled: leave out `compile`.",
        )
        yield (
            has_dialogues and self.noise.weight_power != 1,
            "Answers are learned by LLaDA's own loss: add `weight_power=1`, or use `llada finetune`.",
        )

    def _conflicts_of_precision(self) -> Iterator[tuple[bool, str]]:
        """Yield the refused combinations that concern the types of weights and moments."""
        optimizer, is_bf16 = self.optimizer, self.weights == "bf16"
        yield (
            optimizer.optimizer_state == "8bit" and optimizer.optimizer == "muon",
            "Moments in 8 bits are AdamW's: add `optimizer=adamw`.",
        )
        yield (
            optimizer.optimizer_state == "8bit" and self.parallel == "fsdp" and self.method == "full",
            'Moments in 8 bits cannot be shared out: leave out `parallel="fsdp"`, or `optimizer_state="8bit"`.',
        )
        yield (
            bool(self.compile) and self.parallel == "fsdp",
            'Layers that are shared out are not compiled: leave out `compile`, or `parallel="fsdp"`.',
        )
        yield (
            is_bf16 and self.method != "full",
            f'`method="{self.method}"` keeps the checkpoint in bf16 anyway: leave out `weights`.',
        )
        yield (
            is_bf16 and optimizer.optimizer == "muon",
            'Weights in bf16 are for AdamW, which rounds their updates stochastically: add `optimizer="adamw"`.',
        )
        yield (
            is_bf16 and optimizer.ema > 0,
            'A moving average of weights needs them in fp32: add `ema=0`, or leave out `weights="bf16"`.',
        )

    @property
    def sequences_per_step(self) -> int:
        """Number of sequences that one update of the weights learns from."""
        return self.batch_size * self.accumulate

    @property
    def distinct_sequences(self) -> int:
        """Number of these sequences that are not the complement of another one."""
        return self.sequences_per_step // (2 if self.noise.complementary else 1)

    def to_json(self) -> dict[str, Any]:
        """Return the content of the run's config.json."""
        content: dict[str, Any] = _plain(dataclasses.asdict(self))
        return {**content, "data": DataOptions.as_written(content["data"])}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "TrainConfig":
        """Return the configuration that `to_json` wrote.

        Raises:
            UserError: a key is unknown, or a value has another type.
        """
        content = {"draws": "by_step", **content}  # what runs have that were written before the choice
        if isinstance(content.get("data"), dict):
            content["data"] = DataOptions.of_then(content["data"])
        try:
            return dacite.from_dict(cls, content, dacite.Config(strict=True, cast=[Path, tuple]))
        except (dacite.DaciteError, TypeError, ValueError, OverflowError) as error:  # a path of null, a number too long
            raise UserError(f"The configuration cannot be used ({error}): correct that key.") from error

    @classmethod
    def read(cls, path: Path) -> "TrainConfig":
        """Return the configuration in a file, which `to_json` wrote and people may have changed.

        Raises:
            UserError: it cannot be used; the message names the file.
        """
        content = read_json(path)
        try:
            return cls.from_json(content)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
