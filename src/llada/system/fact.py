"""One fact about the machine or the installation, with its verdict and, where needed, a remedy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["fine", "note", "problem"]


@dataclass(frozen=True)
class Fact:
    """A line of `llada doctor`."""

    key: str
    level: Level
    """"problem": the demo will not run; "note": it runs, but slower or with less than it could."""
    summary: str
    advice: str = ""
    """A sentence with the problem and its remedy; empty if there is no problem."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """The values behind the summary for programs, under names that do not change."""
