"""Hostile input: whatever is sent, the answer is one sentence in OpenAI's shape, and the next client is served."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from llada.serving import asking
from llada.serving.diffusion_api import wanted_of
from llada.serving.errors import ApiError
from llada.serving.limits import Limits
from llada.serving.security import Guard
from llada.serving.shapes import DiffusionRequest
from tests.support.servers import KEY, Live, live, served_toy

COMPLETIONS = "/v1/completions"


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with a key, and with small limits."""
    limits = Limits(queue=2, batch=1, body_bytes=2000, patience=0.5)
    with live(served_toy(tmp_path_factory.mktemp("strict")), limits, api_key=KEY) as server:
        server.server.config.timeout_keep_alive = 1
        yield server


def with_key(**headers: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEY}", **headers}


def assert_error(answer: Any, status: int, *words: str) -> None:
    """One sentence in OpenAI's shape, without a path or a trace."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"].endswith(".")
    for word in words:
        assert word in error["message"]
    for leak in ("Traceback", "site-packages", ".py", "/src/", "0x"):
        assert leak not in answer.text


def raw(alive: Live, request: bytes) -> bytes:
    """Send bytes, and return all that comes until the server closes the connection."""
    host, _, port = alive.url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=600) as connection:
        connection.sendall(request)
        pieces = []
        while piece := connection.recv(65536):
            pieces.append(piece)
    return b"".join(pieces)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a-b": 1}', b'{"": 1}', b'{"str": 1}', b'{"vllm_xargs": {"[(": 1}}',
        b"", b"{", b"null", b"[]", b'"a"', b"{}}", b"\xff\xfe", b'{"prompt": NaN}', b'{"temperature": Infinity}',
        b'{"prompt": "a", "seed": 1e400}', b'{"prompt": ' + b"[" * 500 + b"]" * 500 + b"}",
        b"[" * 100_000, b'{"a":' * 20_000, b'{"prompt": "\\ud800"}', b'{"\\ud800": 1}',
        b'{"prompt": "a", "n": ' + b"9" * 5000 + b"}",
        b'{"prompt": {"a": 1}}', b'{"prompt": [1, "a"]}', b'{"prompt": true}', b'{"max_tokens": "12"}',
        b'{"stop": [[]]}',
        b'{"max_tokens": 1000000}', b'{"tokens": [null, -1]}', b'{"tokens": [1.5]}', b'{"seed": -1}', b'{"n": 1e3}',
        b'{"template": "<MASK*999999999999>"}', b'{"logit_bias": {"x": []}}', b'{"stream_options": 3}',
        b'{"vllm_xargs": []}', b'{"diffusion_seed_canvas": []}', b'{"prompt": "\\u001b[2J\\u0000"}',
        b'{"model": "\\u001b]0;x\\u0007"}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    ],
    ids=lambda body: body[:40].decode(errors="replace"),
)  # fmt: skip
def test_broken_bodies_are_refused_in_a_sentence(alive: Live, body: bytes) -> None:
    with alive.client(headers={"Content-Type": "application/json"}) as client:
        for path in (COMPLETIONS, "/v1/chat/completions", "/v1/diffusion", "/v1/diffusion/tokenize"):
            answer = client.post(path, content=body)
            if answer.status_code != 200:  # a field of the other endpoints, or nothing, may be all right
                assert_error(answer, 404 if b"model" in body and answer.status_code == 404 else 400)
                assert "\x1b" not in answer.text


def test_a_body_that_is_not_said_to_be_json_is_refused(alive: Live) -> None:
    with alive.client() as client:
        answer = client.post(COMPLETIONS, content=b'{"prompt": "a"}', headers={"Content-Type": "text/plain"})
    assert_error(answer, 400, "Content-Type")


def test_unknown_addresses_and_methods(alive: Live) -> None:
    with alive.client() as client:
        assert_error(client.get("/v1/../../etc/passwd"), 404)
        assert_error(client.get("/playground/..%2f..%2f..%2fserver.py"), 404)
        assert_error(client.get("/%00%1b[2J"), 404)
        assert_error(client.get(COMPLETIONS), 405)
        assert_error(client.delete("/health"), 405)


def test_large_bodies_are_refused_before_they_are_read(strict: Live) -> None:
    with strict.client(headers=with_key()) as client:
        assert_error(client.post(COMPLETIONS, content=b"a" * 2001), 413, "2,000 bytes")
        pieces = (b"a" * 500 for _ in range(5))  # sent in pieces, without a length
        assert_error(client.post(COMPLETIONS, content=pieces), 413)
    said = raw(strict, request_head(strict, {"Content-Length": "9" * 30, "Connection": "close"}))
    assert b"413" in said.partition(b"\r\n")[0] or b"400" in said.partition(b"\r\n")[0]


def request_head(alive: Live, headers: dict[str, str], path: str = COMPLETIONS) -> bytes:
    lines = {"Host": alive.url.removeprefix("http://"), **with_key(), "Content-Type": "application/json", **headers}
    return "\r\n".join(
        [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in lines.items()), "", ""]
    ).encode()


def test_a_slow_body_does_not_hold_the_server(strict: Live) -> None:
    said = raw(strict, request_head(strict, {"Content-Length": "100", "Connection": "close"}) + b'{"prompt')
    assert b" 408 " in said.partition(b"\r\n")[0]
    assert b"did not arrive" in said


@pytest.mark.parametrize(
    "sent", [b"", b"GET /health HTTP/1.1\r\nHost: ", b"whole request"], ids=["nothing", "half", "next"]
)
def test_a_slow_head_does_not_hold_a_connection(strict: Live, sent: bytes) -> None:
    if sent == b"whole request":  # of which the next one on the same connection is not complete
        sent = request_head(strict, {}, "/health").replace(b"POST", b"GET") + b"GET /health"
    assert raw(strict, sent).count(b"HTTP/1.1 200") == sent.count(b"Authorization")  # and then it is closed


def test_a_client_that_leaves_is_forgotten(strict: Live) -> None:
    body = json.dumps({"prompt": "a", "max_tokens": 60}).encode()
    head = request_head(strict, {"Content-Length": str(len(body))})
    host, _, port = strict.url.removeprefix("http://").rpartition(":")
    for sent in (head + body, head, head + body[:5]):
        with socket.create_connection((host, int(port)), timeout=600) as connection:
            connection.sendall(sent)
    engine = strict.server.engine
    while engine.n_active or engine.n_waiting:
        time.sleep(0.01)
    with strict.client(headers=with_key()) as client:
        assert client.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 3}).status_code == 200


def test_bytes_that_are_not_http_are_refused(alive: Live) -> None:
    assert raw(alive, b"\x16\x03\x01\x02\x00" * 40 + b"\r\n\r\n").startswith(b"HTTP/1.1 400")


def test_a_full_queue_says_when_to_come_back(strict: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    may_go_on = threading.Event()
    monkeypatch.setattr(strict.server.engine.observer, "stepped", lambda *_: may_go_on.wait())
    full = {"prompt": ["a"] * 3, "max_tokens": 30, "stream": True}  # one is written and two wait, at most
    with strict.client(headers=with_key()) as client, client.stream("POST", COMPLETIONS, json=full):
        answer = client.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 3})
        may_go_on.set()
    assert_error(answer, 429, "try again in")
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["code"] == "queue_full"


def test_what_there_is_never_room_for_is_refused_for_good(strict: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three fit; and texts beyond are counted before any is prepared, of which a body may hold very many."""
    monkeypatch.setattr("llada.serving.completions._canvases", None)
    with strict.client(headers=with_key()) as client:
        assert_error(client.post(COMPLETIONS, json={"prompt": ["a"] * 4}), 400, "4 texts", "the 3 ")
        assert_error(client.post(COMPLETIONS, json={"prompt": ["a"] * 2, "n": 2}), 400, "4 texts")


@pytest.mark.parametrize(
    ("header", "status"),
    [({}, 401), ({"Authorization": "Bearer wrong"}, 401), ({"Authorization": KEY}, 401), (with_key(), 200)],
)
def test_a_key_is_asked_for(strict: Live, header: dict[str, str], status: int) -> None:
    with strict.client(headers=header) as client:
        assert client.get("/v1/models").status_code == status
        assert client.get("/metrics").status_code == status
        assert client.get("/health").status_code == 200


HERE = b"127.0.0.1:8000"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({b"host": HERE}, None),
        ({b"host": b"localhost:1"}, None),  # as through a tunnel of ssh
        ({b"host": b"[::1]:8000"}, None),
        ({b"host": HERE, b"origin": b"http://" + HERE}, None),
        ({}, 403),
        ({b"host": b"evil.example"}, 403),  # a name that was pointed here
        ({b"host": b"127.0.0.1.evil.example"}, 403),
        ({b"host": b"evil.example@127.0.0.1"}, None),  # a name before the at sign is not the host's
        ({b"host": b"\xff"}, 403),
        ({b"host": HERE, b"origin": b"http://evil.example"}, 403),
        ({b"host": HERE, b"origin": b"null"}, 403),
        ({b"host": HERE, b"origin": b"http://127.0.0.1:8001"}, 403),  # a page of another server of this machine
        ({b"host": HERE, b"sec-fetch-site": b"cross-site", b"sec-fetch-mode": b"no-cors"}, 403),
        ({b"host": HERE, b"sec-fetch-site": b"cross-site", b"sec-fetch-mode": b"navigate"}, None),
        ({b"host": HERE, b"sec-fetch-site": b"same-origin", b"sec-fetch-mode": b"cors"}, None),
    ],
)
def test_foreign_pages_are_refused(headers: dict[bytes, bytes], status: int | None) -> None:
    guard = Guard(None, "127.0.0.1")  # type: ignore[arg-type]
    if status is None:
        guard.check("/v1/models", headers.items())
        return
    with pytest.raises(ApiError) as refused:
        guard.check("/v1/models", headers.items())
    assert refused.value.status == status


def test_two_hosts_are_refused_and_numbers_are_taken_where_others_may_come() -> None:
    with pytest.raises(ApiError):
        Guard(None, "127.0.0.1").check("/", [(b"host", HERE), (b"host", b"evil")])  # type: ignore[arg-type]
    everywhere = Guard(None, "0.0.0.0", KEY)  # type: ignore[arg-type]
    everywhere.check("/health", [(b"host", b"192.168.1.7:8000")])
    with pytest.raises(ApiError):
        everywhere.check("/health", [(b"host", b"evil.example")])


def test_every_answer_has_the_headers_that_keep_a_page_within_this_server(alive: Live) -> None:
    with alive.client() as client:
        for answer in (client.get("/health"), client.get("/nothing"), client.get("/health", headers={"Host": "evil"})):
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "access-control-allow-origin" not in answer.headers
            assert "server" not in answer.headers


def test_a_client_that_does_not_read_is_dropped() -> None:
    from uvicorn import Config
    from uvicorn.server import ServerState

    from llada.serving.patience import patient

    async def run() -> None:
        protocol = patient(0.05)(Config(None, http="h11"), ServerState(), {}, asyncio.get_running_loop())  # type: ignore[arg-type]
        protocol.connection_made(cast("asyncio.Transport", transport := Transport()))
        protocol.pause_writing()  # as asyncio calls it when much of an answer is not taken
        protocol.resume_writing()
        protocol._head_timer.cancel()  # type: ignore[union-attr]
        await asyncio.sleep(0.1)
        assert not transport.is_aborted.is_set()
        protocol.pause_writing()
        while transport.left > 100_000:
            transport.left -= 20_000  # a slow client, which takes its time for each piece
            await asyncio.sleep(0.05)
        assert not transport.is_aborted.is_set()
        await transport.is_aborted.wait()

    asyncio.run(run())


class Transport:
    """A connection with bytes that its client is to take."""

    def __init__(self) -> None:
        self.left = 200_000
        self.is_aborted = asyncio.Event()

    def get_extra_info(self, name: str) -> None:
        return None

    def get_write_buffer_size(self) -> int:
        return self.left

    def abort(self) -> None:
        self.is_aborted.set()


def test_steps_that_are_not_read_end_the_text(alive: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a slow client has not taken stays in memory."""
    monkeypatch.setattr(asking, "MOST_UNREAD", 5)
    wanted = wanted_of(DiffusionRequest(prompt="", length=40), alive.served)

    async def run() -> tuple[int, str]:
        texts, n_read = asking.Texts(alive.server.engine, [wanted]).begin(), 0
        while alive.server.engine.n_waiting or alive.server.engine.n_active:
            await asyncio.sleep(0.01)
        try:
            async for _ in texts.news():
                n_read += 1
        except ApiError as error:
            return n_read, str(error)
        return n_read, ""

    n_read, sentence = asyncio.run(run())
    assert 5 <= n_read < 40
    assert "were not read" in sentence


def test_a_model_that_breaks_is_one_sentence_for_the_one_who_asked(tmp_path: Path) -> None:
    import torch

    served = served_toy(tmp_path)
    with live(served) as server, server.client() as client:
        for parameter in served.checkpoint.model.parameters():
            parameter.data.fill_(torch.nan)
        server.server.engine._predictors.clear()
        answer = client.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 3})
        assert_error(answer, 500, "not finite")
        assert answer.json()["error"]["code"] == "broken_model"
        streamed = client.post("/v1/diffusion", json={"prompt": "a", "length": 3})
        last = json.loads(streamed.text.strip().splitlines()[-1].removeprefix("data: "))
        assert last["type"] == "error"
        assert client.get("/health").status_code == 200
