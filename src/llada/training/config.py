"""What a run can be told, in one dataclass a concern, and the presets, which are values of them."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import dacite
from tyro.conf import arg

from llada.checkpoints.lora import LoraOptions
from llada.data.dialogues import Reading, SplitDialogues, SplitRule, split_dialogues
from llada.data.prepared import DEFAULT_FOLDER
from llada.forward_process import MaskSchedule, TimeSampling, schedule_by_name, time_sampling_by_name
from llada.models import EncoderConfig, LLaDAConfig, LocalConfig, NetworkConfig
from llada.optim.adamw import StateName
from llada.optim.muon import ScheduleName
from llada.system.device import DeviceName, PrecisionName
from llada.system.errors import UserError
from llada.system.literals import LARGEST, Checked, check_literals
from llada.system.toolchains import ToolchainName
from llada.tokenizers.base import Rows

NetworkName = Literal["llada", "local", "encoder", "causal"]
LARGEST_SEED = 2**63 - 1  # torch's
DIALOGUE_FLAGS = ("chat_val", "chat_length", "chat_split", "chat_last_answer", "chat_keys", "skip_bad")


@dataclass(frozen=True)
class NetworkOptions(Checked):
    """The network to build."""

    network: NetworkName = "llada"
    """"llada": RMSNorm, rotary positions, SwiGLU, stored as an official LLaDA checkpoint. "local": tables of pairs of
    neighbours and convolutions, little attention; for characters. "encoder": learned positions, LayerNorm, GELU,
    dropout. "causal": the encoder, seeing only what is before a token; an autoregressive model, for comparison."""
    d_model: int = 128
    """Width."""
    n_heads: int = 2
    """Attention heads."""
    n_layers: int = 4
    """Transformer layers."""
    mlp_hidden_size: int | None = None
    """Width of the feed-forward layers of "llada", by default 8/3 of d_model, rounded up to a multiple of 32, and of
    "local", by default 4 of d_model."""
    rope_theta: float = 10_000.0
    """Base of the rotary wavelengths of "llada" and "local"."""
    conv_width: int = 9
    """Tokens that a convolution of "local" covers, an odd number."""
    table_rows: int = 16_384
    """Rows that a table of pairs in "local" has at most; 1 is as good as none."""
    attention_every: int = 5
    """In "local", layers from one that attends to the next; the others have a convolution only."""
    dropout: float = 0.0
    """Of "encoder" and "causal" only; masking regularises already."""

    def _of_local(self) -> tuple[int, int, int]:
        """What only that network has."""
        return self.conv_width, self.table_rows, self.attention_every

    def build_config(self, rows: Rows, max_sequence_length: int) -> NetworkConfig:
        """The configuration of this network for a vocabulary.

        Raises:
            UserError: a shape that cannot be built, or dropout for a network that has none.
        """
        try:
            if self.network in ("encoder", "causal"):
                return EncoderConfig(
                    vocab_size=rows.vocab_size,
                    mask_token_id=rows.mask_row,
                    max_sequence_length=max_sequence_length,
                    d_model=self.d_model,
                    n_heads=self.n_heads,
                    n_layers=self.n_layers,
                    dropout=self.dropout,
                    is_causal=self.network == "causal",
                )
            if self.dropout:
                raise ValueError(
                    f'the {self.network} network has no dropout: leave `dropout` out or choose `network="encoder"`'
                )
            if self.network != "local" and self._of_local() != NetworkOptions()._of_local():
                raise ValueError(
                    "`conv_width`, `table_rows` and `attention_every` are of the local network: leave them out or add "
                    '`network="local"`'
                )
            if self.network == "local":
                return LocalConfig(
                    vocab_size=rows.vocab_size,
                    mask_token_id=rows.mask_row,
                    pad_token_id=rows.pad_id,
                    eos_token_id=rows.eos_id,
                    max_sequence_length=max_sequence_length,
                    d_model=self.d_model,
                    n_heads=self.n_heads,
                    n_layers=self.n_layers,
                    mlp_hidden_size=4 * self.d_model if self.mlp_hidden_size is None else self.mlp_hidden_size,
                    conv_width=self.conv_width,
                    table_rows=self.table_rows,
                    attention_every=self.attention_every,
                    rope_theta=self.rope_theta,
                )
            default_width = -(-self.d_model * 8 // 3 // 32) * 32
            return LLaDAConfig(
                vocab_size=rows.vocab_size,
                mask_token_id=rows.mask_row,
                pad_token_id=rows.pad_id,
                eos_token_id=rows.eos_id,
                d_model=self.d_model,
                n_heads=self.n_heads,
                n_layers=self.n_layers,
                mlp_hidden_size=default_width if self.mlp_hidden_size is None else self.mlp_hidden_size,
                max_sequence_length=max_sequence_length,
                rope_theta=self.rope_theta,
            )
        except ValueError as error:
            raise UserError(f"This network cannot be built: {error}.") from error


@dataclass(frozen=True)
class DataOptions(Checked):
    """The text to learn, or the dialogues."""

    data_dir: Path = DEFAULT_FOLDER
    """Folder that `llada prepare` wrote."""
    windows: Literal["random", "stored"] = "random"
    """"random": windows at any offset of the text. "stored": the prepared sequences as they are."""
    sequence_length: int = 256
    """Length of a random window; stored sequences have their own."""
    chat: Path | None = None
    """File of dialogues, whose answers are learned, instead of a text: JSON objects, one a line, in an array or over
    several lines, or Parquet; each with "messages" ("conversations"), "prompt" and "completion" ("answer", "response"),
    or Alpaca's "instruction", "input" and "output"."""
    chat_val: Path | None = None
    """Dialogues to measure on; if left out, some of `chat` are kept for that."""
    chat_val_share: float = 0.1
    """How many of them."""
    chat_split: SplitRule = "shuffled"
    """Which of them: "shuffled", any, by `chat_split_seed`; "last", those at the end of the file."""
    chat_split_seed: int = 0
    """Fixes which dialogues are kept; `seed` does not change them."""
    chat_length: int | None = None
    """Longest dialogue in tokens, beyond which its oldest turns are left out; if left out, the checkpoint's own
    length."""
    chat_last_answer: bool = False
    """Learn only the last answer of each dialogue, with all before it as its prompt."""
    chat_keys: Literal["obey", "ignore"] = "obey"
    """"obey": what keys such as "weight" and "train" exclude is not learned, and dialogues of which only a part could
    be learned (calls of tools, pictures) are refused. "ignore": texts are learned as they stand, such keys counted."""
    skip_bad: bool = False
    """Count and leave out the dialogues that cannot be read or learned, instead of stopping at the first."""

    @classmethod
    def of_then(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        """What the config.json of a run says of its data, with the rules of its time where it does not name them.

        A run goes on with the dialogues that it has kept to measure on, so new rules are for new runs.
        """
        then = {"chat_split": "last", "chat_keys": "ignore"} if content.get("chat") is not None else {}
        return {**then, **content}

    def read_dialogues(self) -> SplitDialogues:
        """The dialogues to learn and those to measure on.

        Raises:
            UserError: a file is missing or broken, or there is none.
        """
        if self.chat is None:
            raise UserError("There are no dialogues to read: add `chat=FILE`.")
        reading = Reading(self.skip_bad, self.chat_last_answer, self.chat_keys)
        return split_dialogues(
            self.chat, self.chat_val, self.chat_val_share, self.chat_split, self.chat_split_seed, reading
        )


@dataclass(frozen=True)
class NoiseOptions(Checked):
    """The forward process; a causal network has none, and learns every token from those before it."""

    masking: Literal["bernoulli", "exact_count"] = "exact_count"
    """"bernoulli" is LLaDA's own; "exact_count" has the same expectation and less variance."""
    complementary: bool = False
    """Train on every sequence twice in a batch, with complementary masks (exact_count only)."""
    weight_power: float = 0.5
    """Weights of the loss are 1 / p^weight_power: 1 is the bound, LLaDA's loss; less learns faster in a short run."""
    random_length: float = 0.01
    """Share of batches that are cut to a random length, as LLaDA does."""
    mask_schedule: str = "linear"
    """Part that is masked at time t: "linear" (LLaDA's), "cosine" or "polynomial:2", with the power to take."""
    time_sampling: str = "uniform"
    """How often a time is drawn: "uniform", or "bell:0.5:0.25", around a time with a width; the loss weighs it back."""

    @property
    def schedule(self) -> MaskSchedule:
        return schedule_by_name(self.mask_schedule)

    @property
    def times(self) -> TimeSampling:
        return time_sampling_by_name(self.time_sampling)


@dataclass(frozen=True)
class OptimizerOptions(Checked):
    """The optimizer and its schedule."""

    optimizer: Literal["muon", "adamw"] = "muon"
    """"muon": Muon for the matrices inside the layers, AdamW for the rest. "adamw": AdamW for all."""
    optimizer_state: StateName = "fp32"
    """Of the moments of AdamW: "8bit" takes a quarter of the memory, and needs bitsandbytes."""
    learning_rate: float = 3e-3
    """Peak rate of AdamW."""
    muon_learning_rate: float = 0.02
    """Peak rate of Muon."""
    weight_decay: float = 0.0
    """Decoupled, on matrices."""
    beta2: float = 0.95
    """Of AdamW."""
    warmup_steps: int = 50
    """Steps over which the rate rises."""
    schedule: ScheduleName = "wsd"
    """"wsd": stable, then a linear fall over the last part. "cosine": half a cosine."""
    decay: float = 1.0
    """Share of the run over which "wsd" falls; 1 is a straight line from the peak."""
    final_rate: float = 0.0
    """Rate at the end, as a share of the peak."""
    clip: float = 1.0
    """Greatest norm of the gradient."""
    ema: float = 0.98
    """Decay of the moving average of the weights, which is what is saved and evaluated; 0 is none."""


@dataclass(frozen=True)
class TrainConfig:
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
    batch_size: int = 8
    """Sequences that go through the network together."""
    accumulate: int = 1
    """Batches whose gradients make one step."""
    epochs: float | None = None
    """Length of the run in passes over the training text."""
    steps: int | None = 2200
    """Length of the run in steps; `epochs` takes its place."""
    minutes: float | None = None
    """Stop after this time at the latest, with the schedule shortened to fit."""
    log_every: int | None = None
    """Steps between lines of metrics.jsonl; if left out, a hundredth of the run, 10 at most."""
    evaluate_every: int | None = None
    """Steps between evaluations, each with a sample and a checkpoint; if left out, a tenth of the run."""
    save_minutes: float = 10.0
    """Minutes between checkpoints, at most."""
    keep: int = 2
    """Newest checkpoints that stay, beside the best one."""
    evaluation_windows: int = 128
    """Validation windows of such an evaluation; `llada evaluate` takes all."""
    seed: int = 0
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
        check_literals(self)
        self._check_ranges()
        if self.epochs is not None and self.steps is not None:
            raise UserError("`epochs` and `steps` both say how long the run is: give one of them.")
        self._check_schedule()
        if self.noise.complementary and self.network.network == "causal":
            raise UserError("A causal network learns without masks: leave out `complementary`.")
        if self.noise.complementary and self.noise.masking == "bernoulli":
            raise UserError('Complementary masks need `masking="exact_count"`: add it, or `complementary=False`.')
        if self.noise.complementary and self.batch_size * self.accumulate % 2:
            raise UserError(
                f"Complementary masks need an even number of sequences, not {self.batch_size * self.accumulate}: "
                "change `batch_size`, or add `complementary=False`."
            )
        if self.base is not None and self.network != NetworkOptions():
            raise UserError(
                "The network is that of the checkpoint: use `llada finetune`, or leave out `preset`, `network`, "
                "`d_model` and the like."
            )
        if self.epochs is None and self.steps is None and self.minutes is None:
            raise UserError("A run needs an end: give `epochs`, `steps` or `minutes`.")
        self._check_fine_tuning()

    def _check_schedule(self) -> None:
        noise, default = self.noise, NoiseOptions()
        try:
            noise.schedule, noise.times  # noqa: B018
        except ValueError as error:
            raise UserError(f"{error}: choose another.") from error
        if self.network.network == "causal":
            for name in ("mask_schedule", "time_sampling"):
                if getattr(noise, name) != getattr(default, name):
                    raise UserError(f"A causal network learns without masks: leave out `{name}`.")

    def _check_fine_tuning(self) -> None:
        optimizer = self.optimizer
        if self.method != "full" and self.base is None:
            raise UserError(f'`method="{self.method}"` adds to a checkpoint: name it by `base`.')
        if self.method == "full" and self.lora != LoraOptions():
            raise UserError('`lora_rank` and the like are for adapters: add `method="lora"` or qlora.')
        if self.data.chat is None:
            for name in DIALOGUE_FLAGS:
                if getattr(self.data, name) != getattr(DataOptions, name):
                    raise UserError(f"`{name}` is for dialogues: add `chat=FILE`.")
        if self.data.chat is not None and self.compile:
            raise UserError(
                "Dialogues have another length at every step, so nothing can be compiled: leave out `compile`."
            )
        if self.data.chat is not None and self.noise.weight_power != 1:
            raise UserError("Answers are learned by LLaDA's own loss: add `weight_power=1`, or use `llada finetune`.")
        if optimizer.optimizer_state == "8bit" and optimizer.optimizer == "muon":
            raise UserError("Moments in 8 bits are AdamW's: add `optimizer=adamw`.")
        if self.weights == "bf16" and self.method != "full":
            raise UserError(f'`method="{self.method}"` keeps the checkpoint in bf16 anyway: leave out `weights`.')
        if self.weights == "bf16" and optimizer.optimizer == "muon":
            raise UserError(
                'Weights in bf16 are for AdamW, which rounds their updates at random: add `optimizer="adamw"`.'
            )
        if self.weights == "bf16" and optimizer.ema:
            raise UserError(
                'A moving average of weights needs them in fp32: add `ema=0`, or leave out `weights="bf16"`.'
            )

    def _check_ranges(self) -> None:
        optimizer, noise, data = self.optimizer, self.noise, self.data
        for name in ("batch_size", "accumulate", "log_every", "evaluate_every", "evaluation_windows", "keep", "steps"):
            _check_range(name, getattr(self, name), at_least=1)
        _check_range("sequence_length", data.sequence_length, at_least=1)
        for name in ("conv_width", "table_rows", "attention_every"):
            _check_range(name, getattr(self.network, name), at_least=1)
        for name in ("epochs", "minutes", "save_minutes"):
            _check_range(name, getattr(self, name), above=0)
        _check_range("chat_length", data.chat_length, at_least=1)
        _check_range("chat_val_share", data.chat_val_share, above=0, at_most=0.9)
        _check_range("chat_split_seed", data.chat_split_seed, at_least=0, at_most=LARGEST_SEED)
        _check_range("seed", self.seed, at_least=0, at_most=LARGEST_SEED)
        _check_range("weight_power", noise.weight_power, at_least=0)
        _check_range("rope_theta", self.network.rope_theta, above=0)
        _check_range("decay", optimizer.decay, above=0, at_most=1)
        _check_range("clip", optimizer.clip, above=0)
        for name in ("learning_rate", "muon_learning_rate", "weight_decay", "warmup_steps", "final_rate"):
            _check_range(name, getattr(optimizer, name), at_least=0)
        for name, share in (("ema", optimizer.ema), ("beta2", optimizer.beta2), ("random_length", noise.random_length)):
            _check_range(name, share, at_least=0, at_most=1)

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
            return dacite.from_dict(cls, content, dacite.Config(strict=True, cast=[Path]))
        except (dacite.DaciteError, TypeError, ValueError, OverflowError) as error:  # a path of null, a number too long
            raise UserError(f"The configuration cannot be used ({error}): correct that key.") from error


def _check_range(
    name: str,
    value: float | None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
) -> None:
    """Refuse a value outside of its range; None is none."""
    if value is None:
        return
    if isinstance(value, int) and abs(value) > LARGEST:  # it may be no float at all
        raise UserError(f"`{name}` must be a number of at most {LARGEST:.0e}, not that many digits: choose another.")
    if not math.isfinite(value):
        raise UserError(f"`{name}` must be a finite number, not {value}: correct it.")
    if at_least is not None and value < at_least:
        raise UserError(f"`{name}` must be at least {at_least:g}, not {value:g}: correct it.")
    if above is not None and value <= above:
        raise UserError(f"`{name}` must be more than {above:g}, not {value:g}: correct it.")
    if at_most is not None and value > at_most:
        raise UserError(f"`{name}` must be at most {at_most:g}, not {value:g}: correct it.")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value
