"""The last layer where it is asked only, and nowhere else: the numbers of the whole network at these positions."""

import pytest
import torch
from torch import Generator

from llada.models import MaskPredictor, NetworkConfig
from llada.models.asked import asked_at
from tests.support.configurations import ODD_CAUSAL, ODD_ENCODER, ODD_LOCAL
from tests.support.networks import LLADAS, random_network

MASK_ID = 126_336
NETWORKS = {**LLADAS, "encoder": ODD_ENCODER, "causal": ODD_CAUSAL, "local": ODD_LOCAL}


def test_places_are_the_asked_ones_in_order_and_then_others_up_to_equally_many() -> None:
    positions = torch.zeros(2, 9, dtype=torch.bool)
    positions[0, 7] = positions[1, 2] = positions[1, 5] = True
    asked = asked_at(positions)
    assert asked is not None
    assert asked.places.tolist() == [[7, 0, 1, 2], [2, 5, 0, 1]]
    assert asked.flat.tolist() == [0, 4, 5]
    ids = torch.arange(18).view(2, 9)
    assert asked.of(ids).tolist() == [[7, 0, 1, 2], [11, 14, 9, 10]]
    assert asked.only(asked.of(ids)).tolist() == ids[positions].tolist()


def test_where_nearly_all_is_asked_all_is_computed() -> None:
    positions = torch.zeros(2, 8, dtype=torch.bool)
    positions[1, :5] = True  # rounded up to 8
    assert asked_at(positions) is None


@pytest.mark.parametrize("has_padding", [False, True], ids=["whole rows", "padding"])
@pytest.mark.parametrize("config", NETWORKS.values(), ids=NETWORKS.keys())
@torch.no_grad()
def test_logits_where_asked_are_those_of_the_whole_network(config: NetworkConfig, has_padding: bool) -> None:
    network = random_network(config)
    predict = MaskPredictor(network, MASK_ID, mask_row=config.mask_token_id).eval()
    generator = Generator().manual_seed(0)
    length = min(16, config.max_sequence_length)
    x_t = torch.randint(0, config.vocab_size - 1, (3, length), generator=generator)
    positions = torch.rand(3, length, generator=generator) < 0.25
    x_t[positions] = MASK_ID
    attention_mask = None
    if has_padding:
        attention_mask = torch.ones(3, length)
        attention_mask[1, length - 3 :] = attention_mask[2, :2] = 0
    assert asked_at(positions) is not None  # else equality would say nothing
    everywhere = predict(x_t, attention_mask)[positions]
    asked = predict(x_t, attention_mask, positions)
    assert (asked - everywhere).norm() <= 1e-6 * everywhere.norm()


@pytest.mark.parametrize("config", NETWORKS.values(), ids=NETWORKS.keys())
def test_with_gradients_all_of_the_last_layer_is_computed(config: NetworkConfig) -> None:
    """So that a step of training is the same, to the bit, for positions of either form."""
    predict = MaskPredictor(random_network(config), MASK_ID, mask_row=config.mask_token_id).eval()
    x_t = torch.arange(8)[None] % (config.vocab_size - 1)
    positions = torch.zeros(1, 8, dtype=torch.bool)
    positions[0, 3] = True
    everywhere = predict.features(x_t)[positions]
    assert torch.equal(predict.features(x_t, positions=positions), everywhere)
    assert torch.equal(predict.features(x_t, positions=torch.tensor([3])), everywhere)
