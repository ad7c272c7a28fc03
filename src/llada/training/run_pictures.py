"""A picture of several runs, compared: their bounds with error bars, and their cross-entropy by t."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np

from llada.checkpoints.run_layout import METRICS_FILE
from llada.evaluation.curve import drawing
from llada.evaluation.frontier_pictures import COLOURS, MARKERS
from llada.system.errors import UserError
from llada.training.metrics import read_curves

Over = Literal["step", "seconds", "tokens"]
_WORDS: Mapping[Over, str] = {
    "step": "step",
    "seconds": "seconds of training, evaluation included",
    "tokens": "tokens through the network",
}
_BEGINNING = 0.1  # of a run, whose values are so high that they would hide all later differences


def draw_runs(runs: Mapping[str, Path], over: Over, picture: Path) -> None:
    """Draw the curves of runs into one picture.

    Args:
        runs: their folders by the names in the legend.
        over: what they are drawn over.

    Raises:
        UserError: a folder holds no run, a run has no rows yet, or no picture of this kind can be made.
    """
    curves = [(name, *_read(folder)) for name, folder in runs.items()]
    with drawing(picture, 12, 4.8, n_axes=2) as (left, right):
        late = []
        styles = zip(curves, cycle(COLOURS), cycle(MARKERS), strict=False)
        for (name, training, evaluations), colour, marker in styles:
            x = [row[over] for row in training]
            left.plot(x, [row["nll"] for row in training], color=colour, lw=0.6, alpha=0.35)
            at = _places(training, evaluations, over)
            nats = [row["nelbo"] for row in evaluations]
            errors = [row.get("nelbo_stderr") or 0 for row in evaluations]
            left.errorbar(at, nats, errors, fmt=f"-{marker}", ms=4, lw=1.4, capsize=2, color=colour, label=name)
            late += _after_the_beginning(at, nats) or _after_the_beginning(x, [row["nll"] for row in training])
            by_t = _mean_by_t(training)
            if len(by_t) > 1:  # a causal model has none
                right.plot(*zip(*by_t, strict=True), marker=marker, ms=4, lw=1.4, color=colour)
        margin = 0.15 * (max(late) - min(late)) or 0.1
        left.set(
            xlabel=_WORDS[over], ylabel="nats per token", ylim=(min(late) - margin, max(late) + margin),
            title="Validation: bound with standard error; thin: cross-entropy in training",
        )  # fmt: skip
        right.set(
            xlabel="t, share of masked tokens", ylabel="nats per masked token", xlim=(0, 1), ylim=(0, None),
            title="Cross-entropy by t in the last tenth of training",
        )  # fmt: skip
        for axes in (left, right):
            axes.title.set_fontsize(10)
            axes.grid(color="0.92")
        left.legend(frameon=False)


def _read(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    path = folder / METRICS_FILE
    if not path.is_file():
        raise UserError(f"{folder} holds no {METRICS_FILE}: name the folder of a run, as `llada train` writes it.")
    training, evaluations = read_curves(path)
    if not training:
        raise UserError(f"The run in {folder} has measured nothing yet: wait until it has taken some steps.")
    return training, evaluations


def _places(training: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]], over: Over) -> list[float]:
    """Return where evaluations stand, whose rows have their step alone: between the rows of training."""
    steps = [row["step"] for row in evaluations]
    return [float(at) for at in np.interp(steps, [row["step"] for row in training], [row[over] for row in training])]


def _mean_by_t(training: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Return the centres of bins of t and the cross-entropies there, over the last tenth of a run."""
    rows = [row["nll_by_t"] for row in training[-max(1, len(training) // 10) :]]
    bins = [[value for value in column if value is not None] for column in zip(*rows, strict=True)]
    return [((i + 0.5) / len(bins), fmean(values)) for i, values in enumerate(bins) if values]


def _after_the_beginning(x: Sequence[float], y: Sequence[float]) -> list[float]:
    end = max(x, default=0)
    return [value for place, value in zip(x, y, strict=True) if place >= _BEGINNING * end]
