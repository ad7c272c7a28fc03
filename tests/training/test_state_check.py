"""A stored training state of which any entry is another is refused before anything is copied."""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llada.data.prepared import PreparedText
from llada.optim.adamw import AdamW16
from llada.system.checksums import write_checksums
from llada.system.errors import UserError
from llada.training.config import TrainConfig
from llada.training.plan import RunPlan
from llada.training.run_folder import RunFolder
from llada.training.state import STATE_FILE, RunState, read_state
from llada.training.state_check import Expected, check_state
from llada.training.trainer import Trainer
from tests.support.runs import run_to, train

NAN, INF = math.nan, math.inf
IGNORED = {"param_groups"}  # those of the configuration are used instead


@pytest.fixture(params=["muon", "adamw", "bf16"])
def trainer(request: pytest.FixtureRequest, small_run: TrainConfig, data: PreparedText) -> Trainer:
    """A run of two steps with each of our optimizers; 8-bit moments are below."""
    options = replace(small_run.optimizer, optimizer="muon" if request.param == "muon" else "adamw")
    config = replace(small_run, steps=2, optimizer=options)
    if request.param == "bf16":
        config = replace(config, weights="bf16", optimizer=replace(options, ema=0.0))
    trainer = train(config, data)
    return trainer


def entries(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to all leaves."""
    if isinstance(value, (dict, list)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            if key not in IGNORED and (*path, key) != ("settings",):
                yield from entries(part, (*path, key))
    else:
        yield path


def at(state: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        state = state[key]
    return state


def with_entry(state: Any, path: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(state)
    at(changed, path[:-1])[path[-1]] = value
    return changed


def wrong_tensors(tensor: Tensor, may_be_nan: bool) -> Iterator[Any]:
    """Each differs from the tensor in one respect."""
    yield from (None, 1.0, "x", [tensor], {"x": tensor})
    yield tensor.new_zeros((*tensor.shape, 1))
    yield tensor.new_zeros(3)
    yield tensor.to(torch.float64)
    yield tensor.to("meta")
    if tensor.dim():
        yield tensor.new_zeros(1).expand(tensor.shape)  # the shape without the memory
        yield tensor[..., :-1]
        yield tensor.reshape(-1, 1)
    if tensor.is_floating_point() and not may_be_nan:
        for bad in (NAN, INF, -INF):
            changed = tensor.clone()
            changed.view(-1)[-1] = bad
            yield changed
    else:
        yield tensor.float() if not tensor.is_floating_point() else tensor.long()


def wrong_numbers(value: Any) -> Iterator[Any]:
    yield from ("x", [], {}, torch.tensor(1), NAN, -INF, 10**400)
    if value is not None and not isinstance(value, (str, bool)):
        yield from (-1, -5, True, None)
    if type(value) is int:
        yield from (20.5, float(value), 2**60)


def is_refused(saved: Any, expected: Expected) -> bool:
    try:
        check_state(saved, expected)
    except (ValueError, OverflowError):
        return True
    return False


def test_any_entry_that_is_another_is_refused(trainer: Trainer) -> None:
    """All paths of the state, each with all kinds of wrong values; and the state itself is taken."""
    saved, expected = read_state(trainer.folder.last), trainer.state._expected()
    check_state(saved, expected)
    n_tried = 0
    for path in entries(saved):
        value = at(saved, path)
        if isinstance(value, Tensor):
            wrong = list(wrong_tensors(value, may_be_nan=path[1:] == ("by_time", "sum")))
        elif path[0] in ("data", "is_compiled", "weights"):
            wrong = [5, torch.tensor(1), {"x": NAN}]
        else:
            wrong = list(wrong_numbers(value))
        for bad in wrong:
            assert is_refused(with_entry(saved, path, bad), expected), f"{path} may be {bad!r}"
            n_tried += 1
    assert n_tried > 100


def test_any_entry_that_is_missing_or_too_many_is_refused(trainer: Trainer) -> None:
    saved, expected = read_state(trainer.folder.last), trainer.state._expected()
    older = {("data",), ("is_compiled",), ("settings",), ("meters",)}  # not in states of before
    folders = {path[:n] for path in entries(saved) for n in range(1, len(path))}
    for path in {*entries(saved), *folders}:
        may_be_missing = (
            path in older
            or path[0] in ("data", "meters")
            or (path[0] == "progress" and path != ("progress",) and path[-1] != "step")
            or (path[0] == "optimizers" and len(path) == 4)  # all moments of a parameter that had no gradient yet
        )
        changed = copy.deepcopy(saved)
        del at(changed, path[:-1])[path[-1]]
        if not may_be_missing:
            assert is_refused(changed, expected), f"{path} may be missing"
    for path in {(), *folders} - {("optimizers",), ("data",)}:
        changed = copy.deepcopy(saved)
        if isinstance(at(changed, path), dict):
            at(changed, path)["more"] = torch.zeros(2)
            assert is_refused(changed, expected), f"{path} may have more"


@pytest.mark.parametrize("setting", [5, {"seed": NAN}, {"seed": torch.tensor(0)}, {5: 5}, {"a": "x" * 100_000}])
def test_settings_are_those_of_a_configuration(setting: Any, small_run: TrainConfig, data: PreparedText) -> None:
    folder = RunFolder(small_run.output_dir)
    folder.start(small_run)
    trainer = Trainer(RunPlan.of(small_run, data), folder)
    saved = trainer.state.pack(trainer.progress, dict(trainer.average.weights), {}, False, small_run.to_json())  # type: ignore[union-attr]
    check_state(saved, trainer.state._expected())
    with pytest.raises(ValueError, match="settings"):
        check_state({**saved, "settings": setting}, trainer.state._expected())


@pytest.mark.parametrize("wrong", [5, torch.zeros(()), torch.zeros(3)])
def test_a_state_is_read_only_if_its_data_are_checksums(
    wrong: object, small_run: TrainConfig, data: PreparedText
) -> None:
    """They are compared with those of today before anything else."""
    folder = train(small_run, data).folder
    torch.save({**read_state(folder.last), "data": wrong}, folder.last / STATE_FILE)
    with pytest.raises(UserError, match=r"cannot be resumed from \(its data are not checksums by name\)"):
        read_state(folder.last)


def test_two_entries_of_one_memory_are_refused(trainer: Trainer) -> None:
    saved, expected = read_state(trainer.folder.last), trainer.state._expected()
    tensors = [path for path in entries(saved) if isinstance(at(saved, path), Tensor) and path[-1] != "momentum_buffer"]
    first, second = (path for path in tensors if path[-1] in ("exp_avg", "exp_avg_sq") or path[-2:] == ("mean", "fp32")
                     or path[-2:] == ("square", "fp32") if path[2:4] == tensors[0][2:4])  # fmt: skip
    shared = at(saved, second).abs()
    with pytest.raises(ValueError, match="share their memory"):
        check_state(with_both(saved, first, second, shared), expected)


def with_both(state: Any, first: tuple[Any, ...], second: tuple[Any, ...], value: Tensor) -> Any:
    changed = copy.deepcopy(state)
    for path in (first, second):
        at(changed, path[:-1])[path[-1]] = value
    return changed


def test_moments_in_8_bits_fit_to_the_last_number() -> None:
    pytest.importorskip("bitsandbytes")
    network = torch.nn.Linear(64, 65)  # 4,160 weights, 17 blocks; the bias is too small to be quantised
    optimizer = AdamW16(network.parameters(), lr=0.01, state="8bit")
    network(torch.ones(2, 64)).sum().backward()
    optimizer.step()
    state = RunState(_Model(network), [optimizer], None)  # type: ignore[arg-type]
    saved = {"progress": {"step": 1}, "optimizers": [optimizer.state_dict()], "weights": None, "n_averaged": 0}
    check_state(saved, state._expected())
    for name, bad in {
        "numbers": torch.zeros(4159, dtype=torch.uint8),
        "largest": torch.zeros(16),
        "fp32": torch.zeros(4160),
    }.items():
        assert is_refused(with_entry(saved, ("optimizers", 0, "state", 0, "mean", name), bad), state._expected()), name
    with pytest.raises(ValueError, match="negative"):
        check_state(
            with_entry(saved, ("optimizers", 0, "state", 0, "square", "largest"), -torch.ones(17)), state._expected()
        )


class _Model:
    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network


def test_a_run_folder_with_other_moments_ends_in_a_sentence(small_run: TrainConfig, data: PreparedText) -> None:
    """Its checksums are right: whoever made it has written them as well."""
    folder = RunFolder(small_run.output_dir)
    folder.start(small_run)
    run_to(Trainer(RunPlan.of(small_run, data), folder))
    saved = torch.load(folder.last / STATE_FILE, weights_only=True)
    saved["optimizers"][0]["state"][0]["exp_avg"] = torch.zeros(1)
    torch.save(saved, folder.last / STATE_FILE)
    write_checksums(folder.last)
    with pytest.raises(UserError, match=r"training_state\.pt cannot be resumed from \(optimizers\[0\]\[0\]\.exp_avg"):
        Trainer(RunPlan.of(small_run, data), folder, resume=True)


def test_weights_that_are_not_finite_are_not_resumed(small_run: TrainConfig, data: PreparedText) -> None:
    from safetensors.torch import load_file, save_file

    folder = RunFolder(small_run.output_dir)
    folder.start(small_run)
    run_to(Trainer(RunPlan.of(small_run, data), folder))
    path: Path = folder.last / "model.safetensors"
    tensors = load_file(path)
    name = "model.transformer.wte.weight"
    tensors[name][0, 0] = INF  # the row of PAD, which no text uses
    save_file(tensors, path)
    write_checksums(folder.last)
    with pytest.raises(UserError, match=rf"{name} is non-finite"):
        Trainer(RunPlan.of(small_run, data), folder, resume=True)
