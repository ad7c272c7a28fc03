"""A run goes on with the samples that it has not seen, also with another number of them a step."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llada.data import batches
from llada.data.prepared import PreparedText
from llada.training.config import DataOptions, NoiseOptions, TrainConfig
from llada.training.plan import RunPlan
from llada.training.run_folder import RunFolder
from llada.training.state import STATE_FILE
from llada.training.trainer import Trainer
from tests.support.runs import display, losses, train, weights


@pytest.fixture
def stored(small_run: TrainConfig, data: PreparedText) -> TrainConfig:
    """A pass over the stored sequences, 4 at a time."""
    options = DataOptions((data.folder,), windows="stored")
    return replace(small_run, data=options, noise=NoiseOptions(), epochs=1.0, steps=None)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The numbers of the rows that steps are made of."""
    drawn: list[int] = []
    items_at = batches._items_at

    def note(*arguments: Any) -> Any:
        rows = items_at(*arguments)
        drawn.extend(rows.tolist())
        return rows

    with monkeypatch.context() as patch:
        patch.setattr(batches, "_items_at", note)
        yield drawn


@pytest.mark.parametrize("changes", [{"batch_size": 2}, {"batch_size": 7}, {"accumulate": 2}])
def test_no_sample_comes_twice_in_an_epoch(
    changes: dict[str, Any], stored: TrainConfig, data: PreparedText, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each comes once: the epoch is finished. The last step may reach into the next one."""
    n = len(data.rows["train"])
    with counted(monkeypatch) as drawn:
        assert train(stored, data, stop_at=4).progress.samples == 5 * 4
        resumed = train(replace(stored, **changes), data, resume=True)
    assert set(Counter(drawn[:n]).values()) == {1}
    assert sorted(drawn[:n]) == list(range(n))
    per_step = resumed.config.distinct_sequences
    assert resumed.progress.samples == len(drawn)
    assert n <= len(drawn) < n + per_step
    assert resumed.progress.step == 5 + -(-(n - 20) // per_step)
    assert resumed.fraction_done() == 1


def test_a_change_that_is_taken_back_goes_on_with_what_is_left(
    stored: TrainConfig, data: PreparedText, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = len(data.rows["train"])
    with counted(monkeypatch) as drawn:
        train(stored, data, stop_at=1)
        train(replace(stored, batch_size=3), data, resume=True, stop_at=5)
        train(stored, data, resume=True)
    assert sorted(drawn[:n]) == list(range(n))


@pytest.mark.parametrize("complementary", [False, True])
def test_older_states_have_seen_their_steps_times_their_batch(
    complementary: bool, stored: TrainConfig, data: PreparedText, tmp_path: Path
) -> None:
    whole = replace(stored, noise=NoiseOptions(complementary=complementary), output_dir=tmp_path / "whole")
    parts = replace(whole, output_dir=tmp_path / "parts")
    expected = train(whole, data)
    train(parts, data, stop_at=4)
    path = RunFolder(parts.output_dir).last / STATE_FILE
    saved = torch.load(path, weights_only=True)
    assert saved["progress"].pop("samples") == 5 * (2 if complementary else 4)
    torch.save(saved, path)
    other = replace(parts, batch_size=8)
    assert Trainer(RunPlan.of(other, data), RunFolder(parts.output_dir), resume=True).progress.samples == 5 * (
        2 if complementary else 4
    )
    resumed = Trainer(RunPlan.of(parts, data), RunFolder(parts.output_dir), resume=True)
    resumed.run(display())
    assert torch.equal(weights(resumed), weights(expected))
    assert losses(parts) == losses(whole)
