"""Reading and writing a model as a folder: config.json, its weights in safetensors and its tokenizer's files.

Networks are stored in the layouts of the public checkpoints (LLaDA, iLLaDA, LLaDA-MoE), whatever their size, and those
are read by the same functions. No code of a folder is run, and nothing is unpickled.
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from llada.checkpoints.pieces import Stored
from llada.checkpoints.run_layout import REMEDY, candidates, while_there
from llada.checkpoints.safetensors import StoredWeights, has_weights, save_tensors, some_of
from llada.checkpoints.tensor_names import plain_names
from llada.models import (
    MaskPredictor,
    NetworkConfig,
    build_network,
    config_from_json,
    config_to_json,
    expected_shapes,
    mask_name,
    tied_head,
    without_values,
)
from llada.models.block_cache import NO_CACHE, BlockCachedPredictor, CacheOptions
from llada.models.local_cache import with_cache
from llada.optim.parts import kept_of
from llada.sampling.dialogue import Assistant
from llada.sampling.guidance import Predict, suppress
from llada.system.checksums import check_whole
from llada.system.device import PrecisionName, memory_bytes
from llada.system.errors import UserError
from llada.system.files import read_json, resolved, write_json
from llada.system.format import bytes_in_words
from llada.system.literals import check_literal
from llada.tokenizers.base import Tokenizer, find_mask_row, load_tokenizer
from llada.tokenizers.bpe import NAMES_FILE, find_token
from llada.tokenizers.chat_template import ChatFormat, chat_format

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
SHARD_BYTES = 5_000_000_000  # as the Hugging Face libraries cut
UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


DtypeName = Literal["auto", "bf16", "fp32"]
DTYPES: dict[DtypeName, torch.dtype | None] = {"auto": None, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Checkpoint:
    """A model ready for use: on its device, in evaluation mode."""

    model: MaskPredictor
    """The mask predictor: `model(x_t)` takes token ids (B, L), MASK among them, to logits (B, L, V)."""
    tokenizer: Tokenizer
    config: NetworkConfig
    folder: Path
    """The folder with links resolved: that of a step, if a run was named."""

    @property
    def further_end_ids(self) -> frozenset[int]:
        """Ids that end an answer in addition to EOS and those of the chat template: config.json may name several."""
        return frozenset(getattr(self.config, "further_eos_ids", ()))

    def assistant(
        self, form: ChatFormat | None = None, caching: CacheOptions = NO_CACHE, block_length: int | None = None
    ) -> Assistant:
        """Wrap the model as an assistant that answers in dialogues.

        Args:
            form: the chat format; if left out, the tokenizer's own.
            caching, block_length: those of `predict_with`.

        Raises:
            UserError: the tokenizer's chat template cannot be used, or the cache cannot.
        """
        device, longest = next(self.model.parameters()).device, self.config.max_sequence_length
        form = form or chat_format(self.tokenizer)
        predict = self._block_cached(caching, block_length) or self.model
        return Assistant(predict, self.tokenizer, form, longest, device, self.further_end_ids)

    @property
    def predict(self) -> Predict:
        """The model for sampling, in which tokens that never stand in a text, such as MASK and PAD, have probability 0.

        Each time a new one, which may keep what it computed for the text that is being written.
        """
        return self.predict_with(NO_CACHE, None)

    def predict_with(self, caching: CacheOptions, block_length: int | None) -> Predict:
        """Like `predict`, with a prefix or dual cache if the options ask for one, which is not exact.

        Args:
            block_length: that of the sampler.

        Raises:
            UserError: the network has no such cache, or the sampler no blocks.
        """
        cached = self._block_cached(caching, block_length) or with_cache(self.model)
        return suppress(cached, self.tokenizer.forbidden_rows)

    def _block_cached(self, caching: CacheOptions, block_length: int | None) -> BlockCachedPredictor | None:
        if caching.cache is None:
            return None
        if block_length is None:
            raise UserError("The cache keeps what is outside of a block, and there are none: set `block_length=32`.")
        try:
            return BlockCachedPredictor(self.model, caching.cache, block_length, caching.cache_refresh)
        except ValueError as error:
            raise UserError(f"This checkpoint cannot be sampled so ({error}): leave out `cache`.") from error

    def check_length(self, length: int) -> None:
        """Refuse a text that is longer than those the model was trained on.

        Raises:
            UserError: the text is too long.
        """
        check_length(length, self.config.max_sequence_length)


def check_length(length: int, longest: int) -> None:
    """Refuse a text that is longer than those a model was trained on.

    Raises:
        UserError: the text is too long.
    """
    if length > longest:
        raise UserError(
            f"{length} tokens are more than the {longest} that this model was trained on: shorten the text, the prompt "
            "or the length asked for."
        )


def weights_dtype(name: DtypeName, precision: PrecisionName = "auto") -> torch.dtype | None:
    """Return the type that a name means; None is the stored type, or bf16 where fp16 is stored.

    Args:
        precision: of the matmuls. Where fp32 is asked for, "auto" is fp32, since bf16 weights are multiplied in bf16.
    """
    check_literal("dtype", name, DtypeName)
    return torch.float32 if (name, precision) == ("auto", "fp32") else DTYPES[name]


def make_predictor(config: NetworkConfig, tokenizer: Tokenizer) -> MaskPredictor:
    """Build a freshly initialised model for this vocabulary."""
    return MaskPredictor(build_network(config), tokenizer.mask_id, tokenizer.mask_row)


def save_weights(
    folder: Path,
    config: NetworkConfig,
    tokenizer: Tokenizer,
    weights: Mapping[str, Stored],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a checkpoint into an existing folder; for all or nothing, see `files.folder_written_whole`.

    Args:
        shard_bytes: largest size of a file; larger weights are spread over several files, with an index.
    """
    write_json(folder / CONFIG_FILE, config_to_json(config))
    tokenizer.save(folder)
    tied = tied_head(config)
    if tied and tied.is_stored:
        weights = {**weights, tied.head: weights[tied.embedding]}
    save_tensors(folder, weights, shard_bytes)


def read_checkpoint(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    keep_fp16: bool = False,
) -> Checkpoint:
    """Open a checkpoint folder, or the best checkpoint of a run folder.

    Weights that are wanted on the CPU as they are stored are mapped from the file into memory; what is written into
    them does not reach the file. Others are converted piece by piece. Neither takes more memory than the weights.

    Args:
        dtype: of the weights in memory; None for the one that the embedding is stored in, but bf16 for fp16.
        keep_fp16: leave fp16 as it is, for weights that nothing is computed with: its numbers end at 65,504, and the
            activations of these networks go beyond.

    Raises:
        UserError: there is no checkpoint, it is damaged or inconsistent, or it does not fit into memory.
    """
    return while_there(
        lambda: resolved(find_checkpoint(Path(path))),  # a run that goes on moves `best` to another folder
        lambda folder: _load(folder, torch.device(device), dtype, keep_fp16),
    )


def _load(folder: Path, device: torch.device, dtype: torch.dtype | None, keep_fp16: bool) -> Checkpoint:
    check_whole(folder, REMEDY)
    config = read_config(folder)
    tokenizer = read_tokenizer(folder)
    shapes, stored = _fitting(StoredWeights.of(folder), config)
    dtype = dtype or _stored_type(shapes, stored, keep_fp16)
    _check_memory(shapes, stored, device, dtype)
    with without_values():
        model = make_predictor(config, tokenizer)
    tensors = {name: stored.tensor(name, device, dtype) for name in model.network.state_dict()}
    model.network.load_state_dict(tensors, assign=True)
    return Checkpoint(model.eval(), tokenizer, config, folder)


def find_checkpoint(path: Path) -> Path:
    """Find the checkpoint folder meant by `path`: the folder itself, or the best checkpoint of a run.

    Raises:
        UserError: there is no checkpoint.
    """
    for folder in candidates(path):
        if has_weights(folder) and (folder / CONFIG_FILE).is_file():
            return folder
    raise UserError(f"{path} {_what_is_wrong(path)}.")


def _what_is_wrong(path: Path) -> str:
    """Say why `path` is not a checkpoint, and what to do about it."""
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
    """Read the network configuration of a checkpoint folder."""
    return read_config_file(folder / CONFIG_FILE)


def read_config_file(path: Path, origin: str | None = None) -> NetworkConfig:
    """Read the network configuration that a config.json describes, together with the tokenizer next to it.

    Args:
        origin: what the file is called in an error.

    Raises:
        UserError: it does not describe a network that is known here.
    """
    content = read_json(path)
    try:
        name = mask_name(content)
        mask_row = None if name is None else find_mask_row(path.parent, name)
        eos_id, pad_id = (
            _named_id(path.parent, key) if content.get(f"{key}_id", "") is None else None
            for key in ("eos_token", "pad_token")
        )
        return config_from_json(content, mask_row, eos_id, pad_id)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise UserError(f"{origin or path} cannot be used: {error}.") from error


def _named_id(folder: Path, key: str) -> int | None:
    """Return the id of a special token in a folder's tokenizer; None if the tokenizer does not name it."""
    if not (folder / NAMES_FILE).is_file():
        return None
    name = read_json(folder / NAMES_FILE).get(key)
    name = name.get("content") if isinstance(name, dict) else name
    return find_token(folder, name) if isinstance(name, str) else None


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of a checkpoint folder and check that it fits the network.

    Raises:
        UserError: there is no tokenizer, or its ids do not fit the network's rows.
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

    Of tensors that are shared out among processes, each reads its own rows only.

    Raises:
        UserError: a file is missing or damaged, or the tensors are not those of the network.
    """
    _, stored = _fitting(StoredWeights.of(folder), model.network.config)
    for name, tensor in model.network.state_dict().items():
        own, rows = kept_of(tensor)
        stored.copy_into(name, own, None if rows is None else rows.first)


def _fitting(stored: StoredWeights, config: NetworkConfig) -> tuple[Mapping[str, torch.Size], StoredWeights]:
    """Return shapes of a network's tensors and the weights under its names, after checking that names and shapes fit.

    The check needs names and shapes only, and comes before there is a network: a wrong config.json may name any size.

    Raises:
        UserError: the weights are not those of such a network.
    """
    n_experts = getattr(config, "n_experts", 1)
    layers = f"{config.n_layers} layers" + (f" of {n_experts} experts" if n_experts > 1 else "")
    too_few = _misfit(stored.folder, f"{len(stored.entries)} tensors are too few for {layers}")
    if config.n_layers * n_experts > len(stored.entries):
        raise too_few
    try:
        shapes = expected_shapes(config, at_most=2 * len(stored.entries))
    except (RuntimeError, TypeError, OverflowError) as error:
        raise _misfit(stored.folder, "no tensor can be as large as it says") from error
    if shapes is None:
        raise too_few
    names, difference = plain_names(stored.entries, _expected_names(shapes, config))
    if difference is not None:
        stored = stored.renamed(names)
        logger.warning("The names of the tensors in %s have %s: they are read without.", stored.folder, difference)
    _check_fit(shapes, stored, config)
    return shapes, stored


def _expected_names(shapes: Mapping[str, torch.Size], config: NetworkConfig) -> Collection[str]:
    """Return the names of the tensors, with that of a tied head, which may be stored as well."""
    tied = tied_head(config)
    return shapes.keys() | {tied.head} if tied else shapes.keys()


def _stored_type(shapes: Mapping[str, torch.Size], stored: StoredWeights, keep_fp16: bool) -> torch.dtype:
    """Return the stored type of the embedding, each network's first matrix; norms are sometimes stored in higher
    precision."""
    dtype = stored.entries[next(name for name, shape in shapes.items() if len(shape) == 2)].dtype
    return torch.bfloat16 if dtype == torch.float16 and not keep_fp16 else dtype


def _check_memory(
    shapes: Mapping[str, torch.Size], stored: StoredWeights, device: torch.device, dtype: torch.dtype
) -> None:
    """Refuse weights that the device cannot hold, before the system ends the process for them."""
    is_mapped = {name: device.type == "cpu" and stored.entries[name].dtype == dtype for name in shapes}
    needed = sum(shape.numel() * dtype.itemsize for name, shape in shapes.items() if not is_mapped[name])
    has = memory_bytes(device) if device.type in ("cpu", "cuda") else needed
    if needed > has:
        remedy = 'open them as bf16 (`dtype="bf16"`)' if dtype.itemsize > 2 else "use a device with more memory"
        raise UserError(
            f"The weights in {stored.folder} take {bytes_in_words(needed)} as {str(dtype).removeprefix('torch.')}, and "
            f"there are {bytes_in_words(has)} of memory: {remedy}."
        )


def _check_fit(shapes: Mapping[str, torch.Size], stored: StoredWeights, config: NetworkConfig) -> None:
    """Refuse weights that are not those of the network: no tensor is missing, left over or of another shape.

    A tied head may be stored as well, if it equals the embedding.
    """
    names = set(stored.entries)
    tied = tied_head(config)
    twins = tied if tied and {tied.head, tied.embedding} <= names else None
    if twins:
        names.remove(twins.head)
    troubles = []
    if missing := shapes.keys() - names:
        troubles.append(f"{some_of(missing)} missing")
    if unexpected := names - shapes.keys():
        troubles.append(f"{some_of(unexpected)} not part of it")
    for name in sorted(names & shapes.keys()):
        shape, wanted = list(stored.entries[name].shape), list(shapes[name])
        if shape != wanted:
            troubles.append(f"{name} has shape {shape} instead of {wanted}")
            break
    if twins and not troubles and not stored.are_equal(twins.head, twins.embedding):
        troubles.append(f"{twins.head} is not {twins.embedding}, though the head is tied")
    if troubles:
        raise _misfit(stored.folder, "; ".join(troubles))


def _misfit(folder: Path, what: str) -> UserError:
    return UserError(f"The weights in {folder} do not fit its config.json ({what}): use another checkpoint.")
