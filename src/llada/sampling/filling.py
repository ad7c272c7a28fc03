"""Texts of one length and one configuration as rows of a batch: what is known of them, and a step of all.

`begin` makes a `Filling` of templates, and `advance_together` takes any number of fillings a step further by one
evaluation of the network. `unmask` is a loop over it; fills.py has single texts that come and go.

Shape letters: B batch, L length, S steps, N asked positions, V vocabulary rows.
"""

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from llada.models.predictor import PredictAt
from llada.sampling.config import SamplerConfig
from llada.sampling.draws import Generators
from llada.sampling.guidance import Predict, at_positions, guided_logits, penalized
from llada.sampling.plan import BUDGET, END, FIRST, NEXT, plans_of
from llada.sampling.policies import make_policy
from llada.sampling.remask import RemaskLeastLikely, remask
from llada.sampling.steps import (
    ChooseThenDraw,
    Chosen,
    DrawThenChoose,
    Situation,
    Step,
    UntilStable,
    draw_priority,
    policy_of,
)


@dataclass
class Filling:
    """Texts of one length and one configuration that are being filled in, each at its own step."""

    x_t: Tensor
    """(B, L) token ids, MASK where nothing is decided."""
    given: Tensor
    """(B, L) bool: what the template had."""
    plan: Tensor
    """(B, S + 1, 4) steps of each row (`plans_of`)."""
    at: Tensor
    """(B,) the step of the plan at which each row is."""
    priority: Tensor | None
    """(B, L) for the order "random"; None if no policy chooses."""
    likeliest: Tensor | None
    """(B, L) memory of `UntilStable`; None without it."""
    attention_mask: Tensor | None
    """(B, L) bool, False where a token is padding; None if there is none."""
    generator: Generators
    mask_id: int
    config: SamplerConfig
    end_ids: frozenset[int]
    """Tokens that end a text."""
    saved: Tensor
    """(B,) steps of the plan that the end of a row made needless."""

    def __post_init__(self) -> None:
        self.rows = torch.arange(len(self.at), device=self.at.device)
        self.places = torch.arange(self.x_t.shape[1], device=self.x_t.device)
        self.now = self.plan[self.rows, self.at]  # (B, 4)

    @property
    def step(self) -> Step:
        return make_step(self.config)

    def is_done(self) -> Tensor:
        """Whether a row has no step left, (B,) bool."""
        return self.now[:, NEXT] == self.at

    def situation(self) -> Situation:
        """What the next step may know; with ReMDM, what it masks again is drawn here."""
        in_window = (self.places >= self.now[:, FIRST, None]) & (self.places < self.now[:, END, None])
        is_open = (self.x_t == self.mask_id) & in_window
        n_now = self.now[:, BUDGET]
        situation = Situation(self.x_t, is_open, n_now, self.priority, self.generator, self.likeliest)
        if not self.config.remasks:
            return situation
        return remask(situation, in_window & ~self.given & ~is_open, self.config)

    def apply(self, chosen: Chosen, situation: Situation) -> None:
        """Put the tokens of a step in their places, and go on to the next step."""
        x_t = torch.where(chosen.revealed, self.x_t.masked_scatter(chosen.revealed, chosen.tokens), self.x_t)
        is_open = situation.is_open & ~chosen.revealed
        if chosen.remasked is not None:
            x_t, is_open = x_t.masked_fill(chosen.remasked, self.mask_id), is_open | chosen.remasked
        self.x_t, self.likeliest = x_t, chosen.likeliest
        # In its last step a window is left even if a token that was drawn is MASK itself.
        self.at = torch.where(is_open.any(1), self.at + 1, self.now[:, NEXT])
        self.now = self.plan[self.rows, self.at]
        if self.end_ids:
            last = self.plan[..., NEXT].amax(1)
            has_ended = self._has_ended()
            self.saved = torch.where(has_ended, self.saved + last - self.at, self.saved)
            self.at = torch.where(has_ended, last, self.at)
            self.now = self.plan[self.rows, self.at]

    def _has_ended(self) -> Tensor:
        """Whether a token that ends the text has been written, with nothing open before it, (B,) bool."""
        ends = torch.tensor(sorted(self.end_ids), device=self.x_t.device)
        is_decided_so_far = (self.x_t == self.mask_id).cumsum(1) == 0
        if self.config.remasks:  # until its window is left, what is written may be masked again
            is_decided_so_far &= self.places < self.now[:, FIRST, None]
        return (torch.isin(self.x_t, ends) & ~self.given & is_decided_so_far).any(1)


@functools.lru_cache(maxsize=64)
def make_step(config: SamplerConfig) -> Step:
    """Make the step that a configuration asks for."""
    name = policy_of(config)
    step = DrawThenChoose(config) if name is None else ChooseThenDraw(make_policy(name, config), config)
    if config.stable_entropy is not None:
        return UntilStable(step, config.stable_entropy)
    return RemaskLeastLikely(step) if config.p2_tokens else step


def begin(
    template: Tensor,
    mask_id: int,
    config: SamplerConfig,
    generator: Generators = None,
    attention_mask: Tensor | None = None,
    end_ids: Collection[int] = (),
) -> Filling:
    """Begin to fill templates (B, L); the arguments are those of `unmask`.

    Raises:
        ValueError: the generators are not one for each row.
    """
    if generator is not None and not isinstance(generator, Generator) and len(generator) != len(template):
        raise ValueError(f"{len(generator)} generators do not go with {len(template)} rows")
    is_masked, step = template == mask_id, make_step(config)
    return Filling(
        x_t=template,
        given=~is_masked,
        plan=plans_of(is_masked, config),
        at=torch.zeros(len(template), dtype=torch.long, device=template.device),
        priority=draw_priority(template, generator, attention_mask) if step.has_priority else None,
        likeliest=torch.full_like(template, -1) if config.stable_entropy is not None else None,
        attention_mask=attention_mask,
        generator=generator,
        mask_id=mask_id,
        config=config,
        end_ids=frozenset(end_ids),
        saved=torch.zeros(len(template), dtype=torch.long, device=template.device),
    )


def advance_together(predict: Predict | PredictAt, fillings: Sequence[Filling]) -> list[Chosen]:
    """Take all rows of several fillings of one padded length a step further; return what was chosen in each."""
    if not fillings:
        return []
    predict_at, now = at_positions(predict), [filling.situation() for filling in fillings]
    asked = [filling.step.asks(situation) for filling, situation in zip(fillings, now, strict=True)]
    masks = [filling.attention_mask for filling in fillings]
    logits = _ask(predict_at, [filling.x_t for filling in fillings], masks, asked)
    logits = _with_guidance(predict_at, logits, fillings, asked)
    decided = []
    for filling, situation, positions, mine in zip(fillings, now, asked, logits, strict=True):
        config = filling.config
        if config.repetition_penalty != 1:
            mine = penalized(
                mine, filling.x_t, positions, filling.mask_id, config.repetition_penalty, filling.attention_mask
            )
        chosen = filling.step.decide(mine, positions, situation)
        if situation.remasked is not None:
            chosen = chosen._replace(remasked=situation.remasked)
        filling.apply(chosen, situation)
        decided.append(chosen)
    return decided


def _with_guidance(
    predict_at: PredictAt, logits: list[Tensor], fillings: Sequence[Filling], asked: list[Tensor]
) -> list[Tensor]:
    """The logits, moved away from those without what is given where there is guidance; one more evaluation."""
    guided = [n for n, filling in enumerate(fillings) if filling.config.cfg_scale and bool(asked[n].any())]
    if not guided:
        return logits
    rows = [fillings[number].x_t.masked_fill(fillings[number].given, fillings[number].mask_id) for number in guided]
    masks = [fillings[number].attention_mask for number in guided]
    without = _ask(predict_at, rows, masks, [asked[number] for number in guided])
    moved = list(logits)
    for number, unconditional in zip(guided, without, strict=True):
        moved[number] = guided_logits(logits[number], unconditional, fillings[number].config.cfg_scale)
    return moved


def _ask(predict_at: PredictAt, rows: list[Tensor], masks: list[Tensor | None], asked: list[Tensor]) -> list[Tensor]:
    """The logits (N, V) of each part of a batch, by one evaluation."""
    if len(rows) == 1:
        return [predict_at(rows[0], attention_mask=masks[0], positions=asked[0])]
    known = [mask for mask in masks if mask is not None]
    positions = torch.cat(asked)
    logits = predict_at(torch.cat(rows), attention_mask=torch.cat(known) if known else None, positions=positions)
    return list(logits.split([int(part.sum()) for part in asked]))
