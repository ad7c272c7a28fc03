"""Ranges of numbers for options, declared with the type: `steps: Annotated[int, Range(at_least=1)] = 100`.

One loop checks the fields of a dataclass when it is made, from Python, from the command line and from a stored
config.json alike.
"""

import math
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, cast, get_type_hints

from llada.system.errors import UserError
from llada.system.literals import LARGEST, LARGEST_FLOAT, check_literals


@dataclass(frozen=True)
class Range:
    """A range of numbers for a field; None, where the field's type allows it, is always in the range."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None

    def complaint(self, value: float) -> str | None:
        """Say what a finite number must be that is out of the range; None for one that is in it."""
        if self.at_least is not None and value < self.at_least:
            return f"at least {_written(self.at_least)}"
        if self.above is not None and value <= self.above:
            return f"more than {_written(self.above)}"
        if self.at_most is not None and value > self.at_most:
            return f"at most {_written(self.at_most)}"
        return None


ANY = Range()
AT_LEAST_0, AT_LEAST_1, ABOVE_0 = Range(at_least=0), Range(at_least=1), Range(above=0)
SHARE = Range(at_least=0, at_most=1)
LARGEST_SEED = 2**63 - 1
"""Largest seed that torch takes."""
SEED = Range(at_least=0, at_most=LARGEST_SEED)


class Checked:
    """A dataclass that refuses values that its types do not list and numbers out of their ranges."""

    def __post_init__(self) -> None:
        check_literals(self)
        check_ranges(self)


def check_ranges(options: Any) -> None:
    """Refuse a dataclass with a number that is non-finite, out of its field's range, or beyond all reason.

    Raises:
        UserError: there is such a number; the message names its field.
    """
    ranges = _ranges(cast(Any, type(options)))
    for field in fields(options):
        value = getattr(options, field.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        allowed = ranges.get(field.name, ANY)
        if isinstance(value, int) and abs(value) > max(
            LARGEST, allowed.at_most or 0
        ):  # it may be too large for a float
            raise UserError(
                f"`{field.name}` must be a number of at most {LARGEST:.0e}, not that many digits: choose another."
            )
        if not math.isfinite(value):
            raise UserError(f"`{field.name}` must be a finite number, not {value}: correct it.")
        complaint = allowed.complaint(value)
        if complaint is None and abs(value) > LARGEST_FLOAT:
            complaint = f"a number of at most {LARGEST_FLOAT:.0e}"
        if complaint is not None:
            raise UserError(f"`{field.name}` must be {complaint}, not {_written(value)}: correct it.")


@cache
def _ranges(kind: Any) -> dict[str, Range]:
    """Collect the ranges that the fields of a dataclass declare."""
    declared = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        for extra in getattr(hint, "__metadata__", ()):
            if isinstance(extra, Range):
                declared[name] = extra
    return declared


def _written(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
