"""What the page of `llada watch` is given: facts of runs, made by hand, and nothing of the machine around them."""

import json
import os
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from llada.serving.runs.api import PAGE, make_app
from llada.system.errors import UserError
from llada.system.locks import LOCK_FILE, locked
from tests.support.watched_runs import append, bound, make_run, row, snapshot

ADDRESS = "http://127.0.0.1:8020"
OLD = time.time() - 10_000


def client_of(*folders: Path) -> TestClient:
    return TestClient(make_app(folders), base_url=ADDRESS)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with a run that trains, at step 40 of 100."""
    rows = [
        each for step in range(1, 41) for each in (row(step), *([bound(step, 4 - step / 20)] if not step % 20 else []))
    ]
    make_run(tmp_path / "runs" / "one", rows, samples={20: "Tow be\n", 40: "To be\n"})
    return tmp_path / "runs"


@pytest.fixture
def client(runs: Path) -> Iterator[TestClient]:
    with client_of(runs) as client:
        yield client


def listed(client: TestClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/api/runs").json()["runs"]
    return found


def only(client: TestClient) -> dict[str, Any]:
    (one,) = listed(client)
    return one


def age(path: Path, when: float = OLD) -> None:
    os.utime(path, (when, when))


def test_a_run_that_trains(client: TestClient) -> None:
    run = only(client)
    expected = {
        "name": "one", "state": "training", "is_reading": False, "rows": 40, "bad_lines": 0, "step": 40,
        "total_steps": 100, "fraction_done": 0.4, "seconds": 4.0, "seconds_left": 6.0, "tokens": 20480,
        "tokens_per_second": 5120, "memory_bytes": None, "bound": {"step": 40, "nelbo": 2.0, "stderr": 0.02},
        "best_bound": {"step": 40, "nelbo": 2.0, "stderr": 0.02}, "events": 0, "has_trouble": False,
    }  # fmt: skip
    assert {name: run[name] for name in expected} == expected
    assert set(run) == {*expected, "id", "version", "share_read", "changed", "loss", "nll"}


def test_what_is_appended_is_seen_at_the_next_look(client: TestClient, runs: Path) -> None:
    before = only(client)
    assert only(client) == before
    append(runs / "one", row(50, fraction_done=0.5, memory_bytes=10**9))
    with (runs / "one" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "lo')  # the next line is on its way
    after = only(client)
    assert (after["step"], after["fraction_done"], after["memory_bytes"]) == (50, 0.5, 10**9)
    assert not after["is_reading"]
    assert after["version"] != before["version"]
    curves = client.get(f"/api/runs/{after['id']}/curves").json()
    assert curves["places"]["step"][-2:] == [40, 50]


def test_what_a_page_has_is_not_sent_again(client: TestClient, runs: Path) -> None:
    one = only(client)["id"]
    for path in ("/api/runs", f"/api/runs/{one}", f"/api/runs/{one}/curves", f"/api/compare?run={one}", "/", "/app.js"):
        first = client.get(path)
        again = client.get(path, headers={"if-none-match": first.headers["etag"]})
        assert (first.status_code, again.status_code, again.content) == (200, 304, b""), path
    append(runs / "one", row(41))
    etag = client.get("/api/runs").headers["etag"]
    append(runs / "one", row(42))
    assert client.get("/api/runs", headers={"if-none-match": etag}).status_code == 200


def test_curves_have_as_many_points_as_were_asked_for(client: TestClient) -> None:
    path = f"/api/runs/{only(client)['id']}/curves"
    found = client.get(path, params={"buckets": 4, "first": 11, "last": 30}).json()
    assert found["rows"] == 20
    assert found["places"]["step"] == [13, 18, 23, 28]
    assert found["series"]["loss"]["min"][0] == pytest.approx(1 + 2 / 2.5)
    assert found["bounds"]["step"] == [20]
    for wrong in ({"buckets": 1}, {"buckets": 10**9}, {"first": -1}, {"last": "nan"}, {"first": "x"}, {"last": 1e300}):
        assert client.get(path, params=wrong).status_code == 400, wrong


def test_samples_by_step(client: TestClient, runs: Path) -> None:
    (runs / "one" / "samples" / "demo.txt").write_text("not of a step")
    (runs / "one" / "samples" / "step-00000030.txt").symlink_to(runs / "one" / "config.json")
    one = only(client)["id"]
    assert client.get(f"/api/runs/{one}").json()["samples"] == [20, 40]
    assert client.get(f"/api/runs/{one}/samples/40").json() == {"step": 40, "text": "To be\n"}
    for missing in ("30", "21", "-1", "99999999999999999999999"):
        assert client.get(f"/api/runs/{one}/samples/{missing}").status_code == 404
    for wrong in ("..%2f..%2fconfig.json", "demo"):
        assert client.get(f"/api/runs/{one}/samples/{wrong}").status_code in (400, 404)


def test_trouble_is_listed(client: TestClient, runs: Path) -> None:
    append(runs / "one", row(41, spike_from=1.2), row(42, skipped_steps=3))
    append(runs / "one", {"step": 30, "went_back_from": 42, "data_order": 1}, row(31))
    run = only(client)
    details = client.get(f"/api/runs/{run['id']}").json()
    assert (run["events"], run["step"], details["trouble"]) == (3, 31, None)
    assert details["events"] == [
        {"kind": "spike", "step": 41, "from": 1.2, "to": pytest.approx(row(41)["nll"])},
        {"kind": "skipped", "step": 42, "count": 3},
        {"kind": "return", "step": 30, "from": 42},
    ]
    norms = {"layer.0": 2.0, "layer.1": float("inf"), "layer.2": float("nan")}
    trouble = {"step": 43, "loss": float("nan"), "t": [0.5], "gradient_norms": norms}
    (runs / "one" / "trouble.json").write_text(json.dumps(trouble))
    run = only(client)
    assert (run["state"], run["has_trouble"]) == ("failed", True)
    found = client.get(f"/api/runs/{run['id']}").json()["trouble"]
    assert (found["step"], found["loss"]) == (43, "nan")
    assert {each["layer"]: each["norm"] for each in found["gradients"]} == {
        "layer.0": "2", "layer.1": "inf", "layer.2": "nan",
    }  # fmt: skip


def test_states(client: TestClient, runs: Path) -> None:
    one = runs / "one"
    age(one / "metrics.jsonl")
    assert only(client)["state"] == "stopped"
    with locked(one, inside=True):  # as the trainer holds it: this process is alive
        age(one / "metrics.jsonl")
        assert only(client)["state"] == "training"
    (one / LOCK_FILE).write_text(json.dumps({"pid": 2**22 + 1, "host": "elsewhere", "since": ""}))
    assert only(client)["state"] == "stopped"  # of another machine: by its age alone
    append(one, row(100))
    assert only(client)["state"] == "finished"
    assert only(client)["seconds_left"] is None


def test_a_run_before_its_first_line_and_one_of_epochs(client: TestClient, runs: Path) -> None:
    make_run(runs / "new", steps=None, epochs=2.0)
    with client_of(runs) as client:
        one, new = sorted(listed(client), key=lambda run: run["name"] == "new")
        assert (one["name"], new["state"], new["fraction_done"], new["step"]) == ("one", "waiting", None, 0)
        append(runs / "new", row(10, fraction_done=0.1), row(20, fraction_done=0.2))
        new = next(run for run in listed(client) if run["name"] == "new")
        assert (new["total_steps"], new["fraction_done"], new["seconds_left"]) == (None, 0.2, 8.0)
        assert client.get(f"/api/runs/{new['id']}/curves").status_code == 200


def test_a_finished_run_that_is_made_longer_trains_again(client: TestClient, runs: Path) -> None:
    append(runs / "one", row(100, fraction_done=1.0))
    assert only(client)["state"] == "finished"
    (runs / "one" / "config.json").write_text('{"steps": 200}')
    assert (only(client)["state"], only(client)["fraction_done"]) == ("training", 0.5)


def test_settings_next_to_each_other(runs: Path) -> None:
    make_run(runs / "two", [row(1)], seed=3, optimizer={"learning_rate": 0.01}, base="C:\\Users\\me\\base")
    with client_of(runs) as client:
        ids = [run["id"] for run in listed(client)]
        found = client.get("/api/compare", params={"run": ids}).json()["settings"]
        by_name = {each["name"]: (each["values"], each["differs"]) for each in found}
        assert by_name["optimizer.learning_rate"] == (["0.003", "0.01"], True)
        assert by_name["seed"] == ([None, "3"], True)
        assert by_name["steps"] == (["100", "100"], False)
        assert by_name["data.data_dir"] == (["…/shakespeare"] * 2, False)
        assert by_name["base"][0] == [None, "…/base"]
        assert "output_dir" not in by_name
        assert client.get("/api/compare", params={"run": ["0" * 16]}).status_code == 404
        assert client.get("/api/compare", params={"run": ids * 20}).status_code == 400


def test_runs_that_come_and_go(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llada.serving.runs.collection.SECONDS_BETWEEN_LOOKS", 0)
    with client_of(runs) as client:
        one = only(client)
        make_run(runs / "sweep" / "a", [row(1)])
        assert [run["name"] for run in listed(client)] == ["one", "a"]
        (runs / "one").rename(runs.parent / "moved")
        assert [run["name"] for run in listed(client)] == ["a"]
        answer = client.get(f"/api/runs/{one['id']}/curves")
        assert (answer.status_code, answer.json()["error"]["message"]) == (
            404, "There is no such run here: it may have been moved or removed.",
        )  # fmt: skip


def test_names_are_as_long_as_they_need_to_be(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / side / "runs" / "x", [row(1)]) for side in ("a", "b")]
    with client_of(*folders, make_run(tmp_path / "y", [row(1)])) as client:
        assert [run["name"] for run in listed(client)] == ["a/runs/x", "b/runs/x", "y"]


@pytest.mark.parametrize(
    ("config", "metrics"),
    [
        ("{", "nonsense\n"),
        ("[]", '{"step": 1}\n'),
        ('{"steps": "many", "minutes": [], "data": 3}', '{"step": 1, "loss": "low", "nll_by_t": {}}\n'),
        ('{"steps": 1e400, "minutes": -1}', '{"step": 1, "loss": NaN, "nelbo": Infinity, "nelbo_stderr": null}\n'),
        ('{"steps": 0}', '{"step": 9007199254740991, "loss": 1e308, "seconds": -5, "tokens": "x"}\n' * 2),
        (
            '{"a": {"a": {"a": {"a": {"a": {}}}}}}',
            '{"step": 1, "loss": 1, "fraction_done": 7, "skipped_steps": 1e300}\n',
        ),
        ('{"name": "\\ud800"}', '{"step": 1, "loss": 1, "spike_from": 1e999, "nll": "x", "went_back_from": -1}\n'),
    ],
)
def test_strange_files_are_shown_as_far_as_they_can_be(tmp_path: Path, config: str, metrics: str) -> None:
    run = make_run(tmp_path / "strange")
    (run / "config.json").write_text(config)
    (run / "metrics.jsonl").write_text(metrics)
    (run / "trouble.json").write_text(config)
    with client_of(run) as client:
        one = only(client)["id"]
        for path in (f"/api/runs/{one}", f"/api/runs/{one}/curves", f"/api/compare?run={one}"):
            answer = client.get(path)
            assert answer.status_code == 200
            json.loads(answer.text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.mark.parametrize("archive", sorted((Path(__file__).parents[1] / "data" / "old").glob("*.tar.xz")))
def test_runs_of_earlier_versions(archive: Path, tmp_path: Path) -> None:
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    with client_of(tmp_path) as client:
        runs = {run["name"]: run for run in listed(client)}
        assert set(runs) == {"run", "local", "adapter"}  # and neither the checkpoint nor the data
        for run in runs.values():
            assert (run["step"], run["total_steps"], run["state"]) == (7, 12, "stopped")
            curves = client.get(f"/api/runs/{run['id']}/curves").json()
            assert curves["places"]["step"] == list(range(1, 8))
            assert curves["by_t"]["bins"] == 10
            assert client.get(f"/api/runs/{run['id']}").json()["settings"]["optimizer.ema"] == "0.9"


def test_hostile_names_and_texts_go_through_as_they_are(tmp_path: Path) -> None:
    """As JSON, which the page shows as text."""
    name = "<img src=x onerror=alert(1)>\x1b]0;x\x07\u202e"
    text = "</script><script>alert(1)</script>\x00\u2028"
    make_run(tmp_path / name, [row(1)], samples={1: text}, seed="<b>")
    with client_of(tmp_path) as client:
        run = only(client)
        assert run["name"] == name
        answer = client.get(f"/api/runs/{run['id']}/samples/1")
        assert answer.json()["text"] == text
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_nothing_of_the_machine_is_said_and_nothing_is_written(client: TestClient, runs: Path) -> None:
    before = snapshot(runs)
    one = only(client)["id"]
    paths = ["/api/runs", f"/api/runs/{one}", f"/api/runs/{one}/curves", f"/api/runs/{one}/samples/20"]
    paths += [f"/api/compare?run={one}", "/docs/openapi.json", *(f"/{name}" for name in PAGE)]
    paths += ["/api/runs/x", "/../../etc/passwd", "/%2e%2e/app.js", "/nothing", "/api/runs/%00"]
    for path in paths:
        text = client.get(path).text
        assert str(runs.parent) not in text, path
        assert "/home/somebody" not in text, path
        assert "Traceback" not in text, path
    assert snapshot(runs) == before


def test_other_methods_and_foreign_pages_are_refused(client: TestClient) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert client.request(method, "/api/runs").status_code == 405
    for headers in ({"host": "evil.example"}, {"origin": "http://evil.example"}, {"sec-fetch-site": "same-site"}):
        answer = client.get("/api/runs", headers=headers)
        assert answer.status_code == 403
        assert "one" not in answer.text.split()
    policy = client.get("/").headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy


def test_what_is_not_a_run_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "file.txt").write_text("x")
    checkpoint = make_run(tmp_path / "run", [row(1)]) / "checkpoints" / "step-00000001"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    for folder, sentence in (
        (tmp_path / "missing", "is not there: name a run folder, or a folder of runs"),
        (tmp_path / "notes" / "file.txt", "is a file: name a run folder"),
        (tmp_path / "notes", "holds neither a run nor a folder of one"),
        (checkpoint, "holds neither a run nor a folder of one"),
    ):
        with pytest.raises(UserError, match=sentence):
            make_app([folder])
    (tmp_path / "empty").mkdir()
    assert listed(client_of(tmp_path / "empty")) == []


def test_a_long_file_is_read_in_pieces(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llada.serving.runs.run.BYTES_AT_ONCE", 4000)
    with client_of(runs) as client:
        first = only(client)
        assert first["is_reading"]
        assert 0 < first["share_read"] < 1
        for _ in range(20):
            last = only(client)
        assert (last["is_reading"], last["rows"]) == (False, 40)
