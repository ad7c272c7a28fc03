"""The files of an adapter, as the peft library writes them: adapter_config.json and adapter_model.safetensors.

Nothing is unpickled, and what would make more of an adapter than LoRA is refused, not left out.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from llada.errors import UserError
from llada.files import read_json

ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
UNSAFE_WEIGHTS_FILE = "adapter_model.bin"
# In the metadata of an adapter's weights, where peft has nothing.
FINGERPRINT = "base_fingerprint"
STORED_AS, FOUR_BITS = "base_stored_as", "nf4"

# What we read of an adapter_config.json; what changes nothing about a trained adapter; all other keys must be off.
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
# Other initialisations change the base as well, which the adapter's file does not tell.
PLAIN_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")


def base_of_adapter(folder: Path) -> str:
    """The checkpoint that an adapter belongs to, as it was called when the adapter was trained.

    Raises:
        UserError: there is no adapter, or it does not tell.
    """
    base = _read_content(folder).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(
            f"{folder / ADAPTER_CONFIG_FILE} does not tell which checkpoint the adapter belongs to: "
            "write its folder or name there as base_model_name_or_path."
        )
    return base


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
    """What peft needs to build the adapter of a folder; more than plain LoRA is refused rather than left out."""
    content = _read_content(folder)
    others = [key for key in content if key not in LORA_KEYS + NEUTRAL_KEYS and content[key] not in OFF]
    if content.get("init_lora_weights", True) not in PLAIN_INITIALISATIONS:
        others.append("init_lora_weights")
    if others:
        raise UserError(
            f"The adapter in {folder} is more than plain LoRA ({others[0]} = {content[others[0]]!r}): use another one."
        )
    return {key: content[key] for key in LORA_KEYS if key in content}


def read_adapter_weights(folder: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of an adapter, and the fingerprint of its base if it was trained here."""
    with _open_weights(folder) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, (file.metadata() or {}).get(FINGERPRINT)  # noqa: SIM118


def is_for_four_bits(folder: Path) -> bool:
    """Whether an adapter was trained beside layers in 4 bits."""
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
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}): it is incomplete or damaged, use another one.") from error
