import json
import re
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from llada.data.prepared import PreparedText
from llada.forward_process import Bell, Cosine, Linear, Polynomial, Uniform
from llada.system.errors import UserError
from llada.training.config import NetworkOptions, NoiseOptions, OptimizerOptions, TrainConfig
from llada.training.plan import RunPlan
from llada.training.presets import PRESETS
from llada.training.run_folder import RunFolder
from llada.training.trainer import Trainer


def test_names_of_schedules_and_times_are_objects() -> None:
    assert (NoiseOptions().schedule, NoiseOptions().times) == (Linear(), Uniform())
    noise = NoiseOptions(mask_schedule="polynomial:1.5", time_sampling="bell:0.4:0.3")
    assert (noise.schedule, noise.times) == (Polynomial(1.5), Bell(0.4, 0.3))


def test_a_configuration_from_before_there_were_schedules_opens(small_run: TrainConfig) -> None:
    content = small_run.to_json()
    for name in ("mask_schedule", "time_sampling"):
        del content["noise"][name]
    assert TrainConfig.from_json(content) == small_run


def test_a_configuration_from_before_rows_were_numbered_draws_by_step(small_run: TrainConfig) -> None:
    content = small_run.to_json()
    del content["draws"]
    assert TrainConfig.from_json(content) == replace(small_run, draws="by_step")
    assert small_run.draws == "by_row"


@pytest.mark.parametrize(
    ("part", "sentence"),
    [({"clip": 0.0}, "`clip` must be more than 0, not 0: correct it."), ({"clips": 1.0}, "clips")],
)
def test_what_is_wrong_with_a_configuration_is_said_with_its_file(
    part: dict[str, float], sentence: str, small_run: TrainConfig
) -> None:
    content = small_run.to_json()
    small_run.output_dir.mkdir()
    path = small_run.output_dir / "config.json"
    path.write_text(json.dumps({**content, "optimizer": {**content["optimizer"], **part}}), encoding="utf-8")
    for read in (lambda: TrainConfig.read(path), lambda: RunFolder.read_config(path.parent)):
        with pytest.raises(UserError, match=f"^{re.escape(str(path))}: .*{re.escape(sentence)}"):
            read()


def test_what_cannot_be_shared_out_is_refused(small_run: TrainConfig) -> None:
    small = OptimizerOptions(optimizer="adamw", ema=0.0, optimizer_state="8bit")
    tuned: dict[str, Any] = {"base": "here", "network": NetworkOptions()}
    changes: list[tuple[dict[str, Any], str]] = [
        ({**tuned, "method": "qlora"}, "Weights in 4 bits cannot be shared out"),
        ({"optimizer": small}, "Moments in 8 bits cannot be shared out"),
        ({"compile": True}, "are not compiled"),
    ]
    for change, sentence in changes:
        replace(small_run, **change)
        with pytest.raises(UserError, match=sentence):
            replace(small_run, parallel="fsdp", **change)
    assert replace(small_run, parallel="fsdp", method="lora", optimizer=small, **tuned).parallel == "fsdp"


def test_every_preset_has_lladas_noise() -> None:
    """So that a preset learns as it did before there were others."""
    for preset in PRESETS.values():
        assert asdict(preset.noise) | {"mask_schedule": "linear", "time_sampling": "uniform"} == asdict(preset.noise)


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        ({"mask_schedule": "sine"}, "`mask_schedule` must be one of linear, cosine, polynomial:POWER, not 'sine'"),
        ({"time_sampling": "bell:0.5:0.01"}, "`time_sampling` 'bell:0.5:0.01' cannot be used .* choose another"),
    ],
)
def test_noise_that_there_is_not_is_refused(noise: dict[str, str], message: str, small_run: TrainConfig) -> None:
    with pytest.raises(UserError, match=message):
        replace(small_run, noise=NoiseOptions(**noise))  # type: ignore[arg-type]


@pytest.mark.parametrize("noise", [{"mask_schedule": "cosine"}, {"time_sampling": "bell"}])
def test_a_causal_network_has_no_times(noise: dict[str, str], small_run: TrainConfig) -> None:
    with pytest.raises(UserError, match=f"learns without masks: leave out `{next(iter(noise))}`"):
        replace(small_run, network=NetworkOptions("causal"), noise=NoiseOptions(**noise))  # type: ignore[arg-type]


def test_a_step_draws_its_noise_by_the_schedule_and_the_times(small_run: TrainConfig, data: PreparedText) -> None:
    """Rows whose t the schedule maps to their p, in pairs for complements, with the weights of how they were drawn."""
    noise = NoiseOptions(masking="bernoulli", mask_schedule="cosine", time_sampling="bell:0.4:0.2", random_length=0.0)
    config = replace(small_run, noise=noise)
    drawn = Trainer(RunPlan.of(config, data), RunFolder(config.output_dir)).steps.make_batch(0)[1]
    assert torch.allclose(drawn.p_mask[:, 0], Cosine().p_mask(drawn.t))
    assert torch.allclose(drawn.importance[:, 0], Cosine().slope(drawn.t) / Bell(0.4, 0.2).density(drawn.t))
    assert not torch.allclose(drawn.importance, torch.ones(4, 1))
    paired = replace(config, noise=replace(noise, masking="exact_count", complementary=True))
    drawn = Trainer(RunPlan.of(paired, data), RunFolder(config.output_dir)).steps.make_batch(0)[1]
    assert torch.allclose(Cosine().fraction(drawn.t), drawn.p_mask[:, 0])
    assert torch.equal(*drawn.importance.chunk(2))
    assert not torch.allclose(drawn.importance, torch.ones(4, 1))
