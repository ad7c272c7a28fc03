"""A bidirectional transformer encoder with learned positions, the network of the preset "founding".

Layer norm on the embeddings, before each attention and feed-forward, and on the output; GELU; dropout. With `is_causal`
it is a decoder, the autoregressive baseline: it sees what comes before a token and predicts the token itself; without
the norm of the embeddings it is GPT-2's.

Shape letters: B batch, L length, V vocabulary rows, D width, H heads, C channels of a head.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llada.models.asked import Asked, at, queries_at
from llada.models.documents import bias_of, key_mask, numbers_of
from llada.models.dropout import Dropout, attend, share_rows
from llada.models.embedding import DeterministicEmbedding
from llada.models.llada import matmul_dtype
from llada.models.parts import Parts

INIT_STD = 0.02  # BERT's and GPT-2's


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of the encoder; the defaults are those of the preset "founding"."""

    vocab_size: int
    """V: rows of the embedding, the mask row included."""
    mask_token_id: int
    """Row of MASK in the embedding."""
    max_sequence_length: int
    d_model: int = 768
    n_heads: int = 12
    n_layers: int = 24
    dropout: float = 0.1
    is_causal: bool = False
    """Whether the prediction at a position sees only what comes before it."""

    def __post_init__(self) -> None:
        if min(self.d_model, self.n_heads, self.n_layers, self.max_sequence_length) < 1:
            raise ValueError("d_model, n_heads, n_layers and max_sequence_length must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be from 0 to below 1, not {self.dropout}")
        if self.d_model % self.n_heads:
            raise ValueError(
                f"d_model {self.d_model} must be a multiple of n_heads {self.n_heads}; "
                f"try d_model {self.n_heads * max(1, round(self.d_model / self.n_heads))}"
            )

    @property
    def mlp_hidden_size(self) -> int:
        return 4 * self.d_model


class EncoderLayer(nn.Module):
    """Pre-norm attention and feed-forward, each with a residual connection."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.d_model
        self.n_heads = config.n_heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.attention_dropout, self.feed_forward_dropout = Dropout(config.dropout), Dropout(config.dropout)
        self.weights_dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, attention_mask: Tensor | None, asked: Asked | None = None) -> Tensor:
        """Apply the layer to the residual stream; returns (B, L, D), or (B, Q, D) where it is asked.

        `attention_mask` (B, 1, 1 or L, L) is False where a key is hidden, or a bias that hides it.
        """
        x = at(x, asked) + self.attention_dropout(self.attend(self.attention_norm(x), attention_mask, asked))
        return x + self.feed_forward_dropout(self.down(F.gelu(self.up(self.feed_forward_norm(x)))))

    def attend(self, h: Tensor, attention_mask: Tensor | None, asked: Asked | None = None) -> Tensor:
        q, k, v = self.qkv(h).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in (at(q, asked), k, v))
        mixed = attend(q, k, v, queries_at(attention_mask, asked), self.weights_dropout)
        return self.attention_out(mixed.transpose(1, 2).flatten(2))


class Encoder(nn.Module):
    """Token rows (B, L) in, logits (B, L, V) out, L at most `max_sequence_length`."""

    PARTS: ClassVar[Parts] = Parts(
        layer=r"layers\.\d+\.",
        attention=("qkv", "attention_out"),
        feed_forward=("up", "down"),
        others={"embedding": r"^(token|position)_embedding", "norms": "norm", "head": r"^output\."},
    )

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = DeterministicEmbedding(config.vocab_size, config.d_model)
        self.position_embedding = DeterministicEmbedding(config.max_sequence_length, config.d_model)
        self.embedding_norm = nn.Identity() if config.is_causal else nn.LayerNorm(config.d_model)
        self.embedding_dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.n_layers))
        self.output_norm = nn.LayerNorm(config.d_model)
        self.output = nn.Linear(config.d_model, config.vocab_size)
        share_rows(self)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights from a normal distribution of std 0.02; residual outputs are divided by sqrt(2 n_layers), as in
        GPT-2."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                is_residual_output = name.endswith(("attention_out.weight", "down.weight"))
                depth_scale = (2 * self.config.n_layers) ** -0.5 if is_residual_output else 1.0
                nn.init.normal_(parameter, std=INIT_STD * depth_scale)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def features(self, rows: Tensor, attention_mask: Tensor | None = None, asked: Asked | None = None) -> Tensor:
        """Compute the output of the last layer, (B, L, D), or (B, Q, D) where it is asked.

        `attention_mask` (B, L) is 0 where a key is padding, or holds the numbers of documents (models/documents.py).
        """
        if rows.shape[1] > self.config.max_sequence_length:
            raise ValueError(f"{rows.shape[1]} tokens do not fit {self.config.max_sequence_length} learned positions")
        documents = numbers_of(attention_mask)
        mask = None if attention_mask is None else _mask_keys(attention_mask)
        if self.config.is_causal:
            rows, mask = self._shifted(rows, documents), _mask_later_keys(rows.shape[1], mask, rows.device)
        x = self.token_embedding(rows) + self.position_embedding.weight[: rows.shape[1]]
        x = self.embedding_dropout(self.embedding_norm(x))
        if documents is not None and mask is not None:  # once; torch would make a bias in each layer
            mask = bias_of(mask, matmul_dtype(x))
        for depth, layer in enumerate(self.layers, start=1):
            x = layer(x, mask, asked if depth == len(self.layers) else None)
        return self.output_norm(x)

    def _shifted(self, rows: Tensor, documents: Tensor | None) -> Tensor:
        """Move each token to the place of the next one, and put MASK, which no text contains, before the first of the
        sequence, or of each document."""
        shifted = F.pad(rows[:, :-1], (1, 0), value=self.config.mask_token_id)
        if documents is None:
            return shifted
        is_first = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
        return shifted.masked_fill(is_first, self.config.mask_token_id)

    def head(self, features: Tensor) -> Tensor:
        """Compute logits (..., V) from features (..., D)."""
        return self.output(features)

    def forward(self, rows: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.head(self.features(rows, attention_mask))


def _mask_keys(attention_mask: Tensor) -> Tensor:
    """Return a mask (B, 1, 1 or L, L) bool; a row in which every key is padding attends to all of them instead of
    becoming NaN."""
    has_text = attention_mask.bool().any(dim=1)
    return key_mask(attention_mask) | ~has_text[:, None, None, None]


def _mask_later_keys(length: int, mask: Tensor | None, device: torch.device) -> Tensor:
    """Return a mask (B or 1, 1, L, L) bool: keys up to the query's place, of those of `mask` (B, 1, 1 or L, L).

    Keys are shifted by one: place i holds token i - 1, and so its padding is that of token i - 1. The first place of a
    document holds MASK, so there each place belongs to the document of its own token.
    """
    earlier = torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]
    if mask is None:
        return earlier
    is_for_documents = mask.shape[2] > 1
    return earlier & (mask if is_for_documents else F.pad(mask[..., :-1], (1, 0), value=True))
