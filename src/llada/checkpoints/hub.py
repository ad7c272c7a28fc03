"""The public LLaDA checkpoints: found by name or folder, downloaded, and checked against the machine beforehand.

Names of LLaDA-8B, LLaDA-1.5 and LLaDA-MoE are known offline; others, iLLaDA's among them, are asked for on the hub.
"""

import logging
import shutil
from pathlib import Path

from llada.checkpoints.folder import CONFIG_FILE, find_checkpoint, read_config_file
from llada.checkpoints.run_layout import followed
from llada.checkpoints.safetensors import weight_files
from llada.costs.memory import stored_weights
from llada.models import LLaDAConfig, LLaDAMoEConfig, NetworkConfig
from llada.system.errors import UserError
from llada.system.files import read_json
from llada.system.format import bytes_in_words
from llada.tokenizers.bpe import MODEL_FILE
from llada.tokenizers.char import MASK, SPECIAL_IDS

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
# From the configuration of its base model; the mask is `<|mask|>` of its tokenizer.
LLADA_MOE = LLaDAMoEConfig(
    d_model=2048,
    n_heads=16,
    n_layers=16,
    vocab_size=157_184,
    mask_token_id=156_895,
    pad_token_id=156_892,
    eos_token_id=156_892,
    mlp_hidden_size=1024,
    max_sequence_length=8192,
    n_kv_heads=16,
    rope_theta=50_000.0,
    n_experts=64,
    n_experts_per_token=8,
)
# iLLaDA's rotary base is in its own config.json only.
PUBLISHED: dict[str, NetworkConfig] = {
    **dict.fromkeys(("GSAI-ML/LLaDA-8B-Base", "GSAI-ML/LLaDA-8B-Instruct", "GSAI-ML/LLaDA-1.5"), LLADA_8B),
    **dict.fromkeys(("inclusionAI/LLaDA-MoE-7B-A1B-Base", "inclusionAI/LLaDA-MoE-7B-A1B-Instruct"), LLADA_MOE),
}
INSTRUCT = "GSAI-ML/LLaDA-8B-Instruct"

# Commit of each repository whose configuration this process has read: weights and tokenizer come from the same one.
_commits: dict[str, str] = {}

# Data only: no code of a repository is fetched, let alone run.
FETCHED_FILES = ("*.json", "*.safetensors", "*.jinja")


def read_published_config(name: str) -> NetworkConfig:
    """Read the network configuration of a checkpoint, without its weights.

    Args:
        name: a folder, a config.json, or the name of a repository on the Hugging Face hub.

    Raises:
        UserError: there is no such checkpoint, or its network is not known here.
    """
    path = followed(Path(name))
    if path.is_file():
        return read_config_file(path)
    if (path / CONFIG_FILE).is_file() and "architectures" in read_json(path / CONFIG_FILE):
        return read_config_file(path / CONFIG_FILE)
    if path.exists():
        return read_config_file(find_checkpoint(path) / CONFIG_FILE)
    if name in PUBLISHED:
        return PUBLISHED[name]
    _check_name(name)
    from huggingface_hub import hf_hub_download

    try:
        path = Path(hf_hub_download(name, CONFIG_FILE, cache_dir=_cache_folder(), revision=_commits.get(name)))
        _commits[name] = path.parent.name  # .../snapshots/COMMIT/config.json
        return read_config_file(path, f"{CONFIG_FILE} of {name}")
    except UserError:
        raise
    except Exception as error:  # the hub's library passes on those of its HTTP client
        raise _unreachable(name, error) from error


def fetch(name: str, config: NetworkConfig) -> Path:
    """Return the folder of a checkpoint, downloaded into the Hugging Face cache if it is not here.

    Args:
        config: its network, which gives the space that it needs on the disk.

    Raises:
        UserError: it does not exist, cannot be reached, or does not fit on the disk.
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
    """Refuse a name that is neither an existing folder nor a possible name of a repository."""
    from huggingface_hub import logging as hub_logging  # takes a while, which most commands need not wait

    hub_logging.set_verbosity(logging.ERROR)  # a retry is not worth a warning, and a failure has its own sentence
    parts = name.split("/")
    if len(parts) != 2 or not all(part and not part.startswith(".") for part in parts):
        raise UserError(
            f"{name} is not there: name a checkpoint folder, or one on the Hugging Face hub, like {INSTRUCT}."
        )


def _snapshot(name: str, local_files_only: bool = False) -> Path:
    """Return the folder in the cache that holds all data files of the repository."""
    from huggingface_hub import snapshot_download

    found = snapshot_download(
        name,
        cache_dir=_cache_folder(),
        allow_patterns=list(FETCHED_FILES),
        local_files_only=local_files_only,
        revision=_commits.get(name),
    )
    folder = find_checkpoint(Path(found))
    if not all(path.is_file() for path in (*weight_files(folder), folder / MODEL_FILE)):
        raise UserError(f"{name} is in {folder} only in part: download it again.")
    return folder


def _cache_folder() -> Path:
    from huggingface_hub import constants

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
    from huggingface_hub.errors import HFValidationError

    reason = "no such name" if isinstance(error, HFValidationError) else type(error).__name__
    return UserError(
        f"{name} is not a folder here and could not be obtained from the Hugging Face hub ({reason}): check the name "
        "and the network, or download it elsewhere and name its folder."
    )
