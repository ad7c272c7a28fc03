"""LoRA adapters in a frozen network (arXiv 2106.09685), also on 4-bit layers (QLoRA, arXiv 2305.14314).

A network with an adapter is still the network: the adapted linear layers compute W x + scale * B A x, all else is
unchanged. Adapters are stored as the peft library stores them, under the official names, so that other programs can
load ours and we can load theirs. Nothing is unpickled.

Shape letters: R rank of an adapter, I inputs and O outputs of a linear layer.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from llada.checkpoints.fingerprint import FINGERPRINT, KINDS, forget_fingerprints, keep_fingerprint
from llada.checkpoints.lora_files import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    FOUR_BITS,
    STORED_AS,
    base_of_adapter,
    portable_base,
    read_adapter_weights,
    read_lora_values,
)
from llada.checkpoints.lora_patterns import PATTERN_FIELDS, find_targets
from llada.checkpoints.quantization import is_quantised, restore_from_four_bits, store_in_four_bits
from llada.checkpoints.safetensors import some_of, write_safetensors
from llada.checkpoints.tensor_names import plain_names
from llada.models import Network
from llada.models.dropout import Dropout, share_rows
from llada.system.bitsandbytes import importing_bitsandbytes
from llada.system.checksums import check_whole
from llada.system.errors import UserError, first_line
from llada.system.files import write_json
from llada.system.literals import check_literal, check_literals

ADAPTER = "default"  # peft's name of the only adapter of a network
FILE_PREFIX = "base_model.model."  # prefix of tensor names in peft's files


Targets = Literal["all", "attention"]


@dataclass(frozen=True)
class LoraOptions:
    """Options of the adapter to train."""

    lora_rank: int = 16
    """Rank of the adapters: a higher rank can learn more, and takes more memory."""
    lora_alpha: int = 32
    """Scale of the adapters: their output is multiplied by alpha / rank."""
    lora_dropout: float = 0.0
    """Dropout on the input of the adapters; masking regularises already."""
    lora_targets: Targets = "all"
    """Linear layers of the network that are adapted; experts and their router never are."""

    def __post_init__(self) -> None:
        check_literals(self)
        for name in ("lora_rank", "lora_alpha"):
            if getattr(self, name) < 1:
                raise UserError(f"`{name}` must be at least 1, not {getattr(self, name)}: correct it.")
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"`lora_dropout` must be from 0 to below 1, not {self.lora_dropout:g}: correct it.")


def target_pattern(network: Network, targets: Targets = "all") -> str:
    """Return the regular expression for the full names of the linear layers to adapt."""
    check_literal("targets", targets, Targets)
    parts, names = network.PARTS, [name for name, _ in network.named_modules()]
    adapted = parts.adapted(attention_only=targets == "attention")
    found = [part for part in adapted if any(re.fullmatch(parts.layer + part, name) for name in names)]
    return f"{parts.layer}({'|'.join(found)})$"


def add_adapter(network: Network, options: LoraOptions, seed: int) -> None:
    """Freeze the network and put a new adapter into it, which changes nothing yet: B is 0.

    A is uniform on (-1 / sqrt(I), 1 / sqrt(I)), as usual, and drawn from the seed alone. Both are in fp32, whatever the
    base is in.

    Raises:
        UserError: peft is not installed.
    """
    _check_plain(network)
    _inject(
        network,
        _peft().LoraConfig(
            r=options.lora_rank,
            lora_alpha=options.lora_alpha,
            lora_dropout=options.lora_dropout,
            target_modules=target_pattern(network, options.lora_targets),
        ),
    )
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, weight in adapter_weights(network).items():
        weights[name] = torch.zeros(weight.shape)
        if name.endswith("lora_A.weight"):
            bound = weight.shape[1] ** -0.5
            weights[name].uniform_(-bound, bound, generator=generator)
    _fill(network, weights, trainable=True)


def is_adapted(network: Network) -> bool:
    """Whether the network has an adapter."""
    return next(_adapted(network), None) is not None


def adapter_weights(network: Network) -> dict[str, Tensor]:
    """Return A (R, I) and B (O, R) of every adapted layer, under their names in peft's files."""
    return {
        f"{FILE_PREFIX}{name}.{matrix}.weight": getattr(layer, matrix)[ADAPTER].weight
        for name, layer in _adapted(network)
        for matrix in ("lora_A", "lora_B")
    }


def save_adapter(folder: Path, network: Network, base: str) -> None:
    """Write the adapter, in peft's format, into an existing folder; for all or nothing, see
    `files.folder_written_whole`.

    Args:
        base: the checkpoint that the adapter belongs to, a folder or a name on the Hugging Face hub. For a folder, a
            relative path is written, so that both can be moved together.
    """
    config = network.peft_config[ADAPTER].to_dict()  # type: ignore[index, union-attr]
    content = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    content |= {"base_model_name_or_path": portable_base(base, folder), "inference_mode": True}
    write_json(folder / ADAPTER_CONFIG_FILE, content)
    weights = {name: weight.detach().cpu().contiguous() for name, weight in adapter_weights(network).items()}
    path = folder / ADAPTER_WEIGHTS_FILE
    metadata = {"format": "pt", FINGERPRINT: keep_fingerprint(network, FINGERPRINT)}
    if is_quantised(network):
        metadata[STORED_AS] = FOUR_BITS
    write_safetensors(path, weights, metadata)


def load_adapter(network: Network, folder: Path, trainable: bool = False) -> None:
    """Put a stored adapter into the network and freeze the network; every tensor must fit.

    Args:
        trainable: whether the adapter is to be trained further.

    Raises:
        UserError: peft is not installed, files are missing or damaged, or hold something else than a LoRA adapter for
            this base; the network then has no adapter.
    """
    _check_plain(network)
    check_whole(folder, "use another checkpoint of the run, or restore this one from a copy")
    values = read_lora_values(folder)
    weights, fingerprints = read_adapter_weights(folder)
    if not all(bool(weight.isfinite().all()) for weight in weights.values()):
        raise UserError(f"The adapter in {folder} holds numbers that are not finite: it is broken, use an earlier one.")
    _check_base(network, folder, fingerprints)
    peft, undo = _peft(), _undo_of(network)
    try:
        _inject_resolved(network, peft.LoraConfig(**values))
    # peft checks little, so a strange value shows in whatever it meets first.
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, re.error) as error:
        undo()
        reason = first_line(error).split(". ")[0]
        raise UserError(f"The adapter in {folder} cannot be used ({reason}): use another one.") from error
    expected = adapter_weights(network)
    names, _ = plain_names(weights, expected)
    weights = {names[name]: weight for name, weight in weights.items()}
    if troubles := _misfits(expected, weights):
        undo()
        raise UserError(f"The adapter in {folder} does not fit this network ({troubles}): use its own base.")
    _fill(network, weights, trainable)


def _check_base(network: Network, folder: Path, fingerprints: Mapping[str, str]) -> None:
    """Refuse a base that the adapter was not trained with, by the most exact fingerprint that it has."""
    kind = next((kind for kind in KINDS if kind in fingerprints), None)
    if kind is not None and fingerprints[kind] != keep_fingerprint(network, kind):
        forget_fingerprints(network)
        raise UserError(
            f"The adapter in {folder} was trained with other weights than these: use its own base, "
            f"{base_of_adapter(folder)}, or say by `base` where it is now."
        )


@torch.no_grad()
def merge_adapter(network: Network) -> None:
    """Make the network a plain one again, with weights W + scale * B A, under their own names and not frozen.

    The sum is computed in fp32 and rounded to the type of W, in place. A network in 4 bits becomes bf16 first, since
    the adapter was trained with its rounded weights.
    """
    if is_quantised(network):
        restore_from_four_bits(network)
    for _, layer in _adapted(network):
        weight = layer.base_layer.weight
        update = layer.lora_B[ADAPTER].weight.float() @ layer.lora_A[ADAPTER].weight.float()
        weight.copy_(weight.float().add(update, alpha=layer.scaling[ADAPTER]))
    _remove(network)
    forget_fingerprints(network)  # they are other weights now
    network.requires_grad_(True)


def quantise(network: Network, device: torch.device | str | None = None) -> None:
    """Freeze the network and store it in 4 bits (`quantization`), ready for an adapter.

    Args:
        device: the device to move to, which never holds more than the result and one layer; None moves nothing.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    _check_plain(network)
    if is_quantised(network):
        raise ValueError("the network is in 4 bits already")
    for kind in KINDS:
        keep_fingerprint(network, kind)
    store_in_four_bits(network, device)


def _adapted(network: Network) -> Iterator[tuple[str, Any]]:
    """Iterate over names and peft's wrappers of the adapted layers."""
    for name, module in network.named_modules():
        if hasattr(module, "base_layer"):
            yield name, module


def _check_plain(network: Network) -> None:
    if is_adapted(network):
        raise ValueError("the network has an adapter already")


def _inject(network: Network, config: Any) -> None:
    """Wrap the layers that the configuration means; the adapters have no memory and no values yet (see `_fill`).

    Raises:
        ValueError: there are no such layers, or some are not linear layers.
    """
    network.requires_grad_(False)
    _peft().inject_adapter_in_model(config, network, ADAPTER, low_cpu_mem_usage=True)
    for name, layer in _adapted(network):
        if ADAPTER not in layer.lora_A:
            raise ValueError(f"{name} is not a linear layer")
        if isinstance(layer.lora_dropout[ADAPTER], nn.Dropout):
            layer.lora_dropout[ADAPTER] = Dropout(layer.lora_dropout[ADAPTER].p).train(layer.training)
    share_rows(network)


def _inject_resolved(network: Network, config: Any) -> None:
    """Wrap the layers that untrusted patterns mean; peft gets full names, and the configuration keeps the patterns.

    Raises:
        ValueError: as above, or the patterns cannot be used.
    """
    targets, as_read = find_targets(network, config), {key: getattr(config, key) for key in PATTERN_FIELDS}
    for key, value in targets.as_fields().items():
        setattr(config, key, value)
    _inject(network, config)
    for key, value in as_read.items():
        setattr(network.peft_config[ADAPTER], key, value)  # type: ignore[index]


def _fill(network: Network, weights: Mapping[str, Tensor], trainable: bool) -> None:
    """Give the adapters these values, in fp32 and on the device of the layers that they adapt."""
    for name, layer in _adapted(network):
        for matrix in ("lora_A", "lora_B"):
            value = weights[f"{FILE_PREFIX}{name}.{matrix}.weight"]
            value = value.to(layer.base_layer.weight.device, torch.float32, copy=True)
            getattr(layer, matrix)[ADAPTER].weight = nn.Parameter(value, requires_grad=trainable)


def _undo_of(network: Network) -> Callable[[], None]:
    """Return a function that restores the network's present state, after an adapter that does not fit."""
    was_trained = {parameter: parameter.requires_grad for parameter in network.parameters()}

    def undo() -> None:
        _remove(network)
        for parameter, is_trained in was_trained.items():
            parameter.requires_grad_(is_trained)
        if not is_quantised(network):
            forget_fingerprints(network)

    return undo


def _remove(network: Network) -> None:
    """Take the adapter out of the network."""
    for name, layer in list(_adapted(network)):
        network.set_submodule(name, layer.base_layer)
    if hasattr(network, "peft_config"):
        del network.peft_config


def _misfits(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """Say what is wrong with an adapter's tensors; empty if nothing is."""
    troubles = []
    if missing := expected.keys() - weights.keys():
        troubles.append(f"{some_of(missing)} missing")
    if unexpected := weights.keys() - expected.keys():
        troubles.append(f"{some_of(unexpected)} not part of it")
    for name in sorted(expected.keys() & weights.keys()):
        shape, wanted = list(weights[name].shape), list(expected[name].shape)
        if shape != wanted:
            troubles.append(f"{name} has shape {shape} instead of {wanted}")
            break
    return "; ".join(troubles)


def _peft() -> Any:
    try:
        with importing_bitsandbytes():  # peft imports it
            import peft
    except ImportError as error:
        raise UserError("Adapters need the peft package: pip install peft.") from error
    return peft
