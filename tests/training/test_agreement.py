"""What processes compare before they exchange anything."""

from dataclasses import replace

import torch

from llada.data.prepared import PreparedText
from llada.system.device import Precision
from llada.training.agreement import surroundings
from llada.training.config import TrainConfig
from llada.training.plan import RunPlan


def test_where_a_run_is_written_may_differ_and_what_its_machine_can_do_may_not(
    small_run: TrainConfig, data: PreparedText
) -> None:
    plan = RunPlan.of(small_run, data)
    elsewhere = RunPlan.of(replace(small_run, output_dir=small_run.output_dir / "2"), data)
    assert surroundings(elsewhere) == surroundings(plan)
    ours, theirs = surroundings(plan), surroundings(replace(plan, precision=Precision(torch.bfloat16, "")))
    differing = [name for name in ours if ours[name] != theirs[name]]
    assert differing == ["type of matmuls, which `precision` sets"]
    assert (ours[differing[0]], theirs[differing[0]]) == ("float32", "bfloat16")
