"""Any model by its name: a run, a checkpoint, an adapter with its base, or a repository on the Hugging Face hub."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from llada.checkpoints.folder import (
    DTYPES,
    Checkpoint,
    DtypeName,
    find_checkpoint,
    read_config,
    read_tokenizer,
    weights_dtype,
)
from llada.checkpoints.folder import load_checkpoint as load_folder
from llada.checkpoints.hub import fetch, read_published_config
from llada.checkpoints.lora import load_adapter, quantise
from llada.checkpoints.lora_files import ADAPTER_CONFIG_FILE, base_of_adapter, is_for_four_bits
from llada.checkpoints.run_layout import candidates, while_there
from llada.system.device import PrecisionName
from llada.system.errors import UserError
from llada.system.files import resolved
from llada.tokenizers.base import Tokenizer

Result = TypeVar("Result")


def open_model(
    name: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    base: str | None = None,
    keep_fp16: bool = False,
) -> Checkpoint:
    """A model ready for use; that of an adapter is its base with the adapter in it.

    Args:
        name: a run folder (its best checkpoint is meant), a checkpoint folder, an adapter folder, or a repository.
        dtype: of the weights in memory; None is that in which they are stored, but bf16 for fp16. The base of an
            adapter that was trained on layers in 4 bits is put into 4 bits and bf16 again, and takes no other.
        base: where an adapter's base is, if not where the adapter says.
        keep_fp16: see `checkpoint.load_checkpoint`.

    Raises:
        UserError: there is none, it is broken, or an adapter's base is not to be had.
    """
    adapter = find_adapter(Path(name))
    if adapter is None:
        if base is not None:
            raise UserError(f"{name} is not an adapter and has no base: leave out --base.")
        return while_there(lambda: _find_model(str(name)), lambda folder: load_folder(folder, device, dtype, keep_fp16))
    return while_there(
        lambda: resolved(find_adapter(Path(name)) or adapter),  # a run that goes on moves `best` to another folder
        lambda folder: _open_adapter(folder, device, dtype, base, keep_fp16),
    )


def _open_adapter(
    adapter: Path, device: torch.device | str, dtype: torch.dtype | None, base: str | None, keep_fp16: bool
) -> Checkpoint:
    in_four_bits = is_for_four_bits(adapter)
    if in_four_bits and dtype not in (None, torch.bfloat16):
        raise UserError(f"The adapter in {adapter} was trained on layers in 4 bits and bf16: leave out --dtype.")
    if in_four_bits:  # rounded as it was then: those are the weights that the adapter knows
        checkpoint = _read_base(adapter, base, lambda folder: load_folder(folder, "cpu", torch.bfloat16))
        quantise(checkpoint.model.network, device)
    else:
        checkpoint = _read_base(adapter, base, lambda folder: load_folder(folder, device, dtype, keep_fp16))
    load_adapter(checkpoint.model.network, adapter)
    checkpoint.model.to(device).eval()
    return replace(checkpoint, folder=adapter)


def open_to_measure(
    name: str | Path, device: torch.device, dtype: DtypeName, precision: PrecisionName, base: str | None = None
) -> Checkpoint:
    """A model in the type that a measurement in this precision asks for; layers in 4 bits stay what they are."""
    adapter = find_adapter(Path(name))
    in_four_bits = adapter is not None and is_for_four_bits(adapter)
    return open_model(name, device, DTYPES[dtype] if in_four_bits else weights_dtype(dtype, precision), base)


def read_vocabulary(name: str | Path, base: str | None = None) -> tuple[Tokenizer, int]:
    """The tokenizer of a model and the length that it was trained on, without its weights.

    The arguments are those of `open_model`.
    """

    def read(folder: Path) -> tuple[Tokenizer, int]:
        return read_tokenizer(folder), read_config(folder).max_sequence_length

    adapter = find_adapter(Path(name))
    if adapter is None:
        return while_there(lambda: _find_model(str(name)), read)
    return while_there(
        lambda: resolved(find_adapter(Path(name)) or adapter), lambda folder: _read_base(folder, base, read)
    )


def load_checkpoint(
    name: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    base: str | None = None,
) -> Checkpoint:
    """Open whatever the commands open: a run, a checkpoint, an adapter with its base, or a name on the hub.

    The arguments are those of `open_model`.
    """
    return open_model(name, device, dtype, base)


def _find_model(name: str) -> Path:
    """The folder of a model, which is downloaded if need be."""
    if Path(name).exists():
        return resolved(find_checkpoint(Path(name)))
    return fetch(name, read_published_config(name))


def _read_base(adapter: Path, base: str | None, read: Callable[[Path], Result]) -> Result:
    """What is read of the folder of an adapter's base; that of a run that goes on may be removed meanwhile."""
    name = base_of_adapter(adapter) if base is None else base

    def find() -> Path:
        try:
            return _find_model(name)
        except UserError as error:
            reason = str(error).rstrip(".")
            raise UserError(
                f"The base of the adapter in {adapter} cannot be had ({reason}): say by --base where it is."
            ) from error

    return while_there(find, read)


def find_adapter(path: Path) -> Path | None:
    """The adapter folder meant by `path`: itself, or the best one of a run; None if it is none."""
    return next((folder for folder in candidates(path) if (folder / ADAPTER_CONFIG_FILE).is_file()), None)
