"""Shape letters: W windows, L length, V vocabulary rows."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from toys import MASK, N_TOKENS, enumerated_nelbo, table_predictor

from llada.errors import UserError
from llada.evaluation.nelbo import cut_windows, estimate_nelbo, nll_by_logits

TABLE = table_predictor(length=4, seed=3)


TABLE_AT = nll_by_logits(lambda x_t, is_masked: TABLE(x_t)[is_masked])


def windows(n: int) -> Tensor:
    return torch.randint(0, N_TOKENS, (n, 4), generator=torch.Generator().manual_seed(0))


def test_uniform_predictor_gives_log_v_without_error() -> None:
    result = estimate_nelbo(
        nll_by_logits(lambda x_t, m: torch.zeros(int(m.sum()), N_TOKENS)), windows(33), MASK, masks_per_window=4
    )
    assert result.nelbo_nats_per_token == pytest.approx(math.log(N_TOKENS), abs=1e-6)
    assert result.nelbo_stderr == pytest.approx(0, abs=1e-6)
    assert result.bits_per_token == pytest.approx(math.log2(N_TOKENS), abs=1e-6)
    assert (result.windows, result.masks_per_window, result.sequence_length, result.tokens_scored) == (33, 4, 4, 132)


def test_unigram_predictor_gives_the_unigram_cross_entropy() -> None:
    log_p = torch.tensor([0.5, 0.3, 0.2]).log()
    text = windows(50)
    expected = -float(log_p[text].mean())
    result = estimate_nelbo(
        nll_by_logits(lambda x_t, m: log_p.expand(int(m.sum()), 3)), text, MASK, masks_per_window=400
    )
    assert result.nelbo_nats_per_token == pytest.approx(expected, abs=0.005)


def test_estimate_agrees_with_enumeration() -> None:
    text = windows(20)
    expected = sum(enumerated_nelbo(TABLE, row) for row in text) / 20
    estimates = [
        estimate_nelbo(TABLE_AT, text, MASK, masks_per_window=10, seed=seed).nelbo_nats_per_token for seed in range(60)
    ]
    stderr = float(np.std(estimates, ddof=1)) / len(estimates) ** 0.5
    assert abs(float(np.mean(estimates)) - expected) < 4 * stderr
    assert stderr < 0.01


def test_standard_error_is_the_spread_over_windows() -> None:
    """Fresh texts from one source: the stated error must match how far the estimates scatter."""
    estimates, stated = [], []
    for seed in range(80):
        text = torch.randint(0, N_TOKENS, (40, 4), generator=torch.Generator().manual_seed(1000 + seed))
        result = estimate_nelbo(TABLE_AT, text, MASK, masks_per_window=2, seed=seed)
        estimates.append(result.nelbo_nats_per_token)
        stated.append(result.nelbo_stderr)
    scatter = float(np.std(estimates, ddof=1))
    # The scatter itself is known to 8 %; stratified counts make the stated error a little too large, never too small.
    assert 0.75 * scatter < float(np.mean(stated)) < 1.6 * scatter


def test_result_does_not_depend_on_the_batch_size() -> None:
    first, second = (estimate_nelbo(TABLE_AT, windows(23), MASK, batch_size=size) for size in (1, 17))
    assert first.nelbo_nats_per_token == pytest.approx(second.nelbo_nats_per_token, rel=1e-9)
    assert first.nelbo_stderr == pytest.approx(second.nelbo_stderr, rel=1e-9)


def test_progress_ends_at_the_result() -> None:
    seen: list[tuple[float, float]] = []
    result = estimate_nelbo(
        TABLE_AT, windows(8), MASK, masks_per_window=4, batch_size=5, on_progress=lambda *state: seen.append(state)
    )
    assert seen[-1] == (1.0, pytest.approx(result.nelbo_nats_per_token))
    assert [share for share, _ in seen] == sorted(share for share, _ in seen)


def test_broken_model_is_named() -> None:
    with pytest.raises(UserError, match="not finite numbers"):
        estimate_nelbo(nll_by_logits(lambda x_t, m: torch.full((int(m.sum()), N_TOKENS), math.nan)), windows(4), MASK)


def test_odd_number_of_masks_is_refused() -> None:
    with pytest.raises(ValueError, match="even number of them, not 3"):
        estimate_nelbo(TABLE_AT, windows(4), MASK, masks_per_window=3)


def test_one_window_has_no_error() -> None:
    result = estimate_nelbo(TABLE_AT, windows(1), MASK)
    assert result.nelbo_stderr is None
    assert result.to_json()["nelbo_stderr"] is None
    assert result.with_error(2) == f"{result.nelbo_nats_per_token:.2f} (one window, no error)"


def test_empty_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        estimate_nelbo(TABLE_AT, windows(4), MASK, batch_size=0)


def test_windows_do_not_overlap_and_leave_out_the_rest() -> None:
    tokens = np.arange(11, dtype=np.uint8)
    assert cut_windows(tokens, 3).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert cut_windows(tokens, 3, at_most=2).tolist() == [[0, 1, 2], [6, 7, 8]]
    assert cut_windows(tokens, 11).tolist() == [list(range(11))]
    with pytest.raises(UserError, match="11 tokens is shorter than a window of 12"):
        cut_windows(tokens, 12)
