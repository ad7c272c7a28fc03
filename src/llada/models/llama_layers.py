"""The iLLaDA network, and the layers that it shares with LLaDA-MoE, under the names of Llama's checkpoints.

There is no causal mask. Unlike in LLaDA's own network, the rotary cosines and sines are computed in fp32 but applied in
the type of the residual stream: in bf16 they are rounded, as they were when these networks were trained.

Shape letters: B batch, L length, V vocabulary rows, D width, H heads, K key-value heads, C channels of a head,
M width of a feed-forward layer.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from llada.models.asked import Asked, at, queries_at
from llada.models.embedding import DeterministicEmbedding
from llada.models.llada import (
    LLaDAConfig,
    Merge,
    RMSNorm,
    RotaryNetwork,
    at_queries,
    attention,
    init_layer,
    init_normal,
    make_embedding,
    split_heads,
    turn_heads,
)
from llada.models.parts import Parts


class Attention(nn.Module):
    """Attention over the whole sequence, (B, L, D) to (B, L, D), or to (B, Q, D) where it is asked."""

    def __init__(self, config: LLaDAConfig, norms_heads: bool = False) -> None:
        """Create the linear layers and norms.

        Args:
            norms_heads: whether RMSNorm is applied to the channels of each query and key, before they are rotated.
        """
        super().__init__()
        width, kv_width = config.d_model, config.kv_heads * config.head_dim
        self.n_heads, self.kv_heads = config.n_heads, config.kv_heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, kv_width, bias=False)
        self.v_proj = nn.Linear(width, kv_width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.q_norm, self.k_norm = (
            RMSNorm(config.head_dim, config.rms_norm_eps) if norms_heads else nn.Identity() for _ in range(2)
        )

    def forward(
        self,
        h: Tensor,
        rotary: tuple[Tensor, Tensor],
        bias: Tensor | None,
        asked: Asked | None = None,
        merge: Merge | None = None,
    ) -> Tensor:
        q = self.q_norm(split_heads(self.q_proj(at(h, asked)), self.n_heads))  # (B, H, L, C)
        k = self.k_norm(split_heads(self.k_proj(h), self.kv_heads))
        v = split_heads(self.v_proj(h), self.kv_heads)
        # Under autocast the table and the norms' scales are in fp32, and widen what they multiply.
        q, k = turn_heads(q, *at_queries(rotary, asked)).to(v.dtype), turn_heads(k, *rotary).to(v.dtype)
        if merge is not None:
            k, v = merge(k, v)
        return self.o_proj(attention(q, k, v, queries_at(bias, asked)))


class GatedMLP(nn.Module):
    """SwiGLU (arXiv 2002.05202), from (..., D) to (..., D) through width M."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))


class DecoderLayer(nn.Module):
    """One pre-norm layer around any feed-forward module; the published name of its second norm is misleading."""

    def __init__(self, config: LLaDAConfig, depth: int, mlp: nn.Module, norms_heads: bool = False) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.d_model, config.rms_norm_eps)
        self.self_attn = Attention(config, norms_heads)
        self.post_attention_layernorm = RMSNorm(config.d_model, config.rms_norm_eps)
        self.mlp = mlp
        linears = {name: module for name, module in self.named_modules() if isinstance(module, nn.Linear)}
        is_residual = {name: name.endswith(("o_proj", "down_proj")) for name in linears}
        init_layer(
            (linear for name, linear in linears.items() if not is_residual[name]),
            (linear for name, linear in linears.items() if is_residual[name]),
            depth,
        )

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        bias: Tensor | None,
        asked: Asked | None = None,
        merge: Merge | None = None,
    ) -> Tensor:
        x = at(x, asked) + self.self_attn(self.input_layernorm(x), rotary, bias, asked, merge)
        return x + self.mlp(self.post_attention_layernorm(x))


class _Decoder(nn.Module):
    """All parts of the network except the head, under the prefix `model.`."""

    def __init__(self, config: LLaDAConfig, layers: Iterable[DecoderLayer]) -> None:
        super().__init__()
        self.embed_tokens = make_embedding(config)
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(config.d_model, config.rms_norm_eps)
        init_normal(self.embed_tokens.weight, config.d_model**-0.5)


class DecoderNetwork(RotaryNetwork):
    """A network of `DecoderLayer`s with Llama's tensor names."""

    EMBEDDING_NAME, HEAD_NAME = "model.embed_tokens.weight", "lm_head.weight"
    PARTS = Parts(
        layer=r".*\.layers\.\d+\.",
        attention=(r"self_attn\.q_proj", r"self_attn\.k_proj", r"self_attn\.v_proj", r"self_attn\.o_proj"),
        feed_forward=(r"mlp\.gate_proj", r"mlp\.up_proj", r"mlp\.down_proj"),
        others={"embedding": "embed_tokens", "norms": "norm", "head": "lm_head"},
    )

    def __init__(self, config: LLaDAConfig, layers: Iterable[DecoderLayer]) -> None:
        super().__init__(config)
        self.model = _Decoder(config, layers)
        if not config.weight_tying:
            self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
            init_normal(self.lm_head.weight, config.d_model**-0.5)

    @property
    def embedding(self) -> DeterministicEmbedding:
        return self.model.embed_tokens

    @property
    def layers(self) -> nn.ModuleList:
        return self.model.layers

    @property
    def final_norm(self) -> RMSNorm:
        return self.model.norm

    @property
    def output(self) -> nn.Linear:
        return self.lm_head

    def rotary(self, x: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = super().rotary(x)
        return cos.to(x.dtype), sin.to(x.dtype)


@dataclass(frozen=True)
class ILLaDAConfig(LLaDAConfig):
    """The same fields as LLaDA's; `config_json` knows the keys that they are stored under."""


class ILLaDA(DecoderNetwork):
    """LLaDA with Llama's names, grouped key-value heads and a tied head (arXiv 2606.25331).

    Token rows (B, L) in, logits (B, L, V) out.
    """

    def __init__(self, config: ILLaDAConfig) -> None:
        super().__init__(
            config,
            (
                DecoderLayer(config, depth + 1, GatedMLP(config.d_model, config.mlp_hidden_size))
                for depth in range(config.n_layers)
            ),
        )
