"""Whether a stored training state is one of this run: every tensor and every number, before anything is copied.

A run folder may come from a stranger. Optimizers update moments in place and trust their shapes, so what does not fit
to the last entry is refused.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llada.optim.adamw import BLOCK, MOMENTS, SMALLEST_QUANTISED, AdamW16
from llada.optim.muon import Muon
from llada.optim.parts import to_own, whole_shape
from llada.training.nan_guard import are_finite
from llada.training.state_file import give_back

LARGEST_COUNT = 2**53  # beyond it, floats miss integers; no run gets there
LONGEST_TEXT = 10_000  # characters of a setting
DEEPEST_SETTING = 8
REQUIRED_KEYS = {"progress", "optimizers", "weights", "n_averaged"}
# The last one is that of older states, which know their text only.
OTHER_KEYS = {"data", "is_compiled", "settings", "meters", "text_sha256"}
# A sum of losses between two lines of metrics.jsonl; a step that was left out leaves its NaN there until the next line.
MAY_BE_NON_FINITE = {("by_time", "sum")}

Spec = tuple[torch.Size, torch.dtype]


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a state has to fit: the living objects of the run."""

    trained: Mapping[str, nn.Parameter]
    optimizers: Sequence[torch.optim.Optimizer]
    has_average: bool
    meters: Mapping[str, Mapping[str, Tensor]]
    is_mapped: bool = False
    """Whether the tensors of the state are mapped from its file."""


def check_state(saved: Mapping[str, Any], expected: Expected) -> None:
    """Refuse a state of which any entry is not as this run would have written it; nothing is changed.

    Of tensors that are shared out, each process looks at the numbers of its part only.

    Raises:
        ValueError: an entry is missing, unknown, or has another shape, type or range.
    """
    check_progress(saved)
    check_settings(saved)
    step = saved["progress"]["step"]
    _check_count("n_averaged", saved["n_averaged"], at_most=step)
    tensors = dict(_check_optimizers(saved["optimizers"], expected, step))
    tensors |= _check_own_weights(saved["weights"], expected)
    tensors |= _check_meters(saved.get("meters", {}), expected.meters)
    _check_apart(tensors)


def check_progress(saved: Any) -> None:
    """Refuse what is not the state of a run, or does not say how far the run is.

    Raises:
        ValueError: a key is missing or unknown, or a number of the progress is out of range.
    """
    if not isinstance(saved, dict) or REQUIRED_KEYS - saved.keys():
        raise ValueError("it is not the state of a run")
    _check_keys("the state", saved, REQUIRED_KEYS | OTHER_KEYS)
    progress = saved["progress"]
    counts = {"step", "tokens", "best_step", "data_order", "samples"}
    if not isinstance(progress, dict) or "step" not in progress:
        raise ValueError("it does not say at which step it is")
    _check_keys("progress", progress, counts | {"seconds", "best_nelbo"})
    _check_count("step", progress["step"])
    for name in sorted(counts & progress.keys()):
        _check_count(name, progress[name], at_most=progress["step"] if name == "best_step" else LARGEST_COUNT)
    seconds, best = progress.get("seconds", 0.0), progress.get("best_nelbo", math.inf)
    if not _is_number(seconds) or seconds < 0 or not seconds < LARGEST_COUNT:
        raise ValueError("its seconds are not a number of seconds")
    if not _is_number(best) or not float(best) >= 0:  # infinite until it is measured
        raise ValueError("its best_nelbo is not a bound")


def check_settings(saved: Mapping[str, Any]) -> None:
    """Refuse what is said of a run's data and settings if it is none of that.

    Raises:
        ValueError: an entry has another type.
    """
    if not isinstance(saved.get("is_compiled", False), bool):
        raise ValueError("its is_compiled is neither true nor false")
    data = saved.get("data", {})
    if not isinstance(data, dict) or not all(_is_text(part) for item in data.items() for part in item):
        raise ValueError("its data are not checksums by name")
    if not isinstance(saved.get("text_sha256", ""), str):
        raise ValueError("its text_sha256 is not a checksum")
    settings = saved.get("settings", {})
    if not isinstance(settings, dict) or not _is_setting(settings):
        raise ValueError("its settings are none of a run")


def _is_setting(value: Any, depth: int = 0) -> bool:
    if isinstance(value, dict):
        return depth < DEEPEST_SETTING and all(_is_text(k) and _is_setting(v, depth + 1) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return depth < DEEPEST_SETTING and all(_is_setting(part, depth + 1) for part in value)
    return value is None or isinstance(value, bool) or _is_text(value) or (_is_number(value) and math.isfinite(value))


def _check_optimizers(saved: Any, expected: Expected, step: int) -> Iterator[tuple[str, Tensor]]:
    """The moments of every parameter that has any: one without a gradient so far has none."""
    optimizers = expected.optimizers
    if not isinstance(saved, list) or len(saved) != len(optimizers):
        raise ValueError("it is of other optimizers")
    for number, (optimizer, part) in enumerate(zip(optimizers, saved, strict=True)):
        name = f"optimizers[{number}]"
        if not isinstance(part, dict) or not isinstance(part.get("state"), dict):
            raise ValueError(f"{name} has no moments")
        _check_keys(name, part, {"state", "param_groups"})
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for index, moments in part["state"].items():
            if type(index) is not int or not 0 <= index < len(parameters):
                raise ValueError(f"{name} has moments of parameter {_short(index)}, which there is not")
            for path, tensor, spec in _matched(f"{name}[{index}]", moments, _moments(optimizer, parameters[index])):
                _check_kind(path, tensor, spec)
                own = to_own(parameters[index], tensor) if tensor.dim() else tensor
                _check_finite(path, own)
                is_square = any(word in path for word in ("exp_avg_sq", ".square.", ".largest"))
                if (is_square or path.endswith(".step")) and bool((own < 0).any()):
                    raise ValueError(f"{path} is negative")
                if expected.is_mapped:
                    give_back(own)
                if path.endswith(".step") and not (float(tensor).is_integer() and tensor <= step):
                    raise ValueError(f"{path} is not a step of this run")
                yield path, tensor


def _moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> Mapping[str, Any]:
    """Shape and type of what an optimizer keeps of a parameter, by name, as it makes it in its first step."""
    if isinstance(optimizer, Muon):
        return {"momentum_buffer": (whole_shape(parameter), parameter.dtype)}
    if isinstance(optimizer, AdamW16):
        flat = torch.Size([whole_shape(parameter).numel()])
        moment = {"fp32": (flat, torch.float32)}
        if optimizer.scales is not None and flat[0] >= SMALLEST_QUANTISED:
            n_blocks = torch.Size([-(-flat[0] // BLOCK)])
            moment = {"numbers": (flat, torch.uint8), "largest": (n_blocks, torch.float32)}
        return {"step": (torch.Size(), torch.int64), **dict.fromkeys(MOMENTS, moment)}
    like = (whole_shape(parameter), parameter.dtype)
    return {"step": (torch.Size(), torch.float32), "exp_avg": like, "exp_avg_sq": like}


def _check_own_weights(saved: Any, expected: Expected) -> dict[str, Tensor]:
    """The weights that are trained, where the model is stored with their moving average."""
    if not expected.has_average:
        if saved is not None:
            raise ValueError("it is of a run with a moving average")
        return {}
    specs = {name: (whole_shape(weight), weight.dtype) for name, weight in expected.trained.items()}
    found = {}
    matched = _matched("weights", saved, specs)
    for (path, tensor, spec), weight in zip(matched, expected.trained.values(), strict=True):
        _check_kind(path, tensor, spec)
        own = to_own(weight, tensor)
        _check_finite(path, own)
        if expected.is_mapped:
            give_back(own)
        found[path] = tensor
    return found


def _check_meters(saved: Any, meters: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Sums since the last line of metrics.jsonl; those that an older state lacks begin anew."""
    if not isinstance(saved, dict):
        raise ValueError("its meters are none")
    _check_keys("meters", saved, meters.keys() | {"eos_share"})
    found = {}
    for meter, sums in saved.items():
        if meter not in meters:
            continue
        if not isinstance(sums, dict):
            raise ValueError(f"meters.{meter} has no sums")
        _check_keys(f"meters.{meter}", sums, meters[meter].keys())
        for name, tensor in sums.items():
            own, path = meters[meter][name], f"meters.{meter}.{name}"
            is_checked = (meter, name) not in MAY_BE_NON_FINITE
            _check_kind(path, tensor, (own.shape, own.dtype))
            if is_checked:
                _check_finite(path, tensor)
                if bool(((tensor < 0) | (tensor > LARGEST_COUNT)).any()):
                    raise ValueError(f"{path} is not a count")
            found[path] = tensor
    return found


def _matched(path: str, saved: Any, specs: Mapping[str, Any]) -> Iterator[tuple[str, Any, Spec]]:
    """Every entry with the shape and type that it should have; the names on both sides are the same."""
    if not isinstance(saved, dict):
        raise ValueError(f"{path} is missing")
    _check_keys(path, saved, specs.keys())
    for name, spec in specs.items():
        if name not in saved:
            raise ValueError(f"{path}.{name} is missing")
        if isinstance(spec, dict):
            yield from _matched(f"{path}.{name}", saved[name], spec)
        else:
            yield f"{path}.{name}", saved[name], spec


def _check_kind(path: str, tensor: Any, spec: Spec) -> None:
    """Kernels take a tensor of the right shape for one whose numbers lie one after the other."""
    shape, dtype = spec
    if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.is_meta:
        raise ValueError(f"{path} is not a plain tensor")
    if tensor.shape != shape or tensor.dtype != dtype:
        raise ValueError(f"{path} is {tuple(tensor.shape)} in {tensor.dtype} where {tuple(shape)} in {dtype} belongs")
    if not tensor.is_contiguous() or tensor.is_neg() or tensor.is_conj():
        raise ValueError(f"{path} is not a plain tensor")


def _check_finite(path: str, tensor: Tensor) -> None:
    if not bool(are_finite(tensor)):
        raise ValueError(f"{path} holds numbers that are not finite")


def _check_apart(tensors: Mapping[str, Tensor]) -> None:
    """No two of them are the same memory, of which one would be written while the other is read."""
    owners: dict[int, str] = {}
    for path, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        if tensor.numel() and owners.setdefault(place, path) != path:
            raise ValueError(f"{path} and {owners[place]} share their memory")


def _check_keys(what: str, saved: Mapping[Any, Any], known: Any) -> None:
    unknown = next((key for key in saved if key not in known), None)
    if unknown is not None or None in saved:
        raise ValueError(f"{what} has an unknown entry, {_short(unknown)}")


def _check_count(name: str, value: Any, at_most: int = LARGEST_COUNT) -> None:
    if type(value) is not int or not 0 <= value <= at_most:
        raise ValueError(f"its {name} is {_short(value)}, which is not a count of this run")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_TEXT


def _short(value: Any) -> str:
    return repr(value)[:60] if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__
