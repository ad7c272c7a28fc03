"""A step never waits for its device.

Tensors on the "meta" device have shapes and no values, so whatever would make the host wait for a GPU (`item`, a
boolean index, `nonzero`, a copy back) is an error there.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llada.data.prepared import PreparedText
from llada.forward_process import mask_exact_count
from llada.models import flat_positions
from llada.training.config import NetworkOptions, OptimizerOptions, TrainConfig
from llada.training.metrics import LossByTime
from llada.training.plan import RunPlan
from llada.training.run_folder import RunFolder
from llada.training.trainer import Trainer

META = torch.device("meta")


def trainer_on_meta(config: TrainConfig, data: PreparedText, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    plan = replace(RunPlan.of(config, data), device=META)
    fused = torch.optim.AdamW

    class Plain(fused):  # type: ignore[misc, valid-type]
        """torch has no fused AdamW for this device; the plain one stands in, which cannot leave out a step."""

        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **{**options, "fused": False})

        def step(self, closure: None = None) -> None:
            assert self.found_inf.is_meta
            del self.found_inf
            super().step()

    monkeypatch.setattr(torch.optim, "AdamW", Plain)
    return Trainer(plan, RunFolder(folder / "run"))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"batch_size": 2, "accumulate": 2},
        {"activation_checkpointing": True},
        {"optimizer": OptimizerOptions(optimizer="adamw", ema=0.0)},
        {"network": NetworkOptions("encoder", d_model=16, n_heads=2, n_layers=1, dropout=0.2)},
        {"precision": "bf16"},
    ],
    ids=lambda change: ", ".join(change) or "muon",
)
def test_a_step_asks_the_device_for_nothing(
    small_run: TrainConfig,
    data: PreparedText,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, object],
) -> None:
    trainer = trainer_on_meta(replace(small_run, **change), data, tmp_path, monkeypatch)  # type: ignore[arg-type]
    by_time = LossByTime(META)
    for _ in range(3):
        done = trainer.train_step(by_time)
    assert done.loss.is_meta
    assert done.grad_norm.is_meta
    with pytest.raises(RuntimeError):  # the probe itself: asking is an error there
        float(done.loss)


def test_flat_positions_choose_the_same_places_in_the_same_order() -> None:
    x_0 = torch.randint(0, 9, (3, 11), generator=torch.Generator().manual_seed(0))
    noisy = mask_exact_count(x_0, 9, torch.Generator().manual_seed(1))
    features = torch.randn(3, 11, 4)
    assert torch.equal(features.flatten(0, 1)[flat_positions(noisy.is_masked)], features[noisy.is_masked])
