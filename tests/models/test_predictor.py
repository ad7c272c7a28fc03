"""The mask predictor: MASK on its row of a compact table, which learns as one with a row for every id."""

from dataclasses import replace

import pytest
import torch
from torch import Generator

from llada.forward_process import mask_bernoulli
from llada.models import MaskPredictor, NetworkConfig
from llada.objective import loss_weights, masked_nll, weighted_loss
from tests.support.configurations import ODD_ENCODER, ODD_LLADA
from tests.support.networks import assert_near, both_networks, random_network

MASK_ID = 126_336  # LLaDA's, far above the rows of the networks here


@both_networks
@torch.no_grad()
def test_mask_predictor_puts_the_mask_id_on_the_mask_row(config: NetworkConfig) -> None:
    network = random_network(config)
    x_t = torch.tensor([[3, MASK_ID, 0, 9, MASK_ID], [MASK_ID, 1, 2, 4, 5]])
    rows = torch.tensor([[3, 10, 0, 9, 10], [10, 1, 2, 4, 5]])
    attention_mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    predict = MaskPredictor(network, MASK_ID, mask_row=10)
    given = x_t.clone()
    assert torch.equal(predict(x_t), network(rows))
    assert torch.equal(predict(x_t, attention_mask), network(rows, attention_mask))
    assert torch.equal(x_t, given)


@both_networks
@torch.no_grad()
def test_logits_at_positions_are_the_rows_of_all_logits(config: NetworkConfig) -> None:
    predict = MaskPredictor(random_network(config), MASK_ID, mask_row=10)
    x_t = torch.tensor([[3, MASK_ID, 0, 9, MASK_ID], [MASK_ID, 1, 2, 4, 5]])
    positions = x_t == MASK_ID
    assert_near(predict(x_t, positions=positions), predict(x_t)[positions])
    assert predict(x_t, positions=torch.zeros_like(positions)).shape == (0, config.vocab_size)


@pytest.mark.parametrize("unknown", [11, MASK_ID - 1, MASK_ID + 1, -1])
@both_networks
def test_id_without_a_row_raises(config: NetworkConfig, unknown: int) -> None:
    predict = MaskPredictor(random_network(config), MASK_ID, mask_row=10)
    with pytest.raises(IndexError):
        predict(torch.tensor([[1, unknown]]))


TWIN = replace(ODD_LLADA, d_model=8, n_heads=2, n_layers=1)


@pytest.mark.parametrize(
    "config",
    [TWIN, replace(TWIN, weight_tying=True), replace(ODD_ENCODER, d_model=8, n_heads=2, n_layers=1, dropout=0.0)],
    ids=["llada", "tied llada", "encoder"],
)
def test_compact_table_is_the_dense_one_in_loss_and_gradients(config: NetworkConfig) -> None:
    """The dense twin has a row for every id up to MASK's; the ids that do not exist cannot be predicted."""
    n_ids, n_dense = config.vocab_size - 1, MASK_ID + 1
    dense_rows = torch.tensor([*range(n_ids), MASK_ID])  # of the compact rows, in order
    compact = random_network(config)
    dense = random_network(replace(config, vocab_size=n_dense, mask_token_id=MASK_ID))
    for ours, twin in zip(compact.parameters(), dense.parameters(), strict=True):
        twin.data[dense_rows if len(twin) == n_dense else slice(None)] = ours.data

    generator = Generator().manual_seed(4)
    x_0 = torch.randint(0, n_ids, (4, 12), generator=generator)
    noisy = mask_bernoulli(x_0, MASK_ID, generator)
    exists = torch.zeros(n_dense, dtype=torch.bool).index_fill(0, dense_rows, True)
    logits = MaskPredictor(compact, MASK_ID, mask_row=n_ids)(noisy.x_t)
    dense_logits = dense(noisy.x_t).masked_fill(~exists, -torch.inf)
    assert_near(logits, dense_logits[..., dense_rows])

    nll, dense_nll = masked_nll(logits, x_0, noisy), masked_nll(dense_logits, x_0, noisy)
    assert_near(nll, dense_nll)
    loss = weighted_loss(nll, noisy.at_masked(loss_weights(noisy)))
    dense_loss = weighted_loss(dense_nll, noisy.at_masked(loss_weights(noisy)))
    assert_near(loss, dense_loss)
    assert loss > 0.1

    loss.backward()
    dense_loss.backward()
    for ours, twin in zip(compact.parameters(), dense.parameters(), strict=True):
        assert ours.grad is not None
        assert twin.grad is not None
        assert ours.grad.abs().max() > 1e-3  # else equality would say nothing
        if len(twin) == n_dense:
            assert_near(ours.grad, twin.grad[dense_rows])
            assert not twin.grad[~exists].any()
        else:
            assert_near(ours.grad, twin.grad)
