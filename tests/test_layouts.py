"""iLLaDA and LLaDA-MoE against naive forwards that are written here from the published facts, weight by weight.

Shape letters: B batch, L length, V vocabulary rows, D width, H heads, K key-value heads, C channels of a head,
M width of a feed-forward part, E experts.
"""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_models import assert_near, naive_attention, naive_rms_norm, naive_rotary, random_network
from torch import Generator, Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llada.models import (
    ILLaDA,
    ILLaDAConfig,
    LLaDAConfig,
    LLaDAMoE,
    LLaDAMoEConfig,
    build_network,
    config_from_json,
    config_to_json,
    decoder,
    mask_name,
    recompute_activations,
    tied_head,
)
from llada.models.activations import TrainingSetting, kept_by_layer
from llada.models.llada import rotary_table
from llada.models.llada_moe import Experts
from llada.models.memory import lora_parameters, stored_weights, training_memory
from llada.models.size import (
    active_parameters,
    count_parameters,
    layer_parameters,
    matrix_parameters,
    total_parameters,
    training_flops_per_token,
)
from llada.pretrained import LLADA_MOE, read_published_config

# eps and theta are far from the published ones, so that a network that ignored them would not pass.
SMALL: dict[str, Any] = {
    "d_model": 24,
    "n_heads": 4,
    "n_layers": 2,
    "vocab_size": 11,
    "mask_token_id": 5,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "mlp_hidden_size": 20,
    "max_sequence_length": 16,
    "rope_theta": 300.0,
    "rms_norm_eps": 0.05,
}
ILLADA = ILLaDAConfig(**SMALL, n_kv_heads=2, weight_tying=True)
MOE = LLaDAMoEConfig(**SMALL, n_experts=5, n_experts_per_token=2)
NETWORKS = {
    "illada": ILLADA,
    "illada, own head": replace(ILLADA, weight_tying=False, n_kv_heads=1),
    "moe": MOE,
    "moe, grouped heads": replace(MOE, n_kv_heads=2),
    "moe, tied head, all experts": replace(MOE, weight_tying=True, n_experts_per_token=5),
}
all_networks = pytest.mark.parametrize("config", NETWORKS.values(), ids=NETWORKS.keys())
both_layouts = pytest.mark.parametrize("config", [ILLADA, MOE], ids=["illada", "moe"])
ILLADA_8B = ILLaDAConfig(
    d_model=4096,
    n_heads=32,
    n_kv_heads=8,
    n_layers=32,
    vocab_size=155_136,
    mask_token_id=5,
    pad_token_id=1,
    eos_token_id=2,
    mlp_hidden_size=14_336,
    max_sequence_length=8192,
    weight_tying=True,
)


def random_rows(n_rows: int, length: int) -> Tensor:
    return torch.randint(0, SMALL["vocab_size"], (n_rows, length), generator=Generator().manual_seed(1))


def naive_mlp(weights: dict[str, Tensor], prefix: str, h: Tensor) -> Tensor:
    gate = h @ weights[f"{prefix}.gate_proj.weight"].T
    up = h @ weights[f"{prefix}.up_proj.weight"].T
    return (gate / (1 + torch.exp(-gate)) * up) @ weights[f"{prefix}.down_proj.weight"].T


def naive_experts(weights: dict[str, Tensor], prefix: str, h: Tensor, config: LLaDAMoEConfig) -> Tensor:
    """Token by token: the shares of the best experts, which are those among all of them."""
    outputs = []
    for token in h:
        scores = torch.exp(weights[f"{prefix}.gate.weight"] @ token)
        shares = scores / scores.sum()
        best = sorted(range(config.n_experts), key=lambda e: -float(shares[e].detach()))[: config.n_experts_per_token]
        outputs.append(sum(shares[e] * naive_mlp(weights, f"{prefix}.experts.{e}", token) for e in best))
    return torch.stack(outputs)  # type: ignore[arg-type]


def naive_logits_of(weights: dict[str, Tensor], config: LLaDAConfig, rows: Tensor, visible: Tensor | None) -> Tensor:
    """The published forward pass of one sequence (L,), to logits (L, V)."""
    width, eps = config.d_model // config.n_heads, config.rms_norm_eps
    is_moe = isinstance(config, LLaDAMoEConfig)
    x = weights["model.embed_tokens.weight"][rows]
    for i in range(config.n_layers):
        layer = f"model.layers.{i}"
        h = naive_rms_norm(x, weights[f"{layer}.input_layernorm.weight"], eps)
        q, k, v = (h @ weights[f"{layer}.self_attn.{part}_proj.weight"].T for part in "qkv")
        heads = []
        for j in range(config.n_heads):
            shared = j // (config.n_heads // (config.n_kv_heads or config.n_heads))
            own_q, own_k, own_v = (
                part[:, n * width : (n + 1) * width] for part, n in ((q, j), (k, shared), (v, shared))
            )
            if is_moe:
                own_q = naive_rms_norm(own_q, weights[f"{layer}.self_attn.q_norm.weight"], eps)
                own_k = naive_rms_norm(own_k, weights[f"{layer}.self_attn.k_norm.weight"], eps)
            turned = (naive_rotary(part, config.rope_theta) for part in (own_q, own_k))
            heads.append(naive_attention(*turned, own_v, visible))
        x = x + torch.cat(heads, dim=-1) @ weights[f"{layer}.self_attn.o_proj.weight"].T
        h = naive_rms_norm(x, weights[f"{layer}.post_attention_layernorm.weight"], eps)
        if isinstance(config, LLaDAMoEConfig):
            x = x + naive_experts(weights, f"{layer}.mlp", h, config)
        else:
            x = x + naive_mlp(weights, f"{layer}.mlp", h)
    x = naive_rms_norm(x, weights["model.norm.weight"], eps)
    return x @ weights["model.embed_tokens.weight" if config.weight_tying else "lm_head.weight"].T


def naive_logits(network: ILLaDA | LLaDAMoE, rows: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    masks = [None] * len(rows) if attention_mask is None else list(attention_mask.bool())
    weights = dict(network.named_parameters())
    pairs = zip(rows, masks, strict=True)
    return torch.stack([naive_logits_of(weights, network.config, row, visible) for row, visible in pairs])


# --- the function that the networks compute


@all_networks
@torch.no_grad()
def test_networks_compute_the_published_forward_pass(config: LLaDAConfig) -> None:
    network, rows = random_network(config), random_rows(2, 9)
    assert_near(network(rows), naive_logits(network, rows))


@all_networks
def test_gradients_are_those_of_the_naive_forward_pass(config: LLaDAConfig) -> None:
    network, rows = random_network(config), random_rows(3, 7)
    weights = list(network.parameters())
    ours, naive = (
        torch.autograd.grad(
            F.cross_entropy(logits.flatten(0, 1), rows.flatten()), weights, allow_unused=True, materialize_grads=True
        )
        for logits in (network(rows), naive_logits(network, rows))
    )
    n_without_tokens = 0
    for (name, _), gradient, expected in zip(network.named_parameters(), ours, naive, strict=True):
        assert_near(gradient, expected)
        if ".experts." in name and not expected.any():  # no token chose this expert
            n_without_tokens += 1
        else:
            assert expected.abs().max() > 1e-3, name  # else equality would say nothing
    assert n_without_tokens <= 3  # one expert's matrices


@both_layouts
@torch.no_grad()
def test_padding_anywhere_equals_the_naive_forward_pass(config: LLaDAConfig) -> None:
    network, rows = random_network(config), random_rows(4, 8)
    attention_mask = torch.tensor([[1, 0, 1, 1, 0, 0, 1, 0], [0] * 7 + [1], [1] * 8, [0] * 8])
    assert_near(network(rows, attention_mask), naive_logits(network, rows, attention_mask))


@both_layouts
@torch.no_grad()
def test_rows_padded_on_the_left_have_the_logits_of_the_rows_alone(config: LLaDAConfig) -> None:
    network, rows = random_network(config), random_rows(3, 10)
    attention_mask = torch.zeros(3, 10, dtype=torch.long)
    for b, length in enumerate((10, 7, 1)):
        attention_mask[b, 10 - length :] = 1
    padded = network(rows, attention_mask)
    for b in range(3):
        is_real = attention_mask[b].bool()
        assert_near(padded[b, is_real], network(rows[b, is_real][None])[0])
    assert (padded - network(rows))[1:].abs().max() > 0.01


@both_layouts
@torch.no_grad()
def test_gate_and_up_projection_are_not_interchangeable(config: LLaDAConfig) -> None:
    network, rows = random_network(config), random_rows(2, 9)
    before = network(rows)
    swapped = {}
    for name, weight in network.state_dict().items():
        other = name.replace("up_proj", "gate_proj") if "up_proj" in name else name.replace("gate_proj", "up_proj")
        swapped[other] = weight.clone()
    network.load_state_dict(swapped)
    assert (network(rows) - before).abs().max() > 0.01


@both_layouts
@torch.no_grad()
def test_a_later_token_changes_the_logits_of_every_earlier_position(config: LLaDAConfig) -> None:
    network, rows = random_network(config), random_rows(1, 9)
    other = rows.clone()
    other[0, -1] = (rows[0, -1] + 1) % config.vocab_size
    assert ((network(other) - network(rows)).abs().amax(-1)[0] > 1e-4).all()


# --- rotary positions, in the type of the residual stream


@both_layouts
@torch.no_grad()
def test_a_network_in_bf16_rotates_in_bf16(config: LLaDAConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is made in fp32 and then rounded, and products of rounded numbers are rounded: unlike LLaDA's."""
    calls: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    turn_heads = decoder.turn_heads

    def spy(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        calls.append((x, cos, sin, turn_heads(x, cos, sin)))
        return calls[-1][-1]

    monkeypatch.setattr(decoder, "turn_heads", spy)
    network = random_network(config).to(torch.bfloat16)
    assert network(random_rows(1, 9)).dtype == torch.bfloat16
    assert len(calls) == 2 * config.n_layers  # queries and keys
    angles = torch.outer(torch.arange(9.0), 1 / 300.0 ** (torch.tensor([0.0, 2.0, 4.0]) / 6))
    for x, cos, sin, result in calls:
        assert x.dtype == result.dtype == torch.bfloat16
        assert torch.equal(cos, angles.cos().bfloat16())
        assert torch.equal(sin, angles.sin().bfloat16())
        in_fp32 = turn_heads(x.float(), angles.cos(), angles.sin()).bfloat16()
        assert not torch.equal(result, in_fp32)
        torch.testing.assert_close(result, in_fp32, atol=0.05, rtol=0.05)


def test_rotary_frequencies_have_the_bits_of_the_public_code() -> None:
    """transformers' Llama divides by the power, as LLaDA's own code does."""
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(hidden_size=256, num_attention_heads=2, rope_theta=500_000.0)
    positions = torch.arange(300)[None]
    expected = llama.LlamaRotaryEmbedding(config)(torch.zeros(1), positions)
    for ours, table in zip(rotary_table(300, 128, 500_000.0, torch.device("cpu")), expected, strict=True):
        assert torch.equal(ours.repeat(1, 2), table[0])


# --- the router


def make_experts(n_experts: int, n_chosen: int) -> Experts:
    torch.manual_seed(0)
    return Experts(replace(MOE, d_model=8, n_heads=2, n_experts=n_experts, n_experts_per_token=n_chosen))


def test_router_by_hand() -> None:
    """Logits log 1, log 2, log 3, log 4 are shares of 0.1, 0.2, 0.3, 0.4; the two best are not made to add up to 1."""
    experts = make_experts(4, 2)
    experts.gate.weight.data = torch.zeros(4, 8)
    experts.gate.weight.data[:, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0]).log()
    tokens = torch.zeros(2, 8)
    tokens[0, 0], tokens[1, 0] = 1.0, -1.0  # the other token's shares are 12/25, 6/25, 4/25, 3/25
    weights, chosen = experts.route(tokens)
    assert chosen.tolist() == [[3, 2], [0, 1]]
    assert_near(weights, torch.tensor([[0.4, 0.3], [12 / 25, 6 / 25]]), 1e-6)
    expected = [
        sum(w * experts.experts[e](token) for w, e in zip(ws, es, strict=True))
        for token, ws, es in zip(tokens, weights, chosen.tolist(), strict=True)
    ]
    assert_near(experts(tokens[None])[0], torch.stack(expected), 1e-6)  # type: ignore[arg-type]


def test_router_computes_shares_in_fp32_and_hands_them_on_in_the_type_of_its_input() -> None:
    experts = make_experts(4, 2).bfloat16()
    tokens = torch.randn(5, 8, generator=Generator().manual_seed(0)).bfloat16()
    weights, chosen = experts.route(tokens)
    shares = experts.gate(tokens).float().softmax(-1)
    assert weights.dtype == torch.bfloat16
    assert torch.equal(weights, shares.gather(1, chosen).bfloat16())


def test_an_expert_without_tokens_has_a_gradient_of_zero() -> None:
    """Not none: optimizers and gradient reduction count on one for every weight."""
    experts = make_experts(6, 1)
    experts(torch.randn(1, 1, 8)).sum().backward()
    gradients = [expert.down_proj.weight.grad for expert in experts.experts]
    assert all(gradient is not None for gradient in gradients)
    assert sum(bool(gradient.any()) for gradient in gradients if gradient is not None) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@both_layouts
def test_training_works_in_both_types_and_under_autocast(config: LLaDAConfig, dtype: torch.dtype) -> None:
    network, rows = random_network(config).train(), random_rows(2, 8)
    if dtype == torch.bfloat16:
        network.to(dtype)
    losses = []
    for autocasts in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocasts):
            loss = F.cross_entropy(network(rows).float().flatten(0, 1), rows.flatten())
        network.zero_grad()
        loss.backward()
        losses.append(float(loss.detach()))
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


@both_layouts
def test_recomputed_layers_have_the_same_gradients(config: LLaDAConfig) -> None:
    plain, recomputed, rows = random_network(config), random_network(config), random_rows(2, 8)
    recompute_activations(recomputed)
    n_passes = []
    for network in (plain, recomputed):
        norms: list[str] = []  # the first part of each layer, whenever that runs
        for layer in network.layers:
            layer.input_layernorm.register_forward_hook(lambda *_, norms=norms: norms.append("ran"))
        network(rows).logsumexp(-1).sum().backward()
        n_passes.append(len(norms))
    assert n_passes == [config.n_layers, 2 * config.n_layers]
    for ours, other in zip(plain.parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(ours.grad, other.grad)


# --- names and shapes


def test_illada_tensors_have_the_official_names_and_shapes() -> None:
    expected = {"model.embed_tokens.weight": (11, 24), "model.norm.weight": (24,)}
    for i in range(2):
        layer = f"model.layers.{i}"
        expected |= {
            f"{layer}.input_layernorm.weight": (24,),
            f"{layer}.post_attention_layernorm.weight": (24,),
            f"{layer}.self_attn.q_proj.weight": (24, 24),
            f"{layer}.self_attn.k_proj.weight": (12, 24),
            f"{layer}.self_attn.v_proj.weight": (12, 24),
            f"{layer}.self_attn.o_proj.weight": (24, 24),
            f"{layer}.mlp.gate_proj.weight": (20, 24),
            f"{layer}.mlp.up_proj.weight": (20, 24),
            f"{layer}.mlp.down_proj.weight": (24, 20),
        }
    shapes = {name: tuple(tensor.shape) for name, tensor in build_network(ILLADA).state_dict().items()}
    assert shapes == expected
    own_head = build_network(replace(ILLADA, weight_tying=False)).state_dict()
    assert own_head.keys() - shapes.keys() == {"lm_head.weight"}


def test_moe_tensors_have_the_official_names_and_shapes() -> None:
    expected = {"model.embed_tokens.weight": (11, 24), "model.norm.weight": (24,), "lm_head.weight": (11, 24)}
    for i in range(2):
        layer = f"model.layers.{i}"
        expected |= {f"{layer}.self_attn.{part}_proj.weight": (24, 24) for part in "qkvo"}
        expected |= {f"{layer}.self_attn.{part}_norm.weight": (6,) for part in "qk"}
        expected |= {f"{layer}.{part}_layernorm.weight": (24,) for part in ("input", "post_attention")}
        expected[f"{layer}.mlp.gate.weight"] = (5, 24)
        for e in range(5):
            expected |= {f"{layer}.mlp.experts.{e}.{part}_proj.weight": (20, 24) for part in ("gate", "up")}
            expected[f"{layer}.mlp.experts.{e}.down_proj.weight"] = (24, 20)
    network = build_network(MOE)
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == expected
    assert list(network.buffers()) == []


@both_layouts
def test_layers_are_initialised_as_lladas(config: LLaDAConfig) -> None:
    torch.manual_seed(0)
    network = build_network(replace(config, d_model=256, mlp_hidden_size=400, n_layers=3, vocab_size=300))
    for depth, layer in enumerate(network.layers, 1):
        mlp = layer.mlp.experts[0] if isinstance(layer.mlp, Experts) else layer.mlp
        for linear, scale in (
            (layer.self_attn.q_proj, 256),
            (layer.self_attn.o_proj, 256 * 2 * depth),
            (mlp.up_proj, 256),
            (mlp.down_proj, 400 * 2 * depth),
        ):
            assert float(linear.weight.detach().std()) == pytest.approx(scale**-0.5, rel=0.05)


# --- config.json

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
    with pytest.raises(ValueError, match="156895 is no row of an embedding of 300"):
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
        (ILLADA_JSON, "rope_scaling", {"rope_type": "linear", "factor": 2.0}),
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
        replace(MOE, n_experts=experts, n_experts_per_token=chosen)


# --- sizes


def on_meta(config: LLaDAConfig) -> ILLaDA | LLaDAMoE:
    with torch.device("meta"):
        return build_network(config).bfloat16()


def test_illada_8b_has_the_parameters_of_the_published_one() -> None:
    tensors = on_meta(ILLADA_8B).state_dict()
    assert sum(tensor.numel() for tensor in tensors.values()) == total_parameters(ILLADA_8B) == 7_615_025_152
    tied = tied_head(ILLADA_8B)
    assert tied is not None
    assert tied.is_stored
    assert len({*tensors, tied.head}) == 291  # of the published file, which holds the tied head, too
    assert total_parameters(replace(ILLADA_8B, weight_tying=False)) == 8_250_462_208


def test_llada_moe_has_the_parameters_and_bytes_of_the_published_one() -> None:
    tensors = on_meta(LLADA_MOE).state_dict().values()
    assert sum(tensor.numel() for tensor in tensors) == total_parameters(LLADA_MOE) == 7_356_880_896
    assert sum(tensor.nbytes for tensor in tensors) == stored_weights(LLADA_MOE) == 14_713_761_792
    assert tied_head(LLADA_MOE) is None


@all_networks
def test_each_part_has_as_many_parameters_as_in_the_built_network(config: LLaDAConfig) -> None:
    def part_of(name: str) -> str:
        for part, sign in (("norms", "norm"), ("head", "lm_head"), ("embedding", "embed_tokens"), ("router", "gate.w")):
            if sign in name:
                return part
        return "attention" if "self_attn" in name else "experts" if "experts" in name else "feed-forward"

    parts = count_parameters(config)
    built = dict.fromkeys(parts, 0)
    network = build_network(config)
    for name, parameter in network.named_parameters():
        built[part_of(name)] += parameter.numel()
    assert parts == built
    inside = sum(p.numel() for p in network.layers.parameters() if p.dim() == 2)
    assert layer_parameters(config) == inside
    assert matrix_parameters(config) == inside + config.vocab_size * config.d_model


@all_networks
def test_flops_are_those_that_pytorch_counts(config: LLaDAConfig) -> None:
    """Of the experts, only those that a token is sent to."""
    network, rows = build_network(config), random_rows(2, 7)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(rows).sum().backward()
    assert training_flops_per_token(config, 7) == counter.get_total_flops() / rows.numel()


def test_active_parameters_by_hand() -> None:
    """1.4B of LLaDA-MoE's 7B: 16 layers of attention, router and 8 experts, and the head."""
    layer = 4 * 2048**2 + 64 * 2048 + 8 * 3 * 2048 * 1024
    assert active_parameters(LLADA_MOE) == 16 * layer + 157_184 * 2048
    assert active_parameters(ILLADA_8B) == matrix_parameters(ILLADA_8B)


def test_adapters_are_those_of_attention_in_a_network_of_experts() -> None:
    assert lora_parameters(LLADA_MOE, 8) == 16 * 4 * 8 * (2048 + 2048)
    widths = 2 * (4096 + 4096) + 2 * (1024 + 4096) + 3 * (4096 + 14_336)
    assert lora_parameters(ILLADA_8B, 8) == 32 * 8 * widths


def kept_for_backward(config: LLaDAConfig, rows: Tensor, bf16: bool) -> int:
    """Bytes that autograd keeps up to the last norm: every storage that is saved, once, without the weights."""
    torch.manual_seed(0)
    network = build_network(config).train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in weights:
            kept[address] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16),
    ):
        features = network.features(rows)
    assert features.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "config",
    [
        replace(ILLADA, d_model=128, n_heads=4, mlp_hidden_size=352),
        replace(MOE, d_model=128, n_heads=4, mlp_hidden_size=96),
        replace(MOE, d_model=128, n_heads=4, n_kv_heads=2, mlp_hidden_size=64, n_experts=8, n_experts_per_token=3),
    ],
    ids=["illada", "moe", "moe, grouped heads"],
)
def test_a_layer_keeps_what_the_formula_says(config: LLaDAConfig, bf16: bool) -> None:
    """The difference of three layers and two; under autocast, bf16 copies of a layer's matrices are kept with it."""
    rows = torch.randint(0, config.vocab_size, (4, 256), generator=Generator().manual_seed(1))
    setting = TrainingSetting(batch_size=4, length=256, bf16=bf16)
    three, two = (kept_for_backward(replace(config, n_layers=n), rows, bf16) for n in (3, 2))
    more = matrix_parameters(replace(config, n_layers=3)) - matrix_parameters(replace(config, n_layers=2))
    copies = 2 * more if bf16 else 0
    assert three - two == pytest.approx(setting.tokens * kept_by_layer(config, setting) + copies, rel=0.002)


def test_memory_of_training_is_dominated_by_weights_that_no_token_needs() -> None:
    memory = training_memory(LLADA_MOE, TrainingSetting(batch_size=1, length=64))
    assert memory.weights == 4 * 7_356_880_896
    assert memory.optimizer == 2 * memory.weights
    assert math.isclose(memory.total, 4 * memory.weights, rel_tol=0.01)
