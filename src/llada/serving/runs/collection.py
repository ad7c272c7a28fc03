"""All runs that are watched: those that were named, and those in folders that were named, also if they come later."""

import itertools
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from llada.serving.runs.run import WatchedRun, is_run
from llada.system.errors import UserError

MOST_RUNS = 500
MOST_FOLDERS = 2000
DEPTH = 3  # folders between a folder that is named and a run, the run included: runs/sweep/small/1
SECONDS_BETWEEN_LOOKS = 1.5
# What folders next to runs are called that hold no runs, and may hold very much.
NOT_ENTERED = frozenset({"checkpoints", "samples", "tensorboard", "wandb", "node_modules", "__pycache__"})


class Runs:
    """The runs of the folders that were named."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """
        Raises:
            UserError: a folder is missing, or holds neither a run nor runs, though it holds something else.
        """
        self._given = list(dict.fromkeys(folders))
        for folder in self._given:
            check_holds_runs(folder)
        self._watched: dict[Path, WatchedRun] = {}
        self._lock = threading.Lock()
        self._looked_at = -SECONDS_BETWEEN_LOOKS
        self._names: dict[str, str] = {}

    def all(self) -> list[WatchedRun]:
        """Return the runs that there are now, in the order of the folders and of their names."""
        with self._lock:
            if time.monotonic() - self._looked_at >= SECONDS_BETWEEN_LOOKS:
                found = dict.fromkeys(run for folder in self._given for run in runs_in(folder))
                paths = list(found)[:MOST_RUNS]
                self._watched = {path: self._watched.get(path) or WatchedRun(path) for path in paths}
                self._names = dict(zip((run.id for run in self._watched.values()), short_names(paths), strict=True))
                self._looked_at = time.monotonic()
            return list(self._watched.values())

    def find(self, id_: str) -> WatchedRun | None:
        return next((run for run in self.all() if run.id == id_), None)

    def name_of(self, run: WatchedRun) -> str:
        """Return the name of a run: its folder's, with as much before it as it needs to be the only one."""
        return self._names.get(run.id, run.folder.name)


def check_holds_runs(folder: Path) -> None:
    """Refuse a folder in which there is nothing to watch. An empty one is fine, because runs may come.

    Raises:
        UserError: it is missing, is not a folder, or holds something, but no run.
    """
    if not folder.exists():
        raise UserError(f"{folder} is not there: name a run folder, or a folder of runs, as `llada train` makes them.")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file: name a run folder, or a folder of runs.")
    if not runs_in(folder) and any(folder.iterdir()):
        raise UserError(
            f"{folder} holds neither a run nor a folder of one: name a folder that `llada train` writes (its "
            "`output_dir`), or the one above it."
        )


def runs_in(folder: Path) -> list[Path]:
    """Return the run folders in a folder, itself included, by name; links are followed at the top alone."""
    found, level = [], [folder]
    for depth in range(DEPTH + 1):
        found += [path for path in level if is_run(path)]
        inner = (_folders_in(path, follow_links=depth == 0) for path in level if not is_run(path))
        # Whoever names the root of a disk waits for some of its folders, not for all.
        level = list(itertools.islice(itertools.chain.from_iterable(inner), MOST_FOLDERS))
    return found


def _folders_in(folder: Path, follow_links: bool) -> list[Path]:
    """Return the folders in a folder that may hold runs, by name."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=follow_links)]
    except OSError:
        return []
    return [folder / name for name in sorted(names) if not name.startswith(".") and name not in NOT_ENTERED]


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return the last part of each path, with as many parts before it as are needed to tell the paths apart."""
    parts = [path.absolute().parts for path in paths]
    names = []
    for own in parts:
        n = 1
        while n < len(own) and sum(other[-n:] == own[-n:] for other in parts) > 1:
            n += 1
        names.append("/".join(own[-n:]))
    return names
