"""The configurations of the networks in config.json: there and back, the official one, and what is refused."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from llada.models import LLaDAConfig, NetworkConfig, config_from_json, config_to_json
from tests.support.configurations import ODD_CAUSAL, ODD_ENCODER, ODD_LLADA

# config.json of LLaDA-8B-Instruct, verbatim.
OFFICIAL_CONFIG = json.loads("""
{
  "activation_type": "silu", "alibi": false, "alibi_bias_max": 8.0,
  "architectures": ["LLaDAModelLM"],
  "attention_dropout": 0.0, "attention_layer_norm": false, "attention_layer_norm_with_affine": true,
  "auto_map": {"AutoConfig": "configuration_llada.LLaDAConfig",
               "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
               "AutoModel": "modeling_llada.LLaDAModelLM"},
  "bias_for_layer_norm": false, "block_group_size": 1, "block_type": "llama",
  "d_model": 4096, "embedding_dropout": 0.0, "embedding_size": 126464, "eos_token_id": 126081,
  "flash_attention": false, "include_bias": false, "include_qkv_bias": false,
  "init_cutoff_factor": null, "init_device": "meta", "init_fn": "mitchell", "init_std": 0.02,
  "input_emb_norm": false, "layer_norm_type": "rms", "layer_norm_with_affine": true,
  "mask_token_id": 126336, "max_sequence_length": 4096, "mlp_hidden_size": 12288, "mlp_ratio": 4,
  "model_type": "llada", "multi_query_attention": null,
  "n_heads": 32, "n_kv_heads": 32, "n_layers": 32, "pad_token_id": 126081,
  "precision": "amp_bf16", "residual_dropout": 0.0, "rms_norm_eps": 1e-05,
  "rope": true, "rope_full_precision": true, "rope_theta": 500000.0,
  "scale_logits": false, "transformers_version": "4.46.3", "use_cache": false,
  "vocab_size": 126464, "weight_tying": false
}
""")


@pytest.mark.parametrize(
    "config",
    [replace(ODD_LLADA, n_kv_heads=4), replace(ODD_LLADA, n_kv_heads=2, weight_tying=True), ODD_ENCODER, ODD_CAUSAL],
    ids=["llada", "grouped and tied llada", "encoder", "causal"],
)
def test_config_survives_config_json(config: NetworkConfig) -> None:
    assert config_from_json(json.loads(json.dumps(config_to_json(config)))) == config


def test_encoder_of_before_causal_networks_is_read_as_one_that_sees_both_sides() -> None:
    content = config_to_json(ODD_ENCODER)
    del content["is_causal"]
    assert config_from_json(content) == ODD_ENCODER


def test_config_json_spells_out_the_number_of_key_value_heads() -> None:
    assert config_to_json(ODD_LLADA)["n_kv_heads"] == 4
    assert config_from_json(config_to_json(ODD_LLADA)) == replace(ODD_LLADA, n_kv_heads=4)
    assert config_from_json({**config_to_json(ODD_LLADA), "n_kv_heads": None}) == ODD_LLADA


def test_official_config_is_read_and_written_as_it_is() -> None:
    config = config_from_json(OFFICIAL_CONFIG)
    assert config == LLaDAConfig(
        d_model=4096,
        n_heads=32,
        n_layers=32,
        vocab_size=126_464,
        mask_token_id=126_336,
        pad_token_id=126_081,
        eos_token_id=126_081,
        mlp_hidden_size=12_288,
        max_sequence_length=4096,
        n_kv_heads=32,
        rope_theta=500_000.0,
        rms_norm_eps=1e-5,
        weight_tying=False,
    )
    written = config_to_json(config)
    classes = {key: name.removeprefix("GSAI-ML/LLaDA-8B-Instruct--") for key, name in written.pop("auto_map").items()}
    assert classes == OFFICIAL_CONFIG["auto_map"]
    assert written == {k: v for k, v in OFFICIAL_CONFIG.items() if k not in ("auto_map", "transformers_version")}


HAVE_NO_KEY = ("is_causal", "further_eos_ids")  # or one that may be left out


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (config, field.name)
        for config in (ODD_LLADA, ODD_ENCODER)
        for field in fields(config)
        if field.name not in HAVE_NO_KEY
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_missing_key_is_named(config: NetworkConfig, key: str) -> None:
    content = config_to_json(config)
    del content[key]
    with pytest.raises(ValueError, match=rf"lacks {key}$"):
        config_from_json(content)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("activation_type", "gelu"),
        ("activation_type", "swiglu"),
        ("alibi", True),
        ("attention_dropout", 0.1),
        ("attention_layer_norm", True),
        ("bias_for_layer_norm", True),
        ("block_group_size", 2),
        ("block_type", "sequential"),
        ("embedding_dropout", 0.1),
        ("embedding_size", 126_465),
        ("include_bias", True),
        ("include_qkv_bias", True),
        ("input_emb_norm", True),
        ("layer_norm_type", "default"),
        ("layer_norm_with_affine", False),
        ("multi_query_attention", True),
        ("residual_dropout", 0.1),
        ("rope", False),
        ("rope_full_precision", False),
        ("scale_logits", True),
    ],
)
def test_value_of_another_network_is_refused_by_name(key: str, value: Any) -> None:
    assert OFFICIAL_CONFIG[key] != value
    with pytest.raises(ValueError, match=rf"{key} .*not supported"):
        config_from_json({**OFFICIAL_CONFIG, key: value})


@pytest.mark.parametrize("names", [["LLaDA2MoeModelLM"], ["LlamaForCausalLM"], [], None])
def test_unknown_architecture_is_refused_even_if_it_calls_itself_llada(names: list[str] | None) -> None:
    with pytest.raises(ValueError, match=names[0] if names else "none"):
        config_from_json({**OFFICIAL_CONFIG, "architectures": names})
