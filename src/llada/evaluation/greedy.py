"""A test whether an answer is the one that a model would write by itself.

Shape letters: B batch, L length, V vocabulary rows, N open positions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from llada.evaluation.answer_likelihood import Item, check_batch_size, logits_at, pad_items
from llada.models import PredictAt
from llada.models.head import LOGITS_AT_ONCE
from llada.sampling.steps import NOT_FINITE
from llada.system.device import to_fp64
from llada.system.errors import UserError


@torch.inference_mode()
def are_greedy(
    predict_at: PredictAt,
    items: Sequence[Item],
    mask_id: int,
    *,
    forbidden: Sequence[int] = (),
    cfg_scale: float = 0.0,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
) -> list[bool]:
    """Check whether greedy decoding would write each answer: `sampling.unmask.generate` at temperature 0, a token a
    step.

    As in LLaDA's evaluation, the whole answer is masked, and each step keeps the most confident prediction of all
    positions. An answer fails at the first token that differs from its own.

    Args:
        forbidden: columns of the logits that decoding may not choose, `Tokenizer.forbidden_rows` for example.

    Raises:
        UserError: the model gave a non-finite probability.
    """
    check_batch_size(batch_size)
    order = sorted(range(len(items)), key=lambda i: len(items[i]), reverse=True)
    result = [False] * len(items)
    for first in range(0, len(order), batch_size):
        index = order[first : first + batch_size]
        batch = pad_items([items[i] for i in index], device)
        x_0, is_open = batch.x_0, batch.is_maskable
        x_t = x_0.masked_fill(is_open, mask_id)
        going = torch.arange(len(index), device=x_0.device)  # rows that have been right so far
        while len(going):
            is_complete = ~is_open[going].any(1)
            for row in going[is_complete].tolist():
                result[index[row]] = True
            going = going[~is_complete]
            if not len(going):
                break
            logits = logits_at(predict_at, batch.rows(going), x_t[going], is_open[going], mask_id, cfg_scale, forbidden)
            column, token = _most_confident(logits, is_open[going])
            is_right = token == x_0[going, column]
            going, column = going[is_right], column[is_right]
            x_t[going, column] = x_0[going, column]
            is_open = is_open.index_put((going, column), torch.tensor(False, device=is_open.device))
    return result


def _most_confident(logits: Tensor, is_open: Tensor) -> tuple[Tensor, Tensor]:
    """Find column (B,) and token (B,) of each row's most confident prediction, from logits (N, V) at open positions."""
    at_once = max(1, LOGITS_AT_ONCE // logits.shape[1])
    parts = [logits[first : first + at_once] for first in range(0, len(logits), at_once)]
    best = [to_fp64(part).softmax(-1).max(-1) for part in parts]  # in fp64, as the sampler
    probability, token = torch.cat([part[0] for part in best]), torch.cat([part[1] for part in best])
    if bool(probability.isnan().any()):
        raise UserError(NOT_FINITE)
    device, is_open = is_open.device, is_open.to(probability.device)
    confidence = torch.full_like(is_open, -torch.inf, dtype=torch.float64)
    column = confidence.masked_scatter(is_open, probability).argsort(dim=1, descending=True, stable=True)[:, 0]
    tokens = torch.zeros_like(is_open, dtype=torch.long).masked_scatter(is_open, token)
    return column.to(device), tokens.gather(1, column[:, None])[:, 0].to(device)
