"""Which run folder `llada train` writes to."""

from pathlib import Path

import pytest

from llada.cli import Program, run_command
from llada.data.prepared import PreparedText

SMALL = [
    "--d_model", "16", "--n_heads", "1", "--n_layers", "1", "--sequence_length", "24", "--batch_size", "2",
    "--evaluation_windows", "2", "--device", "cpu", "--compile", "False",
]  # fmt: skip


def test_a_restart_by_torchrun_goes_on_with_the_newest_numbered_run_if_it_is_the_same(
    data: PreparedText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = Program("script.py", preset="tiny", numbered_runs=tmp_path / "shakespeare")

    def train(restarts: int, *options: str) -> str:
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))
        with pytest.raises(SystemExit) as end:
            run_command("train", [*SMALL, "--data_dir", str(data.folder), *options], program)
        assert end.value.code == 0
        return capsys.readouterr().out

    def runs() -> list[str]:
        return sorted(path.name for path in tmp_path.iterdir())

    train(1, "--steps", "3")  # killed before it had a folder
    assert runs() == ["shakespeare-1"]
    assert "shakespeare-1 is complete" in train(1, "--steps", "3")
    assert runs() == ["shakespeare-1"]
    train(0, "--steps", "3")  # no restart: another run
    assert runs() == ["shakespeare-1", "shakespeare-2"]
    train(1, "--steps", "2")  # of another run
    assert runs() == ["shakespeare-1", "shakespeare-2", "shakespeare-3"]
    assert "shakespeare-3 is complete" in train(2, "--steps", "2")
    named = ["--output_dir", str(tmp_path / "named"), "--steps", "2"]
    train(1, *named)
    assert runs() == ["named", "shakespeare-1", "shakespeare-2", "shakespeare-3"]
    assert "named is complete" in train(1, *named)
