"""Flipped bits, cuts and blocks of noughts anywhere in checkpoints, prepared data and metrics: found and named, or
harmless, which means that what is read is what was written.

`make test` tries some places, `make faults` thousands, the same ones every time.
"""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llada.checkpoints.folder import read_checkpoint
from llada.data.prepared import PreparedText
from llada.system.errors import UserError
from llada.system.files import read_json
from llada.training.config import TrainConfig
from llada.training.metrics import read_metrics
from llada.training.plan import RunPlan
from llada.training.run_folder import RunFolder
from llada.training.state import changed_settings, read_state
from llada.training.trainer import Trainer
from tests.support.runs import display
from tests.support.texts import characters_of

QUICK, FULL = 30, 2000  # places in each of three folders
BLOCK_BYTES = 512


def damaged(content: bytes, rng: random.Random) -> bytes:
    """One bit flipped, the end cut off, or a block of the disk lost."""
    where = rng.randrange(len(content))
    kind = rng.random()
    if kind < 0.6:
        return content[:where] + bytes([content[where] ^ 1 << rng.randrange(8)]) + content[where + 1 :]
    if kind < 0.8:
        return content[:where]
    start = where // BLOCK_BYTES * BLOCK_BYTES
    lost = content[start : start + BLOCK_BYTES]
    return content[:start] + bytes(len(lost)) + content[start + BLOCK_BYTES :]


def sweep(folder: Path, read: Callable[[], Any], n_places: int, seed: int) -> int:
    """Damage a file of a folder at so many places in turn; returns how often that was found and named.

    Anything else than the sentence that names the file, or what was there before, is a failure.
    """
    rng, n_found = random.Random(seed), 0
    expected = read()
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for _ in range(n_places):
        path = rng.choice(files)
        whole = path.read_bytes()
        path.write_bytes(damaged(whole, rng))
        try:
            got = read()
        except UserError as error:
            n_found += 1
            named = (*(file.name for file in files), folder.name)
            assert any(name in str(error) for name in named), str(error)  # noqa: PT017
        else:
            assert got == expected, f"{path.name} was silently used"
        finally:
            path.write_bytes(whole)
    print(f"{folder.name}: {n_found} of {n_places} damages found and named, the others harmless")
    return n_found


@pytest.fixture
def run(small_run: TrainConfig, data: PreparedText) -> RunFolder:
    """A run with one checkpoint."""
    config = replace(small_run, steps=2, evaluate_every=2, evaluation_windows=2)
    folder = RunFolder(config.output_dir)
    folder.start(config)
    Trainer(RunPlan.of(config, data), folder).run(display())
    return folder


def plain(value: Any) -> Any:
    """Tensors as lists, to be compared."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), value.tolist())
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, (list, tuple)) else value


COUNTS = [pytest.param(QUICK, id="some"), pytest.param(FULL, id="all", marks=pytest.mark.faults)]


@pytest.mark.parametrize("n_places", COUNTS)
def test_checkpoints(run: RunFolder, n_places: int) -> None:
    def read() -> Any:
        checkpoint = read_checkpoint(run.last)
        return plain(dict(checkpoint.model.network.state_dict())), characters_of(checkpoint.tokenizer), read_config()

    def read_config() -> Any:
        return plain(read_state(run.last)), vars(read_checkpoint(run.last).config)

    n_found = sweep(run.last.resolve(), read, n_places, seed=1)
    assert n_found > 0.9 * n_places  # the rest is white space in JSON


@pytest.mark.parametrize("n_places", COUNTS)
def test_prepared_data(data: PreparedText, tmp_path: Path, n_places: int) -> None:
    for path in data.folder.iterdir():
        if path.is_file():  # other tests keep their tokens there, in a folder
            (tmp_path / path.name).write_bytes(path.read_bytes())

    def read() -> Any:
        opened = PreparedText.open(tmp_path)
        return (
            opened.metadata,
            characters_of(opened.tokenizer),
            {name: rows.tolist() for name, rows in opened.rows.items()},
        )

    assert sweep(tmp_path, read, n_places, seed=2) > 0.8 * n_places


@pytest.mark.parametrize("n_places", COUNTS)
def test_configuration_and_metrics_of_a_run(run: RunFolder, n_places: int) -> None:
    """What people may edit has no checksum: a configuration that differs from the checkpoint's is reported setting by
    setting, and lines of metrics are read up to the first that is none."""
    rng, rows = random.Random(3), read_metrics(run.path / "metrics.jsonl")
    config, whole = run.path / "config.json", (run.path / "config.json").read_bytes()
    before = read_state(run.last)["settings"]
    for _ in range(n_places):
        config.write_bytes(damaged(whole, rng))
        try:
            now = RunFolder.read_config(run.path).to_json()
        except UserError as error:
            assert "config" in str(error) or "--" in str(error)  # noqa: PT017
        else:
            assert now == before or changed_settings(before, now)
    config.write_bytes(whole)
    assert read_json(config) == json.loads(whole)
    lines = (run.path / "metrics.jsonl").read_bytes()
    for _ in range(n_places):
        (run.path / "metrics.jsonl").write_bytes(lines[: rng.randrange(len(lines))])
        got = read_metrics(run.path / "metrics.jsonl")
        assert got == rows[: len(got)]
