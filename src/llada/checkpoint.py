"""A model as a folder: config.json, its weights in safetensors and its tokenizer's files, and back.

Networks are stored in the layouts of the public checkpoints (LLaDA, iLLaDA, LLaDA-MoE), whatever their size, and those
are read by the same functions. No code of a folder is run, and nothing is unpickled.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llada.errors import UserError
from llada.files import read_json, write_json
from llada.integrity import check_whole
from llada.models import (
    MaskPredictor,
    NetworkConfig,
    build_network,
    config_from_json,
    config_to_json,
    mask_name,
    tied_head,
)
from llada.run_layout import candidates
from llada.sampler import Predict, suppress
from llada.text.vocabulary import Tokenizer, find_mask_row, load_tokenizer
from llada.weights import StoredWeights, has_weights, save_tensors, some_of

CONFIG_FILE = "config.json"
SHARD_BYTES = 5_000_000_000  # as the Hugging Face libraries cut
UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class Checkpoint:
    """A model ready for use: on its device, in evaluation mode."""

    model: MaskPredictor
    """`model(x_t)`: token ids (B, L), MASK among them, to logits (B, L, V)."""
    tokenizer: Tokenizer
    config: NetworkConfig
    folder: Path
    """Without links: that of a step, where a run was named."""

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
    tied = tied_head(config)
    if tied and tied.is_stored:
        weights = {**weights, tied.head: weights[tied.embedding]}
    save_tensors(folder, weights, shard_bytes)


def load_checkpoint(
    path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = torch.float32
) -> Checkpoint:
    """Open a checkpoint folder, or the best checkpoint of a run folder.

    Weights that are wanted on the CPU as they are stored are the file itself, mapped into memory; what is written into
    them stays in memory. Others are converted piece by piece. Neither holds more than the weights.

    Args:
        dtype: of the weights in memory; None for the one that the embedding is stored in.

    Raises:
        UserError: no checkpoint there, or one that is broken or does not fit together.
    """
    folder = find_checkpoint(Path(path)).resolve()  # a run that goes on moves `best` to another folder
    check_whole(folder, "use another checkpoint of the run, or restore this one from a copy")
    config = read_config(folder)
    tokenizer = read_tokenizer(folder)
    stored = StoredWeights.of(folder)
    model = _make_empty(config, tokenizer, stored)
    _check_fit(model, stored)
    dtype = dtype or _embedding_dtype(model, stored)
    tensors = {name: stored.tensor(name, torch.device(device), dtype) for name in model.network.state_dict()}
    model.network.load_state_dict(tensors, assign=True)
    return Checkpoint(model.eval(), tokenizer, config, folder)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder meant by `path`: itself, or the best one of a run.

    Raises:
        UserError: there is none.
    """
    for folder in candidates(path):
        if has_weights(folder) and (folder / CONFIG_FILE).is_file():
            return folder
    raise UserError(f"{path} {_what_is_wrong(path)}.")


def _what_is_wrong(path: Path) -> str:
    """With a path that is no checkpoint, and what to do about it."""
    if not path.exists():
        return "is not there: name a run folder or a checkpoint folder, one that `llada train` wrote or LLaDA's"
    if path.is_file() and path.suffix in (".safetensors", ".json"):
        return "is one file of a checkpoint: name its folder"
    if has_weights(path):
        return f"has weights but no {CONFIG_FILE}: add the one that belongs to them"
    if any(path.glob("*.safetensors")):
        return "has weights but no index of them: download the whole checkpoint again"
    offered = [path] if path.is_file() else sorted(path.iterdir())
    unsafe = next((file.name for file in offered if file.suffix in UNSAFE_SUFFIXES), None)
    if unsafe:
        return (
            f"has no weights in safetensors ({unsafe} could run code when it is unpickled, and is never opened): "
            "convert it to safetensors"
        )
    return "holds no checkpoint: name a run folder or a checkpoint folder, one that `llada train` wrote or LLaDA's"


def read_config(folder: Path) -> NetworkConfig:
    """The network configuration of a checkpoint folder."""
    return read_config_file(folder / CONFIG_FILE)


def read_config_file(path: Path, origin: str | None = None) -> NetworkConfig:
    """The network configuration that a config.json describes, together with the tokenizer beside it.

    Args:
        origin: what the file is called in an error.

    Raises:
        UserError: it describes none that is known here.
    """
    content = read_json(path)
    try:
        name = mask_name(content)
        return config_from_json(content, None if name is None else find_mask_row(path.parent, name))
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise UserError(f"{origin or path} cannot be used: {error}.") from error


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder, which fits its network.

    Raises:
        UserError: there is none, or it has other ids than the network has rows.
    """
    config = read_config(folder)
    tokenizer = load_tokenizer(folder, vars(config))
    if (config.vocab_size, config.mask_token_id) != (tokenizer.vocab_size, tokenizer.mask_row):
        raise UserError(
            f"{folder} does not fit together (config.json has {config.vocab_size} rows with MASK in row "
            f"{config.mask_token_id}, vocab.json {tokenizer.vocab_size} with MASK in the last): "
            "restore both files from the same run."
        )
    return tokenizer


def load_weights(model: MaskPredictor, folder: Path) -> None:
    """Fill the model's network from a checkpoint folder, in place, every tensor accounted for.

    Raises:
        UserError: a file is missing or damaged, or the tensors are not those of the network.
    """
    stored = StoredWeights.of(folder)
    _check_fit(model, stored)
    for name, tensor in model.network.state_dict().items():
        stored.copy_into(name, tensor)


def _make_empty(config: NetworkConfig, tokenizer: Tokenizer, stored: StoredWeights) -> MaskPredictor:
    """A model whose memory comes with the weights, and which costs no time if they cannot be its own."""
    n_experts = getattr(config, "n_experts", 1)
    if config.n_layers * n_experts > len(stored.entries):
        layers = f"{config.n_layers} layers" + (f" of {n_experts} experts" if n_experts > 1 else "")
        raise _misfit(stored.folder, f"{len(stored.entries)} tensors are too few for {layers}")
    try:
        with torch.device("meta"):
            return make_predictor(config, tokenizer)
    except (RuntimeError, TypeError, OverflowError) as error:
        raise _misfit(stored.folder, "no tensor can be as large as it says") from error


def _embedding_dtype(model: MaskPredictor, stored: StoredWeights) -> torch.dtype:
    """The embedding is the first matrix of every network; norms are sometimes stored with more digits."""
    name = next(name for name, tensor in model.network.state_dict().items() if tensor.dim() == 2)
    return stored.entries[name].dtype


def _check_fit(model: MaskPredictor, stored: StoredWeights) -> None:
    """Refuse weights that are not those of the model: no tensor is missing, left over or of another shape.

    A tied head may be stored all the same, if it is the embedding.
    """
    expected, names = model.network.state_dict(), set(stored.entries)
    tied = tied_head(model.network.config)
    twins = tied if tied and {tied.head, tied.embedding} <= names else None
    if twins:
        names.remove(twins.head)
    troubles = []
    if missing := expected.keys() - names:
        troubles.append(f"{some_of(missing)} missing")
    if unexpected := names - expected.keys():
        troubles.append(f"{some_of(unexpected)} no part of it")
    for name in sorted(names & expected.keys()):
        shape, wanted = list(stored.entries[name].shape), list(expected[name].shape)
        if shape != wanted:
            troubles.append(f"{name} has shape {shape} instead of {wanted}")
            break
    if twins and not troubles and not stored.are_equal(twins.head, twins.embedding):
        troubles.append(f"{twins.head} is not {twins.embedding}, though the head is tied")
    if troubles:
        raise _misfit(stored.folder, "; ".join(troubles))


def _misfit(folder: Path, what: str) -> UserError:
    return UserError(f"The weights in {folder} do not fit its config.json ({what}): use another checkpoint.")
