"""How a canvas is filled: the options of the sampler, which every command that writes has, and their defaults.

One set of defaults for each purpose:

- `SamplerConfig()`: LLaDA's own, for Python.
- `FREE_TEXT`: text as the model has learned it, of which samples are drawn.
- `ANSWER`: the likeliest answer to a message, block after block.
- `BENCHMARK`: the likeliest text, all at once, for tasks with a right answer.
"""

import math
from dataclasses import dataclass
from typing import Literal

from llada.forward_process import schedule_by_name
from llada.system.literals import check_literals

Remasking = Literal["low_confidence", "random"]


@dataclass(frozen=True)
class SamplerConfig:
    """Decides how masked places are filled; the names are LLaDA's public ones."""

    steps: int | None = 128
    """Predictions in all, at least one a block; None is one for each token to fill. Fewer are faster and worse."""
    block_length: int | None = None
    """Fill windows of this length from left to right, which share the steps evenly; None is one window."""
    temperature: float = 0.0
    """Of the tokens; 0 takes the likeliest, 1 samples from the model."""
    cfg_scale: float = 0.0
    """Strength of classifier-free guidance by what is given, which doubles the cost; 0 is none."""
    remasking: Remasking = "low_confidence"
    """Which predictions stay at each step: the most confident (the others are masked again), or random ones."""
    mask_schedule: str = "linear"
    """How many tokens a step fills: "linear", equally many; "cosine", few at first; "polynomial:2", many at first."""

    def __post_init__(self) -> None:
        check_literals(self)
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")
        if self.block_length is not None and self.block_length < 1:
            raise ValueError(f"block_length must be at least 1, not {self.block_length}")
        schedule_by_name(self.mask_schedule)
        for name in ("temperature", "cfg_scale"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number from 0 up, not {getattr(self, name):g}")


FREE_TEXT = SamplerConfig(steps=None, temperature=1.0, remasking="random")
ANSWER = SamplerConfig(steps=None, block_length=32)
BENCHMARK = SamplerConfig(steps=None)
