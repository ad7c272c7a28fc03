"""Any model by its name: a run, a checkpoint, an adapter with its base, or a repository on the Hugging Face hub."""

from dataclasses import replace
from pathlib import Path

import torch

from llada.adapter_files import ADAPTER_CONFIG_FILE, base_of_adapter, is_for_four_bits
from llada.adapters import load_adapter, quantise
from llada.checkpoint import Checkpoint, load_checkpoint
from llada.errors import UserError
from llada.pretrained import fetch, read_published_config
from llada.run_layout import candidates


def open_model(
    name: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = torch.float32
) -> Checkpoint:
    """A model ready for use; that of an adapter is its base with the adapter beside it.

    Args:
        name: a run folder (its best checkpoint is meant), a checkpoint folder, an adapter folder, or a repository.
        dtype: of the weights in memory; None is that in which they are stored. The base of an adapter that was trained
            beside layers in 4 bits is put into 4 bits and bf16 again.

    Raises:
        UserError: there is none, it is broken, or an adapter's base is not to be had.
    """
    adapter = find_adapter(Path(name))
    if adapter is None:
        return load_checkpoint(fetch(str(name), read_published_config(str(name))), device, dtype)
    base = base_of_adapter(adapter)
    try:
        folder = fetch(base, read_published_config(base))
    except UserError as error:
        raise UserError(f"The base of the adapter in {adapter} cannot be had. {error}") from error
    if is_for_four_bits(adapter):  # rounded as it was then: those are the weights that the adapter knows
        checkpoint = load_checkpoint(folder, "cpu", torch.bfloat16)
        quantise(checkpoint.model.network, device)
    else:
        checkpoint = load_checkpoint(folder, device, dtype)
    load_adapter(checkpoint.model.network, adapter)
    checkpoint.model.to(device).eval()
    return replace(checkpoint, folder=adapter)


def find_adapter(path: Path) -> Path | None:
    """The adapter folder meant by `path`: itself, or the best one of a run; None if it is none."""
    return next((folder for folder in candidates(path) if (folder / ADAPTER_CONFIG_FILE).is_file()), None)
