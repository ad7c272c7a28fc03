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
from llada.sampling.policies import PolicyName, PolicyOptions

Remasking = Literal["low_confidence", "random"]


@dataclass(frozen=True, kw_only=True)
class FillOptions:
    """How fast a canvas is filled, and how its tokens are drawn; LLaDA's public names where it has one."""

    steps: int | None = 128
    """Evaluations of the network, at least one a block; None is one for each token to fill. Fewer are faster and worse.
    A policy that decides how many tokens it reveals may need fewer."""
    temperature: float = 0.0
    """Temperature of the draws; 0 takes the likeliest, 1 samples from the model."""
    policy: PolicyName | None = None
    """Sampling policy, which chooses positions before tokens are drawn and has an exact likelihood; None is LLaDA's
    remasking."""
    remasking: Remasking = "low_confidence"
    """LLaDA's choice of the predictions that stay at each step: the most confident (the others are masked again), or
    random ones. The first has no exact likelihood, because it looks at the tokens that were drawn."""
    block_length: int | None = None
    """Fill windows of this length from left to right, which share the steps evenly; None is one window."""
    top_k: int | None = None
    """Draw from so many of the likeliest tokens only; None is all."""
    top_p: float | None = None
    """Draw from the fewest of the likeliest tokens that have this probability together; None is all."""
    repetition_penalty: float = 1.0
    """Raises the probabilities of tokens that the text already has to this power, which makes them rarer; 1 is none."""
    cfg_scale: float = 0.0
    """Strength of classifier-free guidance by what is given, which doubles the cost; 0 is none."""
    mask_schedule: str = "linear"
    """How many tokens a step fills: "linear", equally many; "cosine", few at first; "polynomial:2", many at first."""
    stable_entropy: float | None = None
    """Fill in all that is left of a window as soon as the likeliest tokens there have not changed for a step and their
    mean entropy is below this many nats (DiffusionGemma's is 0.005); None is never. Such a text has no exact
    likelihood."""
    remdm_eta: float = 0.0
    """Mask each written token again with at most this probability a step (ReMDM-cap), so that it can be written anew;
    more steps than tokens are then of use. Such a text has no exact likelihood; 0 is none."""
    p2_tokens: int = 0
    """Mask so many of the least likely written tokens again at each step (P2), so that they can be written anew; more
    steps than tokens are then of use. Such a text has no exact likelihood; 0 is none."""


@dataclass(frozen=True, kw_only=True)
class SamplerConfig(PolicyOptions, FillOptions):  # in this order the help shows first what is used most
    """Decides how masked places are filled; the names are LLaDA's public ones, and those of the policies."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")
        if self.block_length is not None and self.block_length < 1:
            raise ValueError(f"block_length must be at least 1, not {self.block_length}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be a probability above 0, not {self.top_p}")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty must be a number above 0, not {self.repetition_penalty:g}")
        if self.stable_entropy is not None and not 0 < self.stable_entropy < math.inf:
            raise ValueError(f"stable_entropy must be a number above 0, not {self.stable_entropy:g}")
        if not 0 <= self.remdm_eta <= 1:
            raise ValueError(f"remdm_eta must be a probability, from 0 to 1, not {self.remdm_eta:g}")
        if self.p2_tokens < 0:
            raise ValueError(f"p2_tokens must be at least 0, not {self.p2_tokens}")
        if sum(map(bool, (self.remdm_eta, self.p2_tokens, self.stable_entropy))) > 1:
            raise ValueError("remdm_eta, p2_tokens and stable_entropy exclude each other")
        schedule_by_name(self.mask_schedule)
        for name in ("temperature", "cfg_scale"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number from 0 up, not {getattr(self, name):g}")

    @property
    def remasks(self) -> bool:
        """Whether tokens that were written are masked again."""
        return self.remdm_eta > 0 or self.p2_tokens > 0


FREE_TEXT = SamplerConfig(steps=None, temperature=1.0, remasking="random")
ANSWER = SamplerConfig(steps=None, block_length=32)
BENCHMARK = SamplerConfig(steps=None)
