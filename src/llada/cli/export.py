"""The command `llada export`: a model as a checkpoint folder in the official layout."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from llada.checkpoints.folder import CONFIG_FILE, SHARD_BYTES, Checkpoint, save_weights, weights_dtype
from llada.checkpoints.hub import fetch, read_published_config
from llada.checkpoints.load import find_adapter, open_model
from llada.checkpoints.lora import is_adapted, merge_adapter
from llada.checkpoints.lora_files import base_of_adapter, is_for_four_bits
from llada.checkpoints.sampling_default import SAMPLING_FILE, find_default, read_default_file
from llada.cli import Program
from llada.cli.options import check_positive, parse
from llada.models import LLaDAConfig
from llada.system.errors import UserError
from llada.system.files import check_writable, folder_written_whole, read_json, remove_leftovers, write_json
from llada.system.format import bytes_in_words
from llada.system.locks import locked
from llada.system.terminal import tell

DESCRIPTION = """Write a model as a checkpoint folder in the official layout, with an adapter merged into its base.

The folder holds config.json, safetensors and the tokenizer's files, and no code. Programs that read LLaDA's checkpoints
can read it if the network is one of LLaDA's."""


@dataclass(frozen=True)
class ExportOptions:
    checkpoint: str
    """A run folder, a checkpoint folder, an adapter, or a name on the Hugging Face hub."""
    output_dir: Path
    """Folder to write, which must not exist yet."""
    dtype: Literal["stored", "bf16", "fp32"] = "stored"
    """Type of the written weights; "stored" is that of the checkpoint, or of an adapter's base."""
    base: str | None = None
    """Base of an adapter, if it is not where the adapter says: a checkpoint folder, or a name on the Hugging Face
    hub."""
    shard_gb: float = SHARD_BYTES / 1e9
    """Size of a file in GB; larger weights are spread over several files."""


def run(arguments: Sequence[str], program: Program) -> int:
    options = parse(ExportOptions, program.name, arguments, DESCRIPTION)
    check_positive(options, "shard_gb")
    check_writable(options.output_dir)
    with locked(options.output_dir):
        return _export(options)


def _export(options: ExportOptions) -> int:
    """Write the folder, while holding its lock; return the exit code."""
    if options.output_dir.exists():
        raise UserError(f"{options.output_dir} is there already: choose another --output_dir.")
    remove_leftovers(options.output_dir)
    dtype = None if options.dtype == "stored" else weights_dtype(options.dtype)
    adapter = find_adapter(Path(options.checkpoint))
    in_four_bits = adapter is not None and is_for_four_bits(adapter)  # merged in bf16, whatever is written
    model = open_model(options.checkpoint, dtype=None if in_four_bits else dtype, base=options.base, keep_fp16=True)
    was_adapted = is_adapted(model.model.network)
    if was_adapted:
        merge_adapter(model.model.network)
    weights = {name: tensor.to(dtype or tensor.dtype) for name, tensor in model.model.network.state_dict().items()}
    _check_finite(weights, model)
    sampling = find_default(model.folder)
    if sampling is not None:
        read_default_file(sampling)  # a broken one is not handed on
    classes = published_classes(options.base or (base_of_adapter(adapter) if adapter else options.checkpoint))
    with folder_written_whole(options.output_dir) as aside:
        save_weights(aside, model.config, model.tokenizer, weights, shard_bytes=int(options.shard_gb * 1e9))
        content = {**read_json(aside / CONFIG_FILE), **({"auto_map": classes} if classes else {})}
        write_json(aside / CONFIG_FILE, content)
        if sampling is not None:
            write_json(aside / SAMPLING_FILE, read_json(sampling))
    size = sum(tensor.nbytes for tensor in weights.values())
    tell(
        f"Written to {options.output_dir}: {len(weights)} tensors, {bytes_in_words(size)}"
        + (f", the adapter of {model.folder} merged" if was_adapted else "")
        + "."
    )
    tell(_for_transformers(model, content))
    return 0


def published_classes(source: str) -> dict[str, str]:
    """Return where transformers finds the class of a model from the hub, as its config.json says in auto_map.

    Only names of the repository that the weights came from are kept: a folder could name anybody's code.
    """
    if Path(source).exists():
        return {}
    classes = read_json(fetch(source, read_published_config(source)) / CONFIG_FILE).get("auto_map")
    if not isinstance(classes, dict):
        return {}
    own = {key: name for key, name in classes.items() if isinstance(name, str) and re.fullmatch(r"\w+\.\w+", name)}
    return {key: f"{source}--{name}" for key, name in own.items()}


def _check_finite(weights: Mapping[str, Tensor], model: Checkpoint) -> None:
    """Refuse to export a model with non-finite weights."""
    for name, tensor in weights.items():
        if tensor.numel() and not bool(torch.stack(torch.aminmax(tensor)).isfinite().all()):
            raise UserError(f"{name} of {model.folder} holds numbers that are not finite: use an earlier checkpoint.")


def _for_transformers(model: Checkpoint, content: Mapping[str, Any]) -> str:
    """Say how the transformers library opens the folder that was written with this config.json."""
    if classes := content.get("auto_map"):
        return (
            "transformers opens it with AutoModel.from_pretrained(folder, trust_remote_code=True): auto_map in "
            f"{CONFIG_FILE} names the class in the repository {next(iter(classes.values())).partition('--')[0]}."
        )
    if not isinstance(model.config, LLaDAConfig):
        return "transformers has no class for this network. Open it with this package."
    return (
        f"To open it with transformers, copy modeling_*.py and configuration_*.py from the public repository of "
        f"{content['architectures'][0]} into the folder. Then put auto_map of that repository's {CONFIG_FILE} into the "
        "one here."
    )
