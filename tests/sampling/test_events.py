"""What happens to a text, as JSON.

Shape letters: V vocabulary rows.
"""

import itertools
import json
import math
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from llada.sampling.config import SamplerConfig
from llada.sampling.events import FillEvents, TokenTexts, error_event
from llada.sampling.fills import advance, start
from llada.tokenizers.char import CharTokenizer

TOKENIZER = CharTokenizer("abc")
MASK, EOS, (A, B, C) = TOKENIZER.mask_id, TOKENIZER.eos_id, TOKENIZER.encode("abc")
P = torch.zeros(TOKENIZER.vocab_size)
P[[A, B, C]] = torch.tensor([0.5, 0.3, 0.2])


def predict(x_t: Tensor) -> Tensor:
    return P.log().expand(*x_t.shape, -1)


def events_of(
    template: list[int], config: SamplerConfig, predict: Any = predict, end_ids: tuple[int, ...] = ()
) -> list[dict[str, Any]]:
    fill, clock = start(template, MASK, config, Generator().manual_seed(0)), itertools.count()
    made = FillEvents(fill, TokenTexts(TOKENIZER), end_ids=end_ids, alternatives=2, clock=lambda: float(next(clock)))
    events = [made.start(seed=0, model="toy", fingerprint="f0")]
    while not fill.is_done:
        (result,) = advance(predict, [fill])
        events.append(made.step(result))
    events.append(made.end())
    read: list[dict[str, Any]] = json.loads(json.dumps(events))
    return read


def test_events_of_a_text_are_as_written_here() -> None:
    config = SamplerConfig(steps=None, policy="left_to_right")
    events = events_of([B, MASK, C, MASK], config)
    token = {"id": A, "text": "a", "p": pytest.approx(0.5)}
    revealed = {**token, "alternatives": [token, {"id": B, "text": "b", "p": pytest.approx(0.3)}]}
    entropy = pytest.approx(-sum(p * math.log(p) for p in (0.5, 0.3, 0.2)))
    step = {"type": "step", "seconds": 1.0, "remasked": [], "entropy": entropy}
    assert events == [
        {
            "type": "start", "tokens": [{"id": B, "text": "b"}, None, {"id": C, "text": "c"}, None],
            "given": [True, False, True, False], "limit": 2, "seed": 0, "settings": asdict(config), "model": "toy",
            "fingerprint": "f0",
        },
        {**step, "step": 1, "evaluations": 1, "revealed": [{"at": 1, **revealed}], "open": 1},
        {**step, "step": 2, "evaluations": 2, "revealed": [{"at": 3, **revealed}], "open": 0},
        {
            "type": "end", "text": "baca", "evaluations": 2, "seconds": 3.0, "nats": pytest.approx(2 * math.log(2)),
            "tokens_written": 2, "finish_reason": "length",
        },
    ]  # fmt: skip
    assert error_event("This is one.") == {"type": "error", "message": "This is one."}


def test_a_text_ends_at_its_end_and_has_nats_only_under_a_policy() -> None:
    def ending(x_t: Tensor) -> Tensor:
        logits = predict(x_t).clone()
        logits[:, 2, EOS] = 9.0
        return logits

    end = events_of([EOS, MASK, MASK, MASK], SamplerConfig(steps=1), ending, (EOS,))[-1]
    assert (end["text"], end["tokens_written"], end["finish_reason"], end["nats"]) == ("a", 1, "stop", None)


def test_nothing_is_alternative_that_may_not_be_written() -> None:
    only = torch.full((TOKENIZER.vocab_size,), -torch.inf)
    only[C] = 0.0
    step = events_of([MASK], SamplerConfig(), lambda x_t: only.expand(*x_t.shape, -1))[1]
    assert step["revealed"] == [
        {"at": 0, "id": C, "text": "c", "p": 1.0, "alternatives": [{"id": C, "text": "c", "p": 1.0}]}
    ]
    assert step["entropy"] == 0.0


class Bytes:
    """A tokenizer of bytes, which counts how often it is asked."""

    mask_id, calls = 256, 0

    def decode(self, ids: Any, mask_symbol: str = "_") -> str:
        self.calls += 1
        runs = itertools.groupby(ids, key=lambda one: one == self.mask_id)
        return "".join(mask_symbol if masked else bytes(run).decode(errors="replace") for masked, run in runs)


def test_parts_of_a_character_are_marked_as_such_and_each_token_is_decoded_once() -> None:
    tokenizer = Bytes()
    texts = TokenTexts(tokenizer)  # type: ignore[arg-type]
    assert texts.of([97, *"é".encode(), 97]) == ["a", "\ufffd", "\ufffd", "a"]
    assert texts.tokens([98, 256, 97]) == [{"id": 98, "text": "b"}, None, {"id": 97, "text": "a"}]
    assert texts.of([97, 98]) == ["a", "b"]
    assert tokenizer.calls == 2


def test_tokens_that_are_not_text_are_empty() -> None:
    assert TokenTexts(TOKENIZER).of([EOS, A]) == ["", "a"]
