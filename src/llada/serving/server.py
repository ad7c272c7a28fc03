"""The server as a process: it listens, says where, answers until it is asked to stop, and stops cleanly."""

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import uvicorn

from llada.serving.answer_text import AnswerText
from llada.serving.app import build_app
from llada.serving.asking import Texts
from llada.serving.engine import Engine
from llada.serving.limits import Limits
from llada.serving.metrics import Metrics
from llada.serving.security import is_local
from llada.serving.served import Served
from llada.serving.writing import Wanted
from llada.system.errors import UserError, first_line
from llada.system.terminal import say, visible

PORTS_TRIED = 100
BACKLOG = 128
MARGIN = 2.0
"""Seconds beyond the grace time after which connections are cut."""
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


class Server(uvicorn.Server):
    """A uvicorn server that ends with exit code 0 when a signal stops it, and lets texts end first."""

    def __init__(self, config: uvicorn.Config, engine: Engine, grace: float) -> None:
        super().__init__(config)
        self.engine, self.grace = engine, grace

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

    def handle_exit(self, sig: int, frame: object) -> None:
        """Take note of a signal."""
        self.end(at_once=self.should_exit)

    def end(self, at_once: bool = False) -> None:
        """Stop: take no more requests, and complete within the grace time those that are there."""
        self.force_exit = self.force_exit or at_once
        self.should_exit = True
        self.engine.stop(0.0 if at_once else self.grace)


class ToTerminal(logging.Handler):
    """Writes the log to standard error, a line for each record, without what a terminal would obey."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; a traceback stays out of it."""
        say(visible(f"{record.levelname.lower()}: {record.getMessage()}").replace("\n", "␊"))


@contextlib.contextmanager
def log_to_terminal() -> Iterator[None]:
    """Let the log of the server and of uvicorn go to standard error."""
    handler = ToTerminal()
    loggers = {"llada.serving": logging.INFO, "uvicorn": logging.WARNING}
    before = {name: (logging.getLogger(name).level, logging.getLogger(name).propagate) for name in loggers}
    for name, level in loggers.items():
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
    try:
        yield
    finally:
        for name, (level, propagates) in before.items():
            logger = logging.getLogger(name)
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagates


def make_server(served: Served, address: Address, limits: Limits) -> Server:
    """Build a server for a model; `serve` runs it."""
    metrics, model = Metrics(), served.checkpoint.model
    engine = Engine(model, served.texts, limits, metrics)
    app = build_app(served, engine, metrics, limits, host=address.host, api_key=address.api_key)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, date_header=True, proxy_headers=False,
        lifespan="off", ws="none", http="h11", loop="asyncio", limit_concurrency=CONNECTIONS,
        timeout_keep_alive=15, timeout_graceful_shutdown=int(limits.grace + MARGIN),
        h11_max_incomplete_event_size=64 * 1024,
    )  # fmt: skip
    return Server(config, engine, limits.grace)


def serve(server: Server, served: Served, listening: socket.socket, ready: Callable[[], object]) -> None:
    """Answer requests until the server is stopped.

    Args:
        ready: called when requests are answered, after a first text of the server's own.

    Raises:
        UserError: the model cannot write that text: its predictions are not finite numbers.
    """

    async def run() -> None:
        await write_once(server.engine, served)
        ready()
        await server.serve([listening])

    server.engine.start()
    try:
        asyncio.run(run())
    finally:
        server.engine.stop(0.0)
        server.engine.join()
        listening.close()


async def write_once(engine: Engine, served: Served) -> None:
    """Write a token, so that a broken model is found before anybody asks, and the first to ask does not wait.

    Raises:
        UserError: the model's predictions are not finite numbers.
    """
    length = served.max_length
    wanted = Wanted(
        template=(served.mask_id,) * length,
        config=served.sampler({"steps": length, "policy": "left_to_right"}),
        seed=0,
        answer=AnswerText(served.decode, served.mask_id),
        banned=tuple(served.checkpoint.tokenizer.forbidden_rows),
        shows_steps=True,
    )
    texts = Texts(engine, [wanted]).begin()
    with texts.held():
        async for _ in texts.news():
            return
