"""What a preset brings besides its settings: how the texts of its network are drawn."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from llada.checkpoints.sampling_default import SAMPLING_FILE, read_default
from llada.data.prepared import PreparedText
from llada.sampling.config import FREE_TEXT
from llada.training.presets import PRESETS, measured_sampling, sampling_of

BEST: dict[str, Any] = {"policy": "entropy_bound", "entropy_bound": 0.03, "order": "left_to_right"}
SHORT = ["--steps", 1, "--batch_size", 1, "--sequence_length", 16, "--evaluation_windows", 1, "--device", "cpu"]


def test_a_run_of_the_laptop_preset_is_sampled_as_measured(llada: Any, data: PreparedText, tmp_path: Path) -> None:
    run = tmp_path / "run"
    line = ["train", "--preset", "laptop", *SHORT, "--data_dir", data.folder, "--output_dir", run]
    assert llada(*line).code == 0
    assert read_default(run) == replace(FREE_TEXT, **BEST)
    (run / SAMPLING_FILE).unlink()  # somebody wants the old default
    resumed = llada("train", "--resume", run, "--steps", 2)
    assert resumed.code == 0, resumed.err
    assert not (run / SAMPLING_FILE).exists()


def test_a_run_that_never_came_to_a_checkpoint_leaves_nothing_that_is_in_the_way(
    llada: Any, data: PreparedText, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    small = [*SHORT, "--data_dir", data.folder, "--output_dir", run]
    assert llada("train", "--preset", "laptop", *small).code == 0
    shutil.rmtree(run / "checkpoints")
    again = llada("train", "--preset", "tiny", *small, "--warmup_steps", 1)
    assert again.code == 0, again.err
    assert not (run / SAMPLING_FILE).exists()  # that of another network


def test_samples_of_a_run_are_written_as_it_is_sampled_later() -> None:
    assert sampling_of(PRESETS["laptop"]) == replace(FREE_TEXT, **BEST)
    assert sampling_of(PRESETS["tiny"]) == FREE_TEXT


def test_what_was_measured_for_one_network_is_not_said_of_another() -> None:
    laptop = PRESETS["laptop"]
    assert measured_sampling(laptop) == (BEST, "the preset laptop: docs/EXPERIMENTS.md, 21")
    assert measured_sampling(replace(laptop, batch_size=4, seed=3)) is not None
    assert measured_sampling(replace(laptop, network=replace(laptop.network, d_model=256))) is None
    assert all(measured_sampling(config) is None for name, config in PRESETS.items() if name != "laptop")
