"""Dropout by row: what is dropped of a row depends on its key and the place alone, with torch's own probabilities.

Shape letters: B batch, H heads, L length, C channels of a head, N numbers in the last dimension.
"""

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llada.data.order import words_at
from llada.models import Encoder, EncoderConfig, checkpoint_activations
from llada.models.dropout import Dropout, attend, attend_row_by_row, random_words, rows_of, share_rows

KEYS = torch.tensor([3, -(2**62), 2**63 - 1, 0, -1])
CONFIG = EncoderConfig(
    vocab_size=9, mask_token_id=8, max_sequence_length=12, d_model=10, n_heads=2, n_layers=2, dropout=0.3
)


def dropout(p: float, place: int = 0) -> Dropout:
    layer = Dropout(p)
    layer.place = place
    return layer


def encoder(config: EncoderConfig = CONFIG) -> Encoder:
    torch.manual_seed(0)
    return Encoder(config).train()


def computed(network: nn.Module, function: Callable[[], Tensor], keys: Tensor) -> Tensor:
    rows = rows_of(network)
    assert rows is not None
    with rows.known_by(keys, keys.tolist()):
        return function()


def test_words_are_those_of_the_order_of_the_data() -> None:
    """Which computes them in numpy, one index after the other."""
    found = random_words(KEYS, 6, (3, 5)).numpy().view(np.uint64)
    of_place = words_at(KEYS.numpy().view(np.uint64), np.array([6]))
    of_first = words_at(of_place[:, None], np.arange(3))
    assert (found == words_at(of_first[..., None], np.arange(5))).all()


@pytest.mark.parametrize("p", [1e-3, 0.1, 0.5, 0.97])
def test_so_many_are_kept_in_each_lane_and_the_expectation_is_exact(p: float) -> None:
    layer, n = dropout(p), 100_000
    kept = layer.kept(KEYS, (5, n))
    assert kept.shape == (5, n)
    for part in (*kept, *(kept[:, lane::4].flatten() for lane in range(4))):
        assert float(part.double().mean()) == pytest.approx(1 - p, abs=5 * math.sqrt(p * (1 - p) / len(part)))
    assert layer.scale == pytest.approx(1 / (1 - p), rel=1e-3)
    assert float(Dropout(0.25).scale) == 4 / 3


def test_masks_of_rows_places_and_neighbours_are_unrelated() -> None:
    n = 100_000
    masks = [dropout(0.5, place).kept(KEYS, (5, n)).double() - 0.5 for place in (0, 1)]
    flat = torch.cat([*masks, masks[0].roll(1, dims=1)[:1], masks[0].roll(4, dims=1)[:1]])  # (12, N)
    correlation = 4 * flat @ flat.T / n - torch.eye(len(flat))
    assert float(correlation.abs().max()) < 5 / math.sqrt(n)


@pytest.mark.parametrize("shape", [(7,), (6, 7), (3, 6, 7)])
def test_a_mask_depends_neither_on_other_rows_nor_on_the_length(shape: tuple[int, ...]) -> None:
    layer = dropout(0.4, 5)
    whole = layer.kept(KEYS, (5, *(size + 3 for size in shape)))
    some = torch.tensor([4, 1])
    assert torch.equal(layer.kept(KEYS[some], (2, *shape)), whole[some][:, *(slice(size) for size in shape)])


def test_numbers_are_dropped_or_scaled_and_so_are_their_gradients() -> None:
    layer, x = dropout(0.25), torch.randn(5, 4, 6, requires_grad=True)
    with layer.rows.known_by(KEYS, KEYS.tolist()):
        result = layer(x)
    factors = layer.kept(KEYS, x.shape).float() * 4 / 3
    assert torch.equal(result, x * factors)
    result.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, factors)
    assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_without_keys_and_in_evaluation_it_is_torchs_own() -> None:
    layer, x = dropout(0.25), torch.randn(5, 4, 6)
    q, k, v = torch.randn(3, 5, 2, 4, 6)
    for own, torchs in (
        (lambda: layer(x), lambda: F.dropout(x, 0.25)),
        (lambda: attend(q, k, v, None, layer), lambda: F.scaled_dot_product_attention(q, k, v, dropout_p=0.25)),
    ):
        torch.manual_seed(1)
        found = own()
        torch.manual_seed(1)
        assert torch.equal(found, torchs())
    layer.eval()
    with layer.rows.known_by(KEYS, KEYS.tolist()):
        assert torch.equal(layer(x), x)
        assert torch.equal(attend(q, k, v, None, layer), F.scaled_dot_product_attention(q, k, v))


def test_attention_drops_its_weights() -> None:
    """As written down in one line; a weight that is dropped leaves the others as they are."""
    layer, (q, k, v) = dropout(0.25, 3), torch.randn(3, 5, 2, 4, 6)
    mask = torch.ones(4, 4, dtype=torch.bool).tril()[None, None]
    with layer.rows.known_by(KEYS, KEYS.tolist()):
        found = attend(q, k, v, mask, layer)
    weights = ((q @ k.transpose(2, 3)) / math.sqrt(6)).masked_fill(~mask, -math.inf).softmax(-1)
    expected = (weights * layer.kept(KEYS, weights.shape) / 0.75) @ v
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["weights", "fused"])
def test_attention_with_dropout_is_on_average_that_without(kind: str) -> None:
    attention, n = (attend, 4000) if kind == "weights" else (attend_row_by_row, 500)
    layer, (q, k, v) = dropout(0.2), torch.randn(3, 1, 2, 4, 6).expand(3, n, 2, 4, 6)
    keys = random_words(torch.tensor([0]), 0, (len(q),))[0]
    with layer.rows.known_by(keys, keys.tolist()):
        mean = attention(q, k, v, None, layer).mean(0)
    assert torch.allclose(mean, F.scaled_dot_product_attention(q[0], k[0], v[0]), atol=3 / math.sqrt(n))


def test_fused_attention_is_given_a_seed_for_each_row() -> None:
    layer, (q, k, v) = dropout(0.25, 3), torch.randn(3, 5, 2, 4, 6)
    padding = torch.rand(5, 1, 1, 4) > 0.2
    padding[..., 0] = True
    with layer.rows.known_by(KEYS, KEYS.tolist()):
        whole = attend_row_by_row(q, k, v, padding, layer)
    some = torch.tensor([4, 1])
    with layer.rows.known_by(KEYS[some], KEYS[some].tolist()):
        assert torch.equal(attend_row_by_row(q[some], k[some], v[some], padding[some], layer), whole[some])


def test_compiled_code_leaves_attention_row_by_row_alone() -> None:
    """Which sets a seed for each row."""
    layer, (q, k, v) = dropout(0.25), torch.randn(3, 5, 2, 4, 6)

    def double(q: Tensor) -> Tensor:
        return layer.attend_row_by_row(q + q, k, v, None, layer) * 2

    with layer.rows.known_by(KEYS, KEYS.tolist()):
        with pytest.raises(RuntimeError, match=r"torch\.compiler\.disable"):
            torch.compile(double, backend="eager", fullgraph=True)(q)
        found = torch.compile(double, backend="eager")(q)
        assert torch.equal(found, 2 * attend_row_by_row(2 * q, k, v, None, layer))


@pytest.mark.parametrize("is_causal", [False, True])
def test_rows_of_a_network_are_computed_alike_alone_and_together_and_again(is_causal: bool) -> None:
    """Its result and its gradients, also with activation checkpointing, also next to longer rows."""
    network = encoder(EncoderConfig(**{**vars(CONFIG), "is_causal": is_causal}))
    twin = copy.deepcopy(network)
    checkpoint_activations(twin)
    ids = torch.randint(0, 8, (5, 12))
    attention_mask = torch.ones(5, 12)
    attention_mask[3:, 9:] = 0

    def backward(of: Encoder, rows: slice, length: int) -> Tensor:
        features = of.features(ids[rows, :length], attention_mask[rows, :length])
        (features * attention_mask[rows, :length, None]).square().sum().backward()
        return features

    whole = computed(network, lambda: backward(network, slice(5), 12), KEYS)
    first = computed(twin, lambda: backward(twin, slice(3), 12), KEYS[:3])
    second = computed(twin, lambda: backward(twin, slice(3, 5), 9), KEYS[3:])
    assert torch.allclose(first, whole[:3], atol=1e-5)
    assert torch.allclose(second, whole[3:, :9], atol=1e-5)
    for parameter, other in zip(network.layers.parameters(), twin.layers.parameters(), strict=True):
        assert parameter.grad is not None
        assert other.grad is not None
        assert torch.allclose(parameter.grad, other.grad, atol=1e-4)


def test_layers_of_a_network_know_the_same_rows_and_drop_differently() -> None:
    network = encoder()
    layers = [module for module in network.modules() if isinstance(module, Dropout)]
    assert [layer.place for layer in layers] == list(range(1 + 3 * CONFIG.n_layers))
    assert {id(layer.rows) for layer in layers} == {id(rows_of(network))}
    assert rows_of(encoder(EncoderConfig(**{**vars(CONFIG), "dropout": 0.0}))) is None
    wrapped = nn.Sequential(network, Dropout(0.1))
    share_rows(wrapped)
    assert [layer.place for layer in layers] == list(range(len(layers)))
    assert rows_of(wrapped) is layers[0].rows


def test_another_number_of_rows_is_refused() -> None:
    network = encoder()
    ids = torch.randint(0, 8, (4, 12))
    with pytest.raises(ValueError, match="knows 5 rows, and 4 go through"):
        computed(network, lambda: network.features(ids), KEYS)
