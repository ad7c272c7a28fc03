"""A model as a folder: config.json, its weights in safetensors and its tokenizer's files, and back.

The `llada` network is stored in the layout of the public LLaDA checkpoints, whatever its size, and those are read by
the same functions: weights in one file, or in several with an index. Nothing in a checkpoint is code, and nothing is
unpickled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llada.errors import UserError
from llada.files import read_json, write_json
from llada.models import MaskPredictor, NetworkConfig, build_network, config_from_json, config_to_json
from llada.sampler import Predict, suppress
from llada.text.vocabulary import Tokenizer, load_tokenizer

CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE = "config.json", "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000  # as the Hugging Face libraries cut
CHECKPOINTS_FOLDER = "checkpoints"
PREFERRED_CHECKPOINTS = ("best", "last")  # of a run folder, in this order


@dataclass(frozen=True)
class Checkpoint:
    """A model ready for use: on its device, in evaluation mode."""

    model: MaskPredictor
    """`model(x_t)`: token ids (B, L), MASK among them, to logits (B, L, V)."""
    tokenizer: Tokenizer
    config: NetworkConfig
    folder: Path

    @property
    def predict(self) -> Predict:
        """The model for sampling: what stands for no text, MASK and PAD above all, has no probability."""
        return suppress(self.model, self.tokenizer.forbidden_rows)

    def check_length(self, length: int) -> None:
        """Refuse a text that is longer than those the model was trained on.

        Raises:
            UserError: it is.
        """
        if length > self.config.max_sequence_length:
            raise UserError(
                f"{length} tokens are more than the {self.config.max_sequence_length} that this model was trained on: "
                "shorten the text, the prompt or the length asked for."
            )


def make_predictor(config: NetworkConfig, tokenizer: Tokenizer) -> MaskPredictor:
    """A freshly initialised model for this vocabulary."""
    return MaskPredictor(build_network(config), tokenizer.mask_id, tokenizer.mask_row)


def save_weights(
    folder: Path,
    config: NetworkConfig,
    tokenizer: Tokenizer,
    weights: Mapping[str, Tensor],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a checkpoint into an existing folder; for a whole or no folder, see `files.folder_written_whole`.

    Args:
        shard_bytes: larger weights are spread over several files, with an index.
    """
    write_json(folder / CONFIG_FILE, config_to_json(config))
    tokenizer.save(folder)
    shards = _cut_into_shards(weights, shard_bytes)
    file_of: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = WEIGHTS_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: weights[name].detach().contiguous().cpu() for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        # safetensors makes the file for its owner alone; it may be read by whoever may read its neighbours.
        (folder / file).chmod((folder / CONFIG_FILE).stat().st_mode)
        file_of.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in weights.values())
        write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": file_of})


def _cut_into_shards(weights: Mapping[str, Tensor], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in weights.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards


def load_checkpoint(
    path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Checkpoint:
    """Open a checkpoint folder, or the best checkpoint of a run folder.

    Args:
        dtype: of the weights in memory.

    Raises:
        UserError: no checkpoint there, or one that is broken or does not fit together.
    """
    folder = find_checkpoint(Path(path))
    config = read_config(folder)
    tokenizer = read_tokenizer(folder)
    with torch.device("meta"):  # memory comes with the weights, and no time goes into random ones
        model = make_predictor(config, tokenizer)
    model.to(dtype).to_empty(device=device)
    load_weights(model, folder)
    return Checkpoint(model.eval(), tokenizer, config, folder)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder meant by `path`: itself, or the best one of a run."""
    candidates = [path, *(path / CHECKPOINTS_FOLDER / name for name in PREFERRED_CHECKPOINTS)]
    for folder in candidates:
        has_weights = (folder / WEIGHTS_FILE).is_file() or (folder / INDEX_FILE).is_file()
        if has_weights and (folder / CONFIG_FILE).is_file():
            return folder
    what = "is not there" if not path.exists() else "holds no checkpoint"
    raise UserError(
        f"{path} {what}: name a run folder or a checkpoint folder, one that `llada train` wrote or LLaDA's."
    )


def read_config(folder: Path) -> NetworkConfig:
    """The network configuration of a checkpoint folder."""
    return parse_config(read_json(folder / CONFIG_FILE), folder / CONFIG_FILE)


def parse_config(content: Mapping[str, Any], origin: Path | str) -> NetworkConfig:
    """The network configuration that the content of a config.json describes.

    Raises:
        UserError: it describes none that is known here.
    """
    try:
        return config_from_json(content)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{origin} cannot be used: {error}.") from error


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder, which fits its network.

    Raises:
        UserError: there is none, or it has other ids than the network has rows.
    """
    config, tokenizer = read_config(folder), load_tokenizer(folder, read_json(folder / CONFIG_FILE))
    if (config.vocab_size, config.mask_token_id) != (tokenizer.vocab_size, tokenizer.mask_row):
        raise UserError(
            f"{folder} does not fit together (config.json has {config.vocab_size} rows with MASK in row "
            f"{config.mask_token_id}, vocab.json {tokenizer.vocab_size} with MASK in the last): "
            "restore both files from the same run."
        )
    return tokenizer


def load_weights(model: MaskPredictor, folder: Path) -> None:
    """Fill the model's network from a checkpoint folder, tensor by tensor, every one accounted for.

    Raises:
        UserError: a file is missing or damaged, or the tensors are not those of the network; it is then partly filled.
    """
    expected = model.network.state_dict()
    filled: set[str] = set()
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  # the file is no mapping
                    _check_tensor(folder, name, expected, file.get_slice(name).get_shape())
                    expected[name].copy_(file.get_tensor(name))
                    filled.add(name)
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{path} cannot be read ({error}): it is incomplete or damaged, use another one."
            ) from error
    if filled != set(expected):
        raise _misfit(folder, f"{min(set(expected) - filled)} is missing")


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights: one, or those of the index, which all lie in the folder itself."""
    if not (folder / INDEX_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    weight_map = read_json(folder / INDEX_FILE).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise UserError(f"{folder / INDEX_FILE} names no files of its folder: download the checkpoint again.")
    return [folder / name for name in sorted(names)]


def _check_tensor(folder: Path, name: str, expected: Mapping[str, Tensor], shape: Sequence[int]) -> None:
    if name not in expected:
        raise _misfit(folder, f"{name} is not a tensor of it")
    if list(expected[name].shape) != list(shape):
        raise _misfit(folder, f"{name} has shape {list(shape)} instead of {list(expected[name].shape)}")


def _misfit(folder: Path, what: str) -> UserError:
    return UserError(f"The weights in {folder} do not fit its config.json ({what}): use another checkpoint.")
