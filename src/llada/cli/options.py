"""From a dataclass to flags: `--data_dir` and `--data-dir` alike, help from the docstrings of its fields."""

import contextlib
import io
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import tyro

from llada.errors import UserError

if TYPE_CHECKING:  # both import torch, which `llada doctor` must do without
    from llada.models import MaskPredictor
    from llada.sampler import SamplerConfig

Options = TypeVar("Options")


def parse(
    options: type[Options], program: str, arguments: Sequence[str], description: str, default: Options | None = None
) -> Options:
    """The options of a command line; prints help and exits where that is asked for.

    Args:
        options: a dataclass; the fields of dataclasses within it become flags without prefix.
        default: the values of what the line leaves out.

    Raises:
        UserError: a flag that is unknown, lacks its value, or has one of another type.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
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
        raise UserError(f"{_first_sentence(complaint.getvalue())} (`{program} --help` lists the options).") from None


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
    from llada.sampler import SamplerConfig

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
