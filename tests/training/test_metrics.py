"""metrics.jsonl and the curves that are drawn of it, however long the run was."""

import json
import tracemalloc
from pathlib import Path

import pytest

from llada.checkpoints.run_layout import each_row
from llada.training import metrics
from llada.training.metrics import N_BINS, MetricsFile, Thinned, draw_curves, read_metrics


def write_rows(path: Path, n_rows: int) -> None:
    row = {"loss": 2.0, "nll": 2.5, "nll_by_t": [0.123456789 * i for i in range(N_BINS)]}
    with path.open("w") as file:
        for step in range(1, n_rows + 1):
            file.write(json.dumps({"step": step, **row}) + "\n")
            if step % 10 == 0:
                file.write(json.dumps({"step": step, "nelbo": 2.0, "nelbo_stderr": 0.1}) + "\n")


@pytest.mark.parametrize(
    ("n_rows", "expected"),
    [
        (0, []),
        (1, [0]),
        (4, [0, 1, 2, 3]),
        (5, [0, 2, 4]),
        (6, [0, 2, 4, 5]),
        (8, [0, 2, 4, 6, 7]),
        (9, [0, 4, 8]),
        (11, [0, 4, 8, 10]),
        (18, [0, 8, 16, 17]),
    ],
)
def test_of_many_rows_some_are_kept_evenly_and_the_last(
    n_rows: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MOST_POINTS", 4)
    thinned = Thinned()
    for step in range(n_rows):
        thinned.add({"step": step})
    assert [row["step"] for row in thinned.rows] == expected


def test_curves_of_a_long_run_take_no_more_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And resuming it does not either, but for the text of the file itself."""
    monkeypatch.setattr(metrics, "MOST_POINTS", 50)
    path, peaks = tmp_path / "metrics.jsonl", []
    write_rows(path, 100)
    draw_curves(path, tmp_path / "curves.png")  # what the library loads and keeps
    for n_rows in (200, 6000):
        write_rows(path, n_rows)
        tracemalloc.start()
        draw_curves(path, tmp_path / "curves.png")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 300_000  # 6,000 rows are 6 MB
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_goes_on_drops_the_rows_after_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_rows(path, 25)
    file = MetricsFile(path, from_step=20)
    assert [row["step"] for row in file.rows()] == [*range(1, 11), 10, *range(11, 21), 20]
    file.write({"step": 21})
    assert [row["step"] for row in each_row(path)] == [row["step"] for row in read_metrics(path)]
    assert read_metrics(path)[-1] == {"step": 21}
    assert list(MetricsFile(tmp_path / "none.jsonl", 5).rows()) == []
