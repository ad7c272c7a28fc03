"""What stands before every request: who may ask, from where, how much, and how slowly.

A page from elsewhere that is open in the same browser can send requests to a server on this machine. Two checks keep it
out: the `Host` must be a name of this server (against a name that was pointed here later, DNS rebinding), and the
`Origin`, which a browser adds, must be this server itself.
"""

import asyncio
import hmac
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from llada.serving.errors import ApiError
from llada.serving.limits import Limits

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
EVERYWHERE = frozenset({"0.0.0.0", "::"})
OPEN_PATHS = frozenset({"/", "/health", "/favicon.ico"})
"""Addresses that need no key: the page holds nothing secret, and what watches a server has no key."""
OPEN_FOLDER = "/playground/"
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
     b"img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
)  # fmt: skip


def is_local(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Guard:
    """The checks of a request's headers: its host, its origin and its key."""

    app: App
    host: str
    """The address that the server listens on."""
    api_key: str | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # there are none
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        try:
            self.check(scope["path"], scope["headers"])
        except ApiError as error:
            await error.response()(scope, receive, send_with_headers)
            return
        await self.app(scope, receive, send_with_headers)

    def check(self, path: str, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Refuse a request by its headers.

        Raises:
            ApiError: it is addressed to another server (403), comes from a foreign page (403), or has no key (401).
        """
        found: dict[bytes, list[bytes]] = {}
        for name, value in headers:
            found.setdefault(name.lower(), []).append(value)
        hosts, origins = found.get(b"host", []), found.get(b"origin", [])
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            raise ApiError(403, "The Host of the request is not a name of this server: use the address it printed.")
        is_foreign = any(not _is_same_origin(origin, hosts[0]) for origin in origins)
        site, mode = (found.get(name, [b""])[0] for name in (b"sec-fetch-site", b"sec-fetch-mode"))
        if is_foreign or (
            site in (b"cross-site", b"same-site") and mode != b"navigate"  # to follow a link here is no harm
        ):
            raise ApiError(403, "Pages from elsewhere may not use this server: open the page that it serves.")
        if self.api_key is not None and not is_open(path) and not self._has_key(found.get(b"authorization", [])):
            raise ApiError(
                401,
                "The API key is missing or wrong: send it as 'Authorization: Bearer KEY'.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _is_ours(self, host: bytes) -> bool:
        """Whether a Host header names this server; by number always where it can be reached from other machines, since
        no one can point a number elsewhere."""
        try:
            name = urlsplit(f"//{host.decode('ascii')}").hostname or ""
        except ValueError:
            return False
        if name in LOCAL_NAMES or name == self.host.lower():
            return True
        return self.host in EVERYWHERE and (_is_number(name) or name == socket.gethostname().lower())

    def _has_key(self, values: list[bytes]) -> bool:
        assert self.api_key is not None
        scheme, _, given = values[0].partition(b" ") if len(values) == 1 else (b"", b"", b"")
        return hmac.compare_digest(given.strip(), self.api_key.encode()) and scheme.lower() == b"bearer"


def is_open(path: str) -> bool:
    """Whether an address needs no key."""
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDER)


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_same_origin(origin: bytes, host: bytes) -> bool:
    scheme, separator, rest = origin.partition(b"://")
    return bool(separator) and scheme in (b"http", b"https") and rest.lower() == host.lower()


@dataclass(frozen=True)
class BodyLimit:
    """Bodies are read whole before anything else, within a size and a time."""

    app: App
    limits: Limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        try:
            body = await asyncio.wait_for(self._read(scope, receive), self.limits.patience)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        except TimeoutError:
            late = ApiError(408, f"The body did not arrive within {self.limits.patience:g} seconds: send it again.")
            await late.response()(scope, receive, send)
            return
        if body is None:  # the client has left
            return
        given = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_read() -> Message:
            return given.pop() if given else await receive()

        await self.app(scope, receive_read, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """Read a body; None if the client leaves.

        Raises:
            ApiError: it is too large, by what it says or by what it is.
        """
        most = self.limits.body_bytes
        too_large = ApiError(413, f"The body has more than the {most:,} bytes that this server takes: send less.")
        said = dict(scope["headers"]).get(b"content-length", b"0")
        if said.isdigit() and int(said[:20]) > most:
            raise too_large
        pieces, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > most:
                raise too_large
            if not message.get("more_body", False):
                return b"".join(pieces)
