"""Diffusion events: what happens to a text from its masks to its end, as JSON.

A text is a list of events: one "start", a "step" for each evaluation, and an "end" or an "error".
"""

import math
from dataclasses import asdict
from typing import Any

from llada.serving.served import Served
from llada.serving.writing import Outcome, StepRecord, Wanted, Written


def start_event(served: Served, wanted: Wanted, limit: int) -> dict[str, Any]:
    """Describe a text before its first step.

    Args:
        limit: the most steps that it may take.
    """
    is_given = [id_ != served.mask_id for id_ in wanted.template]
    return {
        "type": "start",
        "tokens": [token(served, id_) if given else None for id_, given in zip(wanted.template, is_given, strict=True)],
        "given": is_given,
        "limit": limit,
        "seed": wanted.seed,
        "settings": asdict(wanted.config),
        "model": served.name,
        "fingerprint": served.fingerprint,
    }


def step_event(served: Served, record: StepRecord) -> dict[str, Any]:
    """Describe what a step did."""
    return {
        "type": "step",
        "step": record.step,
        "evaluations": record.evaluations,
        "seconds": round(record.seconds, 6),
        "revealed": [_revealed(served, at, written) for at, written in record.revealed.items()],
        "remasked": list(record.remasked),
        "entropy": record.entropy,
        "open": record.n_open,
    }


def end_event(served: Served, outcome: Outcome) -> dict[str, Any]:
    """Describe a text that is complete; `text` is all of it, with what was given."""
    return {
        "type": "end",
        "text": served.decode([id_ for id_ in outcome.ids if id_ != served.mask_id]),
        "evaluations": outcome.evaluations,
        "seconds": round(outcome.seconds, 6),
        "nats": outcome.nats,
        "tokens_written": len(outcome.written),
        "finish_reason": outcome.finish_reason,
    }


def error_event(sentence: str) -> dict[str, Any]:
    """Describe why a text could not be completed."""
    return {"type": "error", "message": sentence}


def token(served: Served, id_: int) -> dict[str, Any]:
    """Return a token's id and text."""
    return {"id": id_, "text": served.token_text(id_)}


def _revealed(served: Served, at: int, written: Written) -> dict[str, Any]:
    alternatives = [{**token(served, id_), "p": p} for id_, p in written.alternatives]
    return {"at": at, **token(served, written.id), "p": probability(written.log_p), "alternatives": alternatives}


def probability(log_p: float) -> float:
    """Return a probability from its logarithm, at most 1 also where rounding would go beyond."""
    return min(1.0, math.exp(log_p))
