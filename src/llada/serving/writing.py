"""One text that is being written: what was asked for, what each step did, and what comes of it.

Shape letters: L length, N asked positions, R revealed positions, K alternatives.
"""

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llada.sampling.config import SamplerConfig
from llada.sampling.events import Event, FillEvents, TokenTexts
from llada.sampling.fills import Fill, StepResult, start
from llada.sampling.steps import has_likelihood
from llada.serving.answer_text import AnswerText, Decided, FinishReason

READ_ONLY = SamplerConfig(steps=None, temperature=0.0, policy="confidence")
"""The sampler of a text that is read only: its first step asks at every open place."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A text to write."""

    template: tuple[int, ...]
    """(L,) ids, MASK where a token is to be filled in."""
    config: SamplerConfig
    seed: int
    answer: AnswerText
    start: int = 0
    """The place in the template where the answer begins."""
    end: int | None = None
    """The place behind its end; None is the end of the template."""
    banned: tuple[int, ...] = ()
    """Columns of the logits that may not be written."""
    alternatives: int = 0
    """The number of likeliest tokens to keep for each place."""
    shows_steps: bool = False
    """Whether each step is of interest, and not the answer alone."""
    has_events: bool = False
    """Whether each step is described as an event as well."""
    is_read_only: bool = False
    """Whether to end after one evaluation, with the likeliest token and the alternatives at every place that it asked
    at; its sampler is `READ_ONLY`."""


@dataclass(frozen=True)
class Written:
    """A token, with what else could stand there."""

    id: int
    log_p: float
    """The model's own log-probability when it was written, whatever the temperature."""
    alternatives: tuple[tuple[int, float], ...] = ()
    """Ids and probabilities of the likeliest tokens."""


@dataclass(frozen=True)
class StepRecord:
    """What a step did."""

    revealed: dict[int, Written]
    """The tokens by their positions."""
    decided: Decided
    """The decided prefix of the answer."""
    event: Event | None
    """The same as an event, if events are wanted."""


@dataclass(frozen=True)
class Outcome:
    """A text that is complete."""

    ids: tuple[int, ...]
    decided: Decided
    written: dict[int, Written]
    """What was filled in, by position."""
    evaluations: int
    seconds: float
    nats: float | None
    """Minus the exact log-likelihood of the whole text under its policy; None if it has none, or was ended early."""
    event: Event | None
    """The end as an event, if events are wanted."""

    @property
    def finish_reason(self) -> FinishReason:
        return self.decided.finish_reason or "length"


@dataclass
class Writing:
    """A text in the engine, with its own plan and randomness."""

    wanted: Wanted
    mask_id: int
    texts: TokenTexts
    device: torch.device | str = "cpu"
    fill: Fill = field(init=False)
    ids: list[int] = field(init=False)
    events: FillEvents | None = field(init=False)
    start_event: Event | None = None
    """How it begins, if events are wanted, without the model's name."""
    generator: torch.Generator = field(init=False)
    written: dict[int, Written] = field(default_factory=dict)
    is_over: bool = False
    _begun: float | None = None
    _decided: Decided | None = None
    _seen: tuple[int, ...] | None = None
    _random_state: Tensor | None = None

    def __post_init__(self) -> None:
        wanted = self.wanted
        self.ids = list(wanted.template)
        self.generator = torch.Generator().manual_seed(wanted.seed)
        ends = wanted.answer.end_ids
        self.fill = start(wanted.template, self.mask_id, wanted.config, self.generator, self.device, ends)
        self.events = None
        if wanted.has_events:
            self.events = FillEvents(self.fill, self.texts, end_ids=ends, alternatives=wanted.alternatives)
            self.start_event = self.events.start(seed=wanted.seed, model="", fingerprint="")

    @property
    def seconds(self) -> float:
        """The time since its first step began."""
        return 0.0 if self._begun is None else time.perf_counter() - self._begun

    def prepare(self) -> None:
        """Get ready for a step, which may fail; the clock runs from the first one on."""
        self._begun = self._begun or time.perf_counter()
        self._random_state = self.generator.get_state()

    def undo(self) -> None:
        """Forget a step that failed, which may have drawn random numbers."""
        if self._random_state is not None:
            self.generator.set_state(self._random_state)

    def take(self, result: StepResult) -> StepRecord:
        """Note what a step did.

        Raises:
            UserError: the tokenizer cannot decode what was written.
        """
        revealed = self._read(result) if self.wanted.is_read_only else self._revealed(result)
        for place in result.remasked.tolist():
            self.written.pop(place, None)
        self.written.update(revealed)
        self.ids = self.fill.ids.tolist()
        if self.wanted.is_read_only:
            for place, written in revealed.items():
                self.ids[place] = written.id
        decided = self._now_decided()
        self.is_over = self.fill.is_done or decided.finish_reason is not None
        return StepRecord(revealed, decided, None if self.events is None else self.events.step(result))

    def outcome(self) -> Outcome:
        """Return the text as it is at its end."""
        answer = self.ids[self.wanted.start : self.wanted.end]
        decided = self.wanted.answer.decided(answer, is_final=True)
        is_exact = has_likelihood(self.wanted.config) and self.mask_id not in self.ids and not self.wanted.is_read_only
        nats = -sum(written.log_p for written in self.written.values()) if is_exact else None
        event = None
        if self.events is not None:
            event = {**self.events.end(), "nats": nats, "finish_reason": decided.finish_reason or "length"}
        return Outcome(tuple(self.ids), decided, dict(self.written), self.fill.nfe, self.seconds, nats, event)

    def _now_decided(self) -> Decided:
        """Return what is decided; nothing where a token that is written may be masked again."""
        if self.wanted.config.remasks and not self.fill.is_done:
            return Decided("", "", None, 0)
        answer = self.ids[self.wanted.start : self.wanted.end]
        prefix = answer[: answer.index(self.mask_id)] if self.mask_id in answer else answer
        seen = tuple(prefix)
        if self._decided is None or seen != self._seen or len(seen) == len(answer):
            self._decided, self._seen = self.wanted.answer.decided(answer), seen
        return self._decided

    def _revealed(self, result: StepResult) -> dict[int, Written]:
        places, log_p = result.positions.tolist(), result.log_p.tolist()
        others = self._alternatives(result, result.positions)
        found = zip(places, result.tokens.tolist(), log_p, others, strict=True)
        return {place: Written(id_, value, kept) for place, id_, value, kept in found}

    def _read(self, result: StepResult) -> dict[int, Written]:
        """Return the likeliest token at every place that was asked."""
        best = result.asked_log_p.max(-1)
        others = self._alternatives(result, result.asked)
        found = zip(result.asked.tolist(), best.indices.tolist(), best.values.tolist(), others, strict=True)
        return {place: Written(id_, value, kept) for place, id_, value, kept in found}

    def _alternatives(self, result: StepResult, positions: Tensor) -> list[tuple[tuple[int, float], ...]]:
        """Return ids and probabilities of the K likeliest tokens at positions (R,), which were among those asked."""
        k = min(self.wanted.alternatives, result.asked_log_p.shape[-1])
        if k == 0:
            return [() for _ in range(len(positions))]
        row_of = {place: row for row, place in enumerate(result.asked.tolist())}
        rows = torch.tensor([row_of[place] for place in positions.tolist()], dtype=torch.long)
        top = result.asked_log_p[rows.to(result.asked_log_p.device)].topk(k, dim=-1)
        pairs = zip(top.indices.tolist(), top.values.exp().tolist(), strict=True)
        return [tuple((id_, p) for id_, p in zip(ids, ps, strict=True) if p > 0) for ids, ps in pairs]
