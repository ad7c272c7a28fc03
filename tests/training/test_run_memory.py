"""The memory of the host that a process takes, by hand."""

from dataclasses import replace

import torch

from llada.costs.parameters import total_parameters
from llada.data.prepared import PreparedText
from llada.training.config import TrainConfig
from llada.training.plan import RunPlan
from llada.training.run_memory import expected_memory, host_memory

PIECES = 3 * 64 * 2**20


def test_the_hosts_memory_is_the_step_or_what_is_kept_with_a_few_pieces(
    small_run: TrainConfig, data: PreparedText
) -> None:
    optimizer = replace(small_run.optimizer, optimizer="adamw", ema=0.9)
    plan = RunPlan.of(replace(small_run, optimizer=optimizer), data)
    n = total_parameters(plan.network_config)
    assert host_memory(plan) == 4 * n + 8 * n + 2 * 4 * n + PIECES  # weights, moments, average, weights put aside
    shared = replace(plan, is_sharded=True, processes=2)
    assert 0 < host_memory(plan) - host_memory(shared) <= 20 * n // 2
    larger = replace(plan, length=100_000)
    assert host_memory(larger) == expected_memory(larger).total > host_memory(plan)
    assert host_memory(replace(plan, device=torch.device("cuda"))) == PIECES


def test_several_processes_copy_gradients_that_they_add_up(small_run: TrainConfig, data: PreparedText) -> None:
    plan = RunPlan.of(small_run, data)
    together = replace(plan, processes=2)
    gradients = 4 * total_parameters(plan.network_config)
    assert gradients < 2 * 2**23 * 4  # two buckets
    assert (expected_memory(plan).sent, expected_memory(together).sent) == (0, gradients)
    assert expected_memory(replace(together, is_sharded=True)).sent == 0
