"""config.json of iLLaDA and LLaDA-MoE: the published ones, there and back, and what is refused."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from llada.checkpoints.hub import LLADA_MOE, read_published_config
from llada.models import LLaDAConfig, config_from_json, config_to_json, mask_name
from tests.support.configurations import ODD_MOE
from tests.support.layouts import ILLADA_8B, all_networks, both_layouts

ILLADA_JSON = json.loads("""
{
  "architectures": ["ILLaDAForCausalLM"], "model_type": "illada", "transformers_version": "4.57.1",
  "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
  "num_key_value_heads": 8, "vocab_size": 155136, "max_position_embeddings": 8192, "tie_word_embeddings": true,
  "rope_theta": 500000, "rope_scaling": null, "rms_norm_eps": 1e-06, "layer_norm_eps": null, "attention_bias": false,
  "mlp_bias": false, "attention_dropout": 0.0, "resid_pdrop": 0.0, "initializer_range": 0.02, "hidden_act": "silu",
  "pad_token_id": 1
}
""")  # rope_theta and rms_norm_eps made up
MOE_JSON = json.loads("""
{
  "architectures": ["LLaDAMoEModel"], "model_type": "llada",
  "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 128,
  "num_experts": 64, "num_experts_per_tok": 8, "expert_intermediate_size": 1024, "dense_intermediate_size": 8192,
  "shared_expert_intermediate_size": null, "moe_layer_freq": [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
  "qk_layernorm": true, "rope_theta": 50000, "partial_rotary_factor": 1, "max_position_embeddings": 8192,
  "rms_norm_eps": 1e-05, "vocab_size": 157184, "tie_word_embeddings": false, "attention_bias": false,
  "router_aux_loss_coef": 0.01, "routed_scaling_factor": 1, "moe_router_enable_expert_bias": false,
  "eos_token_id": 156892, "pad_token_id": 156892
}
""")


def test_published_configurations_are_read() -> None:
    assert config_from_json(ILLADA_JSON) == replace(ILLADA_8B, rope_theta=500_000.0, rms_norm_eps=1e-6)
    assert config_from_json(MOE_JSON) == LLADA_MOE
    assert config_from_json({**MOE_JSON, "architectures": ["LLaDAMoEModelLM"]}) == LLADA_MOE
    for name in ("Base", "Instruct"):
        assert read_published_config(f"inclusionAI/LLaDA-MoE-7B-A1B-{name}") == LLADA_MOE


def test_what_transformers_leaves_out_has_its_default() -> None:
    shortened = {key: value for key, value in ILLADA_JSON.items() if key != "tie_word_embeddings"}
    assert config_from_json(shortened) == config_from_json(ILLADA_JSON)
    assert config_from_json({**ILLADA_JSON, "eos_token_id": 7}).eos_token_id == 7  # type: ignore[union-attr]


@all_networks
def test_config_survives_config_json(config: LLaDAConfig) -> None:
    content = json.loads(json.dumps(config_to_json(config)))
    assert "mask_token_id" not in content  # nor in the published ones
    assert config_from_json(content, mask_row=5) == replace(config, n_kv_heads=config.kv_heads)


def test_written_keys_are_those_of_the_published_files() -> None:
    written = config_to_json(config_from_json(ILLADA_JSON))
    assert ILLADA_JSON.keys() - written.keys() == {"transformers_version"}
    assert all(written[key] == value for key, value in ILLADA_JSON.items() if key in written)
    written = config_to_json(config_from_json(MOE_JSON))
    assert MOE_JSON.keys() <= written.keys()
    assert all(written[key] == value for key, value in MOE_JSON.items() if key in written)


def test_mask_has_the_published_row_unless_the_tokenizer_has_another() -> None:
    assert (mask_name(ILLADA_JSON), mask_name(MOE_JSON)) == ("<[MASK]>", "<|mask|>")
    assert config_from_json(ILLADA_JSON).mask_token_id == 5
    assert config_from_json(MOE_JSON).mask_token_id == 156_895
    assert config_from_json(MOE_JSON, mask_row=77).mask_token_id == 77
    with pytest.raises(ValueError, match="156895 is not a row of an embedding of 300"):
        config_from_json({**MOE_JSON, "vocab_size": 300})


@pytest.mark.parametrize(
    ("content", "key"),
    [
        *((ILLADA_JSON, key) for key in ("hidden_size", "intermediate_size", "num_key_value_heads", "rope_theta")),
        *((ILLADA_JSON, key) for key in ("rms_norm_eps", "pad_token_id", "max_position_embeddings", "vocab_size")),
        *((MOE_JSON, key) for key in ("num_experts", "num_experts_per_tok", "expert_intermediate_size", "rope_theta")),
        *((MOE_JSON, key) for key in ("qk_layernorm", "partial_rotary_factor", "tie_word_embeddings", "eos_token_id")),
        *((MOE_JSON, key) for key in ("shared_expert_intermediate_size", "moe_router_enable_expert_bias")),
        *((MOE_JSON, key) for key in ("moe_layer_freq", "head_dim")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_missing_key_is_named(content: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=rf"lacks {key}$"):
        config_from_json({k: v for k, v in content.items() if k != key})


@pytest.mark.parametrize(
    ("content", "key", "value"),
    [
        (ILLADA_JSON, "attention_bias", True),
        (ILLADA_JSON, "attention_dropout", 0.1),
        (ILLADA_JSON, "head_dim", 64),
        (ILLADA_JSON, "hidden_act", "gelu"),
        (ILLADA_JSON, "layer_norm_eps", 1e-5),
        (ILLADA_JSON, "mlp_bias", True),
        (ILLADA_JSON, "resid_pdrop", 0.1),
        (MOE_JSON, "attention_bias", True),
        (MOE_JSON, "clip_qkv", 8.0),
        (MOE_JSON, "head_dim", 64),
        (MOE_JSON, "moe_layer_freq", [0] + [1] * 15),
        (MOE_JSON, "moe_router_enable_expert_bias", True),
        (MOE_JSON, "moe_router_score_function", "sigmoid"),
        (MOE_JSON, "norm_topk_prob", True),
        (MOE_JSON, "partial_rotary_factor", 0.5),
        (MOE_JSON, "qk_layernorm", False),
        (MOE_JSON, "routed_scaling_factor", 2.5),
        (MOE_JSON, "shared_expert_intermediate_size", 1024),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_value_of_another_network_is_refused_by_name(content: dict[str, Any], key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{key} .*not supported"):
        config_from_json({**content, key: value})


def test_a_width_of_heads_that_follows_is_read() -> None:
    for head_dim in (128, None):
        assert config_from_json({**ILLADA_JSON, "head_dim": head_dim}) == config_from_json(ILLADA_JSON)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rope_theta": math.nan}, "rope_theta must be above 0 and at most 1e\\+18, not nan"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps must be above 0 and at most 1e\\+18, not 0.0"),
        ({"n_layers": 10**8}, "n_layers 100000000 is more than 1000000"),
        ({"mask_token_id": 1}, "mask_token_id 1 must not be that of PAD or EOS"),
        ({"mask_token_id": 2}, "mask_token_id 2 must not be that of PAD or EOS"),
    ],
)
@both_layouts
def test_numbers_that_make_no_network_are_refused(config: LLaDAConfig, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(config, **change)


def test_a_list_of_a_million_layers_is_not_written_out() -> None:
    with pytest.raises(ValueError, match=r"moe_layer_freq .*not supported") as caught:
        config_from_json({**MOE_JSON, "num_hidden_layers": 10**6})
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize(("chosen", "experts"), [(0, 4), (5, 4)])
def test_more_experts_a_token_than_there_are_is_refused(chosen: int, experts: int) -> None:
    with pytest.raises(ValueError, match=f"{chosen} experts a token"):
        replace(ODD_MOE, n_experts=experts, n_experts_per_token=chosen)
