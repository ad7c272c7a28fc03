"""The rotary base in a config.json, in the places where different versions of transformers write it.

Positions are never scaled here, so everything that would scale them is refused.
"""

import reprlib
from collections.abc import Mapping
from typing import Any

THETA = "rope_theta"
OBJECTS = ("rope_scaling", "rope_parameters")
"""Keys of objects that may scale positions; that of transformers 5 also holds the base."""
KINDS = ("rope_type", "type")
NEUTRAL = {"factor": 1, "partial_rotary_factor": 1}


def rope_theta(content: Mapping[str, Any]) -> Any:
    """Return the rotary base that a config.json names, or None if it names none.

    Raises:
        ValueError: positions are scaled, or two places name different bases.
    """
    found = {THETA: content.get(THETA)}
    for key in OBJECTS:
        facts = content.get(key)
        if facts is None:
            continue
        if not isinstance(facts, dict) or not all(map(_is_plain, facts, facts.values())):
            raise ValueError(f"{key} = {reprlib.repr(facts)} is not supported (only positions that are not scaled)")
        found[f"{THETA} in {key}"] = facts.get(THETA)
    named = [(place, theta) for place, theta in found.items() if theta is not None]
    for place, theta in named[1:]:
        if theta != named[0][1]:
            raise ValueError(f"{named[0][0]} = {named[0][1]!r} and {place} = {theta!r} disagree")
    return named[0][1] if named else None


def _is_plain(key: str, value: Any) -> bool:
    """Whether an entry of an object leaves positions as they are."""
    if value is None or key == THETA:
        return True
    if key in KINDS:
        return bool(value == "default")
    return key in NEUTRAL and not isinstance(value, bool) and bool(value == NEUTRAL[key])
