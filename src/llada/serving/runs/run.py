"""A run as it is seen from outside, by its files alone: how far it is, whether it trains, what trouble it had.

Nothing is written, and the run's lock is not tried, because that would take it for a moment. Whether somebody trains is
judged by how long ago the last line was written, and by whether the process lives that the lock's file names.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from llada.checkpoints.run_layout import CHECKPOINTS_FOLDER, METRICS_FILE, SAMPLES_FOLDER, TROUBLE_FILE
from llada.serving.runs.curves import Curves, number, plain, thinned
from llada.serving.runs.settings import flat
from llada.system.errors import UserError
from llada.system.files import LARGEST_JSON, read_json
from llada.system.locks import LOCK_FILE
from llada.system.regular_files import open_regular, read_bounded
from llada.training.metrics_follower import BYTES_AT_ONCE, MetricsFollower

CONFIG_FILE = "config.json"  # checkpoints/folder.py, which needs torch, has the same name
SAMPLE_NAME = re.compile(r"step-(\d{1,15})\.txt")
LARGEST_SAMPLE = 200_000  # bytes that are shown
MOST_SAMPLES = 20_000
MOST_EVENTS = 200
RECENT_ROWS = 50  # by which the present speed is judged
# How long after its last line a run surely trains, and may train, in intervals between lines and in seconds at least.
RECENT, QUIET = (3, 20), (10, 120)


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run: its metrics, or its configuration next to a folder for checkpoints."""
    return (folder / METRICS_FILE).is_file() or (
        (folder / CONFIG_FILE).is_file() and (folder / CHECKPOINTS_FOLDER).is_dir()
    )


class WatchedRun:
    """A run folder, and what has been read of it so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.id = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:16]
        """An identifier for addresses, which is the same the next time."""
        self.lock = threading.Lock()
        """Held by whoever reads: requests come in several threads."""
        self._follower = MetricsFollower(folder / METRICS_FILE)
        self._config_stamp: tuple[int, ...] | None = None
        self._config: dict[str, Any] = {}
        self._begin()

    def _begin(self) -> None:
        self.curves = Curves()
        self._events: list[dict[str, Any]] = []
        self._n_events = 0
        self._fraction: float | None = None
        self._has_more = False

    # -- reading --------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read what is new, one piece at most, so that a long file does not hold a request up."""
        fresh = self._follower.read(BYTES_AT_ONCE)
        if fresh.starts_again:
            self._begin()
        self._has_more = fresh.has_more
        self.curves.append(fresh.rows)
        for row in fresh.rows:
            self._note(row)
        self._refresh_config()

    def _note(self, row: Mapping[str, Any]) -> None:
        """Keep what a row says of trouble, and how far the run is."""
        if (fraction := number(row.get("fraction_done"))) >= 0:
            self._fraction = min(1.0, fraction)
        step, events = row["step"], []
        if (left := number(row.get("went_back_from"))) >= 0:
            events.append({"kind": "return", "step": step, "from": int(min(left, 2**53))})
        if (skipped := number(row.get("skipped_steps"))) > 0:
            events.append({"kind": "skipped", "step": step, "count": int(min(skipped, 2**53))})
        if math.isfinite(leapt_from := number(row.get("spike_from"))):
            nll = number(row.get("nll"))
            events.append(
                {"kind": "spike", "step": step, "from": leapt_from, "to": nll if math.isfinite(nll) else None}
            )
        if events:
            self._n_events += len(events)
            self._events = (self._events + events)[-MOST_EVENTS:]

    def _refresh_config(self) -> None:
        path = self.folder / CONFIG_FILE
        stamp = stamp_of(path)
        if stamp != self._config_stamp:
            self._config_stamp, self._config = stamp, {}
            with contextlib.suppress(OSError, UserError):
                self._config = read_json(path)

    # -- what a page asks for ---------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """Return the facts of a run that a list shows, in JSON's values; its version changes with every new line."""
        curves, follower = self.curves, self._follower
        bounds = curves.bounds.rows
        done = self._fraction_done()
        finite = bounds[np.isfinite(bounds[:, 1])]
        best = finite[np.argmin(finite[:, 1])] if len(finite) else None
        return {
            "id": self.id,
            "version": _digest(follower.version),
            "state": self._state(done),
            "changed": (stamp_of(self.folder / METRICS_FILE) or (0,))[0] // 10**9,
            "is_reading": self._has_more,
            "share_read": round(follower.offset / follower.size, 3) if follower.size else 1.0,
            "rows": curves.training.n_rows,
            "bad_lines": follower.n_bad_lines,
            "step": self._last_step(),
            "total_steps": self._total_steps(),
            "fraction_done": done,
            "seconds": curves.last("seconds"),
            "seconds_left": self._seconds_left(done),
            "tokens": curves.last("tokens"),
            "tokens_per_second": curves.last("tokens_per_second"),
            "memory_bytes": curves.last("memory_bytes"),
            "loss": curves.last("loss"),
            "nll": curves.last("nll"),
            "bound": _bound(finite[-1]) if len(finite) else None,
            "best_bound": None if best is None else _bound(best),
            "events": self._n_events,
            "has_trouble": (self.folder / TROUBLE_FILE).is_file(),
        }

    def details(self) -> dict[str, Any]:
        """Return what is shown of one run besides its curves: settings, trouble, steps that have a sample."""
        return {
            "settings": self.settings(),
            "events": self._events,
            "n_events": self._n_events,
            "trouble": self._trouble(),
            "samples": self.sample_steps(),
        }

    def settings(self) -> dict[str, str]:
        """Return the settings as texts by their names, but the run's own folder, which says nothing of it."""
        return flat({name: value for name, value in self._config.items() if name != "output_dir"})

    def curves_between(self, n_buckets: int, first: float, last: float) -> dict[str, Any]:
        """Return the curves with at most so many points (curves.py)."""
        return thinned(self.curves, n_buckets, first, last)

    def sample_steps(self) -> list[int]:
        """Return the steps that have a sample, in their order."""
        steps = []
        with contextlib.suppress(OSError), os.scandir(self.folder / SAMPLES_FOLDER) as entries:
            for entry in entries:
                match = SAMPLE_NAME.fullmatch(entry.name)
                if match and entry.is_file(follow_symlinks=False):
                    steps.append(int(match[1]))
        return sorted(steps)[-MOST_SAMPLES:]

    def sample(self, step: int) -> str | None:
        """Return the sample of a step; None if there is none."""
        for name in (f"step-{step:08d}.txt", f"step-{step}.txt"):
            path = self.folder / SAMPLES_FOLDER / name
            with contextlib.suppress(OSError, UserError):
                if not path.is_symlink():  # it could lead anywhere
                    with open_regular(path) as file:
                        return file.read(LARGEST_SAMPLE).decode("utf-8", errors="replace")
        return None

    # -- what follows from the files -----------------------------------------------------------------------------------

    def _last_step(self) -> int:
        tables = (self.curves.training.rows, self.curves.bounds.rows)
        return max((int(rows[-1, 0]) for rows in tables if len(rows)), default=0)

    def _limit(self, name: str) -> float | None:
        """Return a number above 0 of the configuration; None if there is none."""
        value = number(self._config.get(name))
        return value if value > 0 and math.isfinite(value) else None

    def _total_steps(self) -> int | None:
        """Return the length of the run, as far as its configuration says it: epochs are counted by the trainer."""
        steps = self._limit("steps")
        return None if steps is None else int(min(steps, 2**53))

    def _fraction_done(self) -> float | None:
        """Return the part of the run that is done, by steps or time, whichever is further, as the trainer counts it.

        How many steps its epochs are is not in the configuration; then the last line says how far the run is.
        """
        steps, minutes = self._limit("steps"), self._limit("minutes")
        if self._limit("epochs") is not None or (steps is None and minutes is None):
            return self._fraction
        shares = [] if steps is None else [self._last_step() / steps]
        if minutes is not None:
            shares.append((self.curves.last("seconds") or 0.0) / (60 * minutes))
        return min(1.0, max(shares))

    def _seconds_left(self, done: float | None) -> float | None:
        """Return the rest of the run at its present speed; None if it is over or cannot be known."""
        rows = self.curves.training.rows
        if done is None or not 0 < done < 1 or len(rows) < 2:
            return None
        recent = rows[-RECENT_ROWS:]
        steps, seconds = recent[-1, 0] - recent[0, 0], recent[-1, 1] - recent[0, 1]
        total = self._limit("steps")
        limits = []
        if total is not None and steps > 0 and seconds >= 0:
            limits.append((total - rows[-1, 0]) * seconds / steps)
        minutes = self._limit("minutes")
        if minutes is not None:
            limits.append(60 * minutes - rows[-1, 1])
        if not limits:  # epochs
            limits.append(rows[-1, 1] * (1 - done) / done)
        left = min(limits)
        return max(0.0, round(left, 1)) if math.isfinite(left) else None

    def _state(self, done: float | None) -> str:
        """Return "waiting" for the first line, "training", "finished", "failed", or "stopped" before the end."""
        metrics, trouble = stamp_of(self.folder / METRICS_FILE), stamp_of(self.folder / TROUBLE_FILE)
        if metrics is None or not self.curves.training.n_rows:
            began = stamp_of(self.folder / CONFIG_FILE)
            return "waiting" if began and _age(began) < 3600 else "stopped"
        if done is not None and done >= 1:
            return "finished"
        if trouble is not None and trouble[0] >= metrics[0]:
            return "failed"
        gaps = np.diff(self.curves.training.rows[-RECENT_ROWS:, 1])
        usual, age = (float(np.nanmax(gaps)) if np.isfinite(gaps).any() else 0.0), _age(metrics)
        if age < max(RECENT[0] * usual, RECENT[1]):
            return "training"
        lives = holder_lives(self.folder / LOCK_FILE)
        if lives is None:
            lives = age < max(QUIET[0] * usual, QUIET[1])
        return "training" if lives else "stopped"

    def _trouble(self) -> dict[str, Any] | None:
        """Return what trouble.json says of the step that ended a run: its number, loss, and largest gradients."""
        try:
            content = json.loads(read_bounded(self.folder / TROUBLE_FILE, LARGEST_JSON))
        except (OSError, UserError, ValueError, RecursionError):
            return None
        if not isinstance(content, dict):
            return None
        norms = content.get("gradient_norms")
        found = [(str(name)[:200], number(norm)) for name, norm in (norms if isinstance(norms, dict) else {}).items()]
        found.sort(key=lambda each: -math.inf if math.isnan(each[1]) else -each[1])
        return {
            "step": content["step"] if type(content.get("step")) is int else None,
            "loss": str(content.get("loss"))[:40],
            "gradients": [{"layer": name, "norm": f"{norm:.3g}"} for name, norm in found[:10]],
        }


def holder_lives(lock: Path) -> bool | None:
    """Return whether the process lives that the file of a lock names, which is only read; None if it is another
    machine's, or does not say."""
    try:
        said = json.loads(read_bounded(lock, 4096))
        pid, host = int(said["pid"]), said["host"]
    except FileNotFoundError:
        return False  # it is removed when the lock is released
    except (OSError, UserError, ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return None
    if host != socket.gethostname() or not 0 < pid < 2**31:
        return None
    return bool(psutil.pid_exists(pid))


def _bound(row: Any) -> dict[str, Any]:
    step, nelbo, stderr = plain(row)
    return {"step": int(step or 0), "nelbo": nelbo, "stderr": stderr}


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def stamp_of(path: Path) -> tuple[int, ...] | None:
    """Return a file's time of change in nanoseconds, its size and inode; None if it is absent."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def _age(stamp: tuple[int, ...]) -> float:
    return time.time() - stamp[0] / 1e9
