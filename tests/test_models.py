"""The networks against naive forwards that are written here from the published facts, weight by weight.

Shape letters: B batch, L length, V vocabulary rows, D width, H heads, K key-value heads, C channels of a head.
"""

import json
import math
import re
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from llada.forward_process import mask_bernoulli
from llada.models import (
    Encoder,
    EncoderConfig,
    LLaDA,
    LLaDAConfig,
    MaskPredictor,
    NetworkConfig,
    build_network,
    config_from_json,
    config_to_json,
)
from llada.models import llada as llada_module
from llada.models.llada import RMSNorm, rotary_table, rotate
from llada.objective import loss_weights, masked_nll, weighted_loss

TOLERANCE = 1e-5  # of fp32 logits, which are of order 1
MASK_ID = 126_336  # LLaDA's, far above the rows of the networks here

# eps and theta are far from the defaults, so that a network that ignored them would not pass.
LLADA = LLaDAConfig(
    d_model=24,
    n_heads=4,
    n_layers=2,
    vocab_size=11,
    mask_token_id=10,
    pad_token_id=0,
    eos_token_id=2,
    mlp_hidden_size=20,
    max_sequence_length=16,
    rope_theta=300.0,
    rms_norm_eps=0.05,
)
ENCODER = EncoderConfig(vocab_size=11, mask_token_id=10, max_sequence_length=16, d_model=24, n_heads=4, n_layers=2)
LLADAS = {
    "plain": LLADA,
    "two key-value heads": replace(LLADA, n_kv_heads=2),
    "one key-value head": replace(LLADA, n_kv_heads=1),
    "tied head": replace(LLADA, weight_tying=True),
}
CAUSAL = replace(ENCODER, is_causal=True, dropout=0.0)
both_networks = pytest.mark.parametrize("config", [LLADA, ENCODER], ids=["llada", "encoder"])

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


def random_network(config: NetworkConfig) -> LLaDA | Encoder:
    """In evaluation mode, every weight away from the special value that initialisation gives it (0, 1)."""
    network, generator = build_network(config).eval(), Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 2:
            parameter.data = noise * parameter.shape[1] ** -0.5
        else:
            parameter.data = 0.3 * noise + (0.0 if name.endswith("bias") else 1.0)
    return network


def random_rows(n_rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(0, LLADA.vocab_size, (n_rows, length), generator=Generator().manual_seed(seed))


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def naive_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """In fp32, cast back, and only then scaled."""
    mean_square = (x.float() ** 2).sum(-1, keepdim=True) / x.shape[-1]
    return (x.float() / torch.sqrt(mean_square + eps)).to(x.dtype) * weight


def naive_rotary(x: Tensor, theta: float) -> Tensor:
    """(L, C): channels c and c + C/2 are one complex number, turned by position * theta^(-2c/C)."""
    length, channels = x.shape
    z = torch.complex(x[:, : channels // 2], x[:, channels // 2 :]).to(torch.complex128)
    for position in range(length):
        for c in range(channels // 2):
            angle = position * theta ** (-2 * c / channels)
            z[position, c] *= complex(math.cos(angle), math.sin(angle))
    return torch.cat((z.real, z.imag), dim=-1).to(x.dtype)


def naive_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """One head, each (L, C); keys that are not `visible` (L,) get no weight, and if none is, all get the same."""
    scores = q @ k.T / math.sqrt(q.shape[-1])
    if visible is not None:
        scores = torch.where(visible, scores, -torch.inf) if visible.any() else torch.zeros_like(scores)
    weights = torch.exp(scores - scores.max(dim=-1, keepdim=True).values)
    return (weights / weights.sum(-1, keepdim=True)) @ v


def naive_llada(weights: dict[str, Tensor], config: LLaDAConfig, rows: Tensor, visible: Tensor | None = None) -> Tensor:
    """The published forward pass of one sequence (L,), to logits (L, V)."""
    width = config.d_model // config.n_heads
    heads_per_kv_head = config.n_heads // (config.n_kv_heads or config.n_heads)
    x = weights["model.transformer.wte.weight"][rows]
    for i in range(config.n_layers):
        layer = {name: weights[f"model.transformer.blocks.{i}.{name}.weight"] for name in LAYER_SHAPES}
        h = naive_rms_norm(x, layer["attn_norm"], config.rms_norm_eps)
        q, k, v = h @ layer["q_proj"].T, h @ layer["k_proj"].T, h @ layer["v_proj"].T
        heads = []
        for j in range(config.n_heads):
            own, shared = slice(j * width, (j + 1) * width), j // heads_per_kv_head
            group = slice(shared * width, (shared + 1) * width)
            turned_q = naive_rotary(q[:, own], config.rope_theta)
            turned_k = naive_rotary(k[:, group], config.rope_theta)
            heads.append(naive_attention(turned_q, turned_k, v[:, group], visible))
        x = x + torch.cat(heads, dim=-1) @ layer["attn_out"].T
        h = naive_rms_norm(x, layer["ff_norm"], config.rms_norm_eps)
        gate = h @ layer["ff_proj"].T
        x = x + (gate / (1 + torch.exp(-gate)) * (h @ layer["up_proj"].T)) @ layer["ff_out"].T
    x = naive_rms_norm(x, weights["model.transformer.ln_f.weight"], config.rms_norm_eps)
    return x @ weights["model.transformer." + ("wte" if config.weight_tying else "ff_out") + ".weight"].T


def naive_encoder(
    weights: dict[str, Tensor], config: EncoderConfig, rows: Tensor, visible: Tensor | None = None
) -> Tensor:
    """The pre-norm encoder, or decoder, of one sequence (L,), to logits (L, V)."""
    width = config.d_model // config.n_heads

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (config.d_model,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)

    if visible is not None and not visible.any():
        visible = None  # nothing to hide the rest behind
    positions = torch.arange(len(rows))
    if config.is_causal:
        rows = torch.tensor([config.mask_token_id, *rows.tolist()[:-1]])
    x = weights["token_embedding.weight"][rows] + weights["position_embedding.weight"][positions]
    if not config.is_causal:
        x = norm(x, "embedding_norm")
    for i in range(config.n_layers):
        q, k, v = linear(norm(x, f"layers.{i}.attention_norm"), f"layers.{i}.qkv").split(config.d_model, dim=-1)
        heads = []
        for j in range(config.n_heads):
            own = slice(j * width, (j + 1) * width)
            if config.is_causal:
                queries = [
                    naive_attention(q[n : n + 1, own], k[: n + 1, own], v[: n + 1, own], None) for n in positions
                ]
                heads.append(torch.cat(queries))
            else:
                heads.append(naive_attention(q[:, own], k[:, own], v[:, own], visible))
        x = x + linear(torch.cat(heads, dim=-1), f"layers.{i}.attention_out")
        up = linear(norm(x, f"layers.{i}.feed_forward_norm"), f"layers.{i}.up")
        x = x + linear(up * (1 + torch.erf(up / math.sqrt(2))) / 2, f"layers.{i}.down")
    return linear(norm(x, "output_norm"), "output")


def naive_logits(network: LLaDA | Encoder, rows: Tensor, visible: Tensor | None = None) -> Tensor:
    """(B, L, V), each row by itself."""
    masks = [None] * len(rows) if visible is None else list(visible.bool())
    naive = naive_llada if isinstance(network, LLaDA) else naive_encoder
    weights = dict(network.named_parameters())
    return torch.stack([naive(weights, network.config, row, mask) for row, mask in zip(rows, masks, strict=True)])  # type: ignore[arg-type]


# --- the function that the networks compute


@pytest.mark.parametrize("config", LLADAS.values(), ids=LLADAS.keys())
@torch.no_grad()
def test_llada_computes_the_published_forward_pass(config: LLaDAConfig) -> None:
    network, rows = random_network(config), random_rows(2, 9)
    assert_near(network(rows), naive_logits(network, rows))


@torch.no_grad()
def test_encoder_computes_the_pre_norm_forward_pass() -> None:
    network, rows = random_network(ENCODER), random_rows(2, 9)
    assert_near(network(rows), naive_logits(network, rows))


@torch.no_grad()
def test_causal_encoder_computes_the_forward_pass_of_a_decoder() -> None:
    network, rows = random_network(CAUSAL), random_rows(2, 9)
    assert_near(network(rows), naive_logits(network, rows))


@torch.no_grad()
def test_causal_prediction_depends_on_what_is_before_alone() -> None:
    network, rows = random_network(CAUSAL), random_rows(2, 9)
    changed = rows.clone()
    changed[:, 4] = (rows[:, 4] + 1) % 10
    before, after = network(rows), network(changed)
    assert torch.equal(before[:, :5], after[:, :5])  # its own place included
    assert bool((before[:, 5:] != after[:, 5:]).any(-1).all())


@torch.no_grad()
def test_causal_row_with_padding_has_the_logits_of_the_row_alone() -> None:
    network, rows = random_network(CAUSAL), random_rows(2, 9)
    visible = torch.ones(2, 9)
    visible[0, 6:] = 0
    assert_near(network(rows, visible)[0, :6], network(rows[:1, :6])[0])
    assert_near(network(rows, visible)[1], network(rows[1:])[0])


@pytest.mark.parametrize("config", [*LLADAS.values(), ENCODER, CAUSAL], ids=[*LLADAS.keys(), "encoder", "causal"])
def test_gradients_are_those_of_the_naive_forward_pass(config: NetworkConfig) -> None:
    """A tied table thus learns from both of its uses."""
    network, rows = random_network(config), random_rows(2, 6)
    weights = list(network.parameters())
    ours, naive = (
        torch.autograd.grad(F.cross_entropy(logits.flatten(0, 1), rows.flatten()), weights)
        for logits in (network(rows), naive_logits(network, rows))
    )
    for gradient, expected in zip(ours, naive, strict=True):
        assert_near(gradient, expected)
        assert expected.abs().max() > 1e-3  # else equality would say nothing


@torch.no_grad()
def test_gate_and_up_projection_are_not_interchangeable() -> None:
    network, rows = random_network(LLADA), random_rows(2, 9)
    before, weights = network(rows), network.state_dict()
    swap = {"ff_proj": "up_proj", "up_proj": "ff_proj"}
    swapped = {re.sub("ff_proj|up_proj", lambda name: swap[name[0]], name): w for name, w in weights.items()}
    network.load_state_dict({name: weight.clone() for name, weight in swapped.items()})
    assert (network(rows) - before).abs().max() > 0.01


@both_networks
@torch.no_grad()
def test_a_later_token_changes_the_logits_of_every_earlier_position(config: NetworkConfig) -> None:
    network, rows = random_network(config), random_rows(1, 9)
    other = rows.clone()
    other[0, -1] = (rows[0, -1] + 1) % config.vocab_size
    change = (network(other) - network(rows)).abs().amax(-1)[0]
    assert (change > 1e-3).all()


@both_networks
@torch.no_grad()
def test_features_and_head_make_up_the_forward_pass(config: NetworkConfig) -> None:
    network, rows = random_network(config), random_rows(2, 5)
    assert network.features(rows).shape == (2, 5, config.d_model)
    assert torch.equal(network.head(network.features(rows)), network(rows))


def test_rms_norm_casts_back_before_it_scales() -> None:
    """In bf16 the order of the official code is visible: scaling in fp32 first would round once instead of twice."""
    generator = Generator().manual_seed(2)
    x = torch.randn(64, 32, generator=generator).bfloat16()
    norm = RMSNorm(32, eps=0.01).bfloat16()
    norm.weight.data = torch.randn(32, generator=generator).bfloat16()
    result = norm(x)
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, naive_rms_norm(x, norm.weight, eps=0.01))
    scaled_first = naive_rms_norm(x.float(), norm.weight.float(), eps=0.01).bfloat16()
    assert not torch.equal(result, scaled_first)


# --- names and shapes

LAYER_SHAPES: dict[str, tuple[str, ...]] = {
    "attn_norm": ("D",),
    "q_proj": ("D", "D"),
    "k_proj": ("KC", "D"),
    "v_proj": ("KC", "D"),
    "attn_out": ("D", "D"),
    "ff_norm": ("D",),
    "ff_proj": ("M", "D"),
    "up_proj": ("M", "D"),
    "ff_out": ("D", "M"),
}


@pytest.mark.parametrize(("name", "kv_width"), [("plain", 24), ("two key-value heads", 12), ("tied head", 24)])
def test_llada_tensors_have_the_official_names_and_shapes(name: str, kv_width: int) -> None:
    size = {"D": 24, "KC": kv_width, "M": 20}
    expected = {"model.transformer.wte.weight": (11, 24), "model.transformer.ln_f.weight": (24,)}
    for i in range(2):
        for part, letters in LAYER_SHAPES.items():
            expected[f"model.transformer.blocks.{i}.{part}.weight"] = tuple(size[letter] for letter in letters)
    if name != "tied head":
        expected["model.transformer.ff_out.weight"] = (11, 24)
    network = build_network(LLADAS[name])
    assert {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()} == expected
    assert {key for key, _ in network.named_parameters()} == set(expected)
    assert list(network.buffers()) == []


# --- padding


@pytest.mark.parametrize(
    ("config", "side"),
    [(LLADA, "right"), (LLADA, "left"), (ENCODER, "right")],
    ids=["llada right", "llada left", "encoder right"],
)
@torch.no_grad()
def test_padded_rows_have_the_logits_of_the_rows_alone(config: NetworkConfig, side: str) -> None:
    """On the left, too, for LLaDA: its rotary positions are relative, the encoder's learned ones absolute."""
    network, rows = random_network(config), random_rows(3, 10)
    lengths = [10, 7, 1]
    attention_mask = torch.zeros(3, 10, dtype=torch.long)
    for b, length in enumerate(lengths):
        attention_mask[b, slice(length) if side == "right" else slice(10 - length, 10)] = 1
    padded, unmasked = network(rows, attention_mask), network(rows)
    for b in range(3):
        is_real = attention_mask[b].bool()
        assert_near(padded[b, is_real], network(rows[b, is_real][None])[0])
    assert (padded - unmasked)[1:].abs().max() > 0.01  # the tokens of the padding would have been seen


@both_networks
@torch.no_grad()
def test_padding_anywhere_equals_the_naive_forward_pass(config: NetworkConfig) -> None:
    network, rows = random_network(config), random_rows(3, 8)
    attention_mask = torch.tensor([[1, 0, 1, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1, 1, 1]])
    assert_near(network(rows, attention_mask), naive_logits(network, rows, attention_mask))


@both_networks
@torch.no_grad()
def test_attention_mask_of_ones_is_none(config: NetworkConfig) -> None:
    network, rows = random_network(config), random_rows(2, 9)
    assert_near(network(rows, torch.ones(2, 9, dtype=torch.long)), network(rows))


@both_networks
@torch.no_grad()
def test_row_of_padding_alone_attends_evenly_or_to_all_and_leaves_other_rows_as_they_are(
    config: NetworkConfig,
) -> None:
    """LLaDA's keys all get the same weight then, the encoder's their usual ones; the naive forwards say so."""
    network, rows = random_network(config), random_rows(2, 8)
    attention_mask = torch.tensor([[0] * 8, [1] * 6 + [0] * 2])
    assert_near(network(rows, attention_mask), naive_logits(network, rows, attention_mask))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@both_networks
def test_row_of_padding_alone_has_finite_logits_and_gradients(config: NetworkConfig, dtype: torch.dtype) -> None:
    network, rows = random_network(config).to(dtype), random_rows(2, 8)
    logits = network(rows, torch.tensor([[0] * 8, [1] * 8]))
    logits.float().square().sum().backward()
    assert logits.isfinite().all()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


# --- rotary positions


def test_rotation_stays_precise_in_bf16_far_into_the_text() -> None:
    """Only the result is rounded: to half a unit in the last place (2^-8), and 2e-3 for fp32 angles up to 2047."""
    x = torch.randn(2048, 8, generator=Generator().manual_seed(3)).bfloat16()
    exact = naive_rotary(x.double(), theta=10_000.0)
    allowed = 2**-8 * exact.abs() + 2e-3
    cos, sin = rotary_table(2048, 8, 10_000.0, x.device)
    assert cos.dtype == sin.dtype == torch.float32
    result = rotate(x[None, None], cos, sin)[0, 0]
    assert result.dtype == torch.bfloat16
    assert ((result.double() - exact).abs() <= allowed).all()
    with_a_table_in_bf16 = rotate(x[None, None], cos.bfloat16(), sin.bfloat16())[0, 0]
    assert ((with_a_table_in_bf16.double() - exact).abs() > allowed).any()


def test_network_in_bf16_rotates_by_a_table_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def spy(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        calls.append((x, cos, sin))
        return rotate(x, cos, sin)

    monkeypatch.setattr(llada_module, "rotate", spy)
    assert random_network(LLADA).to(torch.bfloat16)(random_rows(1, 9)).dtype == torch.bfloat16
    assert len(calls) == 2 * LLADA.n_layers  # queries and keys
    angles = torch.outer(torch.arange(9.0), 300.0 ** (-torch.tensor([0.0, 2.0, 4.0]) / 6))
    for x, cos, sin in calls:
        assert x.dtype == torch.bfloat16
        assert_near(cos, angles.cos())  # compares dtypes, too
        assert_near(sin, angles.sin())


def test_training_after_a_pass_in_inference_mode_has_the_gradients_of_a_fresh_network() -> None:
    used, fresh, rows = random_network(LLADA), random_network(LLADA), random_rows(2, 9)
    with torch.inference_mode():
        used(rows)
    for network in (used, fresh):
        network(rows).square().sum().backward()
    for parameter, expected in zip(used.parameters(), fresh.parameters(), strict=True):
        assert expected.grad is not None
        assert expected.grad.abs().max() > 0
        assert torch.equal(parameter.grad, expected.grad)


# --- what is refused


@pytest.mark.parametrize(
    ("config", "d_model", "n_heads"),
    [(LLADA, 100, 12), (LLADA, 12, 4), (LLADA, 3, 8), (ENCODER, 100, 12), (ENCODER, 3, 8)],
    ids=["llada", "llada, odd channels", "llada, too narrow", "encoder", "encoder, too narrow"],
)
def test_indivisible_width_is_refused_with_a_width_that_works(
    config: NetworkConfig, d_model: int, n_heads: int
) -> None:
    with pytest.raises(ValueError, match=r"try d_model \d+") as raised:
        replace(config, d_model=d_model, n_heads=n_heads)
    suggestion = int(str(raised.value).rsplit(maxsplit=1)[1])
    network = build_network(replace(config, d_model=suggestion, n_heads=n_heads, n_layers=1)).eval()
    assert network(random_rows(1, 4)).shape == (1, 4, config.vocab_size)


def test_heads_that_cannot_share_key_value_heads_evenly_are_refused() -> None:
    with pytest.raises(ValueError, match="n_heads 4 must be a multiple of n_kv_heads 3"):
        replace(LLADA, n_kv_heads=3)


@torch.no_grad()
def test_encoder_refuses_more_tokens_than_it_has_positions_for() -> None:
    network = random_network(ENCODER)
    assert network(random_rows(1, 16)).isfinite().all()
    with pytest.raises(ValueError, match="17 tokens do not fit 16"):
        network(random_rows(1, 17))


@torch.no_grad()
def test_llada_reads_on_beyond_its_training_length() -> None:
    network, rows = random_network(LLADA), random_rows(1, 20)
    assert_near(network(rows), naive_logits(network, rows))


# --- dropout


@torch.no_grad()
def test_encoder_drops_out_in_training_only() -> None:
    network, rows = random_network(ENCODER), random_rows(2, 9)
    assert torch.equal(network(rows), network(rows))
    expected = network(rows)
    network.train()
    torch.manual_seed(0)
    assert not torch.allclose(network(rows), network(rows), atol=0.01)
    without = random_network(replace(ENCODER, dropout=0.0)).train()
    assert_near(without(rows), expected)


@torch.no_grad()
def test_llada_has_no_dropout() -> None:
    network, rows = random_network(LLADA), random_rows(2, 9)
    assert torch.equal(network.train()(rows), network.eval()(rows))


# --- mask predictor


@both_networks
@torch.no_grad()
def test_mask_predictor_puts_the_mask_id_on_the_mask_row(config: NetworkConfig) -> None:
    network = random_network(config)
    x_t = torch.tensor([[3, MASK_ID, 0, 9, MASK_ID], [MASK_ID, 1, 2, 4, 5]])
    rows = torch.tensor([[3, 10, 0, 9, 10], [10, 1, 2, 4, 5]])
    attention_mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    predict = MaskPredictor(network, MASK_ID, mask_row=10)
    given = x_t.clone()
    assert torch.equal(predict(x_t), network(rows))
    assert torch.equal(predict(x_t, attention_mask), network(rows, attention_mask))
    assert torch.equal(x_t, given)


@both_networks
@torch.no_grad()
def test_logits_at_positions_are_the_rows_of_all_logits(config: NetworkConfig) -> None:
    predict = MaskPredictor(random_network(config), MASK_ID, mask_row=10)
    x_t = torch.tensor([[3, MASK_ID, 0, 9, MASK_ID], [MASK_ID, 1, 2, 4, 5]])
    positions = x_t == MASK_ID
    assert_near(predict(x_t, positions=positions), predict(x_t)[positions])
    assert predict(x_t, positions=torch.zeros_like(positions)).shape == (0, config.vocab_size)


@pytest.mark.parametrize("unknown", [11, MASK_ID - 1, MASK_ID + 1, -1])
@both_networks
def test_id_without_a_row_raises(config: NetworkConfig, unknown: int) -> None:
    predict = MaskPredictor(random_network(config), MASK_ID, mask_row=10)
    with pytest.raises(IndexError):
        predict(torch.tensor([[1, unknown]]))


TWIN = replace(LLADA, d_model=8, n_heads=2, n_layers=1)


@pytest.mark.parametrize(
    "config",
    [TWIN, replace(TWIN, weight_tying=True), replace(ENCODER, d_model=8, n_heads=2, n_layers=1, dropout=0.0)],
    ids=["llada", "tied llada", "encoder"],
)
def test_compact_table_is_the_dense_one_in_loss_and_gradients(config: NetworkConfig) -> None:
    """The dense twin has a row for every id up to MASK's; the ids that do not exist cannot be predicted."""
    n_ids, n_dense = config.vocab_size - 1, MASK_ID + 1
    dense_rows = torch.tensor([*range(n_ids), MASK_ID])  # of the compact rows, in order
    compact = random_network(config)
    dense = random_network(replace(config, vocab_size=n_dense, mask_token_id=MASK_ID))
    for ours, twin in zip(compact.parameters(), dense.parameters(), strict=True):
        twin.data[dense_rows if len(twin) == n_dense else slice(None)] = ours.data

    generator = Generator().manual_seed(4)
    x_0 = torch.randint(0, n_ids, (4, 12), generator=generator)
    noisy = mask_bernoulli(x_0, MASK_ID, generator)
    exists = torch.zeros(n_dense, dtype=torch.bool).index_fill(0, dense_rows, True)
    logits = MaskPredictor(compact, MASK_ID, mask_row=n_ids)(noisy.x_t)
    dense_logits = dense(noisy.x_t).masked_fill(~exists, -torch.inf)
    assert_near(logits, dense_logits[..., dense_rows])

    nll, dense_nll = masked_nll(logits, x_0, noisy), masked_nll(dense_logits, x_0, noisy)
    assert_near(nll, dense_nll)
    loss = weighted_loss(nll, noisy, loss_weights(noisy))
    dense_loss = weighted_loss(dense_nll, noisy, loss_weights(noisy))
    assert_near(loss, dense_loss)
    assert loss > 0.1

    loss.backward()
    dense_loss.backward()
    for ours, twin in zip(compact.parameters(), dense.parameters(), strict=True):
        assert ours.grad is not None
        assert twin.grad is not None
        assert ours.grad.abs().max() > 1e-3  # else equality would say nothing
        if len(twin) == n_dense:
            assert_near(ours.grad, twin.grad[dense_rows])
            assert not twin.grad[~exists].any()
        else:
            assert_near(ours.grad, twin.grad)


# --- config.json


@pytest.mark.parametrize(
    "config",
    [replace(LLADA, n_kv_heads=4), replace(LLADA, n_kv_heads=2, weight_tying=True), ENCODER, CAUSAL],
    ids=["llada", "grouped and tied llada", "encoder", "causal"],
)
def test_config_survives_config_json(config: NetworkConfig) -> None:
    assert config_from_json(json.loads(json.dumps(config_to_json(config)))) == config


def test_encoder_of_before_causal_networks_is_read_as_one_that_sees_both_sides() -> None:
    content = config_to_json(ENCODER)
    del content["is_causal"]
    assert config_from_json(content) == ENCODER


def test_config_json_spells_out_the_number_of_key_value_heads() -> None:
    assert config_to_json(LLADA)["n_kv_heads"] == 4
    assert config_from_json(config_to_json(LLADA)) == replace(LLADA, n_kv_heads=4)
    assert config_from_json({**config_to_json(LLADA), "n_kv_heads": None}) == LLADA


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
    written_by_transformers = ("auto_map", "transformers_version")
    assert config_to_json(config) == {k: v for k, v in OFFICIAL_CONFIG.items() if k not in written_by_transformers}


@pytest.mark.parametrize(
    ("config", "key"),
    [(config, field.name) for config in (LLADA, ENCODER) for field in fields(config) if field.name != "is_causal"],
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


# --- initialisation


def check_std(weight: Tensor, expected: float) -> None:
    """To 5 %: cutting off at three standard deviations takes 1.3 %, and the sample of 65,536 has 0.3 %."""
    assert float(weight.detach().std()) == pytest.approx(expected, rel=0.05)
    assert abs(float(weight.detach().mean())) < 0.05 * expected


def test_llada_is_initialised_as_published() -> None:
    torch.manual_seed(0)
    width, hidden = 256, 400
    config = replace(LLADA, d_model=width, mlp_hidden_size=hidden, n_layers=3, vocab_size=300)
    transformer = LLaDA(config).transformer
    check_std(transformer.wte.weight, width**-0.5)
    check_std(transformer.ff_out.weight, width**-0.5)
    for i, layer in enumerate(transformer.blocks, start=1):
        for projection in (layer.q_proj, layer.k_proj, layer.v_proj, layer.ff_proj, layer.up_proj):
            check_std(projection.weight, width**-0.5)
            assert projection.weight.abs().max() <= 3 * width**-0.5
        check_std(layer.attn_out.weight, (2 * i * width) ** -0.5)
        check_std(layer.ff_out.weight, (2 * i * hidden) ** -0.5)
    norms = [module for module in transformer.modules() if isinstance(module, RMSNorm)]
    assert len(norms) == 2 * 3 + 1
    assert all(torch.equal(norm.weight, torch.ones(width)) for norm in norms)


def test_encoder_is_initialised_as_gpt_2() -> None:
    torch.manual_seed(0)
    network = Encoder(replace(ENCODER, d_model=256, n_layers=3, vocab_size=300, max_sequence_length=256))
    for weight in (network.token_embedding.weight, network.position_embedding.weight, network.output.weight):
        check_std(weight, 0.02)
    for layer in network.layers:
        check_std(layer.qkv.weight, 0.02)
        check_std(layer.up.weight, 0.02)
        check_std(layer.attention_out.weight, 0.02 / math.sqrt(2 * 3))
        check_std(layer.down.weight, 0.02 / math.sqrt(2 * 3))
    norms = [module for module in network.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 2 * 3 + 2
    assert all(torch.equal(norm.weight, torch.ones(256)) for norm in norms)
    biases = [parameter for name, parameter in network.named_parameters() if name.endswith("bias")]
    assert len(biases) == len(norms) + 4 * 3 + 1
    assert not any(bias.any() for bias in biases)
