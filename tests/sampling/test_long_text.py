"""Shape letters: B batch, L length, V vocabulary rows."""

import pytest
import torch
from torch import Generator, Tensor

from llada.sampling.config import SamplerConfig
from llada.sampling.long_text import generate_by_sliding
from llada.sampling.unmask import generate
from tests.support.toys import MASK, table_predictor

SAMPLED = SamplerConfig(steps=None, temperature=1.0, policy="random")


def counting(x_t: Tensor) -> Tensor:
    """The next of 0, 1, 2, 0, ... after the nearest token on the left; 0 where there is none."""
    logits = torch.zeros(*x_t.shape, 3)
    for b, row in enumerate(x_t.tolist()):
        for i in range(len(row)):
            before = [(j, token) for j, token in enumerate(row[:i]) if token != MASK]
            token = (before[-1][1] + i - before[-1][0]) % 3 if before else 0
            logits[b, i, token] = 50.0
    return logits


@pytest.mark.parametrize("kept", [1, 3, None])
def test_a_long_text_goes_on_where_its_last_piece_ended(kept: int | None) -> None:
    prompt = torch.tensor([[1], [2]])
    texts = list(generate_by_sliding(counting, prompt, 12, MASK, SamplerConfig(steps=None), context=4, kept=kept))
    assert texts[-1].tolist() == [[(1 + i) % 3 for i in range(13)], [(2 + i) % 3 for i in range(13)]]
    per_piece = 4 - (2 if kept is None else kept)
    assert [text.shape[1] for text in texts] == [*range(4, 13, per_piece), 13][: len(texts)]


def test_what_fits_the_context_is_one_piece() -> None:
    prompt, predict = torch.tensor([[1, 2]]), table_predictor(length=6, seed=2)
    texts = list(generate_by_sliding(predict, prompt, 4, MASK, SAMPLED, Generator().manual_seed(1), context=6))
    assert [text.tolist() for text in texts] == [
        generate(predict, prompt, 4, MASK, SAMPLED, Generator().manual_seed(1)).x_t.tolist()
    ]


def test_a_prompt_longer_than_the_context_is_seen_by_its_end() -> None:
    seen: list[list[int]] = []

    def predict(x_t: Tensor) -> Tensor:
        seen.append(x_t[0].tolist())
        return counting(x_t)

    prompt = torch.tensor([[0, 0, 0, 0, 0, 1, 2]])
    *_, text = generate_by_sliding(predict, prompt, 2, MASK, SamplerConfig(steps=1), context=4, kept=2)
    assert seen == [[1, 2, MASK, MASK]]
    assert text.tolist() == [[0, 0, 0, 0, 0, 1, 2, 0, 1]]


@pytest.mark.parametrize("kept", [-1, 4])
def test_a_piece_needs_room(kept: int) -> None:
    with pytest.raises(ValueError, match="kept must be from 0 to 3, below the context of 4"):
        list(generate_by_sliding(counting, torch.tensor([[1]]), 9, MASK, SAMPLED, context=4, kept=kept))
