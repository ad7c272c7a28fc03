"""The LLaDA network: a Llama-style transformer whose attention sees the whole sequence.

RMSNorm, rotary positions, SwiGLU, no biases, no causal mask (arXiv 2502.09992, section 2.2). Module names and
configuration keys are those of the public checkpoints, so a model of any size that is trained here is stored in the
official layout.

Shape letters: B batch, L length, V vocabulary rows, D width, H heads, K key-value heads, C channels of a head,
M width of the feed-forward layer.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llada.models.asked import Asked, KeptKeys, at, queries_at
from llada.models.documents import bias_of, key_mask
from llada.models.embedding import DeterministicEmbedding
from llada.models.parts import Parts

Merge = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""The method `KeptKeys.merged` for one layer."""

# No network comes near these limits, but a damaged configuration may name any number.
MAX_LAYERS, MAX_NUMBER = 1_000_000, 1e18


@dataclass(frozen=True)
class LLaDAConfig:
    """Keys of the official `config.json` that this network reads; `config_json.py` writes and checks the others."""

    d_model: int
    n_heads: int
    n_layers: int
    vocab_size: int
    """V: rows of the embedding, the mask row included."""
    mask_token_id: int
    """Row of MASK in the embedding."""
    pad_token_id: int
    eos_token_id: int
    mlp_hidden_size: int
    max_sequence_length: int
    n_kv_heads: int | None = None
    """Number of key-value heads; None means one for each head."""
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5
    weight_tying: bool = False
    further_eos_ids: tuple[int, ...] = ()
    """Ids that end an answer in addition to EOS: config.json may name several."""

    def __post_init__(self) -> None:
        if min(self.d_model, self.n_heads, self.n_layers, self.mlp_hidden_size, self.max_sequence_length) < 1:
            raise ValueError("d_model, n_heads, n_layers, mlp_hidden_size and max_sequence_length must be at least 1")
        if self.n_layers > MAX_LAYERS:
            raise ValueError(f"n_layers {self.n_layers} is more than {MAX_LAYERS}")
        for name, number in (("rope_theta", self.rope_theta), ("rms_norm_eps", self.rms_norm_eps)):
            if not 0 < number <= MAX_NUMBER:  # refuses NaN as well
                raise ValueError(f"{name} must be above 0 and at most {MAX_NUMBER}, not {number}")
        if self.d_model % self.n_heads or (self.d_model // self.n_heads) % 2:
            raise ValueError(
                f"d_model {self.d_model} must be an even multiple of n_heads {self.n_heads}; "
                f"try d_model {2 * self.n_heads * max(1, round(self.d_model / (2 * self.n_heads)))}"
            )
        if not 0 <= self.mask_token_id < self.vocab_size:
            raise ValueError(f"mask_token_id {self.mask_token_id} is not a row of an embedding of {self.vocab_size}")
        if self.mask_token_id in (self.pad_token_id, self.eos_token_id, *self.further_eos_ids):
            raise ValueError(f"mask_token_id {self.mask_token_id} must not be that of PAD or EOS")
        if any(not 0 <= id_ < self.vocab_size for id_ in self.further_eos_ids):
            raise ValueError(f"eos_token_id names ids beyond the {self.vocab_size} rows of the embedding")
        if self.kv_heads < 1 or self.n_heads % self.kv_heads:
            raise ValueError(f"n_heads {self.n_heads} must be a multiple of n_kv_heads {self.kv_heads}")

    @property
    def kv_heads(self) -> int:
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads


class RMSNorm(nn.Module):
    """Root-mean-square norm in fp32, cast back, then scaled: the order of the official code (arXiv 1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        normed = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)
        return normed.to(x.dtype) * self.weight


def rotary_table(length: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary angles, each (L, C/2), in fp32 (RoFormer, arXiv 2104.09864, eq. 15).

    They are computed anew in every forward pass: that costs microseconds, and avoids the two ways in which stored
    angles go wrong, a cast to bf16 and a tensor made under `inference_mode`.
    """
    # Called as it is unless compiled: at the first call of a custom operator, torch imports its compiler, in a second.
    compute = _opaque_rotary_table if torch.compiler.is_compiling() else _rotary_table
    return compute(length, head_dim, theta, device)


def _rotary_table(length: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    # The public code divides here; a negative power would differ in the last bit.
    inverse_frequency = 1.0 / theta ** (torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(length, device=device, dtype=torch.float32), inverse_frequency)
    return angles.cos(), angles.sin()


# A custom operator because the compiler would otherwise compute every cosine again for each head of each row.
_opaque_rotary_table = torch.library.custom_op("llada::rotary_table", _rotary_table, mutates_args=())


@_opaque_rotary_table.register_fake
def _(length: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    cos, sin = (torch.empty(length, head_dim // 2, dtype=torch.float32, device=device) for _ in range(2))
    return cos, sin


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channel c against channel c + C/2, in the type of the operands.

    Args:
        x: (..., L, C), like the result.
        cos, sin: results of `rotary_table`, (L, C/2).
    """
    lower, upper = x.chunk(2, dim=-1)
    return torch.cat((lower * cos - upper * sin, upper * cos + lower * sin), dim=-1)


def turn_heads(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate as `turn` does, for x (B, H, L, C) that lies in memory as (B, L, H, C), and lay the result out in the same
    way.

    The cosines and sines are those of all rows, (L, C/2), or each row has its own, (B, L, C/2).

    `scaled_dot_product_attention` lays its output out as it finds the queries, so that no copy is needed after it.
    """
    return turn(x.transpose(1, 2), cos.unsqueeze(-2), sin.unsqueeze(-2)).transpose(1, 2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate as `turn_heads` does, but compute in fp32 whatever the type of x, in which the result is returned."""
    return turn_heads(x.float(), cos, sin).to(x.dtype)


def matmul_dtype(x: Tensor) -> torch.dtype:
    """The type in which matmuls with x are computed: autocast's, or that of x."""
    kind = "cpu" if x.is_meta else x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def key_bias(attention_mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Additive bias that hides keys: (B, 1, 1, L), those where `attention_mask` (B, L) is 0, or (B, 1, L, L), those of
    other documents, if it holds the numbers of documents."""
    return bias_of(key_mask(attention_mask), dtype)


def at_queries(rotary: tuple[Tensor, Tensor], asked: Asked | None) -> tuple[Tensor, Tensor]:
    """The rotary table of the asked places, two of (B, Q, C/2); that of all positions if there are none."""
    if asked is None:
        return rotary
    cos, sin = rotary
    has_own = cos.dim() == 3  # each row its own table
    return (asked.of(cos), asked.of(sin)) if has_own else (cos[asked.places], sin[asked.places])


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Reshape (B, L, H C) to (B, H, L, C)."""
    return x.view(*x.shape[:-1], heads, -1).transpose(1, 2)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attend from every query to every key: (B, L, H C) of q (B, H, L, C) and of k and v (B, K, L, C).

    Args:
        bias: result of `key_bias`, added to the scores; head j uses key-value head j // (H / K).
    """
    if bias is not None and bias.dtype != q.dtype:  # in which fp32's lowest number would become -inf
        bias = bias.to(q.dtype).clamp(min=torch.finfo(q.dtype).min)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=k.shape[1] != q.shape[1])
    return mixed.transpose(1, 2).flatten(2)


def init_normal(weight: Tensor, std: float) -> None:
    """Fill a weight from a normal distribution that is truncated at three standard deviations."""
    if not weight.is_meta:
        nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std)


def make_embedding(config: LLaDAConfig) -> DeterministicEmbedding:
    """Make an embedding with one row for each id, to be initialised by the caller.

    On the meta device, nn.Embedding's initialiser would import about 800 modules (1 s) and initialise nothing.
    """
    if torch.empty(0).is_meta:
        weight = torch.empty(config.vocab_size, config.d_model)
        return DeterministicEmbedding.from_pretrained(weight, freeze=False)  # type: ignore[no-untyped-call]
    return DeterministicEmbedding(config.vocab_size, config.d_model)


def init_layer(inner: Iterable[nn.Linear], residual: Iterable[nn.Linear], depth: int) -> None:
    """Initialise as LLaDA does ("mitchell"); `depth` counts layers from 1 and shrinks the `residual` outputs."""
    for linear in inner:
        init_normal(linear.weight, linear.in_features**-0.5)
    for linear in residual:
        init_normal(linear.weight, (linear.in_features * 2 * depth) ** -0.5)


class TransformerLayer(nn.Module):
    """One pre-norm layer, with the official names: `ff_proj` is the gate, `ff_out` the down projection."""

    def __init__(self, config: LLaDAConfig, depth: int) -> None:
        super().__init__()
        width, kv_width = config.d_model, config.kv_heads * config.head_dim
        self.n_heads, self.kv_heads = config.n_heads, config.kv_heads
        self.attn_norm = RMSNorm(width, config.rms_norm_eps)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, kv_width, bias=False)
        self.v_proj = nn.Linear(width, kv_width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.ff_norm = RMSNorm(width, config.rms_norm_eps)
        self.ff_proj = nn.Linear(width, config.mlp_hidden_size, bias=False)
        self.up_proj = nn.Linear(width, config.mlp_hidden_size, bias=False)
        self.ff_out = nn.Linear(config.mlp_hidden_size, width, bias=False)
        inner = (self.q_proj, self.k_proj, self.v_proj, self.ff_proj, self.up_proj)
        init_layer(inner, (self.attn_out, self.ff_out), depth)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        bias: Tensor | None,
        asked: Asked | None = None,
        merge: Merge | None = None,
    ) -> Tensor:
        """The residual stream after the layer, (B, L, D), or (B, Q, D) where it is asked."""
        x = at(x, asked) + self.attend(self.attn_norm(x), rotary, bias, asked, merge)
        h = self.ff_norm(x)
        return x + self.ff_out(F.silu(self.ff_proj(h)) * self.up_proj(h))

    def attend(
        self,
        h: Tensor,
        rotary: tuple[Tensor, Tensor],
        bias: Tensor | None,
        asked: Asked | None = None,
        merge: Merge | None = None,
    ) -> Tensor:
        q = rotate(split_heads(self.q_proj(at(h, asked)), self.n_heads), *at_queries(rotary, asked))  # (B, H, L, C)
        k = rotate(split_heads(self.k_proj(h), self.kv_heads), *rotary)
        v = split_heads(self.v_proj(h), self.kv_heads)
        if merge is not None:
            k, v = merge(k, v)
        return self.attn_out(attention(q, k, v, queries_at(bias, asked)))


class Transformer(nn.Module):
    """The parts of the network, under the official names; `ff_out` is the head."""

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        self.wte = make_embedding(config)
        self.blocks = nn.ModuleList(TransformerLayer(config, depth + 1) for depth in range(config.n_layers))
        self.ln_f = RMSNorm(config.d_model, config.rms_norm_eps)
        init_normal(self.wte.weight, config.d_model**-0.5)
        if not config.weight_tying:
            self.ff_out = nn.Linear(config.d_model, config.vocab_size, bias=False)
            init_normal(self.ff_out.weight, config.d_model**-0.5)


class _Model(nn.Module):
    """A module that adds the prefix `model.`, which the official tensor names start with."""

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        self.transformer = transformer


class RotaryNetwork(nn.Module):
    """Base of the published networks: token rows (B, L) to logits (B, L, V), which predict the token at the same
    position.

    Subclasses name the parts; a tied head uses the embedding's weight.
    """

    EMBEDDING_NAME: ClassVar[str]
    HEAD_NAME: ClassVar[str]
    """Names of these tensors in a checkpoint."""
    PARTS: ClassVar[Parts]

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def embedding(self) -> DeterministicEmbedding:
        raise NotImplementedError

    @property
    def layers(self) -> nn.ModuleList:
        raise NotImplementedError

    @property
    def final_norm(self) -> RMSNorm:
        raise NotImplementedError

    @property
    def output(self) -> nn.Linear:
        """The head, if it is not tied."""
        raise NotImplementedError

    def rotary(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the rotary cosines and sines for embedded tokens x (B, L, D)."""
        return rotary_table(x.shape[1], self.config.head_dim, self.config.rope_theta, x.device)

    def features(
        self,
        rows: Tensor,
        attention_mask: Tensor | None = None,
        asked: Asked | None = None,
        kept: KeptKeys | None = None,
    ) -> Tensor:
        """Compute the last layer's normed output, (B, L, D), or (B, Q, D) where it is asked.

        Args:
            rows: (B, L) token rows.
            attention_mask: (B, L), 0 where a key is padding, or the numbers of documents (models/documents.py).
            kept: keys and values of positions that are not computed anew; `asked` then counts the fed ones only.
        """
        x = self.embedding(rows)
        rotary = self.rotary(x)
        # In the matmuls' type from the start, so that the layers share one that may be (B, 1, L, L).
        bias = None if attention_mask is None else key_bias(attention_mask, matmul_dtype(x))
        if kept is not None:
            x, rotary = at(x, kept.fed), at_queries(rotary, kept.fed)
        for depth, layer in enumerate(self.layers):
            asked_here = asked if depth == len(self.layers) - 1 else None
            merge = () if kept is None else (functools.partial(kept.merged, depth),)
            x = layer(x, rotary, bias, asked_here, *merge)
        return self.final_norm(x)

    def head(self, features: Tensor) -> Tensor:
        """Compute logits (..., V) from features (..., D)."""
        return F.linear(features, self.embedding.weight) if self.config.weight_tying else self.output(features)

    def forward(self, rows: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.head(self.features(rows, attention_mask))


class LLaDA(RotaryNetwork):
    """The network of LLaDA-8B, in any size."""

    EMBEDDING_NAME, HEAD_NAME = "model.transformer.wte.weight", "model.transformer.ff_out.weight"
    PARTS = Parts(
        layer=r".*\.blocks\.\d+\.",  # the head is called ff_out, too
        attention=("q_proj", "k_proj", "v_proj", "attn_out"),
        feed_forward=("ff_proj", "up_proj", "ff_out"),
        others={"embedding": r"\.wte\.", "norms": r"norm|ln_f", "head": r"transformer\.ff_out"},
    )

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__(config)
        self.model = _Model(Transformer(config))

    @property
    def transformer(self) -> Transformer:
        return self.model.transformer

    @property
    def embedding(self) -> DeterministicEmbedding:
        return self.transformer.wte

    @property
    def layers(self) -> nn.ModuleList:
        return self.transformer.blocks

    @property
    def final_norm(self) -> RMSNorm:
        return self.transformer.ln_f

    @property
    def output(self) -> nn.Linear:
        return self.transformer.ff_out
