"""Diffusion events of a text, made by hand."""

from collections.abc import Mapping, Sequence
from typing import Any

Event = dict[str, Any]


def start(tokens: Sequence[str | None], limit: int | None = None) -> Event:
    """The event of a text of which some tokens are given."""
    return {
        "type": "start",
        "tokens": [None if text is None else {"id": len(text), "text": text} for text in tokens],
        "given": [text is not None for text in tokens],
        "limit": tokens.count(None) if limit is None else limit,
        "seed": 7,
        "settings": {"policy": "entropy", "temperature": 0.7},
        "model": "demo",
        "fingerprint": "ab",
    }


def step(
    number: int,
    revealed: Mapping[int, str],
    p: float = 0.5,
    remasked: Sequence[int] = (),
    entropy: float | None = 1.0,
    n_open: int = 0,
) -> Event:
    """The event of a step of half a second."""
    return {
        "type": "step",
        "step": number,
        "evaluations": number,
        "seconds": 0.5,
        "revealed": [
            {"at": at, "id": 3, "text": text, "p": p, "alternatives": [{"id": 3, "text": text, "p": p}]}
            for at, text in revealed.items()
        ],
        "remasked": list(remasked),
        "entropy": entropy,
        "open": n_open,
    }


def end(text: str, evaluations: int, nats: float | None = 12.5) -> Event:
    """The event of a text that is finished."""
    return {
        "type": "end", "text": text, "evaluations": evaluations, "seconds": evaluations / 2, "nats": nats,
        "tokens_written": evaluations, "finish_reason": "length",
    }  # fmt: skip


def film_of(text: str, n_given: int = 0) -> list[Event]:
    """The events of a text whose characters appear one after the other, the last first."""
    open_places = list(range(n_given, len(text)))
    events = [start([*text[:n_given], *[None] * len(open_places)])]
    for number, at in enumerate(reversed(open_places), 1):
        p = (at % 10 + 0.5) / 10
        events.append(step(number, {at: text[at]}, p, n_open=len(open_places) - number))
    return [*events, end(text, len(open_places))]


def tokens_film(texts: Sequence[str]) -> list[Event]:
    """The events of a text whose tokens appear one after the other, the first first."""
    steps = [step(at + 1, {at: text}, n_open=len(texts) - at - 1) for at, text in enumerate(texts)]
    return [start([None] * len(texts)), *steps, end("".join(texts), len(texts))]


HOSTILE = ("\x1b]0;title\x07", "</script><script>alert(1)</script>", "<b>&\"'", "\x9b2J", "\u202e", "\x00", "\ud800")
"""Tokens that a terminal, a page or an XML parser would obey or refuse."""
