"""LLaDA on Tiny Shakespeare, all of it: data, network, forward process, loss, training and sampling in plain PyTorch.

    python examples/minimal.py data/shakespeare/prepared_text.txt    # from `llada prepare`; any text file does
    python examples/minimal.py                                       # downloads Tiny Shakespeare

A masked diffusion model learns to undo one kind of noise: tokens that are replaced by MASK. Training masks each token
with a probability t drawn anew for each sequence, and asks a bidirectional transformer for what was there. Sampling
starts from nothing but masks and uncovers a few of them a step, in any order. (arXiv 2502.09992)

Nothing here is imported from the package `llada`, which does the same faster, measures it, and opens LLaDA-8B.

Shape letters: B batch, L length, V vocabulary, D width, H heads, N masked positions.
"""

import math
import sys
import urllib.request
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
LENGTH, BATCH, STEPS, LEARNING_RATE = 128, 32, 3000, 1e-3
WIDTH, HEADS, LAYERS = 128, 4, 4
EPS = 1e-3  # LLaDA's least probability of a mask, so that the weight 1/p is 1000 at most


# ---- data: characters, and MASK as the last id ----------------------------------------------------------------------


class Vocabulary:
    def __init__(self, text: str) -> None:
        self.characters = sorted(set(text))
        self.mask_id = len(self.characters)
        self.size = self.mask_id + 1

    def encode(self, text: str) -> Tensor:
        id_of = {character: i for i, character in enumerate(self.characters)}
        return torch.tensor([id_of[character] for character in text])

    def decode(self, ids: Tensor) -> str:
        return "".join((*self.characters, "_")[i] for i in ids.tolist())


def draw_batch(ids: Tensor, length: int, batch: int, generator: Generator) -> Tensor:
    """(B, L) pieces of the text from random places."""
    starts = torch.randint(0, len(ids) - length + 1, (batch, 1), generator=generator)
    return ids[starts + torch.arange(length)]


# ---- the mask predictor: a transformer that sees both sides ---------------------------------------------------------


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:  # (B, L, D)
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, L, D/H)
        attended = F.scaled_dot_product_attention(q, k, v)  # not causal: this is the whole difference to GPT
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class MaskPredictor(nn.Module):
    """Noisy ids (B, L) to logits (B, L, V). It is not given t: the masks show it."""

    def __init__(self, vocabulary: int, length: int, width: int = WIDTH, heads: int = HEADS, layers: int = LAYERS):
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, vocabulary, bias=False)
        for weight in (self.token.weight, self.position.weight, self.head.weight):
            nn.init.normal_(weight, std=0.02)

    def forward(self, x_t: Tensor) -> Tensor:
        positions = self.position(torch.arange(x_t.shape[1], device=x_t.device))
        return self.head(self.norm(self.layers(self.token(x_t) + positions)))


# ---- forward process and objective ----------------------------------------------------------------------------------


def forward_process(x_0: Tensor, mask_id: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Mask each token with probability p = (1 - eps) t + eps, t uniform on (0, 1) for each row."""
    t = torch.rand(len(x_0), 1, generator=generator)
    p_mask = ((1 - EPS) * t + EPS).expand(x_0.shape)
    is_masked = torch.rand(x_0.shape, generator=generator) < p_mask
    return x_0.masked_fill(is_masked, mask_id), is_masked, p_mask


def loss_of(logits: Tensor, x_0: Tensor, is_masked: Tensor, p_mask: Tensor) -> Tensor:
    """Cross-entropy at the masks, each weighted by 1/p: in expectation an upper bound on -log p(x_0) per token."""
    nll = F.cross_entropy(logits[is_masked], x_0[is_masked], reduction="none")  # (N,)
    return (nll / p_mask[is_masked]).sum() / x_0.numel()


def train(model: MaskPredictor, ids: Tensor, mask_id: int, steps: int, length: int, batch: int = BATCH) -> list[float]:
    generator = Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.05)
    losses = []
    for step in range(steps):
        x_0 = draw_batch(ids, length, batch, generator)
        x_t, is_masked, p_mask = forward_process(x_0, mask_id, generator)
        loss = loss_of(model(x_t), x_0, is_masked, p_mask)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: {sum(losses[-100:]) / 100:.3f} nats per character")
    return losses


# ---- reverse process ------------------------------------------------------------------------------------------------


@torch.no_grad()
def sample(model: MaskPredictor, template: Tensor, mask_id: int, steps: int, generator: Generator) -> Tensor:
    """Fill the masks of a template (L,): at each step draw every masked token, keep some of them at random."""
    x_t = template.clone()
    for step in range(steps):
        masked = (x_t == mask_id).nonzero()[:, 0]
        n_now = math.ceil(len(masked) / (steps - step))
        chosen = masked[torch.randperm(len(masked), generator=generator)[:n_now]]
        logits = model(x_t[None])[0, chosen]
        logits[:, mask_id] = -torch.inf
        x_t[chosen] = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    return x_t


def main() -> None:
    torch.manual_seed(0)
    if len(sys.argv) > 1:
        text = Path(sys.argv[1]).read_text(encoding="utf-8")
    else:
        text = urllib.request.urlopen(URL).read().decode()
    vocabulary = Vocabulary(text)
    model = MaskPredictor(vocabulary.size, LENGTH)
    train(model, vocabulary.encode(text), vocabulary.mask_id, STEPS, LENGTH)
    masks = torch.full((LENGTH,), vocabulary.mask_id)
    print(vocabulary.decode(sample(model, masks, vocabulary.mask_id, LENGTH, Generator().manual_seed(0))))


if __name__ == "__main__":
    main()
