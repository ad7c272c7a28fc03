"""Templates of different lengths filled together, each as it would be alone.

Shape letters: B batch, L length.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Generator, Tensor

from llada.models.predictor import PredictAt
from llada.sampling.config import SamplerConfig
from llada.sampling.guidance import Predict
from llada.sampling.unmask import Canvas, unmask


def padded(templates: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor | None]:
    """Token ids (B, L) of templates, and the attention mask (B, L) that hides the padding; None if there is none.

    The padding is on the right, where it moves no token: with learned positions, too, a row is then what it is alone.
    """
    longest = max(map(len, templates), default=0)
    ids = [[*template, *[pad_id] * (longest - len(template))] for template in templates]
    lengths = torch.tensor([len(template) for template in templates])
    if bool((lengths == longest).all()):
        return torch.tensor(ids, dtype=torch.long).view(len(ids), longest), None
    return torch.tensor(ids), torch.arange(longest) < lengths[:, None]


def seeds_from(seed: int, n: int) -> list[int]:
    """Seeds of n texts that are written together, the first of them the given one."""
    return [(seed + i) % 2**63 for i in range(n)]  # below torch's greatest


def unmask_together(
    predict: Predict | PredictAt,
    templates: Sequence[Sequence[int]],
    mask_id: int,
    pad_id: int,
    config: SamplerConfig,
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
) -> Iterator[tuple[list[list[int]], Canvas]]:
    """Fill templates step by step, yielding their texts, MASK where nothing is decided, and the canvas of all.

    Each is filled as it would be alone with its seed: to the bit, if a row of the predictor does not depend on the
    others. Networks round matmuls of other shapes differently, so that of two positions or tokens that are equally
    likely another one may come first.

    Args:
        predict: a predictor that knows padding (`attention_mask`), if the templates are not of one length.
        seeds: one for each template.

    Raises:
        ValueError: the seeds are not one for each template.
        UserError: the predictions are not finite numbers.
    """
    ids, attention_mask = padded(templates, pad_id)
    if len(seeds) != len(templates):
        raise ValueError(f"{len(seeds)} seeds do not go with {len(templates)} templates")
    generators = [Generator().manual_seed(seed) for seed in seeds]
    mask = None if attention_mask is None else attention_mask.to(device)
    for state in unmask(predict, ids.to(device), mask_id, config, generators, mask):
        rows = state.x_t.tolist()
        yield [row[: len(template)] for row, template in zip(rows, templates, strict=True)], state
