"""Parse a command line into a dataclass, whose fields are the flags and whose docstrings are their help."""

import contextlib
import dataclasses
import difflib
import math
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import tyro

from llada.cli.flags import in_flags
from llada.system.errors import UserError, first_line, shortened
from llada.system.literals import LARGEST, LARGEST_FLOAT

try:
    from tyro._errors import on_parse_error  # not public; if it is gone, tyro reports errors in its own words
except ImportError:

    def on_parse_error(hook: Any) -> Any:
        return contextlib.nullcontext()


if TYPE_CHECKING:
    # Both import torch, which `llada doctor` must do without.
    from llada.models import MaskPredictor
    from llada.sampling.config import SamplerConfig

Options = TypeVar("Options")

RANGES = {
    "seed": (0, 2**63 - 1),  # torch's
    "chat_split_seed": (0, 2**63 - 1),
    "n_samples": (1, 10_000),  # all go through the network together
    "samples": (1, 10_000),
    "frames": (0, 10_000),
    "speculate": (0, 10_000),
    "masks_per_window": (2, 4096),  # the most that are drawn for a target standard error
    "batch_size": (1, 10**6),
    "shard_gb": (0, 10**9),
}
"""Smallest and greatest value of the options that have a narrower range, in whichever command they are."""


def parse(
    options: type[Options],
    program: str,
    arguments: Sequence[str],
    description: str,
    default: Options | None = None,
    further: Sequence[str] = (),
    renamed: Mapping[str, str] | None = None,
) -> Options:
    """Parse the options of a command line, or print the help and exit if it is asked for.

    Args:
        options: a dataclass; the fields of dataclasses within it become flags without prefix.
        default: the values of the options that the command line leaves out.
        further: names of options that were read before, which a misspelled one may have meant as well.
        renamed: older names of options, which are still read, and their present names.

    Raises:
        UserError: a flag is unknown, lacks its value, or has one of another type or out of range.
    """
    names = [*_names(options), *further]
    if {"-h", "--help"} & set(arguments):
        _join_help_lines(options)

    def refuse(event: Any) -> None:
        sentence = _sentence_of(event, arguments, names)
        if sentence:
            raise UserError(f"{sentence} (`{program} --help` lists the options).")

    try:
        with on_parse_error(refuse):
            parsed = tyro.cli(
                options,
                prog=program,
                args=[_current(argument, renamed or {}) for argument in arguments],
                description=_wrapped(description),
                default=tyro.MISSING_NONPROP if default is None else default,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except UserError as error:  # also of a dataclass that checks itself
        raise UserError(in_flags(str(error))) from error
    check_ranges(parsed)
    return parsed


def check_ranges(options: Any) -> None:
    """Refuse numbers that are out of range in a dataclass or in those nested in it.

    Raises:
        UserError: a number is out of range.
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


def _current(argument: str, renamed: Mapping[str, str]) -> str:
    """Return an argument of the command line, with a flag's older name replaced by its present one."""
    flag, equals, value = argument.partition("=")
    name = flag.removeprefix("--").replace("-", "_")
    return f"--{renamed[name]}{equals}{value}" if flag.startswith("--") and name in renamed else argument


def _sentence_of(event: Any, arguments: Sequence[str], names: Sequence[str]) -> str | None:
    """Return what the parser refused and why, or None for an event that tyro itself reports.

    The event is read by attributes, because the kinds of events are not part of tyro's public interface.
    """
    unknown = getattr(event, "tokens", None) or getattr(event, "unrecognized_tokens", None)
    if unknown:
        near = difflib.get_close_matches(unknown[0].lstrip("-").replace("-", "_"), names, n=1)
        meant = f": did you mean --{near[0]}?" if near and unknown[0].startswith("--") else ""
        return f"Unrecognized options: {', '.join(unknown)}{meant}"
    given = given_values(arguments)
    missing = getattr(event, "missing_arguments", None)
    if missing:
        return f"{' and '.join(_flag(each.arg, given) for each in missing)} must be given"
    argument = getattr(event, "argument", None)
    if argument is None:
        return _with_flag(first_line(event.message), names) if hasattr(event, "message") else None
    flag = _flag(argument, given)
    if getattr(event, "reason", None) == "too_few_values":
        return f"{flag} needs a value"
    has_several = getattr(argument.lowered, "nargs", None) in ("*", "+")  # of which any may be the wrong one
    value = f", not {shortened(given[flag], 30)!r}" if flag in given and not has_several else ""
    choices = getattr(event, "choices", None)
    if choices:
        return f"{flag} must be one of {', '.join(sorted(choices))}{value}"
    kinds = {"INT": "a whole number", "FLOAT": "a number"}
    expected = next((words for kind, words in kinds.items() if kind in str(argument.lowered.metavar)), None)
    return f"{flag} must be {expected}{value}" if expected else f"{flag} cannot be used: {first_line(event.message)}"


def _with_flag(message: str, names: Sequence[str]) -> str:
    """Return a dataclass's complaint, which begins with the name of the refused field, with that name as a flag."""
    return f"--{message}" if message.split(" ")[0] in names else f"{message[:1].upper()}{message[1:]}"


def _flag(argument: Any, given: Mapping[str, str]) -> str:
    """Return the flag of an option: the one that was given, or its name."""
    names = [name.replace("-", "_").replace("__", "--", 1) for name in argument.lowered.name_or_flags]
    return next((name for name in names if name in given), names[-1])


def given_values(arguments: Sequence[str]) -> dict[str, str]:
    """Return the last value of each flag on a command line; for a flag without a value, it is the next argument."""
    found: dict[str, str] = {}
    for here, after in zip_longest(arguments, arguments[1:], fillvalue=""):
        name, sign, value = here.partition("=")
        if name.startswith("--"):
            found[f"--{name[2:].replace('-', '_')}"] = value if sign else after
    return found


def _nested(option: "dataclasses.Field[Any]") -> type | None:
    """Return the dataclass that a field holds, or None if it holds anything else."""
    inner = option.default_factory if isinstance(option.default_factory, type) else type(option.default)
    return inner if dataclasses.is_dataclass(inner) else None


def _paragraphs(text: str) -> list[str]:
    return re.split(r"\n\s*\n", text)


def _wrapped(description: str) -> str:
    """Return a description wrapped to the terminal; a paragraph with indented lines stays as it is.

    tyro does not wrap it, and joins lines that begin with a letter, so all are indented.
    """
    width = shutil.get_terminal_size().columns - 1
    paragraphs = (
        textwrap.indent(each, "  ")
        if "\n  " in each
        else textwrap.fill(each, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
        for each in _paragraphs(description)
    )
    return "\n\n".join(paragraphs)


def _join_help_lines(options: type) -> None:
    """Give each field's docstring to tyro as paragraphs without the line breaks of the source, which it would keep."""
    from docstring_parser import parse_from_object  # a dependency of tyro, which reads the docstrings with it

    found = {
        each.arg_name: each.description or ""
        for base in reversed(options.__mro__[:-1])
        for each in parse_from_object(base).params
    }
    for option in dataclasses.fields(options):
        inner = _nested(option)
        if inner is not None:
            _join_help_lines(inner)
        elif option.name in found:
            text = "\n\n".join(" ".join(paragraph.split()) for paragraph in _paragraphs(found[option.name]))
            option.metadata = MappingProxyType({**option.metadata, "help": text})


def _names(options: type) -> list[str]:
    """Return the names of all options of a dataclass and of those nested in it."""
    names = []
    for option in dataclasses.fields(options):
        inner = _nested(option)
        names += [option.name] if inner is None else _names(inner)
    return names


def sampler_for(model: "MaskPredictor", wanted: "SamplerConfig") -> "SamplerConfig":
    """Return the sampler that the flags of a command ask for, with the block length of this model.

    Raises:
        UserError: the options do not work together.
    """
    from llada.models import block_length_of

    try:
        return dataclasses.replace(wanted, block_length=block_length_of(model, wanted.block_length))
    except ValueError as error:
        raise UserError(f"These options do not work: {error}.") from error


def check_positive(options: Any, *names: str) -> None:
    """Refuse options that are not above 0; None means that an option was left out."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name} must be a number above 0, not {value:g}: correct it.")
