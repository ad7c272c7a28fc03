"""The settings of runs as a page shows them: flat, short, and what differs between runs."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

MOST_SETTINGS = 500
LONGEST_VALUE = 200  # characters
_ABSOLUTE = re.compile(r"^(/|~|[A-Za-z]:[\\/]|\\\\)")


def flat(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings of a config.json by their names, those of a group as "group.name", as texts."""
    found: dict[str, str] = {}
    groups: list[tuple[str, Mapping[str, Any]]] = [("", config)]
    for prefix, group in groups:  # it grows while it is read
        for name, value in group.items():
            if isinstance(value, dict) and value and prefix.count(".") < 3:
                groups.append((f"{prefix}{name}.", value))
            elif len(found) < MOST_SETTINGS:
                found[f"{prefix}{name}"[:LONGEST_VALUE]] = text_of(value)
    return found


def text_of(value: Any) -> str:
    """Return a setting as a text. Of a path from the root, only the last name stays: pages are shown to others."""
    if isinstance(value, str):
        text = without_folders(value)
    elif value is None:
        text = "–"
    elif isinstance(value, list) and all(isinstance(item, str) for item in value):
        text = " ".join(map(without_folders, value)) or "–"
    else:
        text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"


def without_folders(text: str) -> str:
    """Return the last name of an absolute path, after an ellipsis; other texts as they are."""
    if not _ABSOLUTE.match(text):
        return text
    return "…/" + re.split(r"[\\/]", text.rstrip("\\/"))[-1]


def compared(settings: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Return all settings of some runs in the order of the first: name, values (one a run, None where it has no such
    setting), and whether they differ."""
    names = dict.fromkeys(name for each in settings for name in each)
    rows = []
    for name in names:
        values = [each.get(name) for each in settings]
        rows.append({"name": name, "values": values, "differs": len(set(values)) > 1})
    return rows
