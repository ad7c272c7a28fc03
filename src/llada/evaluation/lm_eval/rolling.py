"""The bound on the likelihood of a whole text of any length, window by window.

Shape letters: W windows, L length, T tokens of the text.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from llada.evaluation.nelbo import NllAt, estimate_nelbo


def text_bound(
    nll_at: NllAt,
    ids: Sequence[int],
    mask_id: int,
    *,
    length: int,
    masks_per_window: int = 8,
    is_causal: bool = False,
    batch_size: int = 32,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> float:
    """An upper bound on -log p(text) in nats: the sum of the bounds of its windows, each token being scored once.

    Windows do not overlap, but for the last one: it reaches back to its full length, and what others have scored is
    given there. A text that is shorter than a window is one by itself. Of a causal model it is -log p itself.

    Args:
        ids: (T,) ids of the text.
        length: L, of the windows.
        masks_per_window, is_causal, batch_size, seed, device: as in `estimate_nelbo`.

    Raises:
        UserError: the model gave a bound that is not a number.
    """
    tokens = torch.tensor(ids, dtype=torch.long)
    n_windows, n_left = divmod(len(tokens), length)
    parts: list[tuple[Tensor, Tensor | None, int]] = []  # windows, what of them is scored, how many tokens that is
    if n_windows:
        parts.append((tokens[: n_windows * length].view(n_windows, length), None, n_windows * length))
    if n_left:
        last = tokens[-length:][None]
        parts.append((last, torch.arange(last.shape[1])[None] >= last.shape[1] - n_left, n_left))
    bound = 0.0
    for windows, maskable, n_scored in parts:
        result = estimate_nelbo(
            nll_at, windows, mask_id, maskable=maskable, masks_per_window=masks_per_window,
            is_causal=is_causal, batch_size=batch_size, seed=seed, device=device,
        )  # fmt: skip
        bound += result.nelbo_nats_per_token * n_scored
    return bound
