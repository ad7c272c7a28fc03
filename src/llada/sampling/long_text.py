"""Text that is longer than what a model sees at once.

Shape letters: B batch, P prompt, L length.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from llada.models.predictor import PredictAt
from llada.sampling.config import SamplerConfig
from llada.sampling.draws import Generators
from llada.sampling.guidance import Predict
from llada.sampling.unmask import check_shape, generate


def generate_by_sliding(
    predict: Predict | PredictAt,
    prompt: Tensor,
    gen_length: int,
    mask_id: int,
    config: SamplerConfig,
    generator: Generators = None,
    *,
    context: int,
    kept: int | None = None,
) -> Iterator[Tensor]:
    """Go on from a prompt (B, P) piece by piece, yielding the text so far, (B, P + n), after each piece.

    The first piece fills the context behind the prompt, or behind its last `kept` tokens if it has no room there; each
    further one is conditioned on the last `kept` tokens alone. Steps are those of a piece.

    Args:
        gen_length: tokens to write, as many as you like.
        context: tokens that the model sees at once.
        kept: tokens that a piece has from the text before it; half of the context if None.

    Raises:
        ValueError: so many kept tokens leave no room to write.
    """
    check_shape(prompt)
    kept = context // 2 if kept is None else kept
    if not 0 <= kept < context:
        raise ValueError(f"kept must be from 0 to {context - 1}, below the context of {context}, not {kept}")
    text, end = prompt, prompt.shape[1] + gen_length
    while text.shape[1] < end:
        first = 0 if text.shape[1] < context else text.shape[1] - kept
        seen = text[:, first:]
        n_now = min(context - seen.shape[1], end - text.shape[1])
        piece = generate(predict, seen, n_now, mask_id, config, generator).x_t
        text = torch.cat((text, piece[:, seen.shape[1] :]), dim=1)
        yield text
