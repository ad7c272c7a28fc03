"""nanoGPT's configuration for Tiny Shakespeare on a GPU, written here as the yardstick of speed.

The network and the step of github.com/karpathy/nanoGPT's config/train_shakespeare_char.py: GPT-2 without biases, 6
layers of 384, 6 heads, 64 sequences of 256, dropout 0.2, the embedding as head, AdamW (fused on a GPU), gradients
clipped at 1, bf16 autocast and torch.compile. Its batches are random windows, copied from page-locked memory; here they
are random ids, copied likewise.

Shape letters: B batch, L length, V vocabulary, D width, H heads, C channels of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llada.system.device import Precision, send

VOCABULARY, LAYERS, HEADS, WIDTH, LENGTH, BATCH, DROPOUT = 65, 6, 6, 384, 256, 64, 0.2
INIT_STD = 0.02
LEARNING_RATE, WEIGHT_DECAY, BETAS, CLIP = 1e-3, 0.1, (0.9, 0.99), 1.0


class Block(nn.Module):
    """Causal attention and a feed-forward part with GELU, each after a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.project = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm_1(x)).chunk(3, -1)
        )  # (B, H, L, C)
        dropout = DROPOUT if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        x = x + self.dropout(self.project(mixed.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm_2(x)))))


class BabyGPT(nn.Module):
    """A GPT that takes ids (B, L) and the next ids to the loss."""

    def __init__(self, layers: int = LAYERS, width: int = WIDTH, heads: int = HEADS, length: int = LENGTH) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.dropout = nn.LayerNorm(width, bias=False), nn.Dropout(DROPOUT)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=INIT_STD)

    def forward(self, ids: Tensor, following: Tensor) -> Tensor:
        x = self.dropout(self.tokens(ids) + self.places.weight[: ids.shape[1]])
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)  # (B, L, V)
        return F.cross_entropy(logits.flatten(0, 1), following.flatten())


class BabyTraining:
    """A network with its optimizer, and one step of its training at a time."""

    def __init__(
        self, device: torch.device, precision: Precision, compiled: bool, network: BabyGPT, batch: int = BATCH
    ) -> None:
        self.device, self.precision, self.batch = device, precision, batch
        self.length = network.places.num_embeddings
        self.network = network.to(device)
        self.loss = torch.compile(self.network) if compiled else self.network
        matrices = [p for p in self.network.parameters() if p.dim() == 2]
        vectors = [p for p in self.network.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, fused=device.type == "cuda")
        self.generator = torch.Generator().manual_seed(0)

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.length

    def step(self) -> Tensor:
        """Train one step; returns its loss, which may still be computing on the device."""
        text = torch.randint(0, VOCABULARY, (self.batch, self.length + 1), generator=self.generator)
        ids, following = (send(part.contiguous(), self.device) for part in (text[:, :-1], text[:, 1:]))
        with self.precision.autocast(self.device):
            loss: Tensor = self.loss(ids, following)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()
