"""From a dataclass to flags: `--data_dir` and `--data-dir` alike, help from the docstrings of its fields."""

import contextlib
import dataclasses
import difflib
import io
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import tyro

from llada.system.errors import UserError, shortened
from llada.system.literals import LARGEST, LARGEST_FLOAT

if TYPE_CHECKING:  # both import torch, which `llada doctor` must do without
    from llada.models import MaskPredictor
    from llada.sampling.unmask import SamplerConfig

Options = TypeVar("Options")

RANGES = {
    "seed": (0, 2**63 - 1),  # torch's
    "chat_split_seed": (0, 2**63 - 1),
    "n_samples": (1, 10_000),  # they go through the network together
    "samples": (1, 10_000),
    "frames": (0, 10_000),
    "batch_size": (1, 10**6),
    "shard_gb": (0, 10**9),
}
"""Of the options that have a narrower one, in whichever command they are."""


def parse(
    options: type[Options],
    program: str,
    arguments: Sequence[str],
    description: str,
    default: Options | None = None,
    further: Sequence[str] = (),
) -> Options:
    """The options of a command line; prints help and exits where that is asked for.

    Args:
        options: a dataclass; the fields of dataclasses within it become flags without prefix.
        default: the values of what the line leaves out.
        further: names that a misspelled one may have meant besides, of options that were read before.

    Raises:
        UserError: a flag that is unknown, lacks its value, or has one of another type or out of range.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed = tyro.cli(
                options,
                prog=program,
                args=list(arguments),
                description=description,
                default=tyro.MISSING_NONPROP if default is None else default,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as exit_:
        if not exit_.code:
            raise
        sentence = _first_sentence(complaint.getvalue())
        near = _nearest(sentence, [*_names(options), *further])
        meant = f": did you mean {near}?" if near else ""
        raise UserError(f"{sentence}{meant} (`{program} --help` lists the options).") from None
    check_ranges(parsed)
    return parsed


def check_ranges(options: Any) -> None:
    """Refuse numbers that are out of range in a dataclass or in those within it.

    Raises:
        UserError: one is.
    """
    for option in dataclasses.fields(options):
        name, value = option.name, getattr(options, option.name)
        if dataclasses.is_dataclass(value):
            check_ranges(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            greatest = LARGEST if isinstance(value, int) else LARGEST_FLOAT
            least, most = RANGES.get(name, (-greatest, greatest))
            if not least <= value <= most:
                allowed = f"from {least} to {most}" if name in RANGES else f"a number of at most {greatest:.0e}"
                raise UserError(f"--{name} must be {allowed}, not {shortened(str(value), 30)}: choose another.")


def _nearest(sentence: str, names: Sequence[str]) -> str | None:
    """The option that an unknown one is most like."""
    unknown = re.match(r"Unrecognized options: --([\w-]+)", sentence)
    if unknown is None:
        return None
    near = difflib.get_close_matches(unknown[1].replace("-", "_"), names, n=1)
    return f"--{near[0]}" if near else None


def _names(options: type) -> list[str]:
    """Of all options of a dataclass and of those within it."""
    names = []
    for option in dataclasses.fields(options):
        inner = option.default_factory if isinstance(option.default_factory, type) else None
        names += _names(inner) if inner is not None and dataclasses.is_dataclass(inner) else [option.name]
    return names


def _first_sentence(box: str) -> str:
    """What the parser's box says above its first rule, on one line and in plain words."""
    lines: list[str] = []
    for line in box.splitlines()[1:]:  # below the title, which has a rule of its own where the box is drawn in ASCII
        content = line.strip("│| \t")
        is_rule = content.startswith(("───", "---"))
        if is_rule and lines:
            break
        if not is_rule:
            lines.append(content)
    text = " ".join(lines).rstrip(". ") or "The options cannot be read"
    text = re.sub(r"invalid literal for int\(\) with base 10: (.+)", r"\1 is not a whole number", text)
    text = re.sub(r"could not convert string to float: (.+)", r"\1 is not a number", text)
    return text[0].upper() + text[1:]


def make_sampler_config(options: Any, steps: int, model: "MaskPredictor") -> "SamplerConfig":
    """The sampler that the flags of a command that writes ask for.

    Raises:
        UserError: they do not work together.
    """
    from llada.models import block_length_of
    from llada.sampling.unmask import SamplerConfig

    try:
        return SamplerConfig(
            steps=steps,
            block_length=block_length_of(model, options.block_length),
            temperature=options.temperature,
            cfg_scale=options.cfg_scale,
            remasking=options.remasking,
        )
    except ValueError as error:
        raise UserError(f"These options do not work: {error}.") from error


def check_positive(options: Any, *names: str) -> None:
    """Refuse options that are not more than 0; None is none."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name} must be a number above 0, not {value:g}: correct it.")
