"""A network for small alphabets: n-gram embeddings and convolutions see a token's neighbours, attention the rest.

Most of what can be known about a character is in the few next to it. Here three embeddings hold a vector for every pair
of neighbours, a convolution mixes neighbouring tokens in every layer, and attention, in few layers, is left with what
is far away. An embedding costs no matmuls and a convolution little, so this learns more in a minute than a network that
has to find the same out by attention (docs/EXPERIMENTS.md, 12).

The rest is known to help short runs: norms of queries and keys, ReLU squared, the values of the first attending layer
and the embedding fed to later layers, output projections that start at zero, and a residual stream in the type of the
matmuls, which under autocast is bf16.

Shape letters: B batch, L length, V vocabulary rows, D width, H heads, C channels of a head, M width of the feed-forward
layer, W width of the convolution.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llada.models.asked import Asked, at, queries_at
from llada.models.documents import attends, numbers_of
from llada.models.embedding import DeterministicEmbedding
from llada.models.llada import (
    at_queries,
    init_normal,
    key_bias,
    matmul_dtype,
    rotary_table,
    split_heads,
    turn,
)
from llada.models.parts import Parts

NEIGHBOURS = ((-1, 1), (-2, -1), (1, 2))
"""Positions, relative to a token, of the pairs that have an embedding."""
PAIR_STD = 0.3  # initial std of a pair embedding; the token embedding's is 1
PRIME = 92_821  # spreads pairs over the rows of an embedding with fewer rows than pairs
EPS = 1e-6  # added to the mean square, so that RMSNorm never divides by zero
LONGEST_SCORES = 1024  # above this length, the scores of all pairs of positions are not held in memory


@dataclass(frozen=True)
class LocalConfig:
    """Shape of the network."""

    vocab_size: int
    """V: rows of the embedding, the mask row included."""
    mask_token_id: int
    """Row of MASK in the embedding."""
    pad_token_id: int
    eos_token_id: int
    max_sequence_length: int
    d_model: int
    n_heads: int
    n_layers: int
    mlp_hidden_size: int
    conv_width: int = 9
    """Width W of the convolution, an odd number of tokens."""
    attention_every: int = 5
    """Every so many layers one has attention, the last of each group; the others only have the convolution."""
    table_rows: int = 16_384
    """Rows of a pair embedding at most; if there are more pairs, some share a row."""
    rope_theta: float = 10_000.0

    def __post_init__(self) -> None:
        sizes = (self.d_model, self.n_heads, self.n_layers, self.mlp_hidden_size, self.max_sequence_length)
        if min(*sizes, self.table_rows, self.attention_every) < 1:
            raise ValueError(
                "d_model, n_heads, n_layers, mlp_hidden_size, max_sequence_length, table_rows and attention_every must "
                "be at least 1"
            )
        if self.conv_width < 1 or self.conv_width % 2 == 0:
            raise ValueError(f"conv_width must be odd and at least 1, not {self.conv_width}")
        if not 0 < self.rope_theta < float("inf"):
            raise ValueError(f"rope_theta must be above 0 and finite, not {self.rope_theta}")
        if self.d_model % self.n_heads or (self.d_model // self.n_heads) % 2:
            raise ValueError(
                f"d_model {self.d_model} must be an even multiple of n_heads {self.n_heads}; "
                f"try d_model {2 * self.n_heads * max(1, round(self.d_model / (2 * self.n_heads)))}"
            )
        if not 0 <= self.mask_token_id < self.vocab_size:
            raise ValueError(f"mask_token_id {self.mask_token_id} is not a row of an embedding of {self.vocab_size}")

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def n_attending(self) -> int:
        """Number of layers with attention."""
        return self.n_layers // self.attention_every

    def attends(self, depth: int) -> bool:
        """Whether layer `depth`, counted from 0, has attention."""
        return (depth + 1) % self.attention_every == 0

    def layer_alone(self, depth: int) -> Self:
        """The configuration of a one-layer network whose layer is like layer `depth` of this one."""
        return replace(self, n_layers=1, attention_every=1 if self.attends(depth) else 2)

    @property
    def n_pairs(self) -> int:
        """Rows of a pair embedding: one for each pair of tokens, where the edge of the text counts as a token."""
        return min(self.table_rows, (self.vocab_size + 1) ** 2)


def normed(x: Tensor) -> Tensor:
    """Apply RMSNorm without a scale (arXiv 1910.07467), computed in fp32 and returned in the type of x."""
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + EPS)).to(x.dtype)


def pair_keys(rows: Tensor, attention_mask: Tensor | None, config: LocalConfig) -> list[Tensor]:
    """For each pair of `NEIGHBOURS`, the row (B, L) of its embedding; edges, padding and other documents count as one
    more token.

    Args:
        rows: (B, L) token rows.
        attention_mask: (B, L) bool, False where a token is padding, or numbers of documents; None means everywhere.
    """
    edge, reach = config.vocab_size, max(abs(place) for pair in NEIGHBOURS for place in pair)
    if attention_mask is not None:
        rows = rows.masked_fill(attention_mask == 0, edge)
    padded, length, documents = F.pad(rows, (reach, reach), value=edge), rows.shape[1], numbers_of(attention_mask)

    def at(place: int) -> Tensor:
        neighbours = padded[:, reach + place : reach + place + length]
        return neighbours if documents is None else neighbours.where(_is_within(documents, place), edge)

    if config.n_pairs == (edge + 1) ** 2:
        return [at(left) * (edge + 1) + at(right) for left, right in NEIGHBOURS]
    return [(at(left) * PRIME + at(right)) % config.n_pairs for left, right in NEIGHBOURS]


def _is_within(documents: Tensor, place: int) -> Tensor:
    """Whether the neighbour at this relative position belongs to a token's own document, (B, L) bool; beyond the edges
    there are none."""
    length, reach = documents.shape[1], abs(place)
    neighbours = F.pad(documents, (reach, reach))[:, reach + place : reach + place + length]
    return attends(documents, neighbours)


class Scores(torch.autograd.Function):
    """Compute the scores q k^T, (B, H, L, L), of q and k (B, H, L, C).

    The gradient of k is computed in the layout of k, (L, C). Autograd would compute that of the transposed k, (C, L),
    which the rotation's backward pass would then read through a transpose: slower, and a kernel that compilers were
    seen to get wrong (llada.system.compile_check.rotation).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor) -> Tensor:
        ctx.save_for_backward(q, k)
        return q @ k.mT

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        q, k = ctx.saved_tensors
        return gradient @ k, gradient.mT @ q


def attend_by_matmuls(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Compute softmax(q k^T / sqrt(C) + bias) v, all (B, H, L, C), with the scores of all pairs in memory.

    `scaled_dot_product_attention` computes the same, but its backward pass on a CPU takes half as long again.
    """
    scores = Scores.apply(q, k).float() * q.shape[-1] ** -0.5  # type: ignore[no-untyped-call]
    if bias is not None:
        scores = scores + bias
    return scores.softmax(-1).to(v.dtype) @ v


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attend over all positions: (B, L, D) of q, k and v (B, H, L, C)."""
    if q.device.type == "cpu" and q.shape[2] <= LONGEST_SCORES:
        mixed = attend_by_matmuls(q, k, v, bias)
    else:
        bias = None if bias is None else bias.to(q.dtype).clamp(min=torch.finfo(q.dtype).min)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return mixed.transpose(1, 2).flatten(2)


class NearMixing(nn.Module):
    """A depthwise convolution over neighbouring tokens, from (B, L, D) to (B, L, D); it starts as the identity.

    It is written as a sum of shifted terms, which the compiler fuses into one pass; `nn.Conv1d` would transpose twice.
    Where numbers of documents (B, L) are given, neighbours in other documents contribute zeros.
    """

    def __init__(self, width: int, taps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(taps, 1, width))
        with torch.no_grad():
            self.weight[taps // 2] = 1.0

    def forward(self, x: Tensor, documents: Tensor | None = None) -> Tensor:
        taps, length = len(self.weight), x.shape[1]
        padded, weight = F.pad(x, (0, 0, taps // 2, taps // 2)), self.weight.to(x.dtype)

        def term(tap: int) -> Tensor:
            part = padded[:, tap : tap + length] * weight[tap]
            return part if documents is None else part * _is_within(documents, tap - taps // 2)[..., None]

        result = term(0)
        for tap in range(1, taps):
            result = result + term(tap)
        return result


class LocalLayer(nn.Module):
    """One pre-norm layer: a convolution, in some layers attention after it, and the feed-forward part."""

    def __init__(self, config: LocalConfig, depth: int) -> None:
        super().__init__()
        width = config.d_model
        self.n_heads, self.attends = config.n_heads, config.attends(depth)
        self.near = NearMixing(width, config.conv_width)
        self.up_proj = nn.Linear(width, config.mlp_hidden_size, bias=False)
        self.ff_out = nn.Linear(config.mlp_hidden_size, width, bias=False)
        self.stream_share, self.embedding_share = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))
        init_normal(self.up_proj.weight, width**-0.5)
        nn.init.zeros_(self.ff_out.weight)
        if not self.attends:
            return
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.sharpness = nn.Parameter(torch.ones(()))
        self.value_share, self.first_value_share = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))
        for linear in (self.q_proj, self.k_proj, self.v_proj):
            init_normal(linear.weight, width**-0.5)
        nn.init.zeros_(self.attn_out.weight)

    def forward(
        self,
        x: Tensor,
        embedded: Tensor,
        first_values: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        asked: Asked | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Apply the layer.

        Args:
            x, embedded: the residual stream and its initial value, (B, L, D).
            first_values: values of the first layer with attention, (B, H, L, C); None up to that layer itself.
            attention_mask: (B, L) bool, False where a token is padding, or numbers of documents.
            asked: where the residual stream is wanted, if not everywhere.

        Returns:
            The residual stream, (B, L, D) or (B, Q, D), and the values of the first layer with attention.
        """
        x, h = self.enter(x, embedded, attention_mask)
        h = self.near(h, numbers_of(attention_mask))
        if not self.attends:
            return at(x, asked) + self.feed_forward(at(h, asked)), first_values
        # In this order, which is the one that autograd adds gradients up in.
        q, k, v = (
            split_heads(project(part), self.n_heads)
            for project, part in ((self.q_proj, at(h, asked)), (self.k_proj, h), (self.v_proj, h))
        )
        first_values = v if first_values is None else first_values
        v = self.mix_values(v, first_values)
        q, k = self.turn_queries(q, at_queries(rotary, asked)), turn(normed(k), *rotary)
        return self.attend_and_feed(at(x, asked), q, k, v, attention_mask, asked), first_values

    def enter(self, x: Tensor, embedded: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The residual stream with its share of the embedding, and what the convolution reads, both (..., D)."""
        x = x * self.stream_share.to(x.dtype) + embedded * self.embedding_share.to(x.dtype)
        h = normed(x)
        if attention_mask is not None:  # padding contributes zeros, like positions beyond the edges
            h = h * attention_mask.bool()[..., None]
        return x, h

    def mix_values(self, v: Tensor, first_values: Tensor) -> Tensor:
        """Values with those of the first layer that attends."""
        return v * self.value_share.to(v.dtype) + first_values * self.first_value_share.to(v.dtype)

    def turn_queries(self, q: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Normed, turned and sharpened queries (B, H, L, C); the table may be one for each row, (B, L, C/2)."""
        cos, sin = (part if part.dim() == 2 else part[:, None] for part in rotary)
        return turn(normed(q), cos, sin) * self.sharpness.to(q.dtype)

    def attend_and_feed(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None, asked: Asked | None = None
    ) -> Tensor:
        """The residual stream x (B, L, D) of the queries after the rest of a layer that attends."""
        bias = None if attention_mask is None else key_bias(attention_mask)
        x = x + self.attn_out(attend(q, k, v, queries_at(bias, asked)))
        return x + self.feed_forward(normed(x))

    def feed_forward(self, h: Tensor) -> Tensor:
        """Apply the feed-forward part with ReLU squared (arXiv 2109.08668), from (B, L, D) to (B, L, D)."""
        return self.ff_out(F.relu(self.up_proj(h)).square())


class Local(nn.Module):
    """The network: token rows (B, L) to logits (B, L, V), which predict the token at the same position."""

    PARTS: ClassVar[Parts] = Parts(
        layer=r"layers\.\d+\.",
        attention=("q_proj", "k_proj", "v_proj", "attn_out"),
        feed_forward=("up_proj", "ff_out"),
        others={
            "embedding": "^token_embedding",
            "pairs": "^pair_embeddings",
            "convolutions": r"\.near\.",
            "shares": "share|sharpness",
            "head": "^output",
        },
    )

    def __init__(self, config: LocalConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = DeterministicEmbedding(config.vocab_size, config.d_model)
        self.pair_embeddings = nn.ModuleList(DeterministicEmbedding(config.n_pairs, config.d_model) for _ in NEIGHBOURS)
        self.layers = nn.ModuleList(LocalLayer(config, depth) for depth in range(config.n_layers))
        self.output = nn.Linear(config.d_model, config.vocab_size, bias=False)
        nn.init.normal_(self.token_embedding.weight)
        for table in self.pair_embeddings:
            nn.init.normal_(table.weight, std=PAIR_STD)  # type: ignore[arg-type]
        nn.init.zeros_(self.output.weight)

    def embed(self, rows: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Embed tokens and their neighbours: (B, L, D), in the type of the matmuls."""
        x = self.token_embedding(rows)
        for table, keys in zip(self.pair_embeddings, pair_keys(rows, attention_mask, self.config), strict=True):
            x = x + table(keys)
        return normed(x.to(matmul_dtype(x)))

    def features(self, rows: Tensor, attention_mask: Tensor | None = None, asked: Asked | None = None) -> Tensor:
        """Compute the last layer's normed output, (B, L, D), or (B, Q, D) where it is asked.

        `attention_mask` (B, L) is 0 where a token is padding, or holds the numbers of documents (models/documents.py).
        """
        if attention_mask is not None and numbers_of(attention_mask) is None:
            attention_mask = attention_mask.bool()
        x = embedded = self.embed(rows, attention_mask)
        rotary, first_values = self.rotary(x), None
        for depth, layer in enumerate(self.layers, start=1):
            asked_here = asked if depth == len(self.layers) else None
            x, first_values = layer(x, embedded, first_values, rotary, attention_mask, asked_here)
        return normed(x)

    def rotary(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The table for embedded tokens x (B, L, D), in their type."""
        cos, sin = rotary_table(x.shape[1], self.config.head_dim, self.config.rope_theta, x.device)
        return cos.to(x.dtype), sin.to(x.dtype)

    def head(self, features: Tensor) -> Tensor:
        """Compute logits (..., V) from features (..., D)."""
        return self.output(features)

    def forward(self, rows: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.head(self.features(rows, attention_mask))
