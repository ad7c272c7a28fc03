"""The cache of the local network: the numbers of the network without it, whatever changes from call to call."""

from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor

from llada.models import LocalConfig, MaskPredictor, build_network
from llada.models.local import Local
from llada.models.local_cache import CachedPredictor, _rows_are_independent, with_cache
from llada.sampling.config import SamplerConfig
from llada.sampling.unmask import infill
from tests.models.test_local import trained_network
from tests.support.configurations import ODD_LLADA, ODD_LOCAL
from tests.support.networks import random_network

MASK_ID = 126_336
CONFIG = replace(
    ODD_LOCAL, n_layers=3, attention_every=3, d_model=24, n_heads=2, mlp_hidden_size=40, conv_width=3,
    max_sequence_length=128,
)  # fmt: skip


def predictor(config: LocalConfig = CONFIG) -> MaskPredictor:
    return MaskPredictor(trained_network(config), MASK_ID, config.mask_token_id).eval()


def assert_equal(cached: Tensor, plain: Tensor) -> None:
    """To the bit, on a machine whose matmuls allow it; else to rounding."""
    if _rows_are_independent(CONFIG.d_model, CONFIG.mlp_hidden_size, torch.get_num_threads()):
        assert torch.equal(cached, plain)
    else:
        assert (cached - plain).norm() <= 1e-6 * plain.norm()


def some(n_rows: int, length: int, share: float, generator: Generator) -> Tensor:
    return torch.rand(n_rows, length, generator=generator) < share


@pytest.mark.parametrize(("n_rows", "length"), [(1, 60), (3, 33), (1, 5)])
@torch.no_grad()
def test_cache_equals_no_cache_while_a_text_is_written_and_rewritten(n_rows: int, length: int) -> None:
    model, generator = predictor(), Generator().manual_seed(0)
    cached = CachedPredictor(model)
    ids = torch.randint(0, CONFIG.vocab_size - 1, (n_rows, length), generator=generator)
    x_t = torch.where(some(n_rows, length, 0.7, generator), MASK_ID, ids)
    attention_mask = None
    for step in range(12):
        if step == 7:
            attention_mask = torch.ones(n_rows, length)
        if step == 9 and attention_mask is not None:
            attention_mask = attention_mask.clone()
            attention_mask[-1, length // 2 :] = 0
        positions = some(n_rows, length, (0.1, 1.0)[step % 2], generator)
        plain = model(x_t, attention_mask, positions)
        assert_equal(cached(x_t, attention_mask=attention_mask, positions=positions), plain)
        others = torch.randint(0, CONFIG.vocab_size - 1, (n_rows, length), generator=generator)
        x_t = torch.where(some(n_rows, length, 0.05, generator), others, x_t)  # given tokens among them
        x_t = torch.where(some(n_rows, length, 0.02, generator), MASK_ID, x_t)


@torch.no_grad()
def test_a_changed_token_reaches_all_that_it_does_without_a_cache() -> None:
    """One at a time, the edges among them: the reach of a layer is not one place too short."""
    model = predictor()
    cached, everywhere = CachedPredictor(model), torch.ones(1, 40, dtype=torch.bool)
    x_t = torch.full((1, 40), MASK_ID)
    cached(x_t, positions=everywhere)
    for place in (0, 1, 20, 38, 39):
        x_t = x_t.clone()
        x_t[0, place] = 3
        assert_equal(cached(x_t, positions=everywhere), model(x_t, positions=everywhere))


@torch.no_grad()
def test_positions_far_from_a_changed_token_are_not_computed_again() -> None:
    """A pair of neighbours reaches 2 places, and each of the two layers below the last one more to either side."""
    model, counts = predictor(), list[int]()
    cached, everywhere = CachedPredictor(model), torch.ones(1, 60, dtype=torch.bool)
    x_t = torch.full((1, 60), MASK_ID)
    cached(x_t, positions=everywhere)
    network = model.network
    assert isinstance(network, Local)
    for layer in network.layers[:-1]:
        layer.up_proj.register_forward_pre_hook(lambda module, inputs: counts.append(len(inputs[0])))  # type: ignore
    x_t[0, 30] = 3  # in place: what is kept is a copy
    cached(x_t, positions=everywhere)
    assert counts == [8, 12]  # 7 and 9 places, in multiples of 4


def test_sampled_text_is_that_of_the_model_itself() -> None:
    model, template = predictor(), torch.full((2, 48), MASK_ID)
    for policy in ("random", "entropy_bound"):
        config = SamplerConfig(steps=None, temperature=1.0, policy=policy)
        texts = [
            infill(each, template, MASK_ID, config, Generator().manual_seed(3)).x_t
            for each in (model, CachedPredictor(model))
        ]
        assert torch.equal(*texts)


def test_cache_is_for_networks_whose_last_layer_alone_attends() -> None:
    attends_twice = replace(CONFIG, n_layers=6)
    for network in (build_network(attends_twice), random_network(ODD_LLADA), build_network(CONFIG).bfloat16()):
        model = MaskPredictor(network, MASK_ID, network.config.mask_token_id).eval()
        assert with_cache(model) is model
