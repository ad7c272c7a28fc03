"""The frames of a film, from events made by hand."""

import pytest

from llada.films.frames import Frame, Place, Replay, Shade, frames_of, shade_of, status_of
from llada.films.timing import END_MS, LONGEST_MS, START_MS, durations_of
from tests.support.film_events import end, film_of, start, step

GIVEN_A, MASK = Place("a", True), Place(None, False)


def test_frames_are_what_every_place_shows_after_each_step() -> None:
    events = [
        start(["a", None, None]),
        step(1, {2: "c"}, p=0.25, entropy=1.5, n_open=1),
        step(2, {1: "b"}, p=0.75, entropy=0.5),
        end("abc", 2, nats=3.25),
    ]
    c, b = Place("c", False, 0.25, 1), Place("b", False, 0.75, 2)
    assert frames_of(events) == [
        Frame(0, 0, 0.0, None, 2, (GIVEN_A, MASK, MASK), limit=2),
        Frame(1, 1, 0.5, 1.5, 1, (GIVEN_A, MASK, c), limit=2),
        Frame(2, 2, 1.0, 0.5, 0, (GIVEN_A, b, c), limit=2, is_finished=True, nats=3.25),
    ]


def test_a_place_may_be_masked_again_and_get_another_token() -> None:
    events = [start([None, "a"]), step(1, {0: "x"}), step(2, {}, remasked=[0]), step(3, {0: "y"}), end("ya", 3)]
    assert [frame.places[0] for frame in frames_of(events)] == [
        MASK, Place("x", False, 0.5, 1), MASK, Place("y", False, 0.5, 3),
    ]  # fmt: skip
    assert [frame.n_open for frame in frames_of(events)] == [1, 0, 1, 0]


def test_a_text_that_is_not_finished_ends_with_its_last_step() -> None:
    frames = frames_of([start([None, None], limit=5), step(1, {0: "x"}), {"type": "error", "message": "Full."}])
    assert [frame.n_open for frame in frames] == [2, 1]
    assert frames[-1].nats is None
    assert frames[-1].limit == 1
    assert frames_of([start(["a"])])[0].places == (GIVEN_A,)


def test_an_answer_is_finished_with_masks_behind_its_end() -> None:
    *_, before, last = frames_of([start([None] * 3), step(1, {0: "a"}), step(2, {1: ""}), end("a", 2, nats=None)])
    assert (before.n_open, before.is_finished) == (2, False)
    assert (last.n_open, last.is_finished) == (1, True)
    assert status_of(last) == "finished · 2 evaluations · 1.0 s"


@pytest.mark.parametrize(
    ("n_steps", "most", "shown"),
    [(3, 9, [0, 1, 2, 3]), (8, 5, [0, 2, 4, 6, 8]), (7, 4, [0, 2, 4, 7]), (100, 3, [0, 50, 100]), (0, 4, [0])],
)
def test_of_many_steps_some_are_shown_evenly_with_the_first_and_last(n_steps: int, most: int, shown: list[int]) -> None:
    frames = frames_of(film_of("x" * n_steps), most)
    assert [frame.step for frame in frames] == shown
    assert [frame.n_open for frame in frames] == [n_steps - at for at in shown]


def test_a_live_text_is_the_film_step_by_step() -> None:
    events, replay, live = film_of("to be", 2), Replay(), []
    for event in events:
        replay.add(event)
        if event["type"] != "end":
            live.append(replay.frame().places)
    assert live == [frame.places for frame in frames_of(events)]


@pytest.mark.parametrize(
    ("place", "by_confidence", "by_age"),
    [
        (MASK, "mask", "mask"),
        (GIVEN_A, "plain", "plain"),
        (Place("b", False, 0.19, 100), "doubt-0", "age-0"),
        (Place("b", False, 0.2, 99), "doubt-1", "age-1"),
        (Place("b", False, 0.45, 97), "doubt-2", "age-2"),
        (Place("b", False, 0.7, 93), "doubt-3", "age-3"),
        (Place("b", False, 0.9, 85), "plain", "plain"),
        (Place("b", False, None, 100), "plain", "age-0"),
    ],
)
def test_shades_follow_the_probability_or_the_age(place: Place, by_confidence: Shade, by_age: Shade) -> None:
    frame = Frame(100, 100, 1.0, None, 0, (place,), limit=100)
    assert shade_of(place, frame, "confidence") == by_confidence
    assert shade_of(place, frame, "age") == by_age


def test_the_status_says_what_it_cost() -> None:
    first, second, *_, last = frames_of(film_of("to be", 2))
    assert status_of(first) == "3 masked · 0 evaluations · 0.0 s"
    assert status_of(second) == "2 masked · 1 evaluation · 0.5 s · entropy 1.00 nats"
    assert status_of(last) == "finished · 3 evaluations · 1.5 s · 12.5 nats in all"


def test_frames_are_shown_evenly_with_a_pause_at_the_end() -> None:
    assert durations_of(1) == [END_MS]
    assert durations_of(4) == [START_MS, LONGEST_MS, LONGEST_MS, END_MS]
    assert durations_of(62) == [START_MS, *[100] * 60, END_MS]
    assert set(durations_of(1000)[1:-1]) == {60}
