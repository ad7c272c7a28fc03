"""Streams of server-sent events: each item is one line of JSON."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fastapi.responses import StreamingResponse

from llada.serving.asking import Texts
from llada.serving.errors import ApiError
from llada.serving.openai_answers import Shape
from llada.serving.writing import Outcome, StepRecord, Written

DONE = "data: [DONE]\n\n"
NOT_KEPT = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the second keeps nginx from collecting pieces


def sse(item: dict[str, Any]) -> str:
    """Write an item as a server-sent event; JSON in ASCII has no line break of its own."""
    return f"data: {json.dumps(item, allow_nan=False)}\n\n"


class EventStream(StreamingResponse):
    """An answer of server-sent events, whose texts are cancelled when it ends, for whatever reason."""

    def __init__(self, items: AsyncIterator[str], texts: Texts) -> None:
        super().__init__(items, media_type="text/event-stream", headers=NOT_KEPT)
        self.texts = texts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with self.texts.held():
            await super().__call__(scope, receive, send)


@dataclass
class Streamed:
    """How much of a text a stream has sent."""

    shape: Shape
    number: int
    text: str = ""
    n_tokens: int = 0
    ids: list[int] = field(init=False)
    written: dict[int, Written] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ids = list(self.shape.job.wanted[self.number].template)

    def step(self, record: StepRecord) -> dict[str, Any] | None:
        """Return the chunk with what a step decided; None if that is nothing that may be sent."""
        self._note(record.revealed)
        new = record.decided.sendable[len(self.text) :]
        if not new:
            return None
        self.text += new
        return self._chunk(new, self._tokens_within(len(self.text), record.decided.n_tokens))

    def end(self, outcome: Outcome) -> dict[str, Any] | None:
        """Return the chunk with all that is left of a text that is complete; None if nothing is."""
        self._note(outcome.written)
        whole, n_tokens = outcome.decided.text, outcome.decided.n_tokens
        new = whole[len(self.text) :] if whole.startswith(self.text) else ""
        if not new and (n_tokens == self.n_tokens or not self.shape.job.has_logprobs):
            return None
        self.text += new
        return self._chunk(new, n_tokens)

    def _note(self, written: dict[int, Written]) -> None:
        self.written.update(written)
        for place, one in written.items():
            self.ids[place] = one.id

    def _tokens_within(self, n_characters: int, n_decided: int) -> int:
        """Return the number of the answer's tokens that lie within so many characters of it."""
        start, n, length = self.shape.job.wanted[self.number].start, 0, 0
        for id_ in self.ids[start : start + n_decided]:
            length += len(self.shape.served.token_text(id_))
            if length > n_characters:
                break
            n += 1
        return n

    def _chunk(self, text: str, n_tokens: int) -> dict[str, Any]:
        start = self.shape.job.wanted[self.number].start
        first, last = start + self.n_tokens, start + max(self.n_tokens, n_tokens)
        logprobs = None
        if self.shape.job.has_logprobs:
            logprobs = self.shape.logprobs(self.number, self.ids, self.written, first, last)
            self.n_tokens = last - start
        return self.shape.chunk([self.shape.piece(self.number, text, logprobs)])


async def openai_stream(texts: Texts, shape: Shape, *, has_steps: bool, has_usage: bool) -> AsyncIterator[str]:
    """Yield the chunks of a stream that only appends.

    Args:
        has_steps: whether each step is sent as well, as a chunk without choices that OpenAI's clients pass on.
        has_usage: whether the last chunk counts tokens.
    """
    streamed = [Streamed(shape, number) for number in range(len(texts.wanted))]
    outcomes: dict[int, Outcome] = {}

    def event(number: int, content: dict[str, Any]) -> str:
        return sse(shape.chunk([], diffusion={"index": number, **content}))

    try:
        for number in range(len(texts.wanted)):
            if has_steps:
                yield event(number, texts.start_event(number, shape.served))
            opening = shape.opening(number)
            if opening is not None:
                yield sse(opening)
        async for number, item in texts.news():
            is_step = isinstance(item, StepRecord)
            if is_step and item.event is not None:
                yield event(number, item.event)
            chunk = streamed[number].step(item) if isinstance(item, StepRecord) else streamed[number].end(item)
            if chunk is not None:
                yield sse(chunk)
            if isinstance(item, Outcome):
                outcomes[number] = item
                if item.event is not None:
                    yield event(number, item.event)
                yield sse(shape.closing(number, item))
        if has_usage:
            usage = shape.usage([outcomes[number] for number in range(len(texts.wanted))])
            yield sse(shape.chunk([], usage=usage, **shape.notes()))
    except ApiError as error:  # the status is sent; OpenAI's clients raise what stands in `error`
        yield sse(error.body)
    yield DONE
