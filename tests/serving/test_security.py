"""Requests that a foreign page can make a browser send are refused before anything looks at them."""

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from llada.serving.security import HEADERS, OnlyFromHere, name_of_host


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{len(await request.body())} bytes")


@pytest.fixture
def client() -> Iterator[TestClient]:
    app = Starlette(routes=[Route("/", echo, methods=["GET", "POST"])])
    with TestClient(OnlyFromHere(app, largest_body=100), base_url="http://127.0.0.1:8020") as client:
        yield client


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "localhost:9000"},
        {"host": "LOCALHOST"},
        {"host": "[::1]:8020"},
        {"origin": "http://127.0.0.1:8020"},
        {"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},  # a link that a person follows
    ],
)
def test_own_requests_are_answered(client: TestClient, headers: dict[str, str]) -> None:
    answer = client.get("/", headers=headers)
    assert (answer.status_code, answer.text) == (200, "0 bytes")
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "example.com"},
        {"host": "127.0.0.1.example.com:8020"},
        {"host": "localhost.example.com"},
        {"host": "127.0.0.1:8020@example.com"},
        {"host": ""},
        {"host": "[::2]:8020"},
        {"origin": "http://example.com"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8021"},  # another program's page on this machine
        {"origin": "https://127.0.0.1:8020"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"},
    ],
)
def test_foreign_requests_are_refused(client: TestClient, headers: dict[str, str]) -> None:
    answer = client.get("/", headers=headers)
    assert answer.status_code == 403
    assert answer.json()["error"]["message"].endswith(".")


def test_large_bodies_are_refused(client: TestClient) -> None:
    assert client.post("/", content=b"x" * 100).text == "100 bytes"
    assert client.post("/", content=b"x" * 101).status_code == 413
    assert client.get("/", headers={"content-length": "9" * 30}).status_code == 413


def test_a_body_without_length_ends_where_it_is_too_large() -> None:
    """Such a body comes in chunks; the application sees that its client left."""
    import asyncio

    chunks = iter([b"x" * 60, b"x" * 60])
    seen: list[str] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": next(chunks), "more_body": True}

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        seen.extend([(await receive())["type"], (await receive())["type"]])

    async def send(_message: Any) -> None: ...

    scope = {"type": "http", "scheme": "http", "headers": [(b"host", b"localhost")]}
    asyncio.run(OnlyFromHere(app, largest_body=100)(scope, receive, send))
    assert seen == ["http.request", "http.disconnect"]


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("127.0.0.1:8000", "127.0.0.1"),
        ("LocalHost", "localhost"),
        ("[::1]:80", "::1"),
        ("[0:0:0:0:0:0:0:1]", "::1"),
        ("::1", None),
        ("localhost:x", None),
        ("x[::1]", None),
        ("[nonsense]", None),
        ("", None),
    ],
)
def test_the_name_in_a_host_header(host: str, name: str | None) -> None:
    assert name_of_host(host) == name
