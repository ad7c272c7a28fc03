"""`llada export`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from llada.adapters import is_adapted, merge_adapter
from llada.checkpoint import SHARD_BYTES, save_weights
from llada.cli import Program
from llada.cli.options import check_positive, parse
from llada.errors import UserError
from llada.files import check_writable, folder_written_whole, remove_leftovers
from llada.locks import locked
from llada.opening import open_model
from llada.readable import bytes_in_words

DESCRIPTION = """Write a model as a checkpoint folder in the official layout, with an adapter merged into its base.

The folder holds config.json, safetensors and the tokenizer's files, and no code: what reads LLaDA's checkpoints reads
it, if the network is one of theirs."""


@dataclass(frozen=True)
class ExportOptions:
    checkpoint: str
    """A run folder, a checkpoint folder, an adapter, or a name on the Hugging Face hub."""
    output_dir: Path
    """The folder to write, which must not be there yet."""
    dtype: Literal["stored", "bf16", "fp32"] = "stored"
    """Of the weights; "stored" is that of the checkpoint, or of an adapter's base."""
    shard_gb: float = SHARD_BYTES / 1e9
    """Larger weights are spread over several files of this size."""


def run(arguments: Sequence[str], program: Program) -> int:
    options = parse(ExportOptions, program.name, arguments, DESCRIPTION)
    check_positive(options, "shard_gb")
    check_writable(options.output_dir)
    with locked(options.output_dir):
        return _export(options)


def _export(options: ExportOptions) -> int:
    """As the only one who writes there."""
    if options.output_dir.exists():
        raise UserError(f"{options.output_dir} is there already: choose another --output_dir.")
    remove_leftovers(options.output_dir)
    dtype = {"stored": None, "bf16": torch.bfloat16, "fp32": torch.float32}[options.dtype]
    model = open_model(options.checkpoint, dtype=dtype)
    was_adapted = is_adapted(model.model.network)
    if was_adapted:
        merge_adapter(model.model.network)
    weights = model.model.network.state_dict()
    with folder_written_whole(options.output_dir) as aside:
        save_weights(aside, model.config, model.tokenizer, weights, shard_bytes=int(options.shard_gb * 1e9))
    size = sum(tensor.nbytes for tensor in weights.values())
    print(
        f"Written to {options.output_dir}: {len(weights)} tensors, {bytes_in_words(size)}"
        + (f", the adapter of {model.folder} merged" if was_adapted else "")
        + "."
    )
    return 0
