"""The frames of a film: what every place of a text shows after a step, computed from diffusion events.

All that draws (terminal.py, gif.py, svg.py, cast.py) draws these; the events are those of sampling/events.py.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

ColourBy = Literal["confidence", "age"]
CONFIDENCES = (0.9, 0.5, 0.2)
"""Probabilities from which on a token is "sure", "likely" and "unsure"; below the last, it is a guess."""
AGES = (1, 4, 16)
"""Steps since a token appeared, from which on it is no longer "new", "young", "settled"."""
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
    nats: float | None = None

    def add(self, event: Mapping[str, Any]) -> None:
        """Take in an event: "start", "step" or "end"."""
        kind = event["type"]
        if kind == "start":
            self.places = [
                Place(None if token is None else token["text"], bool(is_given))
                for token, is_given in zip(event["tokens"], event["given"], strict=True)
            ]
        elif kind == "step":
            self.step, self.entropy = event["step"], event["entropy"]
            for at in event["remasked"]:
                self.places[at] = Place(None, False)
            for token in event["revealed"]:
                self.places[token["at"]] = Place(token["text"], False, token["p"], self.step)
        elif kind == "end":
            self.nats = event["nats"]
        if kind in ("step", "end"):
            self.evaluations, self.seconds = event["evaluations"], event["seconds"]

    def frame(self) -> Frame:
        """Return what is shown now."""
        n_open = sum(place.text is None for place in self.places)
        return Frame(
            self.step, self.evaluations, self.seconds, self.entropy, n_open, tuple(self.places), self.nats
        )  # fmt: skip


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
    return frames


Shade = Literal["given", "mask", "sure", "likely", "unsure", "guess", "new", "young", "settled", "old"]


def shade_of(place: Place, step: int, by: ColourBy) -> Shade:
    """Return the class of colour of a place in the frame of a step."""
    if place.text is None:
        return "mask"
    if place.is_given:
        return "given"
    if by == "age":
        names: Iterable[Shade] = ("new", "young", "settled")
        limits = zip(names, AGES, strict=True)
        return next((name for name, limit in limits if step - place.step < limit), "old")
    levels: Iterable[Shade] = ("sure", "likely", "unsure")
    least = zip(levels, CONFIDENCES, strict=True)
    return next((name for name, limit in least if place.p is None or place.p >= limit), "guess")


def status_of(frame: Frame) -> str:
    """Return the line below a text: what is masked, and what it has cost so far."""
    parts = [
        f"{frame.n_open} masked" if frame.n_open else "finished",
        f"{frame.evaluations} evaluation{'s' * (frame.evaluations != 1)}",
        f"{frame.seconds:.1f} s",
    ]
    if frame.nats is not None:
        parts.append(f"{frame.nats:.1f} nats in all")
    elif frame.entropy is not None and frame.n_open:
        parts.append(f"entropy {frame.entropy:.2f} nats")
    return " · ".join(parts)
