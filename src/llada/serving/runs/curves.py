"""The curves of a run in memory, and fewer points of them for a page: least, mean and greatest value of each bucket.

Letters: R rows, C columns, K buckets, T bins of t.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PLACES = ("step", "seconds", "tokens")
"""Names of what a curve can be drawn over."""
VALUES = ("loss", "nll", "grad_norm", "learning_rate_factor", "tokens_per_second", "memory_bytes")
"""Names of the numbers in a row of training."""
BOUNDS = ("nelbo", "nelbo_stderr")
MOST_BINS = 64  # of t; ours are 10
_ROW = (*PLACES[1:], *VALUES)
_FIRST_ROWS = 1024
BUCKETS_BY_T = 60
"""Points of a curve by t, which are fewer: what is measured in a bin is little, and moves by chance."""


class GrowingTable:
    """Rows of numbers in the order of their steps, which are in the first column."""

    def __init__(self, n_columns: int) -> None:
        self.n_columns, self.n_rows = n_columns, 0
        self._storage: Array = np.empty((n_columns, 0))  # (C, R): a page asks for columns

    @property
    def rows(self) -> Array:
        """The (R, C) rows, as a view that is valid until the next `append`."""
        return self._storage[:, : self.n_rows].T

    def append(self, rows: Sequence[Sequence[float]]) -> None:
        """Add rows. One whose step is not above the last one's replaces that and all that follow it: the run went back
        there, and its earlier future is void."""
        if not rows:
            return
        fresh = np.array(rows, dtype=np.float64)
        falls = np.flatnonzero(np.diff(fresh[:, 0]) <= 0) + 1
        for part in np.split(fresh, falls):
            if self.n_rows and part[0, 0] <= self._storage[0, self.n_rows - 1]:
                self.cut(part[0, 0])
            self._add(part)

    def _add(self, rows: Array) -> None:
        n = self.n_rows + len(rows)
        if n > self._storage.shape[1]:
            grown = np.empty((self.n_columns, max(_FIRST_ROWS, n + self.n_rows // 2)))
            grown[:, : self.n_rows] = self._storage[:, : self.n_rows]
            self._storage = grown
        self._storage[:, self.n_rows : n] = rows.T
        self.n_rows = n

    def cut(self, step: float) -> None:
        """Drop the rows from this step on."""
        self.n_rows = int(np.searchsorted(self.rows[:, 0], step, side="left"))


class Curves:
    """All numbers of a run over its steps."""

    def __init__(self) -> None:
        self.n_bins = 0
        """Number of bins of t, T; 0 until a row has some."""
        self.training = GrowingTable(len(PLACES) + len(VALUES))
        self.bounds = GrowingTable(1 + len(BOUNDS))

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows of metrics.jsonl in their order; those that are neither of training nor of an evaluation are left
        out."""
        training: list[list[float]] = []
        for row in rows:
            step = row["step"]
            if "nelbo" in row:
                self.bounds.append([[step, *(number(row.get(name)) for name in BOUNDS)]])
            elif "loss" in row:
                by_t = row.get("nll_by_t")
                if not self.n_bins and isinstance(by_t, list) and 0 < len(by_t) <= MOST_BINS:
                    self.training.append(training)
                    training = []
                    self._add_bins(len(by_t))
                bins = by_t if isinstance(by_t, list) and len(by_t) == self.n_bins else [None] * self.n_bins
                self.bounds.cut(step + 1)
                training.append([step, *map(number, map(row.get, _ROW)), *map(number, bins)])
        self.training.append(training)

    def _add_bins(self, n_bins: int) -> None:
        before, self.n_bins = self.training.rows, n_bins
        self.training = GrowingTable(before.shape[1] + n_bins)
        self.training.append(np.pad(before, ((0, 0), (0, n_bins)), constant_values=math.nan).tolist())

    def column(self, name: str) -> Array:
        """Return the (R,) numbers of a name in `PLACES` or `VALUES`; non-finite where a row has none."""
        return self.training.rows[:, (*PLACES, *VALUES).index(name)]

    def by_t(self) -> Array:
        """Return the (R, T) cross-entropies by t."""
        return self.training.rows[:, len(PLACES) + len(VALUES) :]

    def last(self, name: str) -> float | None:
        """Return the last finite number of a name; None if there is none."""
        values = self.column(name)
        finite = np.flatnonzero(np.isfinite(values[-_FIRST_ROWS:]))
        return float(values[-_FIRST_ROWS:][finite[-1]]) if len(finite) else None

    def place_of(self, steps: Array) -> tuple[Array, Array]:
        """Return the seconds and tokens at these steps, (R,) each: those of the last row of training until then."""
        rows = self.training.rows
        at = np.searchsorted(rows[:, 0], steps, side="right") - 1
        if not len(rows):
            return np.zeros(len(steps)), np.zeros(len(steps))
        return tuple(np.where(at < 0, 0.0, rows[np.maximum(at, 0), column]) for column in (1, 2))  # type: ignore[return-value]


def number(value: Any) -> float:
    """Return a number of a row as it is, and NaN for everything else, such as null, a text, or a number too long."""
    if type(value) is float:
        return value
    try:
        return float(value) if type(value) is int else math.nan
    except OverflowError:
        return math.nan


def bucket_starts(steps: Array, n_buckets: int) -> NDArray[np.int64]:
    """Return the first row of each bucket, (K,) with K <= `n_buckets`; a bucket covers an equal range of steps, and
    those without rows are left out. Rows that are few enough have a bucket each."""
    if len(steps) <= n_buckets:
        return np.arange(len(steps))
    edges = np.linspace(steps[0], steps[-1], n_buckets + 1)[:-1]
    return np.unique(np.searchsorted(steps, edges, side="left"))


def in_buckets(values: Array, starts: NDArray[np.int64]) -> dict[str, Array]:
    """Return the least, mean and greatest finite value of each bucket, (K,) each; NaN where a bucket has none."""
    if not len(starts):
        return {name: np.empty(0) for name in ("min", "mean", "max")}
    is_finite = np.isfinite(values)
    clean = np.where(is_finite, values, 0.0)
    count = np.add.reduceat(is_finite.astype(np.int64), starts)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.add.reduceat(clean, starts) / count
    none = np.where(count > 0, 0.0, math.nan)
    return {
        "min": np.minimum.reduceat(np.where(is_finite, values, math.inf), starts) + none,
        "mean": mean,
        "max": np.maximum.reduceat(np.where(is_finite, values, -math.inf), starts) + none,
    }


def thinned(curves: Curves, n_buckets: int, first: float = 0, last: float = math.inf) -> dict[str, Any]:
    """Return the curves between two steps with at most so many points, as JSON has them; null stands for NaN.

    The bounds of evaluations are few and stay as they are, up to so many; then the newest of each bucket stands for it.
    """
    rows = curves.training.rows
    begin, end = np.searchsorted(rows[:, 0], [first, last], side="left")
    end += end < len(rows) and rows[end, 0] == last
    part = slice(int(begin), int(end))
    starts = bucket_starts(rows[part, 0], n_buckets)
    series = {name: in_buckets(curves.column(name)[part], starts) for name in VALUES}
    coarse = bucket_starts(rows[part, 0], min(n_buckets, BUCKETS_BY_T))
    by_t = curves.by_t()[part]
    bounds = curves.bounds.rows
    bounds = bounds[(bounds[:, 0] >= first) & (bounds[:, 0] <= last)]
    if len(bounds) > n_buckets:
        bounds = bounds[np.append(bucket_starts(bounds[:, 0], n_buckets)[1:], len(bounds)) - 1]
    seconds, tokens = curves.place_of(bounds[:, 0])
    return {
        "rows": int(end - begin),
        "places": {name: plain(in_buckets(curves.column(name)[part], starts)["mean"]) for name in PLACES},
        "series": {
            name: {kind: plain(each) for kind, each in found.items()}
            for name, found in series.items()
            if np.isfinite(found["mean"]).any()
        },
        "by_t": {
            "bins": curves.n_bins,
            "places": {name: plain(in_buckets(curves.column(name)[part], coarse)["mean"]) for name in PLACES},
            "nll": [plain(in_buckets(by_t[:, i], coarse)["mean"]) for i in range(curves.n_bins)],
        },
        "bounds": {
            "step": plain(bounds[:, 0]),
            "seconds": plain(seconds),
            "tokens": plain(tokens),
            "nelbo": plain(bounds[:, 1]),
            "stderr": plain(bounds[:, 2]),
        },
    }


def plain(values: Array) -> list[float | None]:
    """Return numbers as JSON has them, with six digits and null where one is non-finite."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]
