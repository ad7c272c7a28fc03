"""What a run can be told, in one dataclass a concern; the presets are values of them (presets.py).

A field's range stands in its type (system/ranges.py). What does not go together is listed in `TrainConfig`.
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
    """The forward process; a causal network has none, and learns every token from those before it."""

    masking: Literal["bernoulli", "exact_count"] = "exact_count"
    """"bernoulli" is LLaDA's own; "exact_count" has the same expectation and less variance."""
    complementary: bool = False
    """Train on every sequence twice in a batch, with complementary masks (exact_count only)."""
    weight_power: Annotated[float, AT_LEAST_0] = 0.5
    """Weights of the loss are 1 / p^weight_power: 1 is the bound, LLaDA's loss; less learns faster in a short run."""
    random_length: Annotated[float, SHARE] = 0.01
    """Share of batches that are cut to a random length, as LLaDA does."""
    mask_schedule: str = "linear"
    """Part that is masked at time t: "linear" (LLaDA's), "cosine" or "polynomial:2", with the power to take."""
    time_sampling: str = "uniform"
    """How often a time is drawn: "uniform", or "bell:0.5:0.25", around a time with a width; the loss weighs it back."""

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            self.schedule, self.times  # noqa: B018
        except ValueError as error:
            raise UserError(f"{error}: choose another.") from error

    @property
    def schedule(self) -> MaskSchedule:
        return schedule_by_name(self.mask_schedule)

    @property
    def times(self) -> TimeSampling:
        return time_sampling_by_name(self.time_sampling)


@dataclass(frozen=True)
class TrainConfig(Checked):
    """A training run."""

    network: NetworkOptions = field(default_factory=NetworkOptions)
    data: DataOptions = field(default_factory=DataOptions)
    noise: NoiseOptions = field(default_factory=NoiseOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    base: Annotated[str | None, arg(aliases=["--checkpoint", "--model-name"])] = None
    """Checkpoint to start from instead of random weights, with its network and its tokenizer: a folder, or a name on
    the Hugging Face hub."""
    method: Literal["full", "lora", "qlora"] = "full"
    """What is trained of a checkpoint: "full", all its weights; "lora", small matrices beside those of its layers;
    "qlora", these beside layers in 4 bits."""
    lora: LoraOptions = field(default_factory=LoraOptions)
    weights: Literal["fp32", "bf16"] = "fp32"
    """Of the weights that "full" trains: "bf16" takes half the memory, and rounds each update at random."""
    output_dir: Path = Path("runs/laptop")
    """The run folder."""
    batch_size: Annotated[int, Range(at_least=1, at_most=10**6)] = 8
    """Sequences that go through the network together."""
    accumulate: Annotated[int, Range(at_least=1, at_most=10**6)] = 1
    """Batches whose gradients make one step."""
    epochs: Annotated[float | None, Range(above=0, at_most=10**9)] = None
    """Length of the run in passes over the training text."""
    steps: Annotated[int | None, AT_LEAST_1] = 2200
    """Length of the run in steps; `epochs` takes its place."""
    minutes: Annotated[float | None, Range(above=0, at_most=10**9)] = None
    """Stop after this time at the latest, with the schedule shortened to fit."""
    log: tuple[str, ...] = ()
    """Where the lines of metrics.jsonl go besides: "tensorboard", "wandb", or both, one after the other."""
    log_every: Annotated[int | None, AT_LEAST_1] = None
    """Steps between lines of metrics.jsonl; if left out, a hundredth of the run, 10 at most."""
    evaluate_every: Annotated[int | None, AT_LEAST_1] = None
    """Steps between evaluations, each with a sample and a checkpoint; if left out, a tenth of the run."""
    save_minutes: Annotated[float, ABOVE_0] = 10.0
    """Minutes between checkpoints, at most."""
    keep: Annotated[int, AT_LEAST_1] = 2
    """Newest checkpoints that stay, beside the best one."""
    evaluation_windows: Annotated[int, AT_LEAST_1] = 128
    """Validation windows of such an evaluation; `llada evaluate` takes all."""
    seed: Annotated[int, SEED] = 0
    """Fixes initialisation, data order and noise."""
    device: DeviceName = "auto"
    """"auto" is the GPU where there is one."""
    precision: PrecisionName = "auto"
    """Of matrix products; "auto" is bf16 where the hardware has it."""
    activation_checkpointing: bool = False
    """Keep the inputs of the layers only and compute the rest twice: a third slower, a fraction of the memory."""
    compile: bool | None = None
    """torch.compile the layers; if left out, on a GPU, and on a CPU that multiplies bf16 if the run is long enough for
    it to pay (docs/EXPERIMENTS.md)."""
    toolchain: ToolchainName | None = None
    """How it is compiled; if left out, in the first way whose code is right on this machine (`llada doctor`). What was
    used is kept with the run: "none" if nothing was right."""
    force: bool = False
    """Start even if the memory does not suffice by the estimate."""

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
        """Options that do not go together, each with what to do about it."""
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
            self.epochs is None and self.steps is None and self.minutes is None,
            "A run needs an end: give `epochs`, `steps` or `minutes`.",
        )

    def _conflicts_of_fine_tuning(self) -> Iterator[tuple[bool, str]]:
        """Those of what is trained of a checkpoint, and of dialogues."""
        has_dialogues = self.data.chat is not None
        yield (
            self.method != "full" and self.base is None,
            f'`method="{self.method}"` adds to a checkpoint: name it by `base`.',
        )
        yield (
            self.method == "full" and self.lora != LoraOptions(),
            '`lora_rank` and the like are for adapters: add `method="lora"` or qlora.',
        )
        for name in DIALOGUE_FLAGS:
            is_given = getattr(self.data, name) != getattr(DataOptions, name)
            yield is_given and not has_dialogues, f"`{name}` is for dialogues: add `chat=FILE`."
        yield (
            has_dialogues and bool(self.compile),
            "Dialogues have another length at every step, so nothing can be compiled: leave out `compile`.",
        )
        yield (
            has_dialogues and self.noise.weight_power != 1,
            "Answers are learned by LLaDA's own loss: add `weight_power=1`, or use `llada finetune`.",
        )

    def _conflicts_of_precision(self) -> Iterator[tuple[bool, str]]:
        """Those of the types in which weights and moments are kept."""
        optimizer, is_bf16 = self.optimizer, self.weights == "bf16"
        yield (
            optimizer.optimizer_state == "8bit" and optimizer.optimizer == "muon",
            "Moments in 8 bits are AdamW's: add `optimizer=adamw`.",
        )
        yield (
            is_bf16 and self.method != "full",
            f'`method="{self.method}"` keeps the checkpoint in bf16 anyway: leave out `weights`.',
        )
        yield (
            is_bf16 and optimizer.optimizer == "muon",
            'Weights in bf16 are for AdamW, which rounds their updates at random: add `optimizer="adamw"`.',
        )
        yield (
            is_bf16 and optimizer.ema > 0,
            'A moving average of weights needs them in fp32: add `ema=0`, or leave out `weights="bf16"`.',
        )

    @property
    def sequences_per_step(self) -> int:
        """That one update of the weights learns from."""
        return self.batch_size * self.accumulate

    @property
    def distinct_sequences(self) -> int:
        """Of those, how many are not the complement of another."""
        return self.sequences_per_step // (2 if self.noise.complementary else 1)

    def to_json(self) -> dict[str, Any]:
        """The content of the run's config.json."""
        content: dict[str, Any] = _plain(dataclasses.asdict(self))
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "TrainConfig":
        """The configuration that `to_json` wrote.

        Raises:
            UserError: a key that is unknown, or a value of another type.
        """
        content = dict(content)
        if isinstance(content.get("data"), dict):
            content["data"] = DataOptions.of_then(content["data"])
        try:
            return dacite.from_dict(cls, content, dacite.Config(strict=True, cast=[Path, tuple]))
        except (dacite.DaciteError, TypeError, ValueError, OverflowError) as error:  # a path of null, a number too long
            raise UserError(f"The configuration cannot be used ({error}): correct that key.") from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value
