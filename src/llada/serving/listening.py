"""Where a server listens, and how it is stopped; torch is not needed."""

import contextlib
import errno
import signal
import socket
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass

import uvicorn

from llada.serving.patience import Patient
from llada.serving.security import App, is_local
from llada.system.errors import UserError, first_line

BACKLOG = 128
SHORTEST_KEY = 8
CONNECTIONS = 512
"""Connections at once; more are refused by uvicorn, before anything is read."""


@dataclass(frozen=True)
class Address:
    """Where the server listens, and for whom."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None

    def __post_init__(self) -> None:
        """Refuse an address that others can reach without a key.

        Raises:
            UserError: a key is missing, or too short to protect anything.
        """
        if self.api_key is not None and (len(self.api_key) < SHORTEST_KEY or not self.api_key.isascii()):
            raise UserError(f"`api_key` must have at least {SHORTEST_KEY} characters of ASCII: choose a longer one.")
        if self.api_key is None and not is_local(self.host):
            raise UserError(
                f"Other machines can reach {self.host}: give `api_key` as well, or leave out `host` to serve this "
                "machine alone."
            )

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.host

    def url(self, port: int) -> str:
        """Return the URL for a port."""
        return f"http://{f'[{self.host}]' if self.is_ipv6 else self.host}:{port}"


def listen(address: Address) -> socket.socket:
    """Return a socket that listens at an address; port 0 is any that is free.

    Raises:
        UserError: the port is in use, which names the next free one, or this machine has no such address.
    """
    try:
        return _bound(address, address.port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            free = next((port for port in range(address.port + 1, 65536) if _is_free(address, port)), None)
            remedy = "choose another with `port`" if free is None else f"the next free one is {free} (`port={free}`)"
            raise UserError(f"The port {address.port} of {address.host} is in use: {remedy}.") from error
        if error.errno == errno.EACCES:
            raise UserError(f"The port {address.port} is for the system's own programs: choose one above 1023.") from (
                error
            )
        reason = first_line(error.strerror or error)
        raise UserError(f"This machine cannot listen at {address.host} ({reason}): correct `host`.") from error


def _bound(address: Address, port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET6 if address.is_ipv6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address.host, port))
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def _is_free(address: Address, port: int) -> bool:
    try:
        _bound(address, port).close()
    except OSError:
        return False
    return True


class StoppedBySignals(uvicorn.Server):
    """A uvicorn server for which SIGINT and SIGTERM are its ordinary end, with exit code 0."""

    ready: Callable[[], object] | None = None
    """Called when requests are answered, and signals obeyed: whoever reads of the first may send one at once."""

    async def main_loop(self) -> None:
        """Say that requests are answered, and answer them."""
        if self.ready is not None:
            self.ready()
        await super().main_loop()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Stop at the first SIGINT or SIGTERM, and at once at the second; uvicorn's own would raise them anew."""
        if threading.current_thread() is not threading.main_thread():  # where whoever started it stops it by `end`
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve_app(app: App, listening: socket.socket, ready: Callable[[], object]) -> None:
    """Answer requests with an application that needs no model, until a signal stops it; see `StoppedBySignals`."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, proxy_headers=False, lifespan="off",
        ws="none", http=Patient, loop="asyncio", limit_concurrency=CONNECTIONS, timeout_keep_alive=30,
        timeout_graceful_shutdown=2,
    )  # fmt: skip
    server = StoppedBySignals(config)
    server.ready = ready
    server.run(sockets=[listening])
