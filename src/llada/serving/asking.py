"""The texts of one request on the side of the event loop: news from the engine's thread, and errors as answers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Self, TypeVar

from fastapi import Request

from llada.sampling.events import Event
from llada.serving.engine import Engine, OutOfTimeError, QueueFullError, StoppingError, Ticket
from llada.serving.errors import ApiError, unforeseen
from llada.serving.served import Served
from llada.serving.writing import Outcome, StepRecord, Wanted
from llada.system.errors import UserError, is_out_of_memory

Result = TypeVar("Result")
News = tuple[int, StepRecord | Outcome]
MOST_UNREAD = 4096
"""Steps of a request that its client has not taken yet; each is a few kilobytes."""


class ClientLeftError(Exception):
    """The client closed the connection before there was an answer."""


class BehindError(Exception):
    """The client takes the steps of its texts more slowly than they come."""


class Texts:
    """The texts of one request, in the engine."""

    def __init__(self, engine: Engine, wanted: Sequence[Wanted]) -> None:
        self.engine, self.wanted = engine, wanted
        self._news: asyncio.Queue[tuple[int, StepRecord | Outcome | Exception]] = asyncio.Queue()
        self._tickets: list[Ticket] = []

    def begin(self) -> Self:
        """Put the texts into the queue; follow it by `held`.

        Raises:
            ApiError: it has no room (429), or the server is being stopped (503).
        """
        try:
            self._tickets = self.engine.submit([self._callbacks(i, one) for i, one in enumerate(self.wanted)])
        except (QueueFullError, StoppingError) as error:
            raise as_api_error(error) from None
        return self

    @contextmanager
    def held(self) -> Iterator[Self]:
        """Cancel at the end of the context what is not complete."""
        try:
            yield self
        finally:
            for ticket in self._tickets:
                ticket.cancel()

    def start_event(self, number: int, served: Served) -> Event:
        """Return the event with which a text begins; events must be wanted."""
        begins = self._tickets[number].writing.start_event
        assert begins is not None
        return {**begins, "model": served.name, "fingerprint": served.fingerprint}

    async def news(self) -> AsyncIterator[News]:
        """Yield what happens to the texts, by their number, until all are complete.

        Raises:
            ApiError: one of them could not be written.
        """
        left = len(self.wanted)
        while left:
            number, item = await self._news.get()
            if isinstance(item, Exception):
                raise as_api_error(item)
            left -= isinstance(item, Outcome)
            yield number, item

    async def outcomes(self) -> list[Outcome]:
        """Wait until all texts are complete; raises like `news`."""
        found: dict[int, Outcome] = {}
        async for number, item in self.news():
            if isinstance(item, Outcome):
                found[number] = item
        return [found[number] for number in range(len(self.wanted))]

    def _callbacks(
        self, number: int, wanted: Wanted
    ) -> tuple[Wanted, Callable[[StepRecord], None], Callable[[Outcome | Exception], None]]:
        loop = asyncio.get_running_loop()

        def put(item: StepRecord | Outcome | Exception) -> None:
            if isinstance(item, StepRecord) and self._news.qsize() >= MOST_UNREAD:
                raise BehindError(f"The last {MOST_UNREAD:,} steps were not read: read them as they come.")
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._news.put_nowait, (number, item))

        return wanted, put, put


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """Wait for the work, and drop it as soon as the client leaves.

    Raises:
        ClientLeftError: it has left.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_until_gone(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeftError
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def as_api_error(error: Exception) -> ApiError:
    """Return the answer for a text that could not be written."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), code="queue_full", headers={"Retry-After": str(error.seconds)})
    if isinstance(error, StoppingError):
        return ApiError(503, str(error), code="stopping")
    if isinstance(error, BehindError):
        return ApiError(408, str(error), code="too_slow")
    if isinstance(error, OutOfTimeError):
        return ApiError(504, str(error), code="out_of_time")
    if isinstance(error, UserError):  # of the model or its tokenizer: the request was sound
        return ApiError(500, str(error), code="broken_model")
    if is_out_of_memory(error):
        return ApiError(503, "The memory is not enough for this text: ask for a shorter one.", code="out_of_memory")
    return unforeseen(error)
