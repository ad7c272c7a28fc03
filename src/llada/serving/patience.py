"""Connections of clients that are too slow: they are closed, since uvicorn alone would keep them for ever.

uvicorn takes `CONNECTIONS` at once. So many that send nothing, or the head of a request letter by letter, would leave
no room for anybody else; and one whose client does not read keeps its answer in memory.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

PIECE = 16_384
"""Bytes of an answer that a client must take in that time while more of it waits."""


class Patient(H11Protocol):
    """The protocol of uvicorn, with a limit on the time that a client takes."""

    patience = 30.0
    """Seconds for the head of a request, from the connection or from its first byte, and for a piece of an answer."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._head_timer: asyncio.TimerHandle | None = None
        self._answer_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the head of the first request."""
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Read what came, and wait on if the head of a request is not complete."""
        super().data_received(data)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        _cancel(self._head_timer)
        _cancel(self._answer_timer)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Begin to wait for a client that has much of an answer to take."""
        super().pause_writing()
        if self._answer_timer is None:
            self._wait_for_taking()

    def resume_writing(self) -> None:
        """Go on with the answer."""
        super().resume_writing()
        _cancel(self._answer_timer)
        self._answer_timer = None

    def _wait_for_head(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            _cancel(self._head_timer)
            self._head_timer = None
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.patience, self._give_up)

    def _wait_for_taking(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._answer_timer = self.loop.call_later(self.patience, self._go_on_if_taken, left)

    def _go_on_if_taken(self, left: int) -> None:
        if left - self.transport.get_write_buffer_size() < PIECE:
            self.transport.abort()
        else:
            self._wait_for_taking()

    def _give_up(self) -> None:
        self._head_timer = None
        if self.conn.their_state is h11.IDLE:
            self.transport.abort()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def patient(seconds: float) -> type[Patient]:
    """Return the protocol with a patience in seconds, for uvicorn's option `http`."""
    return type("Patient", (Patient,), {"patience": seconds})
