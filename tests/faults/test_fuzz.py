"""Whatever a file holds, its loader takes it or refuses it in one sentence: no other error, no hang, little memory.

`make test` tries a few inputs of each kind, `make faults` a hundred thousand in all, both the same ones every time.
"""

import errno
import resource
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llada.system.errors import UserError
from tests.faults.strategies import KINDS
from tests.faults.targets import TARGETS, World

QUICK, LONGEST, MOST_BYTES = 25, timedelta(seconds=20), 400e6


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.manual_seed(0)
    return World(tmp_path_factory.mktemp("fuzz") / "world")


def refuse_in_words(act: Callable[[], object]) -> None:
    """Do it, or be refused in one sentence; the commands make one of what the system says of links to nothing."""
    sentence = "Taken."
    try:
        act()
    except UserError as error:
        sentence = str(error)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOENT):
            raise
    assert "\n" not in sentence
    assert sentence.endswith(".")


def feed(world: World, name: str, n_inputs: int) -> None:
    strategy, act = TARGETS[name][0](world)
    if "replacing" in act.__qualname__:
        strategy |= st.sampled_from(list(KINDS))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    @settings(
        max_examples=n_inputs, deadline=LONGEST, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def each(content: Any) -> None:
        refuse_in_words(lambda: act(content))

    each()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < MOST_BYTES


@pytest.fixture
def _quiet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    capsys.readouterr()


REPLACING = [name for name in TARGETS if name not in ("command_line", "foreign_state", "foreign_folder")]


@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize("name", REPLACING)
def test_no_kind_of_thing_in_the_place_of_a_file_is_waited_for(world: World, name: str) -> None:
    """Each of them, whatever the chance of the others finds."""
    _, act = TARGETS[name][0](world)
    for kind in KINDS:
        refuse_in_words(lambda kind=kind: act(kind))  # type: ignore[misc]


@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize("name", TARGETS)
def test_some_inputs_are_taken_or_refused(world: World, name: str) -> None:
    feed(world, name, QUICK if name != "command_line" else 4)


@pytest.mark.faults
@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize("name", TARGETS)
def test_a_hundred_thousand_inputs_are_taken_or_refused(world: World, name: str) -> None:
    feed(world, name, TARGETS[name][1])


def test_the_full_run_has_a_hundred_thousand_inputs() -> None:
    assert sum(n for _, n in TARGETS.values()) >= 100_000
