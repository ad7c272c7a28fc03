"""The endpoints of the page: the events of a text, an explicit canvas, what the model is."""

import json
from typing import Any

import pytest
import torch

from llada.model import Model
from tests.support.servers import LETTERS, LONGEST, Live


def events_of(alive: Live, body: dict[str, Any]) -> list[dict[str, Any]]:
    with alive.client() as client, client.stream("POST", "/v1/diffusion", json=body) as answer:
        assert answer.status_code == 200, answer.read()
        return [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line]


def refused(alive: Live, body: dict[str, Any]) -> str:
    with alive.client() as client:
        answer = client.post("/v1/diffusion", json=body)
    assert answer.status_code == 400
    return str(answer.json()["error"]["message"])


def test_the_events_lead_from_the_canvas_to_the_text(alive: Live) -> None:
    body = {"prompt": "to be", "length": 10, "seed": 3, "settings": {"policy": "entropy"}, "alternatives": 3}
    start, *steps, end = events_of(alive, body)
    assert (start["type"], start["seed"], start["limit"]) == ("start", 3, 10)
    assert start["settings"]["policy"] == "entropy"
    assert (start["model"], start["fingerprint"]) == (alive.served.name, alive.served.fingerprint)
    canvas = [token and token["text"] for token in start["tokens"]]
    assert start["given"] == [text is not None for text in canvas]
    for number, step in enumerate(steps, 1):
        assert (step["type"], step["step"], step["evaluations"]) == ("step", number, number)
        for revealed in step["revealed"]:
            assert canvas[revealed["at"]] is None
            canvas[revealed["at"]] = revealed["text"]
            assert len(revealed["alternatives"]) == 3
        assert step["open"] == canvas.count(None)
    text = Model(alive.served.checkpoint).generate("to be", length=10, seed=3, policy="entropy")
    assert "".join(filter(None, canvas)) == end["text"] == text
    assert (end["type"], end["tokens_written"], end["finish_reason"]) == ("end", 10, "length")
    ids = LETTERS.encode(text)
    probabilities = {one["at"]: one["p"] for step in steps for one in step["revealed"]}
    assert end["nats"] == pytest.approx(-float(torch.tensor([*probabilities.values()]).double().log().sum()), rel=1e-5)
    assert sorted(probabilities) == list(range(5, len(ids)))


def test_a_canvas_masks_again_pins_and_forces(alive: Live) -> None:
    """What the page sends after a click: the text before, with null where it is masked again."""
    before = events_of(alive, {"prompt": "ab", "length": 8, "seed": 1})[-1]["text"]
    ids: list[int | None] = [*LETTERS.encode(before)]
    ids[4], ids[5] = None, None
    start, *_, end = events_of(alive, {"tokens": ids, "seed": 2})
    assert start["given"] == [id_ is not None for id_ in ids]
    assert (end["text"][:4], end["text"][6:]) == (before[:4], before[6:])
    assert end["tokens_written"] == 2


def test_without_a_length_the_text_fills_the_model(alive: Live) -> None:
    assert len(events_of(alive, {"prompt": "ab", "settings": {"steps": 2}})[0]["tokens"]) == LONGEST


def test_bad_requests_are_sentences(alive: Live) -> None:
    assert "'prompt' and 'template'" in refused(alive, {"prompt": "a", "template": "<MASK>"})
    assert "'settings.policy'" in refused(alive, {"settings": {"policy": "best"}})
    assert "'settings.stepz'" in refused(alive, {"settings": {"stepz": 3}})
    assert "'lenght'" in refused(alive, {"lenght": 3})
    assert "'#'" in refused(alive, {"prompt": "a#b"})
    assert f"66 tokens, and this model takes {LONGEST}" in refused(alive, {"prompt": "ab", "length": 64})
    assert "nothing to fill in" in refused(alive, {"prompt": "ab", "length": 0})
    assert "nothing to fill in" in refused(alive, {"tokens": []})
    assert "is not the id of a token" in refused(alive, {"tokens": [LETTERS.mask_row, None]})


def test_the_model_is_described(alive: Live) -> None:
    with alive.client() as client:
        model = client.get("/v1/diffusion/model").json()
    assert model["name"] == "toy"
    assert model["max_length"] == LONGEST
    assert model["vocabulary_size"] == LETTERS.vocab_size
    assert model["tokens"] == {letter: LETTERS.encode(letter)[0] for letter in LETTERS.characters}
    assert model["parameters"] == sum(one.numel() for one in alive.served.checkpoint.model.parameters())
    assert {"random", "entropy"} <= set(model["policies"])
    assert model["default_settings"]["temperature"] == 1.0
    assert model["is_causal"] is False


def test_texts_are_encoded_token_by_token(alive: Live) -> None:
    with alive.client() as client:
        tokens = client.post("/v1/diffusion/tokenize", json={"text": "a b"}).json()["tokens"]
        too_long = client.post("/v1/diffusion/tokenize", json={"text": "a" * (LONGEST + 1)})
    assert tokens == [{"id": id_, "text": text} for id_, text in zip(LETTERS.encode("a b"), "a b", strict=True)]
    assert too_long.status_code == 400
    assert str(LONGEST + 1) in too_long.json()["error"]["message"]
