"""Processes that share a step compute with the code of one toolchain, or all without."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from llada.data.prepared import PreparedText
from llada.system.toolchains import Toolchain, ToolchainName
from llada.training.build import build_model
from llada.training.compilation import CompiledFeatures
from llada.training.compiled_step import CompiledSteps
from llada.training.config import TrainConfig
from llada.training.data_source import make_source
from llada.training.group import Group
from llada.training.plan import RunPlan
from llada.training.state import Progress
from llada.training.step import Steps


@dataclass(frozen=True)
class Scripted(Group):
    """One of two processes; what the other one has is known beforehand."""

    processes: int = 2
    others: list[Any] = field(default_factory=list)

    def all_of(self, own: Any) -> list[Any]:
        other = self.others.pop(0)
        return [own, other] if self.is_main else [other, own]


ROWS = torch.full((4, 24), 5)
DRAWN = ROWS, None
"""What process 0 draws, if this is process 1: rows, of which none is of several documents."""

CASES: dict[str, tuple[int, str | None, list[Any], str, bool]] = {
    "both by the same": (0, "native", [None, None, "native"], "native", True),
    "none in the first": (0, None, [None, None, None], "none", False),
    "none in the other": (0, "native", [None, None, None], "none", False),
    "another in the other": (0, "native", [None, None, "O2"], "none", False),
    "none here": (1, None, [DRAWN, "native", "native"], "none", False),
    "the first's here": (1, "native", [DRAWN, "native", "native"], "native", True),
    "none in the first, so none here": (1, "native", [DRAWN, None, None], "none", False),
}
"""The rank, by what it can compile, what the other process has each time, and what comes of it."""


@pytest.mark.parametrize("case", CASES)
def test_all_compute_with_code_of_one_toolchain(
    case: str, small_run: TrainConfig, data: PreparedText, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank, found, others, expected, is_compiled = CASES[case]
    asked: list[tuple[Tensor, ToolchainName | None]] = []

    def compile_nothing(
        self: CompiledFeatures,
        rows: Tensor,
        documents: None,
        preferred: ToolchainName | None,
        say: Callable[[str], None],
    ) -> bool:
        asked.append((rows, preferred))
        self.toolchain = Toolchain(found) if found else None  # type: ignore[arg-type]
        self.network.features = "compiled"  # type: ignore[method-assign, assignment]
        return found is not None

    monkeypatch.setattr(CompiledFeatures, "compile", compile_nothing)
    plan = RunPlan.of(replace(small_run, compile=True), data)
    model = build_model(plan, None)
    steps = Steps(plan, model, make_source(plan, 0), Progress(), group=Scripted(rank, others=list(others)))
    said: list[str] = []
    recorded: list[str] = []
    compiled = CompiledSteps(steps, True, said.append, recorded.append)
    compiled.compile(None)
    assert recorded == [expected]
    assert compiled.is_compiled is is_compiled
    assert (str(model.network.features) == "compiled") is is_compiled
    if rank == 1:
        assert asked == [] if others[1] is None else asked[0][1] == "native"
        assert all(torch.equal(rows, ROWS) for rows, _ in asked)
    if found and not is_compiled and others[1:] != [None, None]:
        assert "Process 1 cannot compute with" in said[0]
