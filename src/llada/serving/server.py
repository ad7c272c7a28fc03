"""The server as a process: it listens, says where, answers until it is asked to stop, and stops cleanly."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator

import uvicorn

from llada.serving.answer_text import AnswerText
from llada.serving.app import build_app
from llada.serving.asking import Texts
from llada.serving.engine import Engine
from llada.serving.limits import Limits
from llada.serving.listening import CONNECTIONS, Address, StoppedBySignals
from llada.serving.metrics import Metrics
from llada.serving.patience import patient
from llada.serving.served import Served
from llada.serving.writing import Wanted
from llada.system.terminal import say, visible

MARGIN = 2.0
"""Seconds beyond the grace time after which connections are cut."""


class Server(StoppedBySignals):
    """A uvicorn server that ends with exit code 0 when a signal stops it, and lets texts end first."""

    def __init__(self, config: uvicorn.Config, engine: Engine, grace: float) -> None:
        super().__init__(config)
        self.engine, self.grace = engine, grace

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
        lifespan="off", ws="none", http=patient(limits.patience), loop="asyncio", limit_concurrency=CONNECTIONS,
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
        await server.serve([listening])

    server.ready = ready
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
