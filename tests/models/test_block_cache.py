"""The prefix and dual cache: exact where theory says so, and elsewhere the numbers of a naive twin."""

from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor

from llada.models import LLaDAConfig, MaskPredictor, RotaryNetwork
from llada.models.block_cache import BlockCachedPredictor, CacheName, CacheOptions
from llada.models.llada import key_bias
from llada.sampling.config import SamplerConfig
from llada.sampling.guidance import suppress
from llada.sampling.policies import PolicyName
from llada.sampling.unmask import infill
from tests.support.configurations import ODD_ENCODER, ODD_ILLADA, ODD_MOE
from tests.support.networks import LLADAS, assert_near, random_network

MASK_ID, LENGTH, BLOCK = 126_336, 16, 4
NETWORKS: dict[str, LLaDAConfig] = {**LLADAS, "illada": ODD_ILLADA, "experts": ODD_MOE}
CACHES: tuple[CacheName, ...] = ("prefix", "dual")
every_network = pytest.mark.parametrize("config", NETWORKS.values(), ids=NETWORKS.keys())
every_cache = pytest.mark.parametrize("cache", CACHES)
padded_or_not = pytest.mark.parametrize("has_padding", [False, True], ids=["whole rows", "padding"])


def predictor(config: LLaDAConfig) -> MaskPredictor:
    return MaskPredictor(random_network(config), MASK_ID, config.mask_token_id).eval()


def canvas(config: LLaDAConfig, n_rows: int = 3, start: int = 5) -> Tensor:
    """Random tokens before `start`, MASK from there on."""
    ids = torch.randint(0, 5, (n_rows, LENGTH), generator=Generator().manual_seed(1))
    ids[:, start:] = MASK_ID
    return ids


def padding(n_rows: int = 3) -> Tensor:
    """Padding on the left of one row, and on the right of another."""
    mask = torch.ones(n_rows, LENGTH, dtype=torch.bool)
    mask[0, :2] = mask[-1, LENGTH - 3 :] = False
    return mask


def window(x_t: Tensor, start: int, end: int) -> Tensor:
    """The open positions from `start` to before `end`."""
    place = torch.arange(LENGTH)
    return (x_t == MASK_ID) & (place >= start) & (place < end)


def filled(x_t: Tensor, positions: Tensor, token: int = 1) -> Tensor:
    """The canvas with the first of each row's positions filled in."""
    first = positions & (positions.cumsum(1) == 1)
    return torch.where(first, token, x_t)


@every_network
@every_cache
@padded_or_not
@torch.no_grad()
def test_refreshed_at_every_step_it_is_the_model_itself(
    config: LLaDAConfig, cache: CacheName, has_padding: bool
) -> None:
    model, x_t, mask = predictor(config), canvas(config), padding() if has_padding else None
    cached = BlockCachedPredictor(model, cache, BLOCK, refresh=1)
    for step in range(8):
        positions = window(x_t, 5, 9) if step < 4 else window(x_t, 9, 13)
        plain = model(x_t, mask, positions)
        assert torch.equal(cached(x_t, attention_mask=mask, positions=positions), plain)
        x_t = filled(x_t, positions)


@every_network
@every_cache
@padded_or_not
@torch.no_grad()
def test_with_a_single_layer_it_is_exact(config: LLaDAConfig, cache: CacheName, has_padding: bool) -> None:
    """There, a key depends on its own token only: positions, grouped heads and padding must all be right."""
    config = replace(config, n_layers=1)
    model, x_t, mask = predictor(config), canvas(config), padding() if has_padding else None
    cached = BlockCachedPredictor(model, cache, BLOCK)
    for step in range(8):
        positions = window(x_t, 5, 9) if step < 4 else window(x_t, 9, 13)
        assert_near(cached(x_t, attention_mask=mask, positions=positions), model(x_t, mask, positions))
        x_t = filled(x_t, positions)


def naive_twin(model: MaskPredictor, old: Tensor, new: Tensor, is_fed: Tensor, mask: Tensor | None) -> Tensor:
    """Logits (B, L, V) of a new canvas whose other positions hold, in each layer, what they held for the old one.

    Nothing is left out: every layer runs on all positions, on fresh inputs where `is_fed`, and old ones elsewhere.
    """
    network = model.network
    assert isinstance(network, RotaryNetwork)
    bias = None if mask is None else key_bias(mask)
    x_old, x_new = (network.embedding(model.rows(ids)) for ids in (old, new))
    rotary = network.rotary(x_old)
    for layer in network.layers:
        mixed = torch.where(is_fed[..., None], x_new, x_old)
        x_old, x_new = layer(x_old, rotary, bias), layer(mixed, rotary, bias)
    return network.head(network.final_norm(x_new))


@every_network
@every_cache
@padded_or_not
@torch.no_grad()
def test_what_stands_outside_of_the_block_is_as_it_was(
    config: LLaDAConfig, cache: CacheName, has_padding: bool
) -> None:
    model, old, mask = predictor(config), canvas(config), padding() if has_padding else None
    cached = BlockCachedPredictor(model, cache, BLOCK)
    place = torch.arange(LENGTH).expand_as(old)
    is_fed = (place >= 5) & ((place < 9) | (cache == "prefix"))
    cached(old, attention_mask=mask, positions=window(old, 5, 9))
    new = old
    for _ in range(3):
        new = filled(new, window(new, 5, 9))
        positions = window(new, 5, 9)
        twin = naive_twin(model, old, new, is_fed, mask)[positions]
        assert_near(cached(new, attention_mask=mask, positions=positions), twin)
        assert (model(new, mask, positions) - twin).abs().max() > 1e-3  # else the test would say nothing


def counting(model: MaskPredictor) -> list[int]:
    """Collect how many positions each pass sends through the first layer."""
    counts: list[int] = []
    first = model.network.layers[0]
    first.register_forward_pre_hook(lambda module, inputs: counts.append(inputs[0].shape[:2].numel()))
    return counts


@pytest.mark.parametrize(
    ("cache", "refresh", "expected"),
    [
        ("dual", None, [16, 4, 4, 4, 16, 4, 4, 4]),
        ("prefix", None, [16, 11, 11, 11, 16, 7, 7, 7]),
        ("dual", 2, [16, 4, 16, 4, 16, 4, 16, 4]),
        ("dual", 3, [16, 4, 4, 16, 16, 4, 4, 16]),
    ],
)
def test_positions_that_go_through_the_layers(cache: CacheName, refresh: int | None, expected: list[int]) -> None:
    model = predictor(LLADAS["plain"])
    x_t, counts = canvas(LLADAS["plain"], n_rows=1), counting(model)
    cached = BlockCachedPredictor(model, cache, BLOCK, refresh)
    for step in range(8):
        positions = window(x_t, 5, 9) if step < 4 else window(x_t, 9, 13)
        cached(x_t, positions=positions)
        x_t = filled(x_t, positions)
    assert counts == expected


@every_cache
@torch.no_grad()
def test_whatever_is_not_kept_is_computed_anew(cache: CacheName) -> None:
    """Another token before the block, one that is masked again, other padding, another length, another block."""
    config = LLADAS["plain"]
    model, x_t = predictor(config), canvas(config, n_rows=2)
    cached = BlockCachedPredictor(model, cache, BLOCK)
    cached(x_t, positions=window(x_t, 5, 9))
    x_t = filled(x_t, window(x_t, 5, 9))
    cached(x_t, positions=window(x_t, 5, 9))
    other = torch.where(torch.arange(LENGTH) == 2, 7, x_t)
    again = torch.where(torch.arange(LENGTH) == 5, MASK_ID, x_t)
    calls = [(other, None), (again, None), (x_t, padding(2)), (x_t[:, :12], None)]
    for ids, mask in calls:
        positions = window(ids, 5, 9) if ids.shape[1] == LENGTH else ids == MASK_ID
        cached(x_t, positions=window(x_t, 5, 9))
        assert torch.equal(cached(ids, attention_mask=mask, positions=positions), model(ids, mask, positions))
    beyond = window(x_t, 9, 13)
    assert torch.equal(cached(x_t, positions=beyond), model(x_t, positions=beyond))


@every_cache
@torch.no_grad()
def test_rows_are_what_they_are_alone(cache: CacheName) -> None:
    """In different blocks, with padding, refreshed at different times, and when a row leaves the batch."""
    config, mask = LLADAS["two key-value heads"], padding()
    model, x_t = predictor(config), canvas(config)
    together = BlockCachedPredictor(model, cache, BLOCK, refresh=3)
    alone = [BlockCachedPredictor(model, cache, BLOCK, refresh=3) for _ in range(3)]
    starts, left = [5, 5, 5], [0, 1, 2]
    for step in range(7):
        if step == 2:
            starts[1] = 9
        if step == 4:
            left = [1, 2]
        rows = x_t[left]
        positions = torch.cat([window(x_t[row : row + 1], starts[row], starts[row] + 4) for row in left])
        logits = together(rows, attention_mask=mask[left], positions=positions)
        single = [
            alone[row](x_t[row : row + 1], attention_mask=mask[row : row + 1], positions=positions[i : i + 1])
            for i, row in enumerate(left)
        ]
        assert_near(logits, torch.cat(single))
        x_t[left] = filled(rows, positions, token=step % 5)


@torch.no_grad()
def test_two_batches_that_take_turns_are_both_kept() -> None:
    """As guidance has it, which asks for the canvas with the given tokens and without them."""
    model = predictor(LLADAS["plain"])
    x_t, counts = canvas(LLADAS["plain"], n_rows=1), counting(model)
    cached, given = BlockCachedPredictor(model, "dual", BLOCK), x_t != MASK_ID
    for _ in range(3):
        positions = window(x_t, 5, 9)
        cached(x_t, positions=positions)
        cached(x_t.masked_fill(given, MASK_ID), positions=positions)
        x_t = filled(x_t, positions)
    assert counts == [16, 16, 4, 4, 4, 4]


@pytest.mark.parametrize("policy", ["random", "confidence", "entropy_bound"])
def test_sampled_text_with_a_refresh_at_every_step_is_that_of_the_model(policy: str) -> None:
    model, template = predictor(LLADAS["plain"]), canvas(LLADAS["plain"], n_rows=2)
    config = SamplerConfig(steps=None, temperature=1.0, policy=policy, block_length=BLOCK)  # type: ignore[arg-type]
    plain = infill(model, template, MASK_ID, config, Generator().manual_seed(3)).x_t
    for cache in CACHES:
        cached = BlockCachedPredictor(model, cache, BLOCK, refresh=1)
        assert torch.equal(infill(cached, template, MASK_ID, config, Generator().manual_seed(3)).x_t, plain)


@pytest.mark.parametrize("policy", ["random", "confidence", "left_to_right"])
def test_all_positions_are_computed_once_a_block_in_whatever_order_it_is_filled(policy: PolicyName) -> None:
    config = next(iter(NETWORKS.values()))
    cached, fed = BlockCachedPredictor(predictor(config), "dual", BLOCK), list[int]()
    counted = cached.network.layers[0].register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0].shape[1]))
    predict, sampler = suppress(cached, [config.mask_token_id]), SamplerConfig(block_length=BLOCK, policy=policy)
    infill(predict, canvas(config, 1, start=4), MASK_ID, sampler, Generator().manual_seed(0))
    counted.remove()
    assert fed == [LENGTH, BLOCK, BLOCK, BLOCK] * 3


def test_what_cannot_be_cached_is_refused() -> None:
    encoder = MaskPredictor(random_network(ODD_ENCODER), MASK_ID, ODD_ENCODER.mask_token_id)
    with pytest.raises(ValueError, match="LLaDA family"):
        BlockCachedPredictor(encoder, "dual", BLOCK)
    with pytest.raises(ValueError, match="block_length must be at least 1"):
        BlockCachedPredictor(predictor(LLADAS["plain"]), "dual", 0)
    with pytest.raises(ValueError, match="cache_refresh must be at least 1, not 0"):
        CacheOptions("dual", 0)
    with pytest.raises(ValueError, match="cache must be one of prefix, dual"):
        CacheOptions("all")  # type: ignore[arg-type]
