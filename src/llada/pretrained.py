"""The public LLaDA checkpoints: found by name or folder, fetched, and what they ask of the machine beforehand.

Fine-tuning is that of all weights. Adapters (LoRA), chat and the layouts of iLLaDA and LLaDA-MoE are not there yet.
"""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub import logging as hub_logging
from huggingface_hub.errors import HFValidationError
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from llada.checkpoint import CONFIG_FILE, find_checkpoint, make_predictor, parse_config, save_weights, weight_files
from llada.errors import UserError
from llada.files import folder_written_whole, read_json
from llada.models import LLaDAConfig, NetworkConfig
from llada.models.memory import stored_weights
from llada.readable import bytes_in_words
from llada.text.bpe import MODEL_FILE, BPETokenizer
from llada.text.tokenizer import MASK, SPECIAL_IDS

# From config.json of LLaDA-8B-Instruct; its siblings have the same network (arXiv 2502.09992, table 5; 2505.19223).
LLADA_8B = LLaDAConfig(
    d_model=4096,
    n_heads=32,
    n_layers=32,
    vocab_size=126_464,
    mask_token_id=SPECIAL_IDS[MASK],
    pad_token_id=126_081,
    eos_token_id=126_081,
    mlp_hidden_size=12_288,
    max_sequence_length=4096,
    n_kv_heads=32,
    rope_theta=500_000.0,
)
PUBLISHED = {f"GSAI-ML/{name}": LLADA_8B for name in ("LLaDA-8B-Base", "LLaDA-8B-Instruct", "LLaDA-1.5")}
INSTRUCT = "GSAI-ML/LLaDA-8B-Instruct"

# Data only: no code of a repository is fetched, let alone run.
FETCHED_FILES = ("*.json", "*.safetensors", "*.jinja")

SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>")  # the official names


def read_published_config(name: str) -> NetworkConfig:
    """The network of a checkpoint, without its weights.

    Args:
        name: a folder, a config.json, or the name of a repository on the Hugging Face hub.

    Raises:
        UserError: there is none, or it is of a kind that is not known here.
    """
    path = Path(name)
    if path.is_file():
        return parse_config(read_json(path), path)
    if (path / CONFIG_FILE).is_file() and "architectures" in read_json(path / CONFIG_FILE):
        return parse_config(read_json(path / CONFIG_FILE), path / CONFIG_FILE)
    if path.exists():
        folder = find_checkpoint(path)
        return parse_config(read_json(folder / CONFIG_FILE), folder / CONFIG_FILE)
    if name in PUBLISHED:
        return PUBLISHED[name]
    _check_name(name)
    try:
        return parse_config(
            read_json(Path(hf_hub_download(name, CONFIG_FILE, cache_dir=_cache_folder()))), f"config.json of {name}"
        )
    except UserError:
        raise
    except Exception as error:  # the hub's library passes on those of its HTTP client
        raise _unreachable(name, error) from error


def fetch(name: str, config: NetworkConfig) -> Path:
    """The folder of a checkpoint; one that is not here is downloaded into the Hugging Face cache.

    Args:
        config: its network, for the room that it takes on the disk.

    Raises:
        UserError: it is not there, cannot be reached, or does not fit the disk.
    """
    if Path(name).exists():
        return find_checkpoint(Path(name))
    _check_name(name)
    try:
        return _snapshot(name, local_files_only=True)
    except (OSError, ValueError, UserError):
        pass  # not in the cache, or, after its configuration was looked at, not all of it
    _check_disk(name, stored_weights(config))
    try:
        return _snapshot(name)
    except UserError:
        raise
    except Exception as error:  # as above
        raise _unreachable(name, error) from error


def _check_name(name: str) -> None:
    """Refuse what is neither a folder that is here nor could be a repository's name."""
    hub_logging.set_verbosity(logging.ERROR)  # a retry is no news, and a failure has its own sentence
    parts = name.split("/")
    if len(parts) != 2 or not all(part and not part.startswith(".") for part in parts):
        raise UserError(
            f"{name} is not there: name a checkpoint folder, or one on the Hugging Face hub, like {INSTRUCT}."
        )


def _snapshot(name: str, local_files_only: bool = False) -> Path:
    """The folder in the cache that holds the whole repository, but for what is no data."""
    cache, patterns = _cache_folder(), list(FETCHED_FILES)
    found = snapshot_download(name, cache_dir=cache, allow_patterns=patterns, local_files_only=local_files_only)
    folder = find_checkpoint(Path(found))
    if not all(path.is_file() for path in (*weight_files(folder), folder / MODEL_FILE)):
        raise UserError(f"{name} is in {folder} only in part: download it again.")
    return folder


def _cache_folder() -> Path:
    return Path(constants.HF_HUB_CACHE)


def _check_disk(name: str, needed: int) -> None:
    cache = _cache_folder()
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"{name} takes {bytes_in_words(needed)} and {existing} has {bytes_in_words(free)} left: free some space, "
            "or set HF_HOME to a folder on another disk."
        )


def _unreachable(name: str, error: Exception) -> UserError:
    reason = "no such name" if isinstance(error, HFValidationError) else type(error).__name__
    return UserError(
        f"{name} is no folder here and could not be had from the Hugging Face hub ({reason}): check the name and the "
        "network, or download it elsewhere and name its folder."
    )


def write_random_checkpoint(
    folder: Path,
    text: str,
    d_model: int = 64,
    n_layers: int = 2,
    n_heads: int = 4,
    n_tokens: int = 320,
    max_sequence_length: int = 256,
    seed: int = 0,
) -> None:
    """A checkpoint in the official layout that knows nothing: bf16 shards with an index, and a byte-level BPE.

    Args:
        text: the tokenizer's merges are learned from it.
        n_tokens: of the tokenizer, from 256 bytes up; the network has a few rows more, as the public one does.
    """
    tokenizer = _train_tokenizer(text, n_tokens)
    end, mask = tokenizer.eos_id, tokenizer.mask_id
    config = LLaDAConfig(
        d_model=d_model,
        n_heads=n_heads,
        n_layers=n_layers,
        vocab_size=tokenizer.vocab_size,
        mask_token_id=mask,
        pad_token_id=end,
        eos_token_id=end,
        mlp_hidden_size=3 * d_model,
        max_sequence_length=max_sequence_length,
        rope_theta=LLADA_8B.rope_theta,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = make_predictor(config, tokenizer).network.to(torch.bfloat16).state_dict()
    total = sum(tensor.nbytes for tensor in weights.values())
    out_of_order = dict(sorted(weights.items(), key=lambda item: item[0][::-1]))  # as the public shards are
    with folder_written_whole(folder) as aside:
        save_weights(aside, config, tokenizer, out_of_order, shard_bytes=total // 2)


def _train_tokenizer(text: str, n_tokens: int) -> BPETokenizer:
    model = FastTokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_tokens, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    model.train_from_iterator([text], trainer)
    model.add_special_tokens(list(SPECIAL_TOKENS))
    _, end, mask = (model.token_to_id(token) for token in SPECIAL_TOKENS)
    ids: Mapping[str, Any] = {
        "vocab_size": model.get_vocab_size() + 5,  # rows without a token, as the public checkpoints have
        "mask_token_id": mask,
        "pad_token_id": end,
        "eos_token_id": end,
    }
    return BPETokenizer({MODEL_FILE: model.to_str().encode()}, ids)
