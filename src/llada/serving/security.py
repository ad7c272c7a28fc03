"""What every server here refuses before it looks at a request, and what it adds to every answer.

A server on 127.0.0.1 is within reach of each page that is open in the same browser. So it answers only requests that
name this machine (Host, against DNS rebinding) and that come from its own pages (Origin, and Sec-Fetch-Site where a
browser sends no Origin). Its pages may load nothing from elsewhere and run no script but its own files.
"""

import json
from collections.abc import Iterable
from ipaddress import ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
LARGEST_BODY = 1 << 20
"""Bytes of a request's body, unless a server says otherwise."""

CONTENT_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class OnlyFromHere:
    """An ASGI middleware that refuses requests of foreign pages, and bodies that are too large.

    It does not buffer, so answers stream through it and a client's leaving reaches the application.
    """

    def __init__(
        self, app: ASGIApp, *, host_names: Iterable[str] = LOCAL_NAMES, largest_body: int = LARGEST_BODY
    ) -> None:
        """
        Args:
            host_names: names or addresses, without port, under which the server may be asked for. The port is free, so
                that a tunnel may lead to it.
            largest_body: bytes of a request's body.
        """
        self.app, self.largest_body = app, largest_body
        self.host_names = frozenset(name.lower() for name in host_names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here speaks WebSocket
            await send({"type": "websocket.close", "code": 1008})
            return
        send = _with_headers(send)
        refusal = self._refusal(Headers(scope=scope), str(scope.get("scheme", "http")))
        if refusal is not None:
            await _refuse(send, *refusal)
        else:
            await self.app(scope, self._bounded(receive), send)

    def _refusal(self, headers: Headers, scheme: str) -> tuple[int, str] | None:
        """Return a status and a sentence if the request is refused."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or name_of_host(hosts[0]) not in self.host_names:
            return 403, "This server answers only under its own address: open the address that it printed."
        origins = headers.getlist("origin")
        if any(origin.lower() != f"{scheme}://{hosts[0].lower()}" for origin in origins):
            return 403, "This server answers only its own pages, not those of another address."
        # Pictures and scripts of foreign pages have no Origin. A link that a person follows is let through.
        site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode")
        if site not in ("none", "same-origin") and mode != "navigate":
            return 403, "This server answers only its own pages, not those of another address."
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return 400, "The Content-Length is not a number."
        if len(length) > 18 or int(length) > self.largest_body:
            return 413, f"The request is larger than {self.largest_body:,} bytes: send less."
        return None

    def _bounded(self, receive: Receive) -> Receive:
        """Return a `receive` that ends the request once its body is too large; a body in chunks has no length."""
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > self.largest_body:
                    return {"type": "http.disconnect"}
            return message

        return bounded


def name_of_host(host: str) -> str | None:
    """Return the name or address in a Host header, in small letters and without port; None if it is not valid."""
    name, bracket, rest = host.strip().lower().rpartition("]")
    if bracket:  # [::1]:8000
        port = rest.removeprefix(":") if rest else "0"
        try:
            name = str(ip_address(name.removeprefix("[")))
        except ValueError:
            return None
        return name if host.strip().startswith("[") and port.isdigit() else None
    name, colon, port = host.strip().lower().partition(":")
    if colon and not (port.isascii() and port.isdigit()):
        return None
    return name or None


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return sending


async def _refuse(send: Send, status: int, sentence: str) -> None:
    """Answer with an error in OpenAI's shape, which has a message for people."""
    kind = "invalid_request_error"
    body = json.dumps({"error": {"message": sentence, "type": kind, "param": None, "code": None}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    # What is left of a body that is refused is not read.
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
