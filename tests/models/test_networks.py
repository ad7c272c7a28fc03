"""The networks against naive forwards from the published facts, weight by weight.

Shape letters: B batch, L length, V vocabulary rows, D width, H heads, K key-value heads, C channels of a head.
"""

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from llada.models import Encoder, LLaDA, LLaDAConfig, NetworkConfig, build_network
from llada.models import llada as llada_module
from llada.models.llada import RMSNorm, rotary_table, rotate
from tests.support.configurations import ODD_CAUSAL, ODD_ENCODER, ODD_LLADA
from tests.support.networks import (
    LAYER_SHAPES,
    LLADAS,
    assert_near,
    both_networks,
    naive_logits,
    naive_rms_norm,
    naive_rotary,
    random_network,
    random_rows,
)

# --- the function that the networks compute


@pytest.mark.parametrize("config", LLADAS.values(), ids=LLADAS.keys())
@torch.no_grad()
def test_llada_computes_the_published_forward_pass(config: LLaDAConfig) -> None:
    network, rows = random_network(config), random_rows(2, 9)
    assert_near(network(rows), naive_logits(network, rows))


@torch.no_grad()
def test_encoder_computes_the_pre_norm_forward_pass() -> None:
    network, rows = random_network(ODD_ENCODER), random_rows(2, 9)
    assert_near(network(rows), naive_logits(network, rows))


@torch.no_grad()
def test_causal_encoder_computes_the_forward_pass_of_a_decoder() -> None:
    network, rows = random_network(ODD_CAUSAL), random_rows(2, 9)
    assert_near(network(rows), naive_logits(network, rows))


@torch.no_grad()
def test_causal_prediction_depends_on_what_is_before_alone() -> None:
    network, rows = random_network(ODD_CAUSAL), random_rows(2, 9)
    changed = rows.clone()
    changed[:, 4] = (rows[:, 4] + 1) % 10
    before, after = network(rows), network(changed)
    assert torch.equal(before[:, :5], after[:, :5])  # its own place included
    assert bool((before[:, 5:] != after[:, 5:]).any(-1).all())


@torch.no_grad()
def test_causal_row_with_padding_has_the_logits_of_the_row_alone() -> None:
    network, rows = random_network(ODD_CAUSAL), random_rows(2, 9)
    attention_mask = torch.ones(2, 9)
    attention_mask[0, 6:] = 0
    assert_near(network(rows, attention_mask)[0, :6], network(rows[:1, :6])[0])
    assert_near(network(rows, attention_mask)[1], network(rows[1:])[0])


@pytest.mark.parametrize(
    "config", [*LLADAS.values(), ODD_ENCODER, ODD_CAUSAL], ids=[*LLADAS.keys(), "encoder", "causal"]
)
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
    network, rows = random_network(ODD_LLADA), random_rows(2, 9)
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
    [(ODD_LLADA, "right"), (ODD_LLADA, "left"), (ODD_ENCODER, "right")],
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
    assert random_network(ODD_LLADA).to(torch.bfloat16)(random_rows(1, 9)).dtype == torch.bfloat16
    assert len(calls) == 2 * ODD_LLADA.n_layers  # queries and keys
    angles = torch.outer(torch.arange(9.0), 300.0 ** (-torch.tensor([0.0, 2.0, 4.0]) / 6))
    for x, cos, sin in calls:
        assert x.dtype == torch.bfloat16
        assert_near(cos, angles.cos())  # compares dtypes, too
        assert_near(sin, angles.sin())


def test_training_after_a_pass_in_inference_mode_has_the_gradients_of_a_fresh_network() -> None:
    used, fresh, rows = random_network(ODD_LLADA), random_network(ODD_LLADA), random_rows(2, 9)
    with torch.inference_mode():
        used(rows)
    for network in (used, fresh):
        network(rows).square().sum().backward()
    for parameter, expected in zip(used.parameters(), fresh.parameters(), strict=True):
        assert expected.grad is not None
        assert expected.grad.abs().max() > 0
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, expected.grad)


# --- what is refused


@pytest.mark.parametrize(
    ("config", "d_model", "n_heads"),
    [(ODD_LLADA, 100, 12), (ODD_LLADA, 12, 4), (ODD_LLADA, 3, 8), (ODD_ENCODER, 100, 12), (ODD_ENCODER, 3, 8)],
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
        replace(ODD_LLADA, n_kv_heads=3)


@torch.no_grad()
def test_encoder_refuses_more_tokens_than_it_has_positions_for() -> None:
    network = random_network(ODD_ENCODER)
    assert network(random_rows(1, 16)).isfinite().all()
    with pytest.raises(ValueError, match="17 tokens do not fit 16"):
        network(random_rows(1, 17))


@torch.no_grad()
def test_llada_reads_on_beyond_its_training_length() -> None:
    network, rows = random_network(ODD_LLADA), random_rows(1, 20)
    assert_near(network(rows), naive_logits(network, rows))


# --- dropout


@torch.no_grad()
def test_encoder_drops_out_in_training_only() -> None:
    network, rows = random_network(ODD_ENCODER), random_rows(2, 9)
    assert torch.equal(network(rows), network(rows))
    expected = network(rows)
    network.train()
    torch.manual_seed(0)
    assert not torch.allclose(network(rows), network(rows), atol=0.01)
    without = random_network(replace(ODD_ENCODER, dropout=0.0)).train()
    assert_near(without(rows), expected)


@torch.no_grad()
def test_llada_has_no_dropout() -> None:
    network, rows = random_network(ODD_LLADA), random_rows(2, 9)
    assert torch.equal(network.train()(rows), network.eval()(rows))


# --- initialisation


def check_std(weight: Tensor, expected: float) -> None:
    """To 5 %: cutting off at three standard deviations takes 1.3 %, and the sample of 65,536 has 0.3 %."""
    assert float(weight.detach().std()) == pytest.approx(expected, rel=0.05)
    assert abs(float(weight.detach().mean())) < 0.05 * expected


def test_llada_is_initialised_as_published() -> None:
    torch.manual_seed(0)
    width, hidden = 256, 400
    config = replace(ODD_LLADA, d_model=width, mlp_hidden_size=hidden, n_layers=3, vocab_size=300)
    transformer = LLaDA(config).transformer
    check_std(transformer.wte.weight, width**-0.5)
    check_std(transformer.ff_out.weight, width**-0.5)
    blocks: Any = transformer.blocks
    for i, layer in enumerate(blocks, start=1):
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
    network = Encoder(replace(ODD_ENCODER, d_model=256, n_layers=3, vocab_size=300, max_sequence_length=256))
    for weight in (network.token_embedding.weight, network.position_embedding.weight, network.output.weight):
        check_std(weight, 0.02)
    layers: Any = network.layers
    for layer in layers:
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
