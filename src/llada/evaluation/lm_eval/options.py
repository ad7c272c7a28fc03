"""Options and requests of lm-evaluation-harness for our models."""

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

import dacite

from llada.checkpoints.folder import DtypeName
from llada.sampling.config import BENCHMARK, SamplerConfig
from llada.system.device import PrecisionName
from llada.system.errors import UserError
from llada.system.literals import check_literals

LENGTH_SETTINGS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
SAMPLER_KEYS = tuple(field.name for field in fields(SamplerConfig))
USED_SETTINGS = ("until", "do_sample", "temperature", *LENGTH_SETTINGS)


@dataclass(frozen=True)
class HarnessOptions:
    """Options that `model_args` may set, and with it `batch_size` and `device`."""

    checkpoint: str
    """A run folder (for its best checkpoint), a checkpoint or adapter folder, or a name on the hub."""
    mc_num: int = 128
    """Draws for the likelihood of an answer; answers with no more different masks than that are evaluated exactly."""
    check_greedy: bool = True
    """Check whether greedy decoding writes an answer; if off, tasks that ask get False."""
    masks_per_window: int = 8
    """Draws for each window of a text."""
    gen_length: int | None = None
    """Tokens to write; None takes what the task says."""
    sampler: SamplerConfig = BENCHMARK
    """Sampler that writes text; each of its options is a key of its own. Its cfg_scale guides likelihoods, too, and its
    temperature is for tasks that do not ask for one (`do_sample`)."""
    seed: int = 0
    """Seed of masks and samples."""
    precision: PrecisionName = "auto"
    """Type of matmuls; "auto" is bf16 where the hardware has it."""
    batch_size: int = 1
    """Rows that go through the network together; the results do not depend on it."""
    device: str = "auto"
    dtype: DtypeName = "auto"
    """Type of the weights; "auto" is the stored type (bf16 for fp16), or fp32 with precision=fp32."""
    base: str | None = None
    """Folder or name of an adapter's base, if not where the adapter says."""

    def __post_init__(self) -> None:
        check_literals(self)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Read the options that the harness has parsed from its command line.

        Raises:
            UserError: a key is unknown, or a value cannot be used.
        """
        try:
            config = dacite.Config(strict=True, type_hooks={str: str, float: float, int: _whole_number})
            ours = {key: value for key, value in values.items() if key not in SAMPLER_KEYS}
            sampler = {**asdict(BENCHMARK), **{key: values[key] for key in SAMPLER_KEYS if key in values}}
            options = dacite.from_dict(cls, {**ours, "sampler": sampler}, config)
        except (dacite.DaciteError, ValueError) as error:
            names = ", ".join([*(field.name for field in fields(cls) if field.name != "sampler"), *SAMPLER_KEYS])
            raise UserError(f"`model_args` cannot be used ({error}): its keys are {names}.") from error
        for name in ("mc_num", "masks_per_window"):
            if (value := getattr(options, name)) < 2 or value % 2:
                raise UserError(
                    f"{name}={value} is not an even number from 2: draws come in pairs. An answer of one token takes a "
                    "single evaluation anyway."
                )
        if options.batch_size < 1 or (options.gen_length is not None and options.gen_length < 1):
            raise UserError("batch_size and gen_length must be at least 1: correct them.")
        return options

    def writing_config(self, gen_length: int, asked: Mapping[str, Any]) -> SamplerConfig:
        """Return the sampler's configuration for a request in the harness's names (`normalize_gen_kwargs`).

        A task that samples without a temperature means 1, as in the transformers library.

        Raises:
            UserError: the temperature cannot be used.
        """
        temperature = float(asked.get("temperature", 1.0)) if asked.get("do_sample") else self.sampler.temperature
        if asked.get("do_sample") and not 0 <= temperature < math.inf:
            raise UserError(
                f"The task asks for a temperature of {temperature:g}: correct its generation_kwargs to 0 or more."
            )
        steps = gen_length if self.sampler.steps is None else self.sampler.steps
        return replace(self.sampler, steps=steps, temperature=temperature)

    def to_json(self) -> dict[str, Any]:
        """Return the options by the keys of `model_args`."""
        content = asdict(self)
        return {**content.pop("sampler"), **content}


@dataclass(frozen=True)
class Writing:
    """A request for text."""

    prompt: tuple[int, ...]
    n_cut: int
    """Tokens at the beginning of the prompt that do not fit."""
    gen_length: int
    config: SamplerConfig
    until: tuple[str, ...]
    repeat: int
    """Number of earlier requests for the same text; each has its own noise."""

    @property
    def company(self) -> Hashable:
        """The key that requests share if they are written together; each has its own noise."""
        return len(self.prompt), self.gen_length, self.config


def _whole_number(value: Any) -> int:
    try:
        is_whole = not isinstance(value, bool) and float(value) == int(value)
    except (ValueError, TypeError, OverflowError):
        is_whole = False
    if not is_whole:
        raise ValueError(f"{value} is not a whole number")
    return int(value)


def unused_settings(requests: Iterable[Mapping[str, Any]]) -> list[str]:
    """List settings that requests ask for and our samplers lack, as "top_p = 0.95", each once."""
    asked = (
        f"{key} = {value!r}" for settings in requests for key, value in settings.items() if key not in USED_SETTINGS
    )
    return list(dict.fromkeys(asked))


def company_batches(writings: Sequence[Writing], batch_size: int) -> Iterator[list[int]]:
    """Group the requests that are written together, by their numbers."""
    groups: dict[Hashable, list[int]] = {}
    for i, writing in enumerate(writings):
        groups.setdefault(writing.company, []).append(i)
    for group in groups.values():
        yield from (group[first : first + batch_size] for first in range(0, len(group), batch_size))
