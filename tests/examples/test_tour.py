"""The tour of the Python names, docs/python.md, runs from its top to its end on a small run."""

from dataclasses import replace
from pathlib import Path

import pytest

from llada.data.prepared import PreparedText
from llada.training.config import TrainConfig
from tests.support.documents import ROOT, code_blocks
from tests.support.runs import train


def test_its_blocks_run(
    small_run: TrainConfig,
    data: PreparedText,
    one_thread: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    demo = replace(small_run, data=replace(small_run.data, sequence_length=64), output_dir=tmp_path / "runs" / "demo")
    train(demo, data)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    names: dict[str, object] = {}
    for block in code_blocks(ROOT / "docs" / "python.md", "python"):
        exec(compile(block, "docs/python.md", "exec"), names)
    shown = capsys.readouterr().out
    assert "NELBO " in shown
    assert "  0 open,   4 evaluations: to be " in shown
    assert "1000005 tokens are more than the 64" in shown
