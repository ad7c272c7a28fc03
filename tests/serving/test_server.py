"""The server as a process: its address, its health, its numbers, its log, and how it stops."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from llada.serving.limits import Limits
from llada.serving.listening import Address, listen
from llada.serving.served import Served, own_weights
from llada.serving.server import ToTerminal, make_server, serve
from llada.system.errors import UserError
from tests.support.commands import PATIENCE, RunCommand, assert_one_sentence
from tests.support.servers import Live, live, save_toy, served_toy


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy(tmp_path_factory.mktemp("toy") / "toy")


def test_a_busy_port_names_the_next_free_one(llada: RunCommand, toy: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        result = llada("serve", "--checkpoint", toy, "--port", port)
    assert_one_sentence(result, f"The port {port} of 127.0.0.1 is in use", "--port")
    free = int(re.findall(r"--port (\d+)", result.err)[0])
    assert free > port
    listen(Address(port=free)).close()


def test_bad_settings_are_one_sentence(llada: RunCommand, toy: Path, tmp_path: Path) -> None:
    given = ["serve", "--checkpoint", toy, "--port", 0]
    assert_one_sentence(llada(*given, "--host", "0.0.0.0"), "Other machines can reach 0.0.0.0", "--api_key")
    assert_one_sentence(llada(*given, "--api_key", "short"), "--api_key", "8 characters")
    assert_one_sentence(llada(*given, "--host", "203.0.113.7", "--api_key", "long enough"), "203.0.113.7", "--host")
    assert_one_sentence(llada("serve", "--checkpoint", toy, "--port", 70000), "--port", "65535")
    assert_one_sentence(llada(*given, "--batch", 0), "--batch")
    assert_one_sentence(llada(*given, "--queue", -1), "--queue")
    assert_one_sentence(llada("serve", "--checkpoint", tmp_path, "--port", 0), "holds no checkpoint")


def test_check_says_where_it_would_be_and_stops(llada: RunCommand, toy: Path) -> None:
    result = llada("serve", "--checkpoint", toy, "--port", 0, "--check", "--device", "cpu")
    assert result.code == 0, result.err
    assert re.match(r"toy is served at http://127\.0\.0\.1:\d+ ", result.out)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_stops_it_cleanly(toy: Path, number: signal.Signals) -> None:
    """The text that is being written is completed, the next one refused, and the exit code is 0."""
    command = [sys.executable, "-m", "llada", "serve", "--checkpoint", str(toy), "--port", "0", "--device", "cpu"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as process:
        assert process.stdout is not None
        url = re.findall(r"http://\S+(?= )", process.stdout.readline())[0]
        body = {"prompt": "to", "max_tokens": 60, "stream": True, "policy": "left_to_right"}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=PATIENCE) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(number)
            assert list(lines)[-2:] == ["data: [DONE]", ""]
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "Stopped" in err
    assert "Traceback" not in err


def test_whoever_reads_that_it_is_ready_may_stop_it(tmp_path: Path) -> None:
    """Before, a signal would end the process at once."""
    served = served_toy(tmp_path)
    address = Address(port=0)
    server, handlers = make_server(served, address, Limits(grace=0.0)), []

    def ready() -> None:
        handlers.append(signal.getsignal(signal.SIGTERM))
        server.end()

    serve(server, served, listen(address), ready)
    assert handlers == [server.handle_exit]


def test_health_names_what_is_in_memory_and_on_the_disk(tmp_path: Path) -> None:
    served = served_toy(tmp_path)
    with live(served) as server, server.client() as client:
        body = {"prompt": "to", "max_tokens": 20, "seed": 1}
        before = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
        health = client.get("/health").json()
        assert health["ready"] is True
        assert (health["queue"], health["active"]) == (0, 0)
        assert health["on_disk"] == {"state": "same", "fingerprint": served.fingerprint}

        weights = tmp_path / "toy" / "model.safetensors"  # replaced in place, byte by byte
        content = bytearray(weights.read_bytes())
        content[-400:] = bytes(400)
        weights.write_bytes(content)
        health = client.get("/health").json()
        assert health["on_disk"]["state"] == "replaced"
        assert health["on_disk"]["fingerprint"] != health["fingerprint"] == served.fingerprint
        weights.write_bytes(b"")  # and cut short: a mapped file would end the process here
        assert client.post("/v1/completions", json=body).json()["choices"][0]["text"] == before

        shutil.rmtree(tmp_path / "toy")
        assert client.get("/health").json()["on_disk"] == {"state": "missing", "fingerprint": None}
        assert client.post("/v1/completions", json=body).json()["choices"][0]["text"] == before


def test_weights_are_not_those_of_the_file(tmp_path: Path) -> None:
    served = served_toy(tmp_path)
    before = {name: tensor.data_ptr() for name, tensor in served.checkpoint.model.named_parameters()}
    own_weights(served.checkpoint.model)
    assert all(tensor.data_ptr() != before[name] for name, tensor in served.checkpoint.model.named_parameters())


def test_the_same_files_have_the_same_fingerprint_wherever_they_are(tmp_path: Path) -> None:
    first = served_toy(tmp_path)
    shutil.copytree(tmp_path / "toy", tmp_path / "copy")
    from llada.checkpoints.folder import read_checkpoint

    second = Served.of(read_checkpoint(tmp_path / "copy"), str(tmp_path / "copy"))
    assert (first.name, second.name) == ("toy", "copy")
    assert first.fingerprint == second.fingerprint
    assert re.fullmatch("[0-9a-f]{16}", first.fingerprint)


def test_requests_are_counted_by_endpoint_and_status(alive: Live) -> None:
    def count(endpoint: str, status: int) -> float:
        found = re.search(
            rf'^llada_requests_total{{endpoint="{endpoint}",status="{status}"}} (\S+)', text(), re.MULTILINE
        )
        return float(found[1]) if found else 0.0

    def text() -> str:
        with alive.client() as client:
            return client.get("/metrics").text

    endpoints = (("/v1/completions", 200), ("/v1/completions", 400), ("other", 404))
    before = [count(*one) for one in endpoints]
    with alive.client() as client:
        client.post("/v1/completions", json={"prompt": "a", "max_tokens": 3})
        client.post("/v1/completions", json={"prompt": "A", "max_tokens": 3})
        client.get("/a/strangers/address")
    assert [count(*one) for one in endpoints] == [number + 1 for number in before]
    names = re.findall(r"^# TYPE (\S+)", text(), re.MULTILINE)
    assert {"llada_queue_depth", "llada_active_texts", "llada_step_seconds", "llada_batch_size"} <= set(names)
    assert "strangers" not in text()


def test_the_log_has_nothing_that_a_terminal_would_obey(capsys: pytest.CaptureFixture[str]) -> None:
    import logging

    record = logging.LogRecord("x", logging.INFO, "", 0, "GET %s", ("/\x1b[2J\nx",), None)
    ToTerminal().emit(record)
    assert capsys.readouterr().err == "info: GET /␛[2J␊x\n"


def test_an_address_that_others_can_reach_needs_a_key() -> None:
    Address("localhost")
    Address("::1")
    Address("0.0.0.0", api_key="long enough")
    with pytest.raises(UserError, match="api_key"):
        Address("192.168.1.7")


def test_the_page_is_served_with_its_files_and_no_others(tmp_path: Path) -> None:
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from llada.serving.app import add_page

    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "index.html").write_text("<p>page")
    (folder / "page.js").write_text("1")
    (tmp_path / "secret.txt").write_text("secret")
    app = FastAPI()
    add_page(app, folder)
    client = TestClient(app)
    assert client.get("/").text == "<p>page"
    assert client.get("/playground/page.js").headers["content-type"].startswith("text/javascript")
    for path in ("/playground/../secret.txt", "/playground/%2e%2e/secret.txt", "/playground/..%2fsecret.txt"):
        assert client.get(path).status_code == 404
