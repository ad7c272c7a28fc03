"""iLLaDA and LLaDA-MoE against naive forwards from the published facts, weight by weight.

Shape letters: B batch, L length, V vocabulary rows, D width, H heads, K key-value heads, C channels of a head,
M width of a feed-forward part, E experts.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from llada.models import ILLaDA, LLaDAConfig, LLaDAMoE, LLaDAMoEConfig, Network, build_network, checkpoint_activations
from llada.models import llama_layers as decoder
from llada.models.llada import rotary_table, turn_heads
from llada.models.llada_moe import Experts
from tests.support.configurations import ODD_ILLADA, ODD_MOE
from tests.support.layouts import all_networks, both_layouts
from tests.support.networks import (
    assert_near,
    naive_attention,
    naive_rms_norm,
    naive_rotary,
    random_network,
    random_rows,
)


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
        outputs.append(
            sum((shares[e] * naive_mlp(weights, f"{prefix}.experts.{e}", token) for e in best), torch.zeros(()))
        )
    return torch.stack(outputs)


def naive_logits_of(
    weights: dict[str, Tensor], config: LLaDAConfig, rows: Tensor, attention_mask: Tensor | None
) -> Tensor:
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
            turned_q, turned_k = (naive_rotary(part, config.rope_theta) for part in (own_q, own_k))
            heads.append(naive_attention(turned_q, turned_k, own_v, attention_mask))
        x = x + torch.cat(heads, dim=-1) @ weights[f"{layer}.self_attn.o_proj.weight"].T
        h = naive_rms_norm(x, weights[f"{layer}.post_attention_layernorm.weight"], eps)
        if isinstance(config, LLaDAMoEConfig):
            x = x + naive_experts(weights, f"{layer}.mlp", h, config)
        else:
            x = x + naive_mlp(weights, f"{layer}.mlp", h)
    x = naive_rms_norm(x, weights["model.norm.weight"], eps)
    return x @ weights["model.embed_tokens.weight" if config.weight_tying else "lm_head.weight"].T


def naive_logits(network: Network, rows: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    assert isinstance(network, ILLaDA | LLaDAMoE)
    masks = [None] * len(rows) if attention_mask is None else list(attention_mask.bool())
    weights: dict[str, Tensor] = dict(network.named_parameters())
    pairs = zip(rows, masks, strict=True)
    return torch.stack([naive_logits_of(weights, network.config, row, attention_mask) for row, attention_mask in pairs])


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
    return Experts(replace(ODD_MOE, d_model=8, n_heads=2, n_experts=n_experts, n_experts_per_token=n_chosen))


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
    assert_near(experts(tokens[None])[0], torch.stack(expected), 1e-6)


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
    each: Any = experts.experts
    gradients = [expert.down_proj.weight.grad for expert in each]
    assert all(gradient is not None for gradient in gradients)
    assert sum(bool(gradient.any()) for gradient in gradients) == 1


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
    checkpoint_activations(recomputed)
    n_passes = []
    for network in (plain, recomputed):
        norms: list[str] = []  # the first part of each layer, whenever that runs
        layers: Any = network.layers
        for layer in layers:
            layer.input_layernorm.register_forward_hook(lambda *_, norms=norms: norms.append("ran"))
        network(rows).logsumexp(-1).sum().backward()
        n_passes.append(len(norms))
    assert n_passes == [config.n_layers, 2 * config.n_layers]
    for ours, other in zip(plain.parameters(), recomputed.parameters(), strict=True):
        assert ours.grad is not None
        assert other.grad is not None
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
    shapes = {name: tuple(tensor.shape) for name, tensor in build_network(ODD_ILLADA).state_dict().items()}
    assert shapes == expected
    own_head = build_network(replace(ODD_ILLADA, weight_tying=False)).state_dict()
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
    network = build_network(ODD_MOE)
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == expected
    assert list(network.buffers()) == []


@both_layouts
def test_layers_are_initialised_as_lladas(config: LLaDAConfig) -> None:
    torch.manual_seed(0)
    network = build_network(replace(config, d_model=256, mlp_hidden_size=400, n_layers=3, vocab_size=300))
    layers: Any = network.layers
    for depth, layer in enumerate(layers, 1):
        mlp: Any = layer.mlp.experts[0] if isinstance(layer.mlp, Experts) else layer.mlp
        for linear, scale in (
            (layer.self_attn.q_proj, 256),
            (layer.self_attn.o_proj, 256 * 2 * depth),
            (mlp.up_proj, 256),
            (mlp.down_proj, 400 * 2 * depth),
        ):
            assert float(linear.weight.detach().std()) == pytest.approx(scale**-0.5, rel=0.05)
