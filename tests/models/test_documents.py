"""Several documents in one sequence: each is computed as it would be alone, by naive forwards where there are some.

Shape letters: B batch, L length, V vocabulary rows.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from llada.models import Encoder, Local, MaskPredictor, Network, NetworkConfig, checkpoint_activations
from llada.models.asked import asked_at
from llada.models.block_cache import BlockCachedPredictor
from llada.models.documents import attends, bias_of, key_mask, numbers_of, one_document
from llada.models.llada import key_bias
from llada.models.local_cache import CachedPredictor
from tests.support.configurations import ODD_CAUSAL, ODD_ENCODER, ODD_ILLADA, ODD_LLADA, ODD_LOCAL, ODD_MOE
from tests.support.networks import LLADAS, assert_near, naive_encoder, naive_logits, random_network

NETWORKS = {
    **LLADAS, "illada": ODD_ILLADA, "moe": ODD_MOE, "encoder": ODD_ENCODER, "causal": ODD_CAUSAL, "local": ODD_LOCAL,
}  # fmt: skip
every_network = pytest.mark.parametrize("config", NETWORKS.values(), ids=NETWORKS.keys())
NUMBERS = torch.tensor([[1] * 3 + [2] + [3] * 8 + [4] * 4, [1] * 9 + [2] * 4 + [0] * 3], dtype=torch.int32)
"""Documents of 1 to 9 tokens, one of them with padding behind it."""


def rows_of(config: NetworkConfig) -> Tensor:
    return torch.randint(0, config.vocab_size - 1, NUMBERS.shape, generator=torch.Generator().manual_seed(5))


def each_document(numbers: Tensor = NUMBERS) -> Iterator[tuple[int, slice]]:
    """The row and the columns of every document."""
    for row, of_row in enumerate(numbers):
        for number in of_row[of_row > 0].unique():
            places = (of_row == number).nonzero()[:, 0].tolist()
            yield row, slice(places[0], places[-1] + 1)


def alone(network: Network, row: Tensor, start: int) -> Tensor:
    """The logits (L, V) of one document (L,) by a naive forward where there is one, at positions from `start`.

    Rotary positions are relative, so that only learned ones depend on it.
    """
    weights = dict[str, Tensor](network.named_parameters())
    if isinstance(network, Encoder):
        weights["position_embedding.weight"] = weights["position_embedding.weight"][start:]
        return naive_encoder(weights, network.config, row)
    return (naive_logits(network, row[None]) if network.config in LLADAS.values() else network(row[None]))[0]


# --- what the numbers mean


def test_a_token_attends_to_its_own_document_and_padding_to_all_tokens() -> None:
    numbers = torch.tensor([[1, 1, 2, 0]])
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 1, 0]]
    assert key_mask(numbers)[0, 0].int().tolist() == expected
    assert attends(numbers[0, :, None], numbers[0, None]).int().tolist() == expected
    bias = key_bias(numbers, torch.bfloat16)
    assert bias.dtype == torch.bfloat16
    assert bias.isfinite().all()
    assert (bias == 0).int()[0, 0].tolist() == expected


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_other_masks_hide_padding_from_all_queries_alike(dtype: torch.dtype) -> None:
    mask = torch.tensor([[1, 0, 1], [0, 0, 0]]).to(dtype)
    assert numbers_of(mask) is None
    lowest = torch.finfo(torch.float32).min
    assert key_bias(mask).tolist() == [[[[0, lowest, 0]]], [[[lowest] * 3]]]
    assert torch.equal(bias_of(key_mask(mask)), key_bias(mask))


@every_network
@torch.no_grad()
def test_numbers_0_and_1_are_a_mask_of_padding(config: NetworkConfig) -> None:
    network, rows = random_network(config), rows_of(config)
    numbers = (torch.arange(16) < torch.tensor([[16], [11]])).int()
    is_text = numbers.bool()
    assert_near(network(rows, numbers)[is_text], network(rows, is_text)[is_text])


# --- what networks compute from them


@every_network
@torch.no_grad()
def test_a_document_in_a_window_has_the_logits_of_the_document_alone(config: NetworkConfig) -> None:
    network, rows = random_network(config), rows_of(config)
    together, across = network(rows, NUMBERS), network(rows)
    for row, columns in each_document():
        assert_near(together[row, columns], alone(network, rows[row, columns], columns.start), 2e-5)
    assert (together - across)[NUMBERS > 0].abs().max() > 0.01  # else equality would say nothing


@every_network
def test_neither_values_nor_gradients_cross_from_one_document_to_another(config: NetworkConfig) -> None:
    """To the bit: the tokens of other documents may be any, and have a gradient of 0. Only a matmul of experts rounds
    by how many tokens they have, of all documents."""
    network, rows = random_network(config), rows_of(config)
    before = network(rows, NUMBERS)
    for row, columns in each_document():
        others = rows.clone()
        others[row] = (others[row] + 1) % (config.vocab_size - 1)
        others[row, columns] = rows[row, columns]
        tolerance = 2e-6 if config == ODD_MOE else 0.0
        torch.testing.assert_close(
            network(others, NUMBERS)[row, columns], before[row, columns], rtol=tolerance, atol=tolerance
        )
    (embedding,) = (
        part for name, part in network.named_modules() if name.endswith(("wte", "token_embedding", "tokens"))
    )
    found: list[Tensor] = []
    handle = embedding.register_forward_hook(lambda *given: found.append(given[2]))
    logits = network(rows, NUMBERS)[0, 4:12]
    handle.remove()
    (gradient,) = torch.autograd.grad(logits.square().sum(), found)
    own = gradient[0, 4:12].abs().sum(-1)
    assert (own[: 7 if config == ODD_CAUSAL else 8] > 0).all()  # the last token is input to nothing in a causal network
    gradient[0, 4:12] = 0
    assert not gradient.any()


@every_network
@torch.no_grad()
def test_logits_where_asked_are_those_of_the_whole_network(config: NetworkConfig) -> None:
    network, x_t = random_network(config), rows_of(config)
    predict = MaskPredictor(network, 126_336, mask_row=config.mask_token_id).eval()
    positions = torch.zeros(NUMBERS.shape, dtype=torch.bool)
    positions[0, [2, 5, 15]] = positions[1, [0, 10]] = True
    x_t[positions] = 126_336
    assert asked_at(positions) is not None
    everywhere, asked = predict(x_t, NUMBERS)[positions], predict(x_t, NUMBERS, positions)
    assert (asked - everywhere).norm() <= 1e-6 * everywhere.norm()


@every_network
def test_gradients_under_bf16_and_of_layers_computed_twice(config: NetworkConfig) -> None:
    network, rows = random_network(config).train(), rows_of(config)
    dropless = config if config != ODD_ENCODER else None  # with dropout, no two runs are alike

    def gradients(bf16: bool = False) -> list[Tensor]:
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = network(rows, NUMBERS)[NUMBERS > 0].float().logsumexp(-1).sum()
        return list(torch.autograd.grad(loss, list(network.parameters())))

    exact, rounded = gradients(), gradients(bf16=True)
    assert all(gradient.isfinite().all() for gradient in rounded)
    if dropless is not None:
        scale = max(float(gradient.norm()) for gradient in exact)
        for ours, theirs in zip(rounded, exact, strict=True):
            assert (ours - theirs).norm() < 0.1 * theirs.norm() + 0.02 * scale
    checkpoint_activations(network)
    for ours, theirs in zip(gradients(), exact, strict=True):
        torch.testing.assert_close(ours, theirs)


@torch.no_grad()
def test_long_sequences_of_a_local_network_go_another_way_to_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    network, rows = random_network(ODD_LOCAL), rows_of(ODD_LOCAL)
    by_matmuls = network(rows, NUMBERS)
    monkeypatch.setattr("llada.models.local.LONGEST_SCORES", 8)
    assert_near(network(rows, NUMBERS), by_matmuls)


# --- caches


def test_caches_are_for_rows_of_one_document_each() -> None:
    assert one_document(None) is None
    padding = torch.tensor([[1, 1, 0], [0, 1, 1]])
    for mask in (padding, padding.bool(), padding.float()):
        found = one_document(mask)
        assert found is not None
        assert torch.equal(found, padding.bool())
    x_t, positions = torch.full((1, 128), 126_336), torch.ones(1, 128, dtype=torch.bool)
    numbers = torch.arange(128)[None] // 64 + 1
    for config in (ODD_LOCAL, ODD_LLADA):
        config = type(config)(**{**vars(config), "max_sequence_length": 128})
        network = random_network(config)
        model = MaskPredictor(network, 126_336, mask_row=config.mask_token_id).eval()
        cached = CachedPredictor(model) if isinstance(network, Local) else BlockCachedPredictor(model, "prefix", 8)
        with pytest.raises(ValueError, match="one document each"):
            cached(x_t, attention_mask=numbers, positions=positions)
