"""From a dataclass to flags: `--data_dir` and `--data-dir` alike, help from the docstrings of its fields."""

from collections.abc import Sequence
from typing import TypeVar

import tyro

Options = TypeVar("Options")


def parse(
    options: type[Options], command: str, arguments: Sequence[str], description: str, default: Options | None = None
) -> Options:
    """The options of a command line; prints help or a complaint and exits where that is what is needed.

    Args:
        options: a dataclass; the fields of dataclasses within it become flags without prefix.
        default: the values of what the line leaves out.
    """
    return tyro.cli(
        options,
        prog=f"llada {command}",
        args=list(arguments),
        description=description,
        default=tyro.MISSING_NONPROP if default is None else default,
        config=(tyro.conf.OmitArgPrefixes,),
    )
