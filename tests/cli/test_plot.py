"""`llada plot`: the curves of runs in one picture."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llada.evaluation import curve
from llada.training import run_pictures
from llada.training.run_pictures import draw_runs
from tests.support.commands import RunCommand, assert_one_sentence


def write_run(folder: Path, nats: float, n_steps: int = 20, n_bins: int = 2) -> Path:
    """A run of lines by hand: 10 tokens and 0.5 seconds a step, an evaluation every fifth."""
    folder.mkdir(parents=True)
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, n_steps + 1):
            row = {"step": step, "tokens": 10 * step, "seconds": step / 2, "loss": 3.0, "nll": 4.0}
            file.write(json.dumps({**row, "nll_by_t": [nats + step % 2, None, 3.0][: n_bins + 1]}) + "\n")
            if step % 5 == 0:
                file.write(json.dumps({"step": step, "nelbo": nats + 1 / step, "nelbo_stderr": 0.1}) + "\n")
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The axes of the last picture."""
    kept: list[Any] = []
    real = curve.drawing

    @contextmanager
    def drawing(*arguments: Any, **options: Any) -> Iterator[Any]:
        with real(*arguments, **options) as axes:
            yield axes
            kept[:] = axes

    monkeypatch.setattr(run_pictures, "drawing", drawing)
    return kept


@pytest.mark.parametrize(("name", "begin"), [("runs.png", b"\x89PNG"), ("runs.svg", b"<?xml")])
def test_runs_are_drawn_into_a_picture(llada: RunCommand, tmp_path: Path, name: str, begin: bytes) -> None:
    first, second = write_run(tmp_path / "a", 1.0), write_run(tmp_path / "b", 2.0)
    result = llada("plot", first, second, "--output", tmp_path / "new" / name, "--over", "seconds")
    assert result.code == 0, result.err
    assert (tmp_path / "new" / name).read_bytes().startswith(begin)


@pytest.mark.parametrize(
    ("over", "places"), [("step", [5, 10, 15, 20]), ("seconds", [2.5, 5, 7.5, 10]), ("tokens", [50, 100, 150, 200])]
)
def test_bounds_stand_at_their_steps_with_their_errors(
    drawn: list[Any], tmp_path: Path, over: Any, places: list[float]
) -> None:
    runs = {"one": write_run(tmp_path / "a", 1.0), "two": write_run(tmp_path / "b", 2.0)}
    draw_runs(runs, over, tmp_path / "runs.png")
    left, right = drawn
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["one", "two"]
    bounds = [container.lines[0] for container in left.containers]
    assert [list(line.get_xdata()) for line in bounds] == [places, places]
    assert list(bounds[1].get_ydata()) == [2 + 1 / step for step in (5, 10, 15, 20)]
    (low, high), *_ = left.containers[0].lines[2][0].get_segments()
    assert math.isclose(high[1] - low[1], 0.2)
    # The mean of the last tenth, steps 19 and 20; the bin that was never measured is left out.
    assert [list(line.get_ydata()) for line in right.lines] == [[1.5, 3.0], [2.5, 3.0]]
    assert list(right.lines[0].get_xdata()) == [1 / 6, 5 / 6]


def test_a_causal_run_has_no_curve_over_t(drawn: list[Any], tmp_path: Path) -> None:
    draw_runs({"a": write_run(tmp_path / "a", 1.0, n_bins=0)}, "step", tmp_path / "runs.png")
    assert len(drawn[1].lines) == 0


def test_a_run_that_has_just_begun_is_drawn(drawn: list[Any], tmp_path: Path) -> None:
    draw_runs({"a": write_run(tmp_path / "a", 1.0, n_steps=1)}, "step", tmp_path / "runs.png")
    assert len(drawn[0].containers) == 1


def test_runs_of_one_name_are_called_by_their_paths(llada: RunCommand, drawn: list[Any], tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, 1.0) for name in ("a/run", "b/run", "c")]
    assert llada("plot", *runs, "--output", tmp_path / "runs.png").code == 0
    assert [text.get_text() for text in drawn[0].get_legend().get_texts()] == [str(runs[0]), str(runs[1]), "c"]


def test_bad_input_is_refused_in_a_sentence(llada: RunCommand, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 1.0)
    assert_one_sentence(llada("plot", run, "--over", "time"), "--over must be one of seconds, step, tokens")
    assert_one_sentence(llada("plot"), "Name the runs to draw", "runs/demo")
    assert_one_sentence(llada("plot", tmp_path), "holds no metrics.jsonl", "llada train")
    assert_one_sentence(llada("plot", run, "--output", tmp_path / "runs.pdf"), "runs.pdf", ".png or .svg")
    assert_one_sentence(llada("plot", run, "--output", run / "metrics.jsonl" / "runs.png"), "is a file")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "metrics.jsonl").write_text('{"step": 1, "nelbo": 2.0, "nelbo_stderr": 0.1}\n')
    assert_one_sentence(llada("plot", tmp_path / "new"), "has measured nothing yet", "wait")
