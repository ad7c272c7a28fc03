"""Small networks, and naive forwards that are written here from the published facts, weight by weight.

Shape letters: B batch, L length, V vocabulary rows, D width, H heads, K key-value heads, C channels of a head.
"""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from llada.models import EncoderConfig, LLaDAConfig, Network, NetworkConfig, build_network
from tests.support.configurations import ODD_ENCODER, ODD_LLADA

TOLERANCE = 1e-5  # of fp32 logits, which are of order 1

LLADAS = {
    "plain": ODD_LLADA,
    "two key-value heads": replace(ODD_LLADA, n_kv_heads=2),
    "one key-value head": replace(ODD_LLADA, n_kv_heads=1),
    "tied head": replace(ODD_LLADA, weight_tying=True),
}
both_networks = pytest.mark.parametrize("config", [ODD_LLADA, ODD_ENCODER], ids=["llada", "encoder"])

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


def random_network(config: NetworkConfig) -> Network:
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
    return torch.randint(0, ODD_LLADA.vocab_size, (n_rows, length), generator=Generator().manual_seed(seed))


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


def naive_attention(q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None) -> Tensor:
    """One head, each (L, C); keys where `attention_mask` (L,) is False get no weight; if all are, all get the same."""
    scores = q @ k.T / math.sqrt(q.shape[-1])
    if attention_mask is not None:
        scores = torch.where(attention_mask, scores, -torch.inf) if attention_mask.any() else torch.zeros_like(scores)
    weights = torch.exp(scores - scores.max(dim=-1, keepdim=True).values)
    return (weights / weights.sum(-1, keepdim=True)) @ v


def naive_llada(
    weights: dict[str, Tensor], config: LLaDAConfig, rows: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
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
            heads.append(naive_attention(turned_q, turned_k, v[:, group], attention_mask))
        x = x + torch.cat(heads, dim=-1) @ layer["attn_out"].T
        h = naive_rms_norm(x, layer["ff_norm"], config.rms_norm_eps)
        gate = h @ layer["ff_proj"].T
        x = x + (gate / (1 + torch.exp(-gate)) * (h @ layer["up_proj"].T)) @ layer["ff_out"].T
    x = naive_rms_norm(x, weights["model.transformer.ln_f.weight"], config.rms_norm_eps)
    return x @ weights["model.transformer." + ("wte" if config.weight_tying else "ff_out") + ".weight"].T


def naive_encoder(
    weights: dict[str, Tensor], config: EncoderConfig, rows: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """The pre-norm encoder, or decoder, of one sequence (L,), to logits (L, V)."""
    width = config.d_model // config.n_heads

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (config.d_model,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)

    if attention_mask is not None and not attention_mask.any():
        attention_mask = None  # nothing to hide the rest behind
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
                heads.append(naive_attention(q[:, own], k[:, own], v[:, own], attention_mask))
        x = x + linear(torch.cat(heads, dim=-1), f"layers.{i}.attention_out")
        up = linear(norm(x, f"layers.{i}.feed_forward_norm"), f"layers.{i}.up")
        x = x + linear(up * (1 + torch.erf(up / math.sqrt(2))) / 2, f"layers.{i}.down")
    return linear(norm(x, "output_norm"), "output")


def naive_logits(network: Network, rows: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """(B, L, V), each row by itself."""
    config, weights = network.config, dict[str, Tensor](network.named_parameters())

    def naive(row: Tensor, mask: Tensor | None) -> Tensor:
        if isinstance(config, LLaDAConfig):
            return naive_llada(weights, config, row, mask)
        assert isinstance(config, EncoderConfig)
        return naive_encoder(weights, config, row, mask)

    masks = [None] * len(rows) if attention_mask is None else list(attention_mask.bool())
    return torch.stack([naive(row, mask) for row, mask in zip(rows, masks, strict=True)])


def kept_for_backward(network: Network, rows: Tensor, bf16: bool = False, attention_mask: Tensor | None = None) -> int:
    """Bytes that autograd keeps up to the last norm: every storage that is saved, once, without the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in weights:
            kept[address] = tensor  # holding it keeps its address from being used again
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16),
    ):
        features = network.features(rows, attention_mask)
    assert features.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
