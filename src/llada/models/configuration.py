"""config.json of a checkpoint, to and from the configuration dataclass of its network.

The `llada` network uses the keys and values of the public LLaDA checkpoints. They describe a family of networks of
which only one member was ever published, so every key that could ask for another member must hold the published value.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import dacite

from llada.models.encoder import Encoder, EncoderConfig
from llada.models.llada import LLaDA, LLaDAConfig

NetworkConfig = LLaDAConfig | EncoderConfig

ARCHITECTURES: dict[str, type[LLaDAConfig] | type[EncoderConfig]] = {
    "LLaDAModelLM": LLaDAConfig,
    "LLaDAEncoder": EncoderConfig,
}

# The published values of what is not configurable here; a checkpoint that says otherwise is another network.
LLADA_FIXED_KEYS: dict[str, Any] = {
    "activation_type": "silu",
    "alibi": False,
    "attention_dropout": 0.0,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "embedding_dropout": 0.0,
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "multi_query_attention": None,
    "residual_dropout": 0.0,
    "rope": True,
    "rope_full_precision": True,
    "scale_logits": False,
}
# Read by the official class, without effect on what the network computes.
LLADA_NEUTRAL_KEYS: dict[str, Any] = {
    "alibi_bias_max": 8.0,
    "attention_layer_norm_with_affine": True,
    "flash_attention": False,
    "init_cutoff_factor": None,
    "init_device": "meta",
    "init_fn": "mitchell",
    "init_std": 0.02,
    "mlp_ratio": 4,
    "precision": "amp_bf16",
    "use_cache": False,
}


def build_network(config: NetworkConfig) -> LLaDA | Encoder:
    """A freshly initialised network of this configuration."""
    return LLaDA(config) if isinstance(config, LLaDAConfig) else Encoder(config)


def config_to_json(config: NetworkConfig) -> dict[str, Any]:
    """The content of config.json."""
    if isinstance(config, EncoderConfig):
        return {"architectures": ["LLaDAEncoder"], "model_type": "llada_encoder", **asdict(config)}
    return {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        **LLADA_FIXED_KEYS,
        **LLADA_NEUTRAL_KEYS,
        **asdict(config),
        "n_kv_heads": config.kv_heads,
        "embedding_size": config.vocab_size,
    }


def config_from_json(content: Mapping[str, Any]) -> NetworkConfig:
    """The configuration that config.json describes.

    Raises:
        ValueError: an unknown architecture, a missing key, or a value that this network cannot compute.
    """
    names = content.get("architectures") or ["none"]
    if names[0] not in ARCHITECTURES:
        raise ValueError(f"architecture {names[0]!r} is not one of {', '.join(ARCHITECTURES)}")
    config_class = ARCHITECTURES[names[0]]
    required = {field.name for field in fields(config_class)}
    if config_class is LLaDAConfig:
        required |= LLADA_FIXED_KEYS.keys()  # left out, they mean something else to the official code
    missing = sorted(required - content.keys())
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}")
    if config_class is LLaDAConfig:
        _check_llada_keys(content)
    try:
        return dacite.from_dict(config_class, {field.name: content[field.name] for field in fields(config_class)})
    except dacite.DaciteError as error:
        raise ValueError(str(error)) from error


def _check_llada_keys(content: Mapping[str, Any]) -> None:
    for key, value in LLADA_FIXED_KEYS.items():
        if content[key] != value:
            raise ValueError(f"{key} = {content[key]!r} is not supported (only {value!r})")
    if content.get("embedding_size", content["vocab_size"]) != content["vocab_size"]:
        raise ValueError("embedding_size other than vocab_size is not supported")
