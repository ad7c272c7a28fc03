"""Trains for an hour, say, and reports whether memory and open files stay what they were.

    python tests/faults/soak.py --minutes 60

A small network on a made-up text, evaluated and saved every few seconds, so that everything a run does is done some
hundred times. Prints a JSON object: the slope of the resident memory with its standard error, from the second half of
the run, whose samples are averaged over stretches of it since neighbours resemble each other; and how many files were
open.
"""

import argparse
import json
import math
import os
import random
import tempfile
import threading
import time
from pathlib import Path

import torch
from rich.console import Console

from llada.data.corpus import Corpus
from llada.data.prepared import prepare
from llada.system.environment import set_defaults
from llada.training.config import DataOptions, NetworkOptions, TrainConfig
from llada.training.plan import RunPlan
from llada.training.progress_bar import Display
from llada.training.run_folder import RunFolder
from llada.training.trainer import Trainer

SECONDS_BETWEEN, FEWEST_SAMPLES = 0.5, 100
STRETCHES = 10
EVALUATE_EVERY = 100
# A leak worth the name: a MB an hour beyond what chance explains.
TOLERATED_MB, STANDARD_ERRORS = 1.0, 3.0


class Watcher(threading.Thread):
    """Notes the time (hours), the resident memory (MB) and the number of open files now and then."""

    def __init__(self, minutes: float) -> None:
        super().__init__(daemon=True)
        self._between = min(SECONDS_BETWEEN, 60 * minutes / FEWEST_SAMPLES)
        self.samples: list[tuple[float, float, int]] = []
        self._end = threading.Event()

    def run(self) -> None:
        start = time.monotonic()
        while not self._end.wait(self._between):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            n_files = len(os.listdir("/proc/self/fd"))
            memory = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
            self.samples.append(((time.monotonic() - start) / 3600, memory, n_files))

    def end(self) -> None:
        self._end.set()
        self.join()


def slope(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Of the straight line through the points, by least squares, and its standard error."""
    n = len(points)
    mean_x, mean_y = (sum(values) / n for values in zip(*points, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    rate = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    rest = sum((y - mean_y - rate * (x - mean_x)) ** 2 for x, y in points)
    return rate, math.sqrt(rest / (n - 2) / spread)


def stretches(samples: list[tuple[float, float, int]]) -> list[tuple[float, float]]:
    """Means of time and memory over stretches of equal length."""
    length = len(samples) // STRETCHES
    parts = [samples[i * length : (i + 1) * length] for i in range(STRETCHES)]
    return [(sum(s[0] for s in part) / length, sum(s[1] for s in part) / length) for part in parts]


def main() -> None:
    set_defaults()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=60.0)
    minutes = parser.parse_args().minutes
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="llada-") as name:
        rng = random.Random(0)
        text = "".join(
            rng.choice(("to be ", "or not ", "to be, ", "that is ", "the question\n")) for _ in range(20_000)
        )
        data = prepare(Corpus(text, "file", "made up"), Path(name, "data"), 256)
        config = TrainConfig(
            network=NetworkOptions("local", d_model=32, n_heads=2, n_layers=2, table_rows=256),
            data=DataOptions((data.folder,), sequence_length=64),
            output_dir=Path(name, "run"),
            batch_size=8, steps=None, minutes=minutes, evaluate_every=EVALUATE_EVERY, evaluation_windows=8,
            device="cpu",
        )  # fmt: skip
        folder = RunFolder(config.output_dir)
        folder.start(config)
        trainer = Trainer(RunPlan.of(config, data), folder)
        watcher = Watcher(minutes)
        watcher.start()
        progress = trainer.run(Display(Console(quiet=True), None))
        watcher.end()
    half = watcher.samples[len(watcher.samples) // 2 :]
    rate, error = slope(stretches(half))
    files = [n_files for _, _, n_files in half]
    result = {
        "minutes": minutes,
        "steps": progress.step,
        "checkpoints": progress.step // EVALUATE_EVERY,
        "samples": len(watcher.samples),
        "memory_mb": round(half[-1][1], 1),
        "slope_mb_per_hour": round(rate, 3),
        "standard_error": round(error, 3),
        "open_files": [min(files), max(files)],
        "is_steady": rate < TOLERATED_MB + STANDARD_ERRORS * error and max(files) - min(files) <= 3,
    }
    print(json.dumps(result))
    raise SystemExit(not result["is_steady"])


if __name__ == "__main__":
    main()
