"""A text while it is written: shown in the terminal as it un-masks, and kept for films."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.live import Live

from llada.checkpoints.folder import Checkpoint
from llada.checkpoints.identity import identity_of
from llada.films.frames import ColourBy, Replay
from llada.films.terminal import draw_live
from llada.films.write import write_film
from llada.sampling.events import ALTERNATIVES, FillEvents, TokenTexts
from llada.sampling.fills import Fill, StepResult
from llada.system.console import StderrConsole
from llada.system.terminal import say

MOST_STEPS_PER_SECOND = 30
"""Steps that are shown in a second: a small network takes hundreds, which no eye can follow."""


class Watched:
    """The events of one text, drawn on a terminal as they come.

    Args:
        fill: the text, before its first step.
        name: what the checkpoint is called.
        live: where to draw; None draws nothing.
        has_alternatives: whether the events list what else could stand at each place.
    """

    def __init__(
        self,
        fill: Fill,
        checkpoint: Checkpoint,
        name: str,
        seed: int,
        by: ColourBy,
        live: Live | None,
        has_alternatives: bool,
    ) -> None:
        self.by, self.live = by, live
        self.events: list[dict[str, Any]] = []
        self._replay = Replay()
        self._waited = 0.0  # seconds that belong to the eye, not to the model
        self._shown_at = float("-inf")
        texts, n = TokenTexts(checkpoint.tokenizer), ALTERNATIVES if has_alternatives else 0
        self._made = FillEvents(fill, texts, alternatives=n, clock=self.seconds)
        self._take(self._made.start(seed=seed, model=name, fingerprint=identity_of(checkpoint.folder)))

    def seconds(self) -> float:
        """Return a time that stands still while a picture is drawn and looked at."""
        return time.perf_counter() - self._waited

    def step(self, result: StepResult) -> None:
        """Take in what a step did."""
        self._take(self._made.step(result))

    def end(self) -> None:
        """Take in that the text is finished."""
        self._take(self._made.end())

    def _take(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        self._replay.add(event)
        if self.live is not None:
            self._show(self.live)

    def _show(self, live: Live) -> None:
        began, console = time.perf_counter(), live.console
        time.sleep(max(0.0, self._shown_at + 1 / MOST_STEPS_PER_SECOND - began))
        self._shown_at = time.perf_counter()
        columns, rows = console.size
        colours = None if console.no_color else console.color_system
        live.update(draw_live(self._replay.frame(), self.by, columns, rows, colours), refresh=True)
        self._waited += time.perf_counter() - began


@contextmanager
def live_view(is_wanted: bool) -> Iterator[Live | None]:
    """Give what draws on the terminal, and vanishes at the end; None if it is not wanted or there is no terminal."""
    console = StderrConsole()
    can_show = console.is_terminal and not console.is_dumb_terminal
    if is_wanted and not can_show:
        say("The text is not shown while it un-masks, because standard error is not a terminal that can draw.")
    if not (is_wanted and can_show):
        yield None
        return
    with Live(console=console, transient=True, auto_refresh=False, vertical_overflow="crop") as live:
        yield live


def write_films(events: list[dict[str, Any]], films: tuple[Path, ...], by: ColourBy, n_samples: int) -> None:
    """Write the films of a text, and say where they are."""
    for path in films:
        write_film(events, path, by)
    if films:
        which = "The film" if n_samples == 1 else f"The film of the first of {n_samples} texts"
        say(f"{which} is {' and '.join(map(str, films))}.")
