"""One thing about the machine or the installation, with its verdict and, where needed, a remedy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["fine", "note", "problem"]


@dataclass(frozen=True)
class Fact:
    """One line of `llada doctor`."""

    key: str
    level: Level
    """"problem": the demo will not run; "note": it runs, but slower or with less than it could."""
    summary: str
    advice: str = ""
    """One sentence with what is wrong and its remedy; empty where nothing is."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """The same for programs, under names that stay."""
