"""The frames of a film: what every place of a text shows after a step, computed from diffusion events.

All that draws (terminal.py, gif.py, svg.py, cast.py) draws these; the events are those of sampling/events.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

ColourBy = Literal["confidence", "age"]
CONFIDENCES = (0.2, 0.45, 0.7, 0.9)
"""Probabilities below which a token is drawn as more and less doubtful; the page's player has the same."""
AGES = (0.01, 0.03, 0.07, 0.15)
"""Ages below which a token is drawn as newer and less new, in parts of all steps; the page's player has the same."""
MOST_FRAMES = 64
"""Frames of a film, the first and the last included: more look no smoother, and make it larger."""


@dataclass(frozen=True)
class Place:
    """One position of the text, as a frame shows it."""

    text: str | None
    """Text of the token there; None is a mask."""
    is_given: bool
    """Whether it was given from the start, and not written by the model."""
    p: float | None = None
    """Probability that the model gave to the token when it was revealed; None if it is masked, given, or unknown."""
    step: int = 0
    """Step that revealed it; 0 if it is masked or given."""


@dataclass(frozen=True)
class Frame:
    """What a text shows after a step."""

    step: int
    evaluations: int
    seconds: float
    """Time since the start."""
    entropy: float | None
    """Mean entropy of the open positions before the step, in nats; None if it was not measured."""
    n_open: int
    """Number of positions that are still masked."""
    places: tuple[Place, ...]
    limit: int
    """Number of steps of the whole film; while it is not over, the most that it may still have."""
    is_finished: bool = False
    """Whether nothing will be revealed any more; masks may remain, behind the end of an answer."""
    nats: float | None = None
    """Exact nats of the text under its policy; None before the end, and for a policy that has none."""


@dataclass
class Replay:
    """The text that events lead to, one after the other.

    Events of an unknown type are passed over, so that a newer writer's films can be drawn.
    """

    places: list[Place] = field(default_factory=list)
    step: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    entropy: float | None = None
    limit: int = 1
    is_finished: bool = False
    nats: float | None = None

    def add(self, event: Mapping[str, Any]) -> None:
        """Take in an event: "start", "step" or "end"."""
        kind = event["type"]
        if kind == "start":
            self.limit = event["limit"]
            self.places = [
                Place(None if token is None else _encodable(token["text"]), bool(is_given))
                for token, is_given in zip(event["tokens"], event["given"], strict=True)
            ]
        elif kind == "step":
            self.step, self.entropy = event["step"], event["entropy"]
            for at in event["remasked"]:
                self.places[at] = Place(None, False)
            for token in event["revealed"]:
                self.places[token["at"]] = Place(_encodable(token["text"]), False, token["p"], self.step)
        elif kind == "end":
            self.nats, self.limit, self.is_finished = event["nats"], self.step, True
        if kind in ("step", "end"):
            self.evaluations = event["evaluations"]
            self.seconds = event["seconds"] + (self.seconds if kind == "step" else 0)  # a step has its own alone

    def frame(self) -> Frame:
        """Return what is shown now."""
        n_open = sum(place.text is None for place in self.places)
        return Frame(
            step=self.step,
            evaluations=self.evaluations,
            seconds=self.seconds,
            entropy=self.entropy,
            n_open=n_open,
            places=tuple(self.places),
            limit=self.limit,
            is_finished=self.is_finished or not n_open,
            nats=self.nats,
        )


def _encodable(text: str) -> str:
    """Return a text with "?" for halves of surrogate pairs, which no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def frames_of(events: Sequence[Mapping[str, Any]], most: int = MOST_FRAMES) -> list[Frame]:
    """Return the frames of a film: the start, steps evenly spread, and the end.

    Args:
        events: a "start", then "step"s, and an "end" if the text was finished.
        most: greatest number of frames, at least 2.
    """
    steps = [number for number, event in enumerate(events) if event["type"] == "step"]
    n_shown = min(len(steps), most - 1)
    shown = {0} | {steps[(i + 1) * len(steps) // n_shown - 1] for i in range(n_shown)}
    replay, frames = Replay(), []
    for number, event in enumerate(events):
        replay.add(event)
        if number in shown:
            frames.append(replay.frame())
    frames[-1] = replay.frame()  # with what the end says
    return [replace(frame, limit=replay.step) for frame in frames]


Shade = Literal["mask", "plain", "doubt-0", "doubt-1", "doubt-2", "doubt-3", "age-0", "age-1", "age-2", "age-3"]
DOUBTS: tuple[Shade, ...] = ("doubt-0", "doubt-1", "doubt-2", "doubt-3")
NEWNESS: tuple[Shade, ...] = ("age-0", "age-1", "age-2", "age-3")


def shade_of(place: Place, frame: Frame, by: ColourBy) -> Shade:
    """Return the shade of a place in a frame."""
    if place.text is None:
        return "mask"
    if place.is_given:
        return "plain"
    if by == "age":
        age = (frame.step - place.step) / max(1, frame.limit)
        return next((shade for shade, limit in zip(NEWNESS, AGES, strict=True) if age < limit), "plain")
    bounds = zip(DOUBTS, CONFIDENCES, strict=True)
    return next((shade for shade, bound in bounds if place.p is not None and place.p < bound), "plain")


def status_of(frame: Frame) -> str:
    """Return the line below a text: what is masked, and what it has cost so far."""
    parts = [
        "finished" if frame.is_finished else f"{frame.n_open} masked",
        f"{frame.evaluations} evaluation{'s' * (frame.evaluations != 1)}",
        f"{frame.seconds:.1f} s",
    ]
    if frame.nats is not None:
        parts.append(f"{frame.nats:.1f} nats in all")
    elif frame.entropy is not None and not frame.is_finished:
        parts.append(f"entropy {frame.entropy:.2f} nats")
    return " · ".join(parts)
