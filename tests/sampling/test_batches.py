"""Shape letters: B batch, L length, V vocabulary rows."""

from collections.abc import Iterator

import pytest
import torch
from torch import Generator

from llada.models import MaskPredictor, NetworkConfig, build_network
from llada.models.predictor import PredictAt
from llada.sampling.batches import padded, unmask_together
from llada.sampling.config import SamplerConfig
from llada.sampling.guidance import suppress
from llada.sampling.policies import POLICIES, PolicyName
from llada.sampling.unmask import infill
from tests.support.configurations import ODD_ENCODER, ODD_LLADA, ODD_LOCAL
from tests.support.toys import MASK, padding_predictor, table_predictor

PAD = 0  # a token that texts have, too: only the attention mask says that it is padding
TEMPLATES = [
    [1, 2, MASK, MASK, MASK, MASK, MASK, MASK],
    [MASK, MASK, MASK],
    [0, MASK, 1, MASK, 2, MASK],
    [2, 1, 0, MASK, MASK, MASK, MASK],
    [1, 0, 2],
]


by_rows = padding_predictor(seed=0)


def filled_together(
    predict: PredictAt, templates: list[list[int]], config: SamplerConfig, mask_id: int = MASK
) -> list[list[int]]:
    states = list(unmask_together(predict, templates, mask_id, PAD, config, range(3, 3 + len(templates))))
    return states[-1][0]


def filled_alone(
    predict: PredictAt, templates: list[list[int]], config: SamplerConfig, mask_id: int = MASK
) -> Iterator[list[int]]:
    for seed, template in enumerate(templates, start=3):
        generator = Generator().manual_seed(seed)
        yield infill(predict, torch.tensor([template]), mask_id, config, generator).x_t[0].tolist()


def test_padding_is_hidden_and_on_the_right() -> None:
    ids, attention_mask = padded([[1, 2, 3], [4], []], pad_id=7)
    assert ids.tolist() == [[1, 2, 3], [4, 7, 7], [7, 7, 7]]
    assert attention_mask is not None
    assert attention_mask.tolist() == [[True, True, True], [True, False, False], [False, False, False]]
    assert padded([[1, 2], [3, 4]], pad_id=7)[1] is None


@pytest.mark.parametrize("policy", [None, *POLICIES])
@pytest.mark.parametrize(
    "options",
    [
        {"steps": None},
        {"steps": 3, "block_length": 2, "mask_schedule": "cosine"},
        {"steps": 4, "cfg_scale": 0.7, "top_k": 2},
        {"steps": 5, "block_length": 4, "temperature": 0.0},
        {"steps": None, "repetition_penalty": 1.2, "stable_entropy": 0.9},
    ],
    ids=str,
)
def test_together_is_alone_to_the_bit(policy: PolicyName | None, options: dict[str, object]) -> None:
    config = SamplerConfig(**{"temperature": 1.0, "policy": policy, **options})  # type: ignore[arg-type]
    assert filled_together(by_rows, TEMPLATES, config) == list(filled_alone(by_rows, TEMPLATES, config))


@pytest.mark.parametrize("config", [ODD_LLADA, ODD_ENCODER, ODD_LOCAL], ids=["llada", "encoder", "local"])
@pytest.mark.parametrize("policy", ["random", "entropy_bound", None])
def test_networks_write_together_what_they_write_alone(config: NetworkConfig, policy: PolicyName | None) -> None:
    """Learned positions included. Logits differ by rounding, which moves none of these draws across a border."""
    torch.manual_seed(2)
    mask_id = config.mask_token_id
    model = MaskPredictor(build_network(config), mask_id, mask_id).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    # A text of masks alone looks the same at all positions to rotary attention: rounding would choose between them.
    given = [template if set(template) != {MASK} else [*template, 1] for template in TEMPLATES]
    templates = [[mask_id if token == MASK else token + 1 for token in template] for template in given]
    x_t, attention_mask = padded(templates, PAD)
    with torch.no_grad():
        logits = model(x_t, attention_mask)
        for row, template in enumerate(templates):
            alone = model(torch.tensor([template]))[0]
            assert torch.allclose(logits[row, : len(template)], alone, atol=1e-4)
    predict = suppress(model, [mask_id, PAD])
    how = SamplerConfig(steps=None, temperature=1.0, policy=policy, entropy_bound=0.5)
    together = filled_together(predict, templates, how, mask_id)
    assert together == list(filled_alone(predict, templates, how, mask_id))


def test_each_template_has_a_seed_of_its_own() -> None:
    config = SamplerConfig(steps=None, temperature=1.0, policy="random")
    with pytest.raises(ValueError, match="2 seeds do not go with 1 templates"):
        list(unmask_together(by_rows, [[MASK]], MASK, PAD, config, [1, 2]))


def test_a_predictor_that_knows_no_padding_says_so() -> None:
    with pytest.raises(ValueError, match="knows no padding"):
        list(unmask_together(table_predictor(2, 2), [[MASK, 1], [MASK]], MASK, PAD, SamplerConfig(), [1, 2]))
