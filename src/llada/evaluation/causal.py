"""The exact likelihood of an answer under an autoregressive model, the baseline, in one forward pass.

Shape letters: B batch, L length, V vocabulary rows, N tokens of all answers.
"""

from collections.abc import Sequence

import torch

from llada.evaluation.answer_likelihood import Item, LogLikelihood, check_batch_size, pad_items
from llada.models import PredictAt
from llada.objective import token_nll
from llada.sampling.steps import NOT_FINITE
from llada.system.device import to_fp64
from llada.system.errors import UserError


@torch.inference_mode()
def causal_log_likelihoods(
    predict_at: PredictAt,
    items: Sequence[Item],
    *,
    forbidden: Sequence[int] = (),
    batch_size: int = 32,
    device: torch.device | str = "cpu",
) -> list[tuple[LogLikelihood, bool]]:
    """Compute log p(answer
     prompt) of each item, and whether greedy decoding from left to right would write the answer.

    Args:
        predict_at: a model whose logits at a position see only what comes before it.
        forbidden: columns of the logits that decoding may not choose.

    Raises:
        UserError: the model gave a non-finite likelihood.
    """
    check_batch_size(batch_size)
    order = sorted(range(len(items)), key=lambda i: len(items[i]), reverse=True)
    results = [(LogLikelihood(0.0, 0.0, 0), True)] * len(items)  # the result of empty answers
    for first in range(0, len(order), batch_size):
        index = order[first : first + batch_size]
        batch = pad_items([items[i] for i in index], device)
        is_answer = batch.is_maskable
        if not bool(is_answer.any()):
            continue
        logits = predict_at(batch.x_0, attention_mask=batch.needed_attention_mask, positions=is_answer)
        targets = batch.x_0[is_answer]
        row, log_p = is_answer.nonzero()[:, 0], to_fp64(-token_nll(logits, targets))
        nats = torch.zeros(len(index), device=log_p.device, dtype=torch.float64)
        nats = nats.index_add(0, row.to(log_p.device), log_p)
        if not bool(nats.isfinite().all()):
            raise UserError(NOT_FINITE)
        columns = torch.tensor(forbidden, dtype=torch.long, device=logits.device)
        is_wrong = logits.index_fill(-1, columns, -torch.inf).argmax(-1) != targets
        n_wrong = torch.zeros(len(index), device=logits.device).index_add(0, row, is_wrong.float())
        for i, value, wrong in zip(index, nats.tolist(), n_wrong.tolist(), strict=True):
            if items[i].answer:
                results[i] = (LogLikelihood(value, 0.0, 1), wrong == 0)
    return results
