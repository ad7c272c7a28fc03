"""Files of an adapter, as the peft library writes them: adapter_config.json and adapter_model.safetensors.

Nothing is unpickled, and an adapter that is more than plain LoRA is refused, not read in part.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from llada.checkpoints.safetensors import check_header
from llada.system.errors import UserError
from llada.system.files import read_json, resolved

ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
UNSAFE_WEIGHTS_FILE = "adapter_model.bin"
# Key and value in the metadata of an adapter's weights, next to `fingerprint.KINDS`; peft writes nothing there.
STORED_AS, FOUR_BITS = "base_stored_as", "nf4"

# Keys of adapter_config.json that we read, and keys that do not affect a trained adapter; all others must be off.
LORA_KEYS = (
    "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "exclude_modules", "rank_pattern",
    "alpha_pattern", "layers_to_transform", "layers_pattern",
)  # fmt: skip
NEUTRAL_KEYS = (
    "peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode",
    "runtime_config", "megatron_core", "qalora_group_size", "init_lora_weights", "loftq_config", "eva_config",
    "corda_config", "lora_ga_config", "ensure_weight_tying",
)  # fmt: skip
OFF: tuple[Any, ...] = (None, False, "none", {}, [])
# Other initialisations change the base as well, which the adapter's file does not record.
GREATEST_RANK, GREATEST_SCALE = 1_000_000, 1e18
RELATIVE = ("./", "../")
PLAIN_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")


def base_of_adapter(folder: Path) -> str:
    """Return the checkpoint that an adapter belongs to, a folder or a name on the hub, as `portable_base` wrote it.

    Raises:
        UserError: there is no adapter, or it does not name its base.
    """
    base = _read_content(folder).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(
            f"{folder / ADAPTER_CONFIG_FILE} does not say which checkpoint the adapter belongs to: "
            "write its folder or name there as base_model_name_or_path."
        )
    if base.startswith(RELATIVE):
        return os.path.normpath(resolved(folder) / base)
    return base


def portable_base(base: str, folder: Path) -> str:
    """Return what an adapter's folder records of its base: a name on the hub, or the path to a folder relative to its
    own.

    Such a path begins with a dot, which no name on the hub does.
    """
    if not Path(base).exists():
        return base
    try:
        way = Path(os.path.relpath(resolved(Path(base)), resolved(folder))).as_posix()
    except ValueError:  # on another drive
        return str(resolved(Path(base)))
    return way if way.startswith(RELATIVE) else f"./{way}"


def _read_content(folder: Path) -> dict[str, Any]:
    if not (folder / ADAPTER_CONFIG_FILE).is_file():
        raise UserError(f"{folder} holds no adapter ({ADAPTER_CONFIG_FILE} is missing): name an adapter's folder.")
    content = read_json(folder / ADAPTER_CONFIG_FILE)
    if content.get("peft_type") != "LORA":
        raise UserError(
            f"The adapter in {folder} is of the kind {content.get('peft_type')}, and only LORA can be used: "
            "use another one."
        )
    return content


def read_lora_values(folder: Path) -> dict[str, Any]:
    """Read what peft needs to build the adapter of a folder; more than plain LoRA is refused rather than left out."""
    content = _read_content(folder)
    others = [key for key in content if key not in LORA_KEYS + NEUTRAL_KEYS and content[key] not in OFF]
    if content.get("init_lora_weights", True) not in PLAIN_INITIALISATIONS:
        others.append("init_lora_weights")
    if others:
        raise UserError(
            f"The adapter in {folder} is more than plain LoRA ({others[0]} = {content[others[0]]!r}): use another one."
        )
    values = {key: content[key] for key in LORA_KEYS if key in content}
    if wrong := _wrong_number(values):
        raise UserError(f"The adapter in {folder} cannot be used ({wrong}): use another one.")
    return values


def _wrong_number(values: Mapping[str, Any]) -> str | None:
    """Describe a rank or a scale that is impossible; None if there is no such value."""
    for key, is_right in (("r", _is_rank), ("lora_alpha", _is_finite)):
        if key in values and not is_right(values[key]):
            return f"{key} = {values[key]!r}"
        patterns = values.get("rank_pattern" if key == "r" else "alpha_pattern") or {}
        if not isinstance(patterns, dict):
            return f"{key} has patterns that are not an object"
        for value in patterns.values():
            if not is_right(value):
                return f"{key} = {value!r} in a pattern"
    return None


def _is_rank(value: Any) -> bool:
    return type(value) is int and 1 <= value <= GREATEST_RANK


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= GREATEST_SCALE


def read_adapter_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors of an adapter, and its metadata: if it was trained here, with fingerprints of its base."""
    with _open_weights(folder) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def is_for_four_bits(folder: Path) -> bool:
    """Whether an adapter was trained with a base in 4 bits."""
    with _open_weights(folder) as file:
        return (file.metadata() or {}).get(STORED_AS) == FOUR_BITS


@contextlib.contextmanager
def _open_weights(folder: Path) -> Iterator[Any]:
    path = folder / ADAPTER_WEIGHTS_FILE
    if not path.is_file() and (folder / UNSAFE_WEIGHTS_FILE).is_file():
        raise UserError(
            f"The adapter in {folder} is not in safetensors ({UNSAFE_WEIGHTS_FILE} could run code when it is "
            "unpickled, and is never opened): convert it to safetensors."
        )
    if not path.is_file():
        raise UserError(f"The adapter in {folder} has no weights ({path.name} is missing): copy the whole folder.")
    check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}): it is incomplete or damaged, use another one.") from error
