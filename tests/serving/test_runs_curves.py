"""The curves of a page are those of the run: buckets agree with a naive twin, and what a run took back is gone."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llada.serving.runs.curves import PLACES, VALUES, Curves, bucket_starts, in_buckets, number, thinned
from tests.support.watched_runs import bound, row

Values = list[float]


def naive(steps: Values, values: Values, n_buckets: int) -> list[tuple[float, float, float]]:
    """Least, mean and greatest value of each bucket that has rows, one by one."""
    if len(steps) <= n_buckets:
        groups = [[value] for value in values]
    else:
        edges = [steps[0] + (steps[-1] - steps[0]) * k / n_buckets for k in range(1, n_buckets)]
        by_bucket: dict[int, Values] = {}
        for step, value in zip(steps, values, strict=True):
            by_bucket.setdefault(sum(edge <= step for edge in edges), []).append(value)
        groups = [by_bucket[key] for key in sorted(by_bucket)]
    found = []
    for group in groups:
        finite = [value for value in group if math.isfinite(value)]
        found.append((min(finite), sum(finite) / len(finite), max(finite)) if finite else (math.nan,) * 3)
    return found


@given(
    st.lists(st.tuples(st.integers(1, 2**10), st.sampled_from([math.nan, math.inf, -2.0, 0.0, 1.0, 3.5])), max_size=80),
    st.sampled_from([2, 4, 8, 64]),  # whose edges are exact, so that no row is at the wrong side of one by rounding
)
def test_buckets_agree_with_a_naive_twin(rows: list[tuple[int, float]], n_buckets: int) -> None:
    steps = np.cumsum([gap for gap, _ in rows], dtype=np.float64) * 64
    values = [value for _, value in rows]
    found = in_buckets(np.array(values, dtype=np.float64), bucket_starts(steps, n_buckets))
    expected = naive(steps.tolist(), values, n_buckets)
    assert len(expected) <= n_buckets or len(rows) <= n_buckets
    for place, name in enumerate(("min", "mean", "max")):
        np.testing.assert_allclose(found[name], [each[place] for each in expected])


def curves_of(rows: list[dict[str, Any]]) -> Curves:
    curves = Curves()
    curves.append(rows)
    return curves


def test_the_numbers_of_a_row_are_found_again() -> None:
    curves = curves_of([row(10, memory_bytes=5), row(20), bound(20, 1.25)])
    found = thinned(curves, 100)
    assert found["rows"] == 2
    assert found["places"] == {"step": [10, 20], "seconds": [1, 2], "tokens": [5120, 10240]}
    assert found["series"]["loss"] == {name: [2, pytest.approx(1 + 2 / 3, rel=1e-5)] for name in ("min", "mean", "max")}
    assert found["series"]["memory_bytes"]["mean"] == [5, None]
    assert found["by_t"]["bins"] == 10
    assert [values[0] for values in found["by_t"]["nll"]] == pytest.approx([1 + i / 5 for i in range(10)])
    assert found["bounds"] == {"step": [20], "seconds": [2], "tokens": [10240], "nelbo": [1.25], "stderr": [0.02]}
    json.dumps(found, allow_nan=False)


def test_a_part_of_the_curves_has_the_rows_of_that_part() -> None:
    curves = curves_of([row(step) for step in range(1, 1001)])
    assert thinned(curves, 2000, first=100, last=110)["places"]["step"] == list(range(100, 111))
    assert thinned(curves, 10, first=101, last=200)["rows"] == 100
    assert len(thinned(curves, 10, first=101, last=200)["places"]["step"]) == 10
    assert thinned(curves, 10, first=2000)["rows"] == 0


def test_rows_of_a_run_that_went_back_replace_the_later_ones() -> None:
    """Also where the file kept both, as older versions left it."""
    ahead = [row(step) for step in range(1, 9)] + [bound(4, 2.0), bound(8, 1.0)]
    curves = Curves()
    for each in sorted(ahead, key=lambda each: (each["step"], "nelbo" in each)):
        curves.append([each])
    curves.append([row(5, loss=9.0), row(6, loss=8.0)])
    found = thinned(curves, 100)
    assert found["places"]["step"] == [1, 2, 3, 4, 5, 6]
    assert found["series"]["loss"]["mean"][-2:] == [9, 8]
    assert found["bounds"]["step"] == [4]


def test_the_bound_before_the_first_step_of_fine_tuning_stays() -> None:
    assert thinned(curves_of([bound(0, 3.0), row(10), bound(10, 2.0)]), 10)["bounds"]["step"] == [0, 10]


def test_rows_of_older_versions_lack_numbers() -> None:
    old = {"step": 5, "loss": 2.0}
    found = thinned(curves_of([old, row(10), {"step": 15, "loss": None, "nll_by_t": [1.0] * 4}]), 10)
    assert found["places"]["step"] == [5, 10, 15]
    assert found["series"]["loss"]["mean"] == [2, 2, None]
    assert found["by_t"]["bins"] == 10
    assert found["by_t"]["nll"][0] == [None, 1, None]
    assert "memory_bytes" not in found["series"]


def test_no_rows_are_no_curves() -> None:
    found = thinned(Curves(), 10)
    assert (found["rows"], found["series"], found["by_t"]["nll"]) == (0, {}, [])


@pytest.mark.parametrize("value", [None, "1", True, [1], {}, 10**400, math.nan])
def test_what_is_not_a_number_is_nan(value: Any) -> None:
    assert math.isnan(number(value))


def test_long_runs_are_thinned() -> None:
    """With as many rows as a long run has, a spike in one of them is still seen."""
    curves, n = Curves(), 50_000
    rows = np.zeros((n, curves.training.n_columns))
    rows[:, 0], rows[12_345, len(PLACES) + VALUES.index("nll")] = np.arange(1, n + 1), 7.5
    curves.training.append(rows.tolist())
    found = thinned(curves, 400)
    assert len(found["places"]["step"]) == 400
    assert max(found["series"]["nll"]["max"]) == 7.5
    assert len(json.dumps(found)) < 200_000
