"""Films as files, of the kind that their names ask for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llada.films.cast import cast
from llada.films.frames import ColourBy, Frame, frames_of
from llada.films.gif import write_gif
from llada.films.html import html
from llada.films.svg import svg
from llada.system.errors import UserError
from llada.system.files import check_writable, file_written_whole, write_text_whole
from llada.system.terminal import visible

KINDS = (".gif", ".html", ".svg", ".cast")
_MOST_RECORDED = 10_000  # frames of a recording, which plays in real time


def check_film(path: Path) -> None:
    """Refuse a name that no film can be written to, before there is one; a folder that is missing will be made.

    Raises:
        UserError: the name has another ending, is that of a folder, or is in a folder that cannot be written.
    """
    if path.suffix.lower() not in KINDS:
        raise UserError(f"No film can be written as {path.name}: let its name end in {', '.join(KINDS[:-1])} or .cast.")
    if path.is_dir():
        raise UserError(f"{path} is a folder, and no film can take its place: choose another name.")
    check_writable(path.parent)


def write_film(events: Sequence[Mapping[str, Any]], path: Path, by: ColourBy = "confidence") -> None:
    """Write the film of a text, whole, in the place of an older one.

    Args:
        events: a "start", then "step"s, and an "end" if the text was finished.

    Raises:
        UserError: there is no text, or it cannot be written there.
    """
    check_film(path)
    frames, kind, title = frames_of(events), path.suffix.lower(), _title(events[0])
    if not frames[-1].places:
        raise UserError("A text without tokens has nothing to film: give it some.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == ".gif":
        with file_written_whole(path) as aside:
            write_gif(frames, by, aside)
    else:
        write_text_whole(path, _as_text(kind, events, frames, by, title))


def _as_text(kind: str, events: Sequence[Mapping[str, Any]], frames: Sequence[Frame], by: ColourBy, title: str) -> str:
    if kind == ".svg":
        return svg(frames, by)
    if kind == ".cast":
        return cast(frames_of(events, _MOST_RECORDED), by, title)
    return html(events, frames[-1], by, title)


def _title(start: Mapping[str, Any]) -> str:
    """Return who wrote the text, and how."""
    settings = start["settings"]
    how = settings.get("policy") or settings.get("remasking")
    parts = [start["model"], how and f"policy {how}", f"seed {start['seed']}"]
    return visible(" · ".join(str(part) for part in parts if part).replace("\n", " "))
