"""Answers in OpenAI's shapes: whole ones, and the chunks of a stream."""

import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from llada.sampling.steps import has_likelihood
from llada.serving.completions import Job
from llada.serving.served import Served
from llada.serving.writing import Outcome, Wanted, Written

SOURCES = {False: "exact_policy", True: "one_evaluation"}
"""What log-probabilities are: of the exact policy, the model's own at the step that wrote the token, whose sum over a
whole text is its log-likelihood under the policy; or of one evaluation at all places, each by itself."""


@dataclass
class Shape:
    """The shape of the answers to a request; completions and chat differ in it."""

    served: Served
    job: Job
    prefix = "cmpl"
    kind = chunk_kind = "text_completion"
    id: str = field(init=False)
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = f"{self.prefix}-{secrets.token_hex(12)}"

    # -- whole ---------------------------------------------------------------------------------------------------------

    def answer(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """Return the whole answer to a request."""
        choices = [self.choice(number, outcome) for number, outcome in enumerate(outcomes)]
        return {**self.head(self.kind), "choices": choices, "usage": self.usage(outcomes), **self.notes()}

    def choice(self, number: int, outcome: Outcome) -> dict[str, Any]:
        wanted = self.job.wanted[number]
        text, first = outcome.decided.text, wanted.start
        if self.job.has_echo:
            text, first = self.served.decode(wanted.template[: wanted.start]) + text, 0
        last = wanted.start + outcome.decided.n_tokens
        return {
            "index": number,
            "text": text,
            "logprobs": self.logprobs(number, outcome.ids, outcome.written, first, last),
            "finish_reason": outcome.finish_reason,
            "diffusion": self.summary(number, outcome),
        }

    def head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.served.name,
            "system_fingerprint": self.served.fingerprint,
        }

    def notes(self) -> dict[str, Any]:
        """Say what was left out of a dialogue."""
        return {"diffusion": {"messages_left_out": self.job.n_forgotten}} if self.job.n_forgotten else {}

    def usage(self, outcomes: Sequence[Outcome]) -> dict[str, int]:
        """Count tokens: of all prompts, once each, and of all texts up to their ends."""
        written = sum(outcome.decided.n_tokens for outcome in outcomes)
        prompts = self.job.n_prompt_tokens
        return {"prompt_tokens": prompts, "completion_tokens": written, "total_tokens": prompts + written}

    def summary(self, number: int, outcome: Outcome) -> dict[str, Any]:
        """Say how a text came about: what reproduces it, what it cost, and its exact nats where it has any."""
        return {
            "seed": self.job.wanted[number].seed,
            "evaluations": outcome.evaluations,
            "seconds": round(outcome.seconds, 6),
            "nats": outcome.nats,
        }

    # -- log-probabilities ---------------------------------------------------------------------------------------------

    def source(self, wanted: Wanted) -> str | None:
        """Say what the log-probabilities of a text are; None if it has none, or none are asked for."""
        if not self.job.has_logprobs or not (wanted.is_read_only or has_likelihood(wanted.config)):
            return None
        return SOURCES[wanted.is_read_only]

    def logprobs(
        self, number: int, ids: Sequence[int], written: dict[int, Written], first: int, last: int
    ) -> dict[str, Any] | None:
        """Return the log-probabilities of the tokens at the places from `first` on, before `last`."""
        wanted = self.job.wanted[number]
        source = self.source(wanted)
        if source is None:
            return None
        texts = self.served.texts.of(ids[first:last])
        before = self.served.texts.of(ids[0 if self.job.has_echo else wanted.start : first])
        offsets = list(accumulate(map(len, texts[:-1]), initial=sum(map(len, before))))
        found = [written.get(place) for place in range(first, last)]
        return {
            "tokens": texts,
            "token_logprobs": [None if one is None else one.log_p for one in found],
            "top_logprobs": [self.top(one) for one in found] if wanted.alternatives else None,
            "text_offset": offsets[: len(texts)],
            "source": source,
        }

    def top(self, written: Written | None) -> dict[str, float] | None:
        if written is None:
            return None
        pairs = reversed(written.alternatives)  # of tokens with one text, the likeliest counts
        return {self.served.token_text(id_): math.log(p) for id_, p in pairs}

    # -- streams -------------------------------------------------------------------------------------------------------

    def chunk(self, choices: list[dict[str, Any]], **further: Any) -> dict[str, Any]:
        return {**self.head(self.chunk_kind), "choices": choices, **further}

    def opening(self, number: int) -> dict[str, Any] | None:
        """Return the chunk before the first piece of a text, if there is one."""
        if not self.job.has_echo:
            return None
        wanted = self.job.wanted[number]
        return self.chunk([self.piece(number, self.served.decode(wanted.template[: wanted.start]), None)])

    def piece(self, number: int, text: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": None}

    def closing(self, number: int, outcome: Outcome) -> dict[str, Any]:
        """Return the last chunk of a text."""
        last = self.piece(number, "", None)
        return self.chunk(
            [{**last, "finish_reason": outcome.finish_reason, "diffusion": self.summary(number, outcome)}]
        )


class ChatShape(Shape):
    """The shape of answers in a dialogue."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, number: int, outcome: Outcome) -> dict[str, Any]:
        wanted = self.job.wanted[number]
        last = wanted.start + outcome.decided.n_tokens
        return {
            "index": number,
            "message": {"role": "assistant", "content": outcome.decided.text, "refusal": None},
            "logprobs": self.logprobs(number, outcome.ids, outcome.written, wanted.start, last),
            "finish_reason": outcome.finish_reason,
            "diffusion": self.summary(number, outcome),
        }

    def logprobs(
        self, number: int, ids: Sequence[int], written: dict[int, Written], first: int, last: int
    ) -> dict[str, Any] | None:
        source = self.source(self.job.wanted[number])
        if source is None:
            return None
        content = [self.entry(ids[place], written.get(place)) for place in range(first, last)]
        return {"content": content, "refusal": None, "source": source}

    def entry(self, id_: int, written: Written | None) -> dict[str, Any]:
        """Return the log-probability of a token; one that was given has it for certain."""
        alternatives = [] if written is None else [self.named(other, math.log(p)) for other, p in written.alternatives]
        return {**self.named(id_, 0.0 if written is None else written.log_p), "top_logprobs": alternatives}

    def named(self, id_: int, log_p: float) -> dict[str, Any]:
        text = self.served.token_text(id_)
        return {"token": text, "logprob": log_p, "bytes": list(text.encode())}

    def opening(self, number: int) -> dict[str, Any] | None:
        return self.chunk([self._delta(number, {"role": "assistant", "content": ""}, None)])

    def piece(self, number: int, text: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        return self._delta(number, {"content": text} if text else {}, logprobs)

    def _delta(self, number: int, delta: dict[str, Any], logprobs: dict[str, Any] | None) -> dict[str, Any]:
        return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": None}
