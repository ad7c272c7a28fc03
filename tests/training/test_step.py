"""A step with dropout: the same however it is cut into batches or shared among processes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from llada.data.prepared import PreparedText
from llada.evaluation.distributed import Shard
from llada.models.dropout import Dropout
from llada.objective import loss_weights
from llada.optim.ema import trained_weights
from llada.training.build import build_model
from llada.training.config import NetworkOptions, NoiseOptions, TrainConfig
from llada.training.data_source import make_source
from llada.training.group import Group
from llada.training.metrics import LossByTime
from llada.training.plan import RunPlan
from llada.training.seeds import seed_of
from llada.training.state import Progress
from llada.training.step import Steps
from tests.support.runs import losses, train

CLOSE = 1e-5


class Alike(Group):
    """One of several processes with equally many tokens each; nothing is exchanged."""

    def sum(self, values: Tensor) -> Tensor:
        return values * self.processes


@pytest.fixture
def config(small_run: TrainConfig) -> TrainConfig:
    """A run of eight rows a step, with dropout."""
    network = NetworkOptions("encoder", d_model=18, n_heads=2, n_layers=2, dropout=0.3)
    noise = NoiseOptions(weight_power=1.0, complementary=True)
    return replace(small_run, network=network, noise=noise, batch_size=8, precision="fp32")


def steps_of(config: TrainConfig, data: PreparedText, shard: Shard) -> Steps:
    torch.manual_seed(0)
    plan = RunPlan.of(config, data, shard=shard)
    model, group = build_model(plan, None), Alike(shard.rank, shard.processes)
    return Steps(plan, model, make_source(plan, 0), Progress(), group=group)


def computed(config: TrainConfig, data: PreparedText, processes: int = 1) -> tuple[float, dict[str, Tensor]]:
    """The loss and the gradients of step 3, added up over the processes."""
    total = 0.0
    gradients: dict[str, Tensor] = {}
    for rank in range(processes):
        steps = steps_of(config, data, Shard(rank, processes))
        loss, _ = steps.backward(3, LossByTime(steps.device))
        total += float(loss)
        for name, weight in trained_weights(steps.model.network).items():
            assert weight.grad is not None
            gradients[name] = gradients.get(name, torch.zeros(())) + weight.grad
    return total, gradients


def assert_equal_to(one: tuple[float, dict[str, Tensor]], other: tuple[float, dict[str, Tensor]]) -> None:
    assert one[0] == pytest.approx(other[0], abs=CLOSE)
    for name, gradient in one[1].items():
        assert torch.allclose(gradient, other[1][name], rtol=0, atol=CLOSE), name


@pytest.mark.parametrize("network", ["encoder", "causal"])
def test_what_is_dropped_depends_neither_on_processes_nor_on_batches(
    network: Any, config: TrainConfig, data: PreparedText
) -> None:
    noise = config.noise if network == "encoder" else NoiseOptions(weight_power=1.0)
    config = replace(config, network=replace(config.network, network=network), noise=noise)
    whole = computed(config, data)
    for processes in (2, 4):
        assert_equal_to(computed(config, data, processes), whole)
    assert_equal_to(computed(replace(config, batch_size=2, accumulate=4), data), whole)
    assert_equal_to(
        computed(replace(config, batch_size=4, accumulate=2, activation_checkpointing=True), data, 2), whole
    )
    _, without = computed(replace(config, network=replace(config.network, dropout=0.0)), data)
    assert max(float((without[name] - gradient).abs().max()) for name, gradient in whole[1].items()) > 100 * CLOSE


def test_each_row_of_each_step_drops_something_else(config: TrainConfig, data: PreparedText) -> None:
    steps = steps_of(replace(config, noise=replace(config.noise, random_length=0.0)), data, Shard())
    layer, masks = next(module for module in steps.model.modules() if isinstance(module, Dropout)), []
    layer.register_forward_hook(lambda module, given, _: masks.append(layer.kept(layer.rows.keys, given[0].shape)))  # type: ignore[arg-type]
    for step in (3, 4, 3):
        steps.backward(step, LossByTime(steps.device))
    assert torch.equal(masks[0], masks[2])
    rows = torch.cat(masks[:2]).flatten(1)
    assert len(rows.unique(dim=0)) == 16
    assert layer.rows.keys is None


def test_runs_that_are_drawn_by_step_have_torchs_dropout(config: TrainConfig, data: PreparedText) -> None:
    steps = steps_of(replace(config, draws="by_step"), data, Shard())
    loss, _ = steps.backward(3, LossByTime(steps.device))
    batch, noisy = steps.make_batch(3)
    torch.manual_seed(seed_of(config.seed, 3, "dropout"))
    assert torch.equal(steps.loss(batch, noisy, loss_weights(noisy), LossByTime(steps.device)), loss)


def test_a_run_with_dropout_does_not_depend_on_how_its_batches_are_cut(config: TrainConfig, data: PreparedText) -> None:
    cut = replace(config, batch_size=2, accumulate=4, output_dir=config.output_dir.with_name("cut"))
    for each in (config, cut):
        train(each, data)
    assert losses(cut) == pytest.approx(losses(config), abs=CLOSE)
