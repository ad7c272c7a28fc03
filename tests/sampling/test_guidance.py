"""Shape letters: B batch, L length, V vocabulary rows."""

import pytest
import torch
from torch import Generator, Tensor

from llada.sampling.config import SamplerConfig
from llada.sampling.guidance import TokensAt, constrain, guide, penalized, suppress
from llada.sampling.unmask import infill
from llada.system.errors import UserError
from tests.support.toys import MASK, table_predictor, uniform


def test_guidance_extrapolates_from_the_canvas_without_given_tokens() -> None:
    predict = table_predictor(length=3, seed=8)
    x_t = torch.tensor([[1, MASK, 0]])
    conditional, unconditional = predict(x_t), predict(torch.tensor([[MASK, MASK, MASK]]))
    guided = guide(predict, x_t != MASK, MASK, cfg_scale=1.5)(x_t)
    assert torch.allclose(guided, unconditional + 2.5 * (conditional - unconditional))


def test_guidance_doubles_the_evaluations_and_keeps_suppressed_tokens_suppressed() -> None:
    predict = suppress(table_predictor(length=4, seed=9), [0])
    canvas = infill(predict, torch.tensor([[1, MASK, MASK, 2]]), MASK, SamplerConfig(steps=2, cfg_scale=2.0))
    assert canvas.nfe == 4
    assert 0 not in canvas.x_t.tolist()[0]


def test_suppressed_tokens_are_never_produced() -> None:
    template = torch.full((50, 5), MASK)
    config = SamplerConfig(steps=5, temperature=5.0, remasking="random")
    canvas = infill(suppress(uniform, [0, 2]), template, MASK, config, Generator().manual_seed(10))
    assert (canvas.x_t == 1).all()


def test_a_penalty_is_a_power_of_the_probabilities_of_tokens_that_are_there() -> None:
    """Per row; neither MASK nor padding counts, and a constant added to the logits changes nothing."""
    p = torch.tensor([0.5, 0.3, 0.2])
    x_t = torch.tensor([[1, MASK, MASK], [2, 0, MASK], [1, MASK, 0]])
    attention_mask = torch.tensor([[True] * 3, [True] * 3, [True, True, False]])

    positions = x_t == MASK
    logits = (p.log() + 5.0).expand(int(positions.sum()), 3)
    powers = penalized(logits, x_t, positions, MASK, 2.0, attention_mask).exp()
    assert torch.allclose(
        powers, torch.tensor([[0.5, 0.09, 0.2], [0.5, 0.09, 0.2], [0.25, 0.3, 0.04], [0.5, 0.09, 0.2]])
    )


def test_a_strong_penalty_repeats_nothing() -> None:
    config = SamplerConfig(steps=None, temperature=1.0, policy="random", repetition_penalty=1e6)
    canvas = infill(suppress(uniform, []), torch.full((20, 3), MASK), MASK, config, Generator().manual_seed(1))
    assert [sorted(row) for row in canvas.x_t.tolist()] == [[0, 1, 2]] * 20


def test_required_tokens_stand_where_they_are_required_and_banned_ones_nowhere_near() -> None:
    template = torch.full((200, 4), MASK)
    predict = constrain(uniform, template, MASK, banned={0: [1], 3: [0, 2]}, required={1: [2], 2: [0, 1]})
    config = SamplerConfig(steps=2, temperature=1.0, remasking="random")
    x_0 = infill(predict, template, MASK, config, Generator().manual_seed(3)).x_t
    assert [sorted(set(column)) for column in x_0.T.tolist()] == [[0, 2], [2], [0, 1], [1]]


def test_constraints_leave_the_other_probabilities_in_proportion() -> None:
    x_t = torch.tensor([[MASK, MASK, 1]])
    free = table_predictor(length=3, seed=1)
    logits = constrain(free, x_t, MASK, banned={1: [0]})(x_t)
    assert torch.equal(logits[0, 0], free(x_t)[0, 0])
    assert torch.equal(logits[0, 1, 1:], free(x_t)[0, 1, 1:])
    assert logits[0, 1, 0] == -torch.inf


@pytest.mark.parametrize(
    ("constraints", "said"),
    [
        ({"required": {2: [0]}}, "has the token 1 at position 2, where another is required: put MASK there"),
        ({"required": {3: [0]}}, "Position 3 is not among the 3 of the template"),
        ({"banned": {-1: [0]}}, "Position -1 is not among"),
        ({"required": {0: [0, 1]}, "banned": {0: [1, 0]}}, "All tokens required at position 0 are banned there"),
        ({"required": {0: []}}, "All tokens required at position 0 are banned there"),
        ({"required": {0: [3]}}, "asked for are 3 to 3, and those of this model 0 to 2: use the vocabulary"),
    ],
)
def test_constraints_that_cannot_be_met_are_one_sentence(constraints: dict[str, TokensAt], said: str) -> None:
    x_t = torch.tensor([[MASK, MASK, 1]])
    with pytest.raises(UserError, match=said):
        constrain(uniform, x_t, MASK, **constraints)(x_t)
    assert constrain(uniform, x_t, MASK, required={2: [1]})(x_t).shape == (1, 3, 3)


def test_suppression_writes_into_logits_only_where_they_are_given_away() -> None:
    class Kept:
        """A predictor that needs its logits again, unless it says otherwise."""

        takes_positions, gives_new_logits = True, False

        def __init__(self) -> None:
            self.logits = torch.zeros(2, 3)

        def __call__(self, x_t: Tensor, *, attention_mask: Tensor | None = None, positions: Tensor) -> Tensor:
            return self.logits

    kept, positions = Kept(), torch.ones(1, 2, dtype=torch.bool)
    x_t = torch.full((1, 2), MASK)
    found = suppress(kept, [1])(x_t, positions=positions)
    assert found.isneginf().tolist() == [[False, True, False]] * 2
    assert torch.equal(kept.logits, torch.zeros(2, 3))
    kept.gives_new_logits = True
    assert suppress(kept, [1])(x_t, positions=positions) is kept.logits
    kept.logits = torch.zeros(2, 3, requires_grad=True)
    assert suppress(kept, [1])(x_t, positions=positions) is not kept.logits
