"""Models and tasks that both files of tests share; lm-evaluation-harness is loaded only by those that need it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llada.data.prepared import PreparedText

if TYPE_CHECKING:
    from llada.evaluation.lm_eval.model import HarnessModel


@pytest.fixture(scope="session")
def run(data: PreparedText, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.harness_tasks import train_run

    return train_run(data, tmp_path_factory.mktemp("harness") / "run")


@pytest.fixture(scope="session")
def official(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.harness_tasks import write_official

    return write_official(text, tmp_path_factory.mktemp("harness") / "checkpoint")


@pytest.fixture(scope="session", params=["run", "official"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> HarnessModel:
    from tests.support.harness_tasks import make_model

    return make_model(checkpoint)


@pytest.fixture(scope="session")
def tasks(model: HarnessModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.harness_tasks import write_tasks

    return write_tasks(tmp_path_factory.mktemp("tasks"), model)


@pytest.fixture(scope="session")
def found(model: HarnessModel, tasks: Path) -> dict[str, Any]:
    from tests.support.harness_tasks import evaluate_all

    return evaluate_all(model, tasks)
