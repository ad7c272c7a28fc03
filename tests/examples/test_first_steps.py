"""examples/first_steps.ipynb runs, cell by cell, on a small run, and is stored without outputs.

The code cells are executed here as a kernel would, in one namespace; they hold plain Python without magics.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from llada.data.prepared import PreparedText
from llada.training.config import TrainConfig
from tests.support.documents import ROOT
from tests.support.runs import train

PATH = ROOT / "examples" / "first_steps.ipynb"
CELLS = json.loads(PATH.read_text(encoding="utf-8"))["cells"]


def test_it_is_stored_without_outputs() -> None:
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert len({cell["id"] for cell in CELLS}) == len(CELLS)


def test_links_lead_somewhere() -> None:
    for cell in CELLS:
        for target in re.findall(r"\]\((?!http)([^)#]+)", "".join(cell["source"])):
            assert (PATH.parent / target).exists(), target


def test_it_runs(
    small_run: TrainConfig,
    data: PreparedText,
    one_thread: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    run = replace(small_run, data=replace(small_run.data, sequence_length=64))
    train(run, data)
    monkeypatch.setenv("LLADA_RUN", str(run.output_dir))
    monkeypatch.setenv("LLADA_DATA", str(data.folder))
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    names: dict[str, object] = {}
    for number, cell in enumerate(CELLS):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    shown = capsys.readouterr().out
    assert re.search(r"mean over t: \d\.\d{3} ± \d\.\d{3} nats per character", shown)
    assert len(re.findall(r"^ ?\d+ open  'to be .*question'$", shown, re.MULTILINE)) == 10
    assert len(re.findall(r"\d ± \d+\.\d nats  ", shown)) == 2
