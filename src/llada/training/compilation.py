"""torch.compile for the one shape that nearly every step has.

Compiling takes a good part of a minute, so it is done once, before the first step, and its time is told; torch keeps
the result for the next process (`cache_folder`). A batch that is cut to a random length, an evaluation or a sample has
another shape, and goes through the network as it is written instead of being compiled for.

Shape letters: B batch, L length, D width.
"""

import shutil
from pathlib import Path

import torch
from torch import Tensor

from llada.models import Network


def can_compile(device: torch.device) -> bool:
    """Whether torch finds what it compiles with: on a CPU it writes C++."""
    return device.type == "cuda" or any(map(shutil.which, ("g++", "clang++", "c++")))


def compile_features(network: Network, shape: tuple[int, int]) -> None:
    """Have `network.features` compiled where it is trained on rows of exactly this shape (B, L), without padding.

    Not the head: the number of masked tokens, of which alone it makes logits, is another one at every step.
    """
    plain = network.features
    compiled = torch.compile(plain, dynamic=False)

    def features(rows: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        is_usual = attention_mask is None and rows.shape == shape
        if is_usual and network.training and torch.is_grad_enabled():
            result: Tensor = compiled(rows)
            return result
        return plain(rows, attention_mask)

    network.features = features  # type: ignore[method-assign]


def cache_folder() -> Path:
    """Where torch keeps what it compiled; the environment variable TORCHINDUCTOR_CACHE_DIR moves it."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir())
