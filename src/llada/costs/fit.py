"""What fits into a memory: the largest batch, the longest sequence, the changes that make a training fit.

Shape letters: B batch, L length, D width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

from llada.costs.activations import TrainingSetting
from llada.costs.memory import least_memory, training_memory
from llada.models.config_json import NetworkConfig
from llada.optim.adamw import MOMENT_BYTES

LENGTH_STEP = 64  # suggested lengths are multiples of it
LARGEST_BATCH = 1024
Options = Mapping[str, Any]
"""Names of options of a training, as in its configuration, and their values."""
# How a checkpoint is trained with less memory: what is asked for, and what that means.
METHODS: tuple[tuple[Options, Options], ...] = (
    ({"weights": "bf16", "optimizer_state": "8bit"}, {"bf16_weights": True, "moment_bytes": MOMENT_BYTES["8bit"]}),
    ({"method": "lora"}, {"method": "lora"}),
    ({"method": "qlora"}, {"method": "qlora"}),
)
METHODS_SHARED_OUT: tuple[tuple[Options, Options], ...] = (
    ({"weights": "bf16"}, {"bf16_weights": True}),
    ({"method": "lora"}, {"method": "lora"}),
)
# (layers, width) of networks that people train, from this package's preset by way of the GPT-2 family to LLaDA-8B's.
LADDER = (
    (4, 128), (4, 256), (6, 384), (8, 512), (12, 768), (24, 768), (24, 1024), (32, 1024), (36, 1280), (48, 1536),
    (24, 2048), (32, 2560), (32, 3072), (32, 4096),
)  # fmt: skip


@dataclass(frozen=True)
class Way:
    """A training, and how to ask for it."""

    config: NetworkConfig
    setting: TrainingSetting
    sequences: int
    """Number of sequences in a step, which batches and processes may share."""
    sharing: int = 1
    """Number of processes that share each step; the setting is that of one of them."""
    options: Options = field(default_factory=dict)
    """What was changed: the options that ask for it, in the order in which they were."""

    @property
    def memory(self) -> int:
        """Bytes at the peak of a training step."""
        return needed(self.config, self.setting)

    def changed(self, options: Options, **values: Any) -> Self:
        """Return the training with other values of the setting."""
        return replace(self, setting=replace(self.setting, **values), options={**self.options, **options})

    def with_batch_of(self, size: int) -> Self:
        """The same step, cut into batches of this size, as many for each process."""
        pieces = self.sequences // size
        options = {"batch_size": size, **({"accumulate": pieces} if pieces > 1 else {})}
        return self.changed(options, batch_size=size, accumulates=pieces > self.sharing)


class Rung(NamedTuple):
    """A network of the ladder, trained as large as the memory allows."""

    config: NetworkConfig
    setting: TrainingSetting
    memory: int


def with_length(config: NetworkConfig, length: int) -> NetworkConfig:
    """The same network for sequences of this length; learned positions take a row each."""
    return replace(config, max_sequence_length=length)


def needed(config: NetworkConfig, setting: TrainingSetting) -> int:
    """Bytes at the peak of a training step."""
    return training_memory(with_length(config, setting.length), setting).total


def largest_batch(config: NetworkConfig, setting: TrainingSetting, limit: float) -> int:
    """The most sequences at once that fit, 0 if one is too many."""
    return _largest(LARGEST_BATCH, lambda n: needed(config, replace(setting, batch_size=n)) <= limit)


def longest_sequence(config: NetworkConfig, setting: TrainingSetting, limit: float) -> int:
    """The longest sequences, up to those of the setting, that fit with its batch; 0 if none do."""
    steps = setting.length // LENGTH_STEP
    return LENGTH_STEP * _largest(steps, lambda n: needed(config, replace(setting, length=n * LENGTH_STEP)) <= limit)


def ways_to_fit(
    config: NetworkConfig,
    setting: TrainingSetting,
    limit: float,
    sequences: int | None = None,
    is_fine_tuning: bool = False,
    sharing: int = 1,
    may_be_shared_out: bool = False,
) -> list[Way]:
    """Changes that make a training fit, each alone; where only shorter sequences do, the mildest combination first.

    The first ones leave its result as it is; the last ones train less of a checkpoint, or in less precision.

    Args:
        limit: bytes.
        sequences: number of sequences in a step, in all processes; those of the setting's batch if left out.
        is_fine_tuning: a checkpoint is trained further, whose dropout is what it is.
        sharing: number of processes that share a step.
        may_be_shared_out: they could share out the network as well, which they do not.
    """
    asked = Way(config, setting, sequences or setting.batch_size, sharing)
    thrifts = [_with_checkpointing, _in_bf16, *([] if is_fine_tuning else [_without_dropout])]
    shared_out, shorter = [_shared_out] if may_be_shared_out else [], _shorter_sequences(limit)
    alone = [change(asked) for change in (*shared_out, _smaller_batch(limit), *thrifts, shorter)]
    fitting = [way for way in alone if _differs(way, asked) and way.memory <= limit]
    if not any(way.setting.length == setting.length for way in fitting):
        fitting = _mildest_combination(asked, limit, [*shared_out, *thrifts, shorter]) + fitting
    return fitting + (_thriftier_methods(asked, limit, [*thrifts, shorter]) if is_fine_tuning else [])


def _thriftier_methods(asked: Way, limit: float, thrifts: Sequence[Callable[[Way], Way]]) -> list[Way]:
    """Other ways to train a checkpoint, each with what else it takes to fit; none, if all weights are not trained."""
    if asked.setting.method != "full":
        return []
    ways = []
    for options, values in METHODS if asked.setting.processes == 1 else METHODS_SHARED_OUT:
        way = asked.changed(options, **values)
        ways += [way] if way.memory <= limit else _mildest_combination(way, limit, thrifts)
    return ways


def _mildest_combination(way: Way, limit: float, thrifts: Sequence[Callable[[Way], Way]]) -> list[Way]:
    *thrifts, shorter = thrifts
    for change in thrifts:
        changed = change(way)
        way = changed if _differs(changed, way) else way
        smaller = _smaller_batch(limit)(way)
        if smaller.memory <= limit:
            return [smaller]
    last_resort = shorter(way.with_batch_of(1))
    return [last_resort] if last_resort.setting.length and last_resort.memory <= limit else []


def _differs(way: Way, other: Way) -> bool:
    return (way.config, way.setting) != (other.config, other.setting) and way.setting.length > 0


def _smaller_batch(limit: float) -> Callable[[Way], Way]:
    """The largest batch that fits and divides a process's sequences of the step; 1 if none does."""

    def change(way: Way) -> Way:
        sizes = [n for n in range(1, way.setting.batch_size + 1) if way.sequences // way.sharing % n == 0]
        fitting = [n for n in sizes if way.with_batch_of(n).memory <= limit]
        return way.with_batch_of(max(fitting, default=1))

    return change


def _shared_out(way: Way) -> Way:
    return way.changed({"parallel": "fsdp"}, processes=way.sharing)


def _with_checkpointing(way: Way) -> Way:
    return way.changed({"activation_checkpointing": True}, activation_checkpointing=True)


def _in_bf16(way: Way) -> Way:
    return way.changed({"precision": "bf16"}, bf16=True)


def _without_dropout(way: Way) -> Way:
    if not getattr(way.config, "dropout", 0):
        return way
    without: Any = {"dropout": 0}
    return replace(way, config=replace(way.config, **without), options={**way.options, **without})


def _shorter_sequences(limit: float) -> Callable[[Way], Way]:
    """The longest that fit, of length 0 if none do."""

    def change(way: Way) -> Way:
        length = longest_sequence(way.config, way.setting, limit)
        return way.changed({"sequence_length": length}, length=length)

    return change


def largest_networks(
    make_config: Callable[[int, int], NetworkConfig], setting: TrainingSetting, limit: float, n: int = 5
) -> list[Rung]:
    """The largest networks of the ladder that fit, the largest first.

    Each is given the setting's length with the largest batch that fits, with activation checkpointing where it would
    not fit otherwise, and, failing that, a batch of one with the longest sequences that fit.

    Args:
        make_config: from layers and width to a network.
        limit: bytes.
    """
    rungs = []
    for layers, width in reversed(LADDER):
        config = make_config(layers, width)
        rung = _fill(config, setting, limit)
        if rung:
            rungs.append(rung)
        if len(rungs) == n:
            break
    return rungs


def _fill(config: NetworkConfig, setting: TrainingSetting, limit: float) -> Rung | None:
    if least_memory(config, setting) > limit:  # which is known without a run of its layers
        return None
    for checkpointing in (setting.activation_checkpointing, True):
        tried = replace(setting, activation_checkpointing=checkpointing)
        batch = largest_batch(config, tried, limit)
        if batch:
            filled = replace(tried, batch_size=batch)
            return Rung(with_length(config, filled.length), filled, needed(config, filled))
    alone = replace(tried, batch_size=1)
    length = longest_sequence(config, alone, limit)
    if not length:
        return None
    filled = replace(alone, length=length)
    return Rung(with_length(config, length), filled, needed(config, filled))


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number from 1 to `most` that fits, 0 if none does, for a property that ends somewhere."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
