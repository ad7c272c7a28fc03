"""Runs an application on an address of this machine alone, until it is stopped."""

import contextlib
import errno
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn

from llada.system.errors import UserError

HOST = "127.0.0.1"
PORTS_TRIED = 100
SECONDS_TO_END = 2  # that open answers have when the server is stopped


@contextlib.contextmanager
def listening_socket(port: int, host: str = HOST) -> Iterator[socket.socket]:
    """Open a socket that listens at a port, for the time of the block; 0 takes a free one.

    Raises:
        UserError: the port is in use, or may not be used.
    """
    with _bound_socket(port, host) as opened:
        opened.listen(128)
        yield opened


def _bound_socket(port: int, host: str) -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if os.name != "nt":  # there, it would let two servers have the same port
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((host, port))
    except OSError as error:
        opened.close()
        if error.errno == errno.EADDRINUSE:
            free = _next_free_port(port, host)
            remedy = "`port=0`" if free is None else f"`port={free}`"
            raise UserError(f"Port {port} is in use: add {remedy}, or stop what uses it.") from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise UserError(f"Port {port} may not be used by everybody: choose one above 1023 as `port`.") from error
        raise
    return opened


def _next_free_port(port: int, host: str) -> int | None:
    for candidate in range(port + 1, min(port + PORTS_TRIED, 65536)):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
            probe.bind((host, candidate))
            return candidate
    return None


class _Server(uvicorn.Server):
    """A server for which Ctrl+C and SIGTERM are its ordinary end: uvicorn would raise them again."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


def serve_until_stopped(app: Any, listening: socket.socket) -> None:
    """Serve an ASGI application at a socket until Ctrl+C or SIGTERM."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SECONDS_TO_END,
        timeout_keep_alive=30,
        ws="none",
        proxy_headers=False,
    )
    _Server(config).run(sockets=[listening])
