"""One training step of other trainers for Tiny Shakespeare on a CPU, run as they ship from copies that you have.

    python benchmarks/peers.py NAME FOLDER [--steps 3]

prints tokens per second as JSON. Each runs in a process of its own (`throughput.py` starts them), because two of them
call their module `model`. Their code stays where it is; what is set here are the figures that they ship.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

BATCH_SIZE, LENGTH = 64, 256
TINY_DIFFUSION_RATE = 3e-4


def nanogpt(generator: torch.Generator) -> Callable[[], None]:
    """Set up github.com/karpathy/nanoGPT, config/train_shakespeare_char.py: autoregressive, dropout 0.2, fp32 on a
    CPU."""
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    model = GPT(GPTConfig(block_size=LENGTH, vocab_size=65, n_layer=6, n_head=6, n_embd=384, dropout=0.2, bias=False))
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")

    def step() -> None:
        text = torch.randint(0, 65, (BATCH_SIZE, LENGTH + 1), generator=generator)
        _, loss = model(text[:, :-1].contiguous(), text[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def tiny_diffusion(generator: torch.Generator) -> Callable[[], None]:
    """Set up github.com/nathan-barry/tiny-diffusion, training.py: masked diffusion, AdamW, fp32.

    Its own loader yields slices that its loss cannot view on a CPU; contiguous ones are given to it here.
    """
    from model import DiffusionConfig, DiffusionTransformer
    from training import MaskedDiffusionSchedule, train_step  # type: ignore[import-not-found]

    config = DiffusionConfig()
    model = DiffusionTransformer(config)
    model.init_weights()
    schedule = MaskedDiffusionSchedule(config.diffusion_steps, config.mask_token_id, config.context_len)
    optimizer = torch.optim.AdamW(model.parameters(), lr=TINY_DIFFUSION_RATE)

    def step() -> None:
        train_step(model, torch.randint(32, 97, (BATCH_SIZE, LENGTH), generator=generator), schedule, optimizer)

    return step


PEERS = {"nanoGPT": nanogpt, "tiny-diffusion": tiny_diffusion}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("name", choices=PEERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    sys.path.insert(0, str(options.folder))
    step = PEERS[options.name](torch.Generator().manual_seed(0))
    step()  # the first one warms up
    seconds = []
    for _ in range(options.steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"tokens_per_second": BATCH_SIZE * LENGTH / statistics.median(seconds)}))


if __name__ == "__main__":
    main()
