"""A bound on the likelihood of a whole text of any length, window by window.

Shape letters: W windows, L length, T tokens of the text.
"""

from collections.abc import Sequence

import torch

from llada.data.batches import TokenBatch
from llada.evaluation.nelbo import DEFAULTS, BoundOptions, TokenNll, estimate_nelbo


def text_bound(nll: TokenNll, ids: Sequence[int], length: int, options: BoundOptions = DEFAULTS) -> float:
    """Compute an upper bound on -log p(text) in nats: the sum of the bounds of its windows, each token scored once.

    Windows do not overlap, except the last one: it reaches back to its full length, and what others have scored is
    given there. A text that is shorter than a window is a window by itself. For a causal model it is -log p itself.

    Args:
        ids: (T,) ids of the text.
        length: length L of the windows.

    Raises:
        UserError: the model gave a non-finite bound.
    """
    tokens = torch.tensor(ids, dtype=torch.long)
    n_windows, n_left = divmod(len(tokens), length)
    parts: list[TokenBatch] = []
    if n_windows:
        parts.append(TokenBatch(tokens[: n_windows * length].view(n_windows, length)))
    if n_left:
        last = tokens[-length:][None]
        parts.append(TokenBatch(last, torch.arange(last.shape[1])[None] >= last.shape[1] - n_left))
    results = [estimate_nelbo(nll, windows, options) for windows in parts]
    return sum(result.nelbo_nats_per_token * result.tokens_scored for result in results)
