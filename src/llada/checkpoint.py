"""A trained model as a folder: config.json, model.safetensors and vocab.json, and back.

The `llada` network is stored in the layout of the public LLaDA checkpoints, whatever its size. Nothing in a checkpoint
is code, and nothing is unpickled.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llada.errors import UserError
from llada.files import read_json, write_json
from llada.models import MaskPredictor, NetworkConfig, build_network, config_from_json, config_to_json
from llada.sampler import Predict, suppress
from llada.text.tokenizer import CharTokenizer

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
CHECKPOINTS_FOLDER = "checkpoints"
PREFERRED_CHECKPOINTS = ("best", "last")  # of a run folder, in this order


@dataclass(frozen=True)
class Checkpoint:
    """A model ready for use: on its device, in evaluation mode."""

    model: MaskPredictor
    """`model(x_t)`: token ids (B, L), MASK among them, to logits (B, L, V)."""
    tokenizer: CharTokenizer
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


def make_predictor(config: NetworkConfig, tokenizer: CharTokenizer) -> MaskPredictor:
    """A freshly initialised model for this vocabulary."""
    return MaskPredictor(build_network(config), tokenizer.mask_id, tokenizer.mask_row)


def save_weights(folder: Path, config: NetworkConfig, tokenizer: CharTokenizer, weights: Mapping[str, Tensor]) -> None:
    """Write the three files into an existing folder; for a whole or no folder, see `files.folder_written_whole`."""
    write_json(folder / CONFIG_FILE, config_to_json(config))
    tokenizer.save(folder)
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in weights.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    # safetensors makes the file for its owner alone; it may be read by whoever may read its neighbours.
    (folder / WEIGHTS_FILE).chmod((folder / CONFIG_FILE).stat().st_mode)


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Open a checkpoint folder, or the best checkpoint of a run folder.

    Raises:
        UserError: no checkpoint there, or one that is broken or does not fit together.
    """
    folder = find_checkpoint(Path(path))
    config = read_config(folder)
    tokenizer = CharTokenizer.load(folder)
    if (config.vocab_size, config.mask_token_id) != (tokenizer.vocab_size, tokenizer.mask_row):
        raise UserError(
            f"{folder} does not fit together (config.json has {config.vocab_size} rows with MASK in row "
            f"{config.mask_token_id}, vocab.json {tokenizer.vocab_size} with MASK in the last): "
            "restore both files from the same run."
        )
    model = make_predictor(config, tokenizer)
    load_weights(model, folder / WEIGHTS_FILE)
    return Checkpoint(model.to(device).eval(), tokenizer, config, folder)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder meant by `path`: itself, or the best one of a run."""
    candidates = [path, *(path / CHECKPOINTS_FOLDER / name for name in PREFERRED_CHECKPOINTS)]
    for folder in candidates:
        if (folder / WEIGHTS_FILE).is_file() and (folder / CONFIG_FILE).is_file():
            return folder
    what = "is not there" if not path.exists() else "holds no checkpoint"
    raise UserError(f"{path} {what}: name a run folder or a checkpoint folder that `llada train` wrote.")


def read_config(folder: Path) -> NetworkConfig:
    """The network configuration of a checkpoint folder."""
    try:
        return config_from_json(read_json(folder / CONFIG_FILE))
    except (ValueError, TypeError) as error:
        raise UserError(f"{folder / CONFIG_FILE} cannot be used: {error}.") from error


def load_weights(model: MaskPredictor, path: Path) -> None:
    """Fill the model's network, every tensor accounted for."""
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}): it is incomplete or damaged, use another one.") from error
    expected = model.network.state_dict()
    different = set(expected) ^ set(weights) or {
        name for name, tensor in weights.items() if tensor.shape != expected[name].shape
    }
    if different:
        raise UserError(f"{path} does not fit its config.json (first difference: {min(different)}): use another one.")
    model.network.load_state_dict(weights)
