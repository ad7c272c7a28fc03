"""The engine: each text is what it is alone, whoever is served with it, whatever fails next to it."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from llada.sampling.batches import unmask_together
from llada.sampling.config import SamplerConfig
from llada.serving.answer_text import AnswerText
from llada.serving.engine import Engine, OutOfTimeError, QueueFullError, StoppingError, UnwantedError
from llada.serving.limits import Limits
from llada.serving.metrics import Metrics
from llada.serving.served import Served
from llada.serving.writing import READ_ONLY, Outcome, StepRecord, Wanted
from llada.system.errors import UserError
from tests.support.servers import LETTERS, LLADA, LOCAL, served_toy

pytestmark = pytest.mark.usefixtures("one_thread")

MASK = LETTERS.mask_id
SETTINGS = [
    SamplerConfig(steps=None, temperature=1.0, policy="random"),
    SamplerConfig(steps=None, temperature=0.8, policy="entropy"),
    SamplerConfig(steps=5, temperature=1.0, policy="left_to_right"),
    SamplerConfig(steps=None, temperature=1.0, policy="entropy_bound", entropy_bound=2.0),
    SamplerConfig(steps=None, block_length=6),
    SamplerConfig(steps=None, temperature=1.0, cfg_scale=0.7, remasking="random"),
    SamplerConfig(steps=None, temperature=1.0, policy="confidence", repetition_penalty=1.3, top_k=5),
    SamplerConfig(steps=30, temperature=1.0, policy="random", remdm_eta=0.2),
    SamplerConfig(steps=30, temperature=1.0, policy="entropy", p2_tokens=2),
]


class Collector:
    """Takes what becomes of a text, and lets a test wait for its end."""

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []
        self.end: Outcome | Exception | None = None
        self.is_over = threading.Event()

    def finish(self, end: Outcome | Exception) -> None:
        self.end = end
        self.is_over.set()

    def outcome(self) -> Outcome:
        self.is_over.wait()
        assert isinstance(self.end, Outcome), self.end
        return self.end

    def error(self) -> Exception:
        self.is_over.wait()
        assert isinstance(self.end, Exception), self.end
        return self.end


def engine_of(served: Served, **limits: Any) -> Engine:
    return Engine(served.checkpoint.model, served.texts, Limits(**limits), Metrics())


def wanted_of(served: Served, template: list[int], config: SamplerConfig, seed: int, **further: Any) -> Wanted:
    answer = AnswerText(served.decode, served.mask_id)
    banned = tuple(served.checkpoint.tokenizer.forbidden_rows)
    return Wanted(template=tuple(template), config=config, seed=seed, **{"answer": answer, "banned": banned, **further})


def submit(engine: Engine, *wanted: Wanted) -> list[Collector]:
    collectors = [Collector() for _ in wanted]
    pairs = zip(wanted, collectors, strict=True)
    engine.submit([(one, collector.steps.append, collector.finish) for one, collector in pairs])
    return collectors


def alone(served: Served, wanted: Wanted) -> tuple[int, ...]:
    """The text by the sampler itself, without an engine."""
    rows = [list(wanted.template)]
    predict, pad_id = served.checkpoint.predict, served.checkpoint.tokenizer.pad_id
    for state in unmask_together(predict, [wanted.template], served.mask_id, pad_id, wanted.config, [wanted.seed]):
        rows = state[0]
    return tuple(rows[0])


def templates() -> Iterator[list[int]]:
    """Templates of different lengths and gaps."""
    for number in range(14):
        given = LETTERS.encode("to be or not"[: number + 1])
        yield [*given, *[MASK] * (8 + 3 * (number % 5)), *LETTERS.encode("end"[: number % 4])]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return served_toy(tmp_path_factory.mktemp("served"), LOCAL)


@pytest.fixture(scope="module")
def llada(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return served_toy(tmp_path_factory.mktemp("served"), LLADA)


@pytest.fixture(params=["served", "llada"])
def either(request: pytest.FixtureRequest) -> Served:
    """A network with a cache of what it computed, or one without."""
    found: Served = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def engine(request: pytest.FixtureRequest, served: Served) -> Iterator[Engine]:
    """An engine of the network that the test takes."""
    engine = engine_of(request.getfixturevalue("either") if "either" in request.fixturenames else served, batch=6)
    engine.start()
    yield engine
    engine.stop(0)
    engine.join()


def test_each_text_is_what_it_is_alone(either: Served, engine: Engine) -> None:
    """Bit for bit, with other lengths, settings and steps around it, more texts than are written at once."""
    wanted = [
        wanted_of(either, template, SETTINGS[number % len(SETTINGS)], seed=number)
        for number, template in enumerate(templates())
    ]
    together = submit(engine, *wanted)
    for one, collector in zip(wanted, together, strict=True):
        assert collector.outcome().ids == alone(either, one), one.config


def test_the_exact_nats_are_those_of_the_steps(either: Served, engine: Engine) -> None:
    from llada.sampling.guidance import suppress

    config = SamplerConfig(steps=None, temperature=1.0, policy="left_to_right")
    (collector,) = submit(engine, wanted_of(either, [MASK] * 9, config, seed=3, shows_steps=True, has_events=True))
    outcome, nats, canvas = collector.outcome(), 0.0, [MASK] * 9
    predict = suppress(either.checkpoint.model, either.checkpoint.tokenizer.forbidden_rows)
    for place, id_ in enumerate(outcome.ids):  # from left to right, one at a time, by the network itself
        with torch.no_grad():
            nats -= float(predict(torch.tensor([canvas]))[0, place].log_softmax(-1)[id_])
        canvas[place] = id_
    assert outcome.nats == pytest.approx(nats, rel=1e-5)
    events = [record.event for record in collector.steps if record.event is not None]
    assert [event["open"] for event in events] == list(range(8, -1, -1))
    assert [event["evaluations"] for event in events] == list(range(1, 10))
    assert all(0 < event["entropy"] < 4 for event in events)


def test_ways_to_sample_without_a_likelihood_have_no_nats(served: Served, engine: Engine) -> None:
    for config in (SamplerConfig(steps=None), SamplerConfig(steps=None, policy="random", stable_entropy=0.1)):
        (collector,) = submit(engine, wanted_of(served, [MASK] * 5, config, seed=0))
        assert collector.outcome().nats is None


def test_alternatives_are_the_likeliest_tokens_at_the_step(either: Served, engine: Engine) -> None:
    config = SamplerConfig(steps=None, temperature=0.0, policy="confidence")
    (collector,) = submit(engine, wanted_of(either, [MASK] * 6, config, 0, alternatives=4, shows_steps=True))
    collector.outcome()
    for record in collector.steps:
        for written in record.revealed.values():
            ids, probabilities = zip(*written.alternatives, strict=True)
            assert len(ids) == 4
            assert ids[0] == written.id  # the temperature is 0
            assert list(probabilities) == sorted(probabilities, reverse=True)
            assert probabilities[0] == pytest.approx(2.718281828459045**written.log_p, rel=1e-5)


def test_a_text_that_is_read_only_is_evaluated_once(either: Served, engine: Engine) -> None:
    template = [MASK, *LETTERS.encode("be"), MASK]
    (collector,) = submit(engine, wanted_of(either, template, READ_ONLY, 0, is_read_only=True, alternatives=3))
    outcome = collector.outcome()
    assert outcome.evaluations == 1
    assert set(outcome.written) == {0, 3}
    with torch.no_grad():
        logits = either.checkpoint.predict(torch.tensor([template]))
    assert [outcome.ids[0], outcome.ids[3]] == [int(logits[0, place].argmax()) for place in (0, 3)]


def test_an_answer_ends_where_a_stop_string_is_decided(served: Served, engine: Engine) -> None:
    config = SamplerConfig(steps=None, temperature=1.0, policy="left_to_right")
    whole = submit(engine, wanted_of(served, [MASK] * 40, config, seed=1))[0].outcome().decided.text
    stop = whole[10:13]
    answer = AnswerText(served.decode, MASK, stops=(stop,))
    outcome = submit(engine, wanted_of(served, [MASK] * 40, config, seed=1, answer=answer))[0].outcome()
    at = whole.index(stop)
    assert outcome.decided.text == whole[:at]
    assert outcome.evaluations == at + 3  # no step after it
    assert outcome.finish_reason == "stop"
    assert outcome.nats is None  # of a text that is not complete


class Failing(torch.nn.Module):
    """A model whose predictions are not finite where a text has a certain token."""

    takes_positions, is_causal = True, False

    def __init__(self, model: torch.nn.Module, poison: int, error: Exception | None = None) -> None:
        super().__init__()
        self.model, self.network, self.poison, self.error = model, None, poison, error

    def forward(self, x_t: Tensor, attention_mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        logits: Tensor = self.model(x_t, attention_mask=attention_mask, positions=positions)
        assert positions is not None
        is_poisoned = (x_t == self.poison).any(1)
        if self.error is not None and bool(is_poisoned.any()):
            raise self.error
        rows = positions.nonzero()[:, 0]
        return torch.where(is_poisoned[rows, None], torch.nan, logits)


@pytest.mark.parametrize("error", [None, RuntimeError("bad_alloc"), KeyError("a mistake of ours")])
def test_an_error_of_one_text_is_not_one_of_the_others(served: Served, error: Exception | None) -> None:
    (poison,) = LETTERS.encode("z")
    engine = engine_of(served)
    engine.model = Failing(served.checkpoint.model, poison, error)  # type: ignore[assignment]
    config = SamplerConfig(steps=None, temperature=1.0, policy="random")
    banned = (*LETTERS.forbidden_rows, poison)  # the others never write it
    template = [*LETTERS.encode("ab"), *[MASK] * 10]
    wanted = [wanted_of(served, template, config, seed=seed, banned=banned) for seed in range(5)]
    broken = wanted_of(served, [poison, *[MASK] * 7], config, seed=9, banned=banned)
    engine.start()
    collectors = submit(engine, *wanted[:2], broken, *wanted[2:])
    fault = collectors.pop(2).error()
    assert isinstance(fault, UserError if error is None else type(error))
    clean = engine_of(served)
    clean.start()
    for one, collector in zip(wanted, collectors, strict=True):
        assert collector.outcome().ids == submit(clean, one)[0].outcome().ids
    for each in (engine, clean):
        each.stop(0)
        each.join()


class Gate(torch.nn.Module):
    """A model that waits before each evaluation until a test lets it."""

    takes_positions, is_causal = True, False

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model, self.network = model, None
        self.allowed = threading.Semaphore(0)
        self.asked = threading.Semaphore(0)
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, x_t: Tensor, attention_mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        self.sizes.append(tuple(x_t.shape))
        self.asked.release()
        self.allowed.acquire()
        logits: Tensor = self.model(x_t, attention_mask=attention_mask, positions=positions)
        return logits


@pytest.fixture
def gated(served: Served) -> Iterator[tuple[Engine, Gate]]:
    engine, gate = engine_of(served, batch=2, queue=2), Gate(served.checkpoint.model)
    engine.model = gate  # type: ignore[assignment]
    engine.start()
    yield engine, gate
    engine.stop(0)
    gate.allowed.release(1000)
    engine.join()


RANDOM = SamplerConfig(steps=None, temperature=1.0, policy="random")


def test_texts_join_and_leave_between_steps(served: Served, gated: tuple[Engine, Gate]) -> None:
    engine, gate = gated
    (long,) = submit(engine, wanted_of(served, [MASK] * 6, RANDOM, 0))
    gate.asked.acquire()  # the first step of the long one has begun
    (short, third) = submit(engine, wanted_of(served, [MASK] * 2, RANDOM, 1), wanted_of(served, [MASK] * 3, RANDOM, 2))
    gate.allowed.release(100)
    for collector in (short, third, long):  # the short one does not wait for the long one
        collector.outcome()
    # Alone; with the short one; when that is complete, with the third.
    assert gate.sizes == [(1, 6), (2, 6), (2, 6), (2, 6), (2, 6), (2, 6)]


def test_a_full_queue_refuses_and_says_when_to_come_back(served: Served, gated: tuple[Engine, Gate]) -> None:
    engine, gate = gated
    submit(engine, wanted_of(served, [MASK] * 6, RANDOM, 0))
    gate.asked.acquire()
    submit(engine, *[wanted_of(served, [MASK] * 6, RANDOM, seed) for seed in (1, 2, 3)])  # one joins, two wait
    with pytest.raises(QueueFullError) as refused:
        submit(engine, wanted_of(served, [MASK], RANDOM, 4))
    engine.step_seconds = 2.6
    assert engine.seconds_to_wait() == 16  # six steps of 2.6 seconds
    assert refused.value.seconds >= 1


def test_cancelled_texts_leave_the_queue_and_the_batch(served: Served, gated: tuple[Engine, Gate]) -> None:
    engine, gate = gated
    collectors = [Collector() for _ in range(4)]
    wanted = wanted_of(served, [MASK] * 6, RANDOM, 0)
    first = engine.submit([(wanted, collectors[0].steps.append, collectors[0].finish)])
    gate.asked.acquire()
    rest = engine.submit([(wanted, one.steps.append, one.finish) for one in collectors[1:]])
    for ticket in (*first, rest[1]):  # one that is being written, one that waits
        ticket.cancel()
    submit(engine, wanted)  # a cancelled text holds no place in the queue
    gate.allowed.release(100)
    assert isinstance(collectors[0].error(), UnwantedError)
    assert collectors[1].outcome().ids == collectors[3].outcome().ids
    assert not collectors[2].steps


def test_a_text_that_takes_too_long_is_ended(served: Served) -> None:
    engine, gate = engine_of(served, seconds=0.01), Gate(served.checkpoint.model)
    engine.model = gate  # type: ignore[assignment]
    engine.start()
    (collector,) = submit(engine, wanted_of(served, [MASK] * 6, RANDOM, 0))
    gate.asked.acquire()
    time.sleep(0.02)
    gate.allowed.release(100)
    assert isinstance(collector.error(), OutOfTimeError)
    engine.stop(0)
    engine.join()


def test_stopping_completes_what_is_there_within_the_grace_time(served: Served, gated: tuple[Engine, Gate]) -> None:
    engine, gate = gated
    collectors = submit(engine, *[wanted_of(served, [MASK] * 3, RANDOM, seed) for seed in range(4)])
    gate.asked.acquire()
    engine.stop(600)
    with pytest.raises(StoppingError):
        submit(engine, wanted_of(served, [MASK], RANDOM, 0))
    gate.allowed.release(100)
    engine.join()
    assert all(isinstance(collector.end, Outcome) for collector in collectors)


def test_after_the_grace_time_texts_are_ended(served: Served, gated: tuple[Engine, Gate]) -> None:
    engine, gate = gated
    collectors = submit(engine, *[wanted_of(served, [MASK] * 3, RANDOM, seed) for seed in range(4)])
    gate.asked.acquire()
    engine.stop(0)
    gate.allowed.release(100)
    engine.join()
    assert all(isinstance(collector.error(), StoppingError) for collector in collectors)


def test_a_batch_is_bounded_by_its_tokens(served: Served) -> None:
    engine, gate = engine_of(served, batch=8, batch_tokens=24), Gate(served.checkpoint.model)
    engine.model = gate  # type: ignore[assignment]
    gate.allowed.release(1000)
    collectors = [Collector() for _ in range(6)]
    lengths = (6, 6, 6, 6, 6, 40)  # four fit; the longest is evaluated by itself
    wanted = [wanted_of(served, [MASK] * length, RANDOM, 0) for length in lengths]
    engine.start()
    engine.submit([(one, c.steps.append, c.finish) for one, c in zip(wanted, collectors, strict=True)])
    for collector in collectors:
        collector.outcome()
    assert max(n for n, _ in gate.sizes) == 4
    assert all(n * length <= 24 or n == 1 for n, length in gate.sizes)
    engine.stop(0)
    engine.join()


def test_the_counts_are_those_of_the_texts(served: Served, engine: Engine) -> None:
    metrics = engine.observer
    assert isinstance(metrics, Metrics)
    before = metrics.registry.get_sample_value("llada_tokens_total") or 0.0
    config = replace(RANDOM, steps=4)
    for collector in submit(engine, *[wanted_of(served, [MASK] * 8, config, seed) for seed in range(3)]):
        collector.outcome()
    assert metrics.registry.get_sample_value("llada_tokens_total") == before + 24
    assert metrics.registry.get_sample_value("llada_active_texts") == 0
    assert (metrics.registry.get_sample_value("llada_evaluations_total") or 0) >= 4
