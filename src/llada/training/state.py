"""What of a run changes from step to step: as living objects, as training_state.pt next to the model, and back.

Nothing is left out that a later step depends on: progress, optimizers, trained weights that differ from the model's,
and what has been measured since the last line of metrics.jsonl. Random numbers need no state, since each step makes
its own from (seed, step).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from llada.checkpoints.folder import load_weights
from llada.checkpoints.lora import adapter_weights, is_adapted
from llada.checkpoints.lora_files import read_adapter_weights
from llada.checkpoints.pieces import InParts, bytes_of
from llada.models import MaskPredictor
from llada.optim.ema import ExponentialAverage, trained_weights
from llada.optim.parts import rows_of, to_own, whole_shape
from llada.system.errors import UserError, first_line
from llada.training.gathering import Gathering
from llada.training.group import ALONE
from llada.training.nan_guard import first_non_finite
from llada.training.state_check import Expected, check_progress, check_settings, check_state
from llada.training.state_file import give_back, read_state_file

STATE_FILE = "training_state.pt"
MOMENTS_BYTES = 8  # of a trained weight in fp32, before the optimizers have made theirs


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0
    """Steps done, skipped ones included."""
    samples: int = 0
    """Sequences drawn from the data in these steps; the complement of another is not counted. The next step goes on
    with those that follow, also if it has another number of them."""
    seconds: float = 0.0
    """Time spent, evaluation included."""
    tokens: int = 0
    """Number of tokens that went through the network, padding included."""
    best_nelbo: float = float("inf")
    best_step: int = 0
    data_order: int = 0
    """How often the run went back to a checkpoint, each time to go on with its data in another order."""


@dataclass(frozen=True)
class Resumed:
    """What a resumed run learns from its checkpoint."""

    progress: Progress
    was_compiled: bool | None
    """Whether the run was compiled; None if the checkpoint does not say."""
    changed_settings: list[str]
    """Options that are others now, with their values then and now."""


class Meter(Protocol):
    """Something that sums up between two lines of metrics.jsonl."""

    @property
    def sums(self) -> Mapping[str, Tensor]:
        """What it has so far; written into when a run goes on."""


@dataclass(frozen=True)
class RunState:
    """The living objects of a run."""

    model: MaskPredictor
    optimizers: list[torch.optim.Optimizer]
    average: ExponentialAverage | None
    meters: Mapping[str, Meter] = field(default_factory=dict)

    def pack(
        self,
        progress: Progress,
        own_weights: Mapping[str, Tensor] | None,
        data: Mapping[str, str],
        is_compiled: bool,
        settings: Mapping[str, Any],
        gathering: Gathering | None = None,
    ) -> dict[str, Any]:
        """Return what is saved next to the model.

        Args:
            own_weights: those that are trained, where the model was lent their moving average.
            data: checksums of what the run learns from, by name.
            settings: the configuration, in JSON's values.
            gathering: brings to process 0 what processes have parts of; all of them then call this together.
        """
        gathering = gathering or Gathering(ALONE)
        trained = trained_weights(self.model.network)
        return {
            "progress": vars(progress).copy(),
            "optimizers": [_gathered_state(optimizer, gathering) for optimizer in self.optimizers],
            "weights": None
            if own_weights is None
            else {name: gathering.values_of(trained[name], value) for name, value in own_weights.items()},
            "n_averaged": self.average.n_updates if self.average else 0,
            "data": dict(data),
            "is_compiled": is_compiled,
            "settings": dict(settings),
            "meters": {name: dict(meter.sums) for name, meter in self.meters.items()},
        }

    @torch.no_grad()
    def unpack(self, saved: Mapping[str, Any], folder: Path, samples_per_step: int) -> Progress:
        """Put a saved state, and the model or adapter of its folder, into these objects.

        Args:
            samples_per_step: with which a state began that does not count its samples.

        Raises:
            UserError: the weights are not those of this network, or are not finite.
            ValueError: the state is not one of this run; only the weights are loaded then.
        """
        network = self.model.network
        if is_adapted(network):
            _load_adapter_weights(adapter_weights(network), folder)
        else:
            load_weights(self.model, folder)
        bad = first_non_finite(trained_weights(network))
        if bad is not None:
            raise UserError(f"{folder} cannot be resumed from ({bad} is non-finite): go on from an earlier checkpoint.")
        check_state(saved, self._expected())
        if self.average is not None:
            self.average.n_updates = saved["n_averaged"]
            for name, weight in trained_weights(network).items():
                self.average.weights[name].copy_(weight.detach())
            trained = trained_weights(network)
            for name, weight in trained.items():
                weight.copy_(self._taken(weight, saved["weights"][name]))
        for optimizer, part in zip(self.optimizers, saved["optimizers"], strict=True):
            # Rates and decay come from the configuration, which may have been changed for the rest of the run.
            groups = optimizer.state_dict()["param_groups"]
            moments = _changed_state(optimizer, part["state"], self._taken)
            optimizer.load_state_dict({"state": moments, "param_groups": groups})
        for name, sums in saved.get("meters", {}).items():
            if name in self.meters:
                for key, value in sums.items():
                    self.meters[name].sums[key].copy_(value)
        return Progress(**{"samples": saved["progress"]["step"] * samples_per_step, **saved["progress"]})

    @property
    def is_shared_out(self) -> bool:
        """Whether other processes have parts of what is trained here."""
        return any(rows_of(weight) for weight in trained_weights(self.model.network).values())

    def _taken(self, parameter: Tensor, value: Tensor) -> Tensor:
        """Return of a tensor of a saved state what belongs to a parameter here: a copy, if the state is mapped."""
        if not self.is_shared_out:
            return value
        mapped = to_own(parameter, value) if value.dim() else value
        own = mapped.clone()
        give_back(mapped)
        return own

    @contextmanager
    def averaged(self) -> Iterator[Mapping[str, Tensor] | None]:
        """Lend the model its averaged weights, in evaluation mode; yields its own, if they are others."""
        own = None
        if self.average:
            own = {name: weight.detach().clone() for name, weight in trained_weights(self.model.network).items()}
            put_weights(self.model, self.average.weights)
        self.model.eval()
        try:
            yield own
        finally:
            if own is not None:
                put_weights(self.model, own)
            self.model.train()

    def first_non_finite(self, own_weights: Mapping[str, Tensor] | None) -> str | None:
        """The name of a trained weight, or of an optimizer's moment, that is not finite; None if all are."""
        trained = trained_weights(self.model.network)
        bad = first_non_finite(trained) or first_non_finite(own_weights or {})
        if bad is not None:
            return bad
        names: dict[Tensor, str] = {parameter: name for name, parameter in trained.items()}
        moments: dict[str, Tensor] = {}
        for optimizer in self.optimizers:
            for parameter, kept in optimizer.state.items():
                for path, tensor in _floating(kept):
                    moments[f"{path} of {names[parameter]}"] = tensor
        return first_non_finite(moments)

    def _expected(self) -> Expected:
        return Expected(
            trained=trained_weights(self.model.network),
            optimizers=self.optimizers,
            has_average=self.average is not None,
            meters={name: meter.sums for name, meter in self.meters.items()},
            is_mapped=self.is_shared_out,
        )

    def expected_bytes(self) -> int:
        """Bytes of a checkpoint: the model or the adapter, and the state next to it, moments included."""
        trained = trained_weights(self.model.network)
        stored = trained if is_adapted(self.model.network) else self.model.network.state_dict()
        n_bytes = sum(weight.nbytes for weight in stored.values())
        if self.average is not None:
            n_bytes += sum(whole_shape(weight).numel() * weight.element_size() for weight in trained.values())
        has_moments = any(optimizer.state for optimizer in self.optimizers)
        if not has_moments or self.is_shared_out:
            return n_bytes + sum(MOMENTS_BYTES * whole_shape(weight).numel() for weight in trained.values())
        return n_bytes + sum(map(bytes_in, (dict(optimizer.state) for optimizer in self.optimizers)))


def _gathered_state(optimizer: torch.optim.Optimizer, gathering: Gathering) -> dict[str, Any]:
    """Return an optimizer's state, the moments of which this process keeps a part named to be gathered."""
    state = optimizer.state_dict()
    return {**state, "state": _changed_state(optimizer, state["state"], gathering.values_of)}


def _changed_state(
    optimizer: torch.optim.Optimizer, state: Mapping[int, Any], change: Callable[[Tensor, Tensor], object]
) -> dict[int, Any]:
    """Change what is kept of each parameter by `change(parameter, tensor)`, in the order of their numbers."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def changed(parameter: Tensor, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: changed(parameter, part) for key, part in value.items()}
        return change(parameter, value) if isinstance(value, Tensor) else value

    return {index: changed(parameters[index], state[index]) for index in sorted(state)}


def _floating(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of real numbers in dictionaries, each with the way to it."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield path, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _floating(part, f"{path}.{key}" if path else str(key))


def read_state(folder: Path, is_mapped: bool = False) -> dict[str, Any]:
    """The saved state in a checkpoint folder; nothing is unpickled but tensors and plain values.

    Args:
        is_mapped: map its tensors from the file, of which then only what is used is read.

    Raises:
        UserError: it is missing, damaged, or holds something else.
    """
    try:
        saved = read_state_file(folder / STATE_FILE, is_mapped)
        check_progress(saved)
        check_settings(saved)
    except Exception as error:  # a damaged file makes torch raise almost anything
        raise damaged_state(folder, error) from error
    state: dict[str, Any] = saved
    return state


def _load_adapter_weights(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Fill an adapter in place.

    Raises:
        UserError: the stored one has other tensors.
    """
    stored, _ = read_adapter_weights(folder)
    if {name: w.shape for name, w in stored.items()} != {name: w.shape for name, w in weights.items()}:
        raise UserError(f"The adapter in {folder} is not that of this run: go on from an earlier checkpoint.")
    for name, weight in weights.items():
        weight.copy_(stored[name])


def damaged_state(folder: Path, error: BaseException) -> UserError:
    return UserError(
        f"{folder / STATE_FILE} cannot be resumed from ({first_line(error)}): it is damaged or of another run."
    )


def changed_data(saved: Mapping[str, Any], data: Mapping[str, str]) -> list[str]:
    """What a run learns from that has changed since a state was saved; older states know their text only."""
    before = saved.get("data") or {"text": saved.get("text_sha256")}
    return [name for name in before if before[name] != data.get(name)]


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Options that have other values than before, by their names."""
    changed = []
    for name, value in now.items():
        if isinstance(value, dict):
            then = before.get(name)
            changed += changed_settings(then if isinstance(then, dict) else {}, value)
        elif name in before and before[name] != value:
            changed.append(f"`{name}` {before[name]} -> {value}")
    return changed


@torch.no_grad()
def put_weights(model: MaskPredictor, weights: Mapping[str, Tensor]) -> None:
    """Copy these values into all weights that are trained."""
    for name, weight in trained_weights(model.network).items():
        weight.copy_(weights[name])


def bytes_in(value: object) -> int:
    """Return the bytes of all tensors in dictionaries and lists, those that processes have parts of as wholes."""
    if isinstance(value, (Tensor, InParts)):
        return bytes_of(value)
    if isinstance(value, dict):
        return sum(map(bytes_in, value.values()))
    return sum(map(bytes_in, value)) if isinstance(value, list) else 0
