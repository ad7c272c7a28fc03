"""Texts that are filled in step by step, any number of them with one evaluation of the network.

A `Fill` is one text: its tokens, its plan of windows and budgets, its randomness. `start` makes one, and `advance`
takes any number of them, at different steps, of different lengths and settings, one step further. What becomes of a
text does not depend on the others: to the bit, if a row of the predictor does not.

    fill = start(template, mask_id, config, generator)
    while not fill.is_done:
        (step,) = advance(predict, [fill])

`sampling.unmask` is the same for texts that are alike, without a split into single ones (`Filling`).

Shape letters: B batch, L length, S steps, N asked positions, R revealed positions, V vocabulary rows.
"""

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from llada.models.predictor import PredictAt
from llada.sampling.config import SamplerConfig
from llada.sampling.draws import Generators
from llada.sampling.guidance import Predict, at_positions, guided_logits, penalized
from llada.sampling.plan import BUDGET, END, FIRST, NEXT, plans_of
from llada.sampling.policies import make_policy
from llada.sampling.predictions import Predictions
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


@dataclass(frozen=True)
class StepResult:
    """What one step did to a text."""

    positions: Tensor
    """(R,) positions that were revealed, in rising order."""
    tokens: Tensor
    """(R,) the tokens there."""
    log_p: Tensor
    """(R,) their log-probabilities as the model has them (with guidance and penalty, without temperature). Minus their
    sum over all steps is the text's exact likelihood in nats under a policy, if no step looks at the tokens."""
    asked: Tensor
    """(N,) positions at which there are predictions, in rising order."""
    predicted: Predictions
    """The predictions there."""
    remasked: Tensor
    """(M,) positions that were masked again."""

    @property
    def asked_log_p(self) -> Tensor:
        """The log-probabilities of all tokens at the asked positions, (N, V)."""
        return self.predicted.log_p

    def entropy(self) -> Tensor:
        """The entropies of the predictions in nats, (N,)."""
        return self.predicted.entropy

    def revealed_log_p(self) -> Tensor:
        """The predictions at the revealed positions, (R, V)."""
        return self.predicted.at(torch.searchsorted(self.asked, self.positions))

    def likeliest(self, k: int) -> tuple[Tensor, Tensor]:
        """The k likeliest tokens at the asked positions, (N, k), and their probabilities, (N, k)."""
        best = self.asked_log_p.topk(min(k, self.asked_log_p.shape[-1]), dim=-1)
        return best.indices, best.values.exp()


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


class Fill:
    """One text that is being filled in; made by `start`, taken further by `advance`."""

    def __init__(self, filling: Filling, generator: Generator) -> None:
        self.filling, self.generator = filling, generator
        self.n_steps = 0
        """Steps so far."""
        self._at = 0

    @property
    def ids(self) -> Tensor:
        """Token ids (L,), MASK where nothing is decided."""
        return self.filling.x_t[0]

    @property
    def given(self) -> Tensor:
        """What the template had, (L,) bool."""
        return self.filling.given[0]

    @property
    def config(self) -> SamplerConfig:
        return self.filling.config

    @property
    def mask_id(self) -> int:
        return self.filling.mask_id

    @property
    def limit(self) -> int:
        """The most steps that it may still need."""
        return self.filling.plan.shape[1] - 1 - self._at

    @property
    def is_done(self) -> bool:
        return self.limit == 0

    @property
    def n_open(self) -> int:
        """How many tokens are still masked."""
        return int((self.ids == self.mask_id).sum())

    @property
    def nfe(self) -> int:
        """Evaluations of the network so far: one a step, or two with guidance."""
        return self.n_steps * self._nfe_of_step

    @property
    def nfe_saved(self) -> int:
        """Evaluations that the end of the text made needless."""
        return int(self.filling.saved[0]) * self._nfe_of_step

    @property
    def _nfe_of_step(self) -> int:
        return 2 if self.config.cfg_scale else 1


def start(
    template: Tensor | Sequence[int],
    mask_id: int,
    config: SamplerConfig,
    generator: Generator,
    device: torch.device | str | None = None,
    end_ids: Collection[int] = (),
) -> Fill:
    """Begin to fill a template (L,), which has MASK where a token is to be filled in; the others are never rewritten.

    Args:
        generator: source of randomness, on the CPU.
        device: where the predictor expects its token ids; that of the template if None.
        end_ids: tokens that end the text: as soon as one is written and nothing is open before it, the text is done,
            and what is open behind it stays MASK. Where tokens are masked again, that is when its window is left.

    Raises:
        ValueError: the template has another number of dimensions.
    """
    ids = torch.as_tensor(template, dtype=torch.long, device=device)
    if ids.dim() != 1:
        raise ValueError(f"a template must have the shape (L,), not {tuple(ids.shape)}: start each text by itself")
    return Fill(begin(ids[None], mask_id, config, [generator], end_ids=end_ids), generator)


@torch.no_grad()
def advance(predict: Predict | PredictAt, fills: Sequence[Fill], pad_id: int = 0) -> list[StepResult]:
    """Take each text one step further, by one evaluation of the network for all; two if there is guidance among them.

    Texts may come and go between the calls. One that is done may stay: nothing is asked for it, and its row keeps the
    shape of the batch, as a predictor that remembers its last call needs it.

    Args:
        predict: one that knows padding (`attention_mask`), if the texts are not of one length.
        pad_id: the token on the right of shorter texts, hidden by the attention mask.

    Raises:
        ValueError: the texts have different MASKs, or the predictor knows no padding.
        UserError: the predictions are not finite numbers.
    """
    if len({fill.mask_id for fill in fills}) > 1:
        raise ValueError("texts with different MASKs cannot be filled together")
    if all(fill.is_done for fill in fills):
        return [_nothing(fill) for fill in fills]
    longest = max((len(fill.ids) for fill in fills), default=0)
    is_padded = any(len(fill.ids) < longest or fill.filling.attention_mask is not None for fill in fills)
    alike: dict[tuple[SamplerConfig, frozenset[int]], list[Fill]] = {}
    for fill in fills:
        alike.setdefault((fill.config, fill.filling.end_ids), []).append(fill)
    together = [_joined(group, longest, pad_id, is_padded) for group in alike.values()]
    results: dict[int, StepResult] = {}
    for group, filling, chosen in zip(alike.values(), together, advance_together(predict, together), strict=True):
        for fill, result in zip(group, _split(chosen), strict=True):
            results[id(fill)] = result
        _hand_back(group, filling)
    return [results[id(fill)] for fill in fills]


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


def _joined(fills: Sequence[Fill], length: int, pad_id: int, is_padded: bool) -> Filling:
    """Texts of one configuration as rows of that length, with padding on the right, where it moves no token."""
    parts = [fill.filling for fill in fills]
    first, n_steps = parts[0], max(part.plan.shape[1] for part in parts)

    def rows(tensors: Sequence[Tensor | None], value: int | bool = 0) -> Tensor:
        longer = [F.pad(one, (0, length - one.shape[1]), value=value) for one in tensors if one is not None]
        return torch.cat(longer)

    masks = [_all_true(part) if part.attention_mask is None else part.attention_mask for part in parts]
    return replace(
        first,
        x_t=rows([part.x_t for part in parts], pad_id),
        given=rows([part.given for part in parts], True),
        plan=torch.cat([F.pad(part.plan, (0, 0, 0, n_steps - part.plan.shape[1])) for part in parts]),
        at=torch.cat([part.at for part in parts]),
        saved=torch.cat([part.saved for part in parts]),
        priority=None if first.priority is None else rows([part.priority for part in parts]),
        likeliest=None if first.likeliest is None else rows([part.likeliest for part in parts], -1),
        attention_mask=rows(masks, False) if is_padded else None,
        generator=[fill.generator for fill in fills],
    )


def _all_true(part: Filling) -> Tensor:
    return torch.ones_like(part.given)


def _hand_back(fills: Sequence[Fill], together: Filling) -> None:
    """Give each text its row of what was filled together."""
    for row, (fill, at) in enumerate(zip(fills, together.at.tolist(), strict=True)):
        part = fill.filling
        if not fill.is_done:
            fill.n_steps += 1
        fill._at = at
        one, length = slice(row, row + 1), part.x_t.shape[1]
        fill.filling = replace(
            part,
            x_t=together.x_t[one, :length],
            at=together.at[one],
            saved=together.saved[one],
            likeliest=None if together.likeliest is None else together.likeliest[one, :length],
        )


def _nothing(fill: Fill) -> StepResult:
    none = fill.ids[:0]
    return StepResult(none, none, none.float(), none, Predictions(none.float()[:, None]), none)


def _split(chosen: Chosen) -> list[StepResult]:
    """What a step did to each row of a batch."""
    is_revealed = chosen.revealed[chosen.asked]
    log_p = chosen.predicted.at(is_revealed).gather(1, chosen.tokens[:, None])[:, 0]
    n_revealed, n_asked = chosen.revealed.sum(1).tolist(), chosen.asked.sum(1).tolist()
    remasked = torch.zeros_like(chosen.asked) if chosen.remasked is None else chosen.remasked
    return [
        StepResult(*parts)
        for parts in zip(
            chosen.revealed.nonzero()[:, 1].split(n_revealed),
            chosen.tokens.split(n_revealed),
            log_p.split(n_revealed),
            chosen.asked.nonzero()[:, 1].split(n_asked),
            chosen.predicted.split(n_asked),
            remasked.nonzero()[:, 1].split(remasked.sum(1).tolist()),
            strict=True,
        )
    ]
