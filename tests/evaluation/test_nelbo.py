"""Shape letters: W windows, L length, V vocabulary rows."""

import itertools
import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llada.data.batches import TokenBatch
from llada.data.corpus import Corpus
from llada.data.prepared import prepare
from llada.evaluation.distributed import Shard
from llada.evaluation.nelbo import (
    BoundOptions,
    Nelbo,
    TokenNll,
    draw_bounds,
    estimate_nelbo,
    nll_by_logits,
    nll_by_model,
)
from llada.evaluation.windows import TextSize, cut_windows, scored_places, scored_windows
from llada.forward_process import NoisyBatch, mask_bernoulli
from llada.models import LLaDAConfig, MaskPredictor, build_network
from llada.objective import sequence_bounds
from llada.sampling.guidance import at_positions
from llada.system.device import choose_precision
from llada.system.errors import UserError
from tests.support.configurations import ODD_LLADA
from tests.support.networks import random_network
from tests.support.sentences import assert_one_sentence
from tests.support.toys import MASK, N_TOKENS, enumerated_nelbo, table_predictor

TABLE = table_predictor(length=4, seed=3)


TABLE_NLL = nll_by_logits(at_positions(TABLE), MASK)


def measure(nll: TokenNll, text: Tensor, **options: Any) -> Nelbo:
    return estimate_nelbo(nll, TokenBatch(text), BoundOptions(**options))


def same_everywhere(logits: Tensor) -> TokenNll:
    """Of a model that gives each position the same logits (V,), whatever is there."""
    return nll_by_logits(at_positions(lambda x_t: logits.expand(*x_t.shape, -1)), MASK)


def windows(n: int) -> Tensor:
    return torch.randint(0, N_TOKENS, (n, 4), generator=torch.Generator().manual_seed(0))


def test_uniform_predictor_gives_log_v_without_error() -> None:
    result = measure(same_everywhere(torch.zeros(N_TOKENS)), windows(33), masks_per_window=4)
    assert result.nelbo_nats_per_token == pytest.approx(math.log(N_TOKENS), abs=1e-6)
    assert result.nelbo_stderr == pytest.approx(0, abs=1e-6)
    assert result.bits_per_token == pytest.approx(math.log2(N_TOKENS), abs=1e-6)
    assert (result.windows, result.masks_per_window, result.sequence_length, result.tokens_scored) == (33, 4, 4, 132)


def test_unigram_predictor_gives_the_unigram_cross_entropy() -> None:
    log_p = torch.tensor([0.5, 0.3, 0.2]).log()
    text = windows(50)
    expected = -float(log_p[text].mean())
    result = measure(same_everywhere(log_p), text, masks_per_window=400)
    assert result.nelbo_nats_per_token == pytest.approx(expected, abs=0.005)


def test_estimate_agrees_with_enumeration() -> None:
    text = windows(20)
    expected = sum(enumerated_nelbo(TABLE, row) for row in text) / 20
    estimates = [measure(TABLE_NLL, text, masks_per_window=10, seed=seed).nelbo_nats_per_token for seed in range(60)]
    stderr = float(np.std(estimates, ddof=1)) / len(estimates) ** 0.5
    assert abs(float(np.mean(estimates)) - expected) < 4 * stderr
    assert stderr < 0.01


def coverage(estimates: list[tuple[float, float | None]], truth: float) -> float:
    """Share of the intervals of 95 % that hold the truth."""
    return float(np.mean([abs(mean - truth) < 1.96 * (error or 0.0) for mean, error in estimates]))


def test_95_percent_of_intervals_over_texts_hold_the_bound_of_all_texts() -> None:
    truth = float(np.mean([enumerated_nelbo(TABLE, torch.tensor(row)) for row in product(range(N_TOKENS), repeat=4)]))
    estimates: list[tuple[float, float | None]] = []
    for seed in range(600):
        text = torch.randint(0, N_TOKENS, (60, 4), generator=torch.Generator().manual_seed(1000 + seed))
        result = measure(TABLE_NLL, text, masks_per_window=4, batch_size=1000, seed=seed)
        estimates.append((result.nelbo_nats_per_token, result.nelbo_stderr))
    assert 0.93 <= coverage(estimates, truth) <= 0.97


def test_95_percent_of_intervals_over_masks_hold_the_bound_of_this_text() -> None:
    """Of a model whose bound rises steeply with the count: an error that left the counts in would always hold it."""

    def steep(x_t: Tensor) -> Tensor:
        return 0.3 * TABLE(x_t) + 0.8 * (x_t == MASK).sum(1).double()[:, None, None] * torch.tensor([1.0, 0.0, -1.0])

    text = windows(60)
    truth = float(np.mean([enumerated_nelbo(steep, row) for row in text]))
    steep_nll = nll_by_logits(at_positions(steep), MASK)
    estimates: list[tuple[float, float | None]] = []
    for seed in range(1200):
        result = measure(steep_nll, text, masks_per_window=6, batch_size=1000, seed=seed)
        estimates.append((result.nelbo_nats_per_token, result.mask_stderr))
    assert 0.93 <= coverage(estimates, truth) <= 0.97


def official_estimate(text: Tensor, masks_per_window: int, generator: torch.Generator) -> float:
    """As LLaDA's forward process has it: t ~ U(0, 1) for each mask by itself, tokens masked independently."""
    rows = text.repeat(masks_per_window, 1)
    noisy = mask_bernoulli(rows, MASK, generator)
    bounds = sequence_bounds(TABLE_NLL.at_masked(noisy, TokenBatch(rows)), noisy)
    return float(bounds.double().mean())


def test_variance_is_a_fifth_of_the_independent_estimator_at_most() -> None:
    text = windows(40)
    ours = [measure(TABLE_NLL, text, masks_per_window=4, seed=seed).nelbo_nats_per_token for seed in range(150)]
    generator = torch.Generator().manual_seed(0)
    independent = [official_estimate(text, 4, generator) for _ in range(150)]
    assert np.mean(ours) == pytest.approx(np.mean(independent), abs=0.06)
    assert np.var(ours) < np.var(independent) / 5


def test_masks_are_drawn_until_the_error_is_as_small_as_wished() -> None:
    few = measure(TABLE_NLL, windows(30), masks_per_window=4)
    assert few.mask_stderr is not None
    assert few.mask_stderr > 0.01
    enough = measure(TABLE_NLL, windows(30), masks_per_window=4, target_stderr=0.01)
    assert enough.mask_stderr is not None
    assert enough.mask_stderr <= 0.01
    # Variance goes with 1 / M, so no more masks were drawn than that asks for, but for what the first few mislead.
    assert enough.masks_per_window < 2 * few.masks_per_window * (few.mask_stderr / 0.01) ** 2
    same = measure(TABLE_NLL, windows(30), masks_per_window=enough.masks_per_window)
    assert same.nelbo_nats_per_token == enough.nelbo_nats_per_token


def test_an_unreachable_target_ends_at_the_most_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llada.evaluation.nelbo.MOST_MASKS", 64)
    result = measure(TABLE_NLL, windows(5), target_stderr=1e-9)
    assert result.masks_per_window == 64
    assert result.mask_stderr is not None
    assert result.mask_stderr > 1e-9


def test_a_target_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="target_stderr above 0"):
        measure(TABLE_NLL, windows(4), target_stderr=0.0)


@pytest.mark.parametrize("processes", [2, 5])
def test_shards_of_several_processes_make_up_the_whole(processes: int) -> None:
    """What each process would add to the sum, added up here."""

    class Spy(Shard):
        def sum(self, values: Tensor) -> Tensor:
            parts.append(values.clone())
            return values

    parts: list[Tensor] = []
    for rank in range(processes):
        options = BoundOptions(masks_per_window=2, batch_size=3, shard=Spy(rank, processes))
        draw_bounds(TABLE_NLL, TokenBatch(windows(23)), options)
    whole = draw_bounds(TABLE_NLL, TokenBatch(windows(23)), BoundOptions(masks_per_window=2))
    assert torch.stack(parts).sum(0).mean() == pytest.approx(float(whole.values.mean()), rel=1e-9)
    assert all(int((part != 0).sum()) <= -(-46 // processes) for part in parts)


@pytest.mark.parametrize("n_windows", [1, 2, 11])
def test_in_step_all_processes_compute_equally_many_rows_and_count_each_once(n_windows: int) -> None:
    class Spy(Shard):
        def sum(self, values: Tensor) -> Tensor:
            parts.append(values.clone())
            return values

    def counting(noisy: NoisyBatch, batch: TokenBatch) -> Tensor:
        computed.append(len(batch.x_0))
        return TABLE_NLL.at_masked(noisy, batch)

    parts: list[Tensor] = []
    all_computed = []
    for rank in range(4):
        computed: list[int] = []
        options = BoundOptions(masks_per_window=2, batch_size=3, shard=Spy(rank, 4, in_step=True))
        draw_bounds(replace(TABLE_NLL, at_masked=counting), TokenBatch(windows(n_windows)), options)
        all_computed.append(computed)
    assert all_computed == [all_computed[0]] * 4
    assert sum(all_computed[0]) == -(-2 * n_windows // 4)
    whole = draw_bounds(TABLE_NLL, TokenBatch(windows(n_windows)), BoundOptions(masks_per_window=2))
    assert torch.stack(parts).sum(0).mean() == pytest.approx(float(whole.values.mean()), rel=1e-9)


def test_a_process_has_the_gpu_of_its_number_on_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert Shard(3, 8).device(torch.device("cuda")) == torch.device("cuda", 1)
    assert Shard(3, 8).device(torch.device("cpu")) == torch.device("cpu")
    assert Shard().device(torch.device("cuda", 2)) == torch.device("cuda", 2)


def test_table_by_t_has_the_mean_of_each_count_and_the_bound_as_its_mean() -> None:
    """With 4 tokens, counts 1 to 4 fall into four of the ten bins, each the mean cross-entropy at that count."""
    result = measure(TABLE_NLL, windows(40), masks_per_window=100)
    rows = {row.t_to: row for row in result.by_t if row.draws}
    assert sorted(rows) == [0.3, 0.5, 0.8, 1.0]
    nats = [row.nats for row in rows.values() if row.nats is not None]
    assert float(np.mean(nats)) == pytest.approx(result.nelbo_nats_per_token, abs=0.01)
    fully_masked = -TABLE(torch.full((40, 4), MASK)).log_softmax(-1).gather(-1, windows(40)[..., None]).mean(1)
    assert rows[1.0].nats == pytest.approx(float(fully_masked.mean()), abs=0.02)


def test_perfect_predictor_has_a_bound_of_nothing() -> None:
    text = torch.arange(4).remainder(N_TOKENS).expand(10, 4)
    certain = torch.full((4, N_TOKENS), -50.0).scatter(1, text[0][:, None], 50.0)
    result = measure(nll_by_logits(at_positions(lambda x_t: certain.expand(len(x_t), 4, N_TOKENS)), MASK), text)
    assert result.nelbo_nats_per_token == pytest.approx(0, abs=1e-9)


def test_causal_model_is_scored_in_one_pass_without_masks() -> None:
    """A bigram model: the mean of -log p(next | before), with the first token from a distribution of its own."""
    first = torch.tensor([0.5, 0.3, 0.2]).log()
    bigram = torch.tensor([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.3, 0.3, 0.4]]).log()
    calls = []

    def predict(x_t: Tensor) -> Tensor:
        calls.append(len(x_t))
        return torch.cat((first.expand(len(x_t), 1, 3), bigram[x_t[:, :-1]]), dim=1)

    text = windows(10)
    result = measure(nll_by_logits(at_positions(predict), MASK, is_causal=True), text, target_stderr=1e-9)
    by_hand = [
        -(float(first[row[0]]) + sum(float(bigram[a, b]) for a, b in itertools.pairwise(row))) / 4
        for row in text.tolist()
    ]
    assert result.nelbo_nats_per_token == pytest.approx(np.mean(by_hand), rel=1e-6)
    assert result.nelbo_stderr == pytest.approx(np.std(by_hand, ddof=1) / 10**0.5, rel=1e-6)
    assert (result.is_exact, result.mask_stderr, result.masks_per_window, sum(calls)) == (True, 0.0, 1, 10)


def test_given_tokens_are_read_and_not_scored() -> None:
    tokens = np.arange(11, dtype=np.uint8)
    text = cut_windows(tokens, 4, given=1)
    assert text.tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    places = scored_places(text, 1, eos_id=99)
    assert places is not None
    assert text[places].tolist() == list(range(1, 10))
    assert scored_places(text, 0, eos_id=99) is None
    with pytest.raises(UserError, match="4 cannot be given: choose a `prefix` below 4"):
        cut_windows(tokens, 4, given=4)


def test_the_end_of_a_document_is_read_and_not_scored(tmp_path: Path) -> None:
    """By hand, of "h" EOS "ij", the last tenth of five documents: log 2 for "h" and "i", log 8 for "j", and no EOS."""
    corpus = Corpus("\n\n".join((*["abcdefgh"] * 4, "ij")), "file", "made up", (8, 18, 28, 38))
    data = prepare(corpus, tmp_path / "data", 5)
    tokens, eos_id = data.tokens("val"), data.tokenizer.eos_id
    h, i, j = data.tokenizer.encode("hij")
    assert tokens.tolist() == [h, eos_id, i, j]
    windows, places = scored_windows(tokens, len(tokens), eos_id)
    assert places is not None
    assert places.tolist() == [[True, False, True, True]]
    asked: list[int] = []

    def nll_at(noisy: NoisyBatch, batch: TokenBatch) -> Tensor:
        targets = batch.x_0[noisy.is_masked]
        asked.extend(targets.tolist())
        return torch.where(targets == j, math.log(8), math.log(2))

    batch = TokenBatch(windows, places)
    result = estimate_nelbo(TokenNll(nll_at, MASK, is_causal=True), batch, BoundOptions(masks_per_window=2))
    assert (sorted(asked), result.tokens_scored) == ([h, i, j], 3)
    assert result.nelbo_nats_per_token == pytest.approx((2 * math.log(2) + math.log(8)) / 3)
    estimate_nelbo(TokenNll(nll_at, MASK), batch, BoundOptions(masks_per_window=64))
    assert eos_id not in asked


def test_the_bound_of_packed_documents_is_the_sum_of_the_bounds_of_each() -> None:
    """Over every mask of the window on one side, and every mask of each document, alone, on the other."""
    config = replace(ODD_LLADA, vocab_size=MASK + 1, mask_token_id=MASK)
    network, end_id = random_network(config), 2
    window = torch.tensor([0, 1, end_id, 1, end_id, 0, 1])
    documents = [window[:3], window[3:5], window[5:]]
    batch = TokenBatch(window[None]).within_documents(end_id)
    with torch.no_grad():
        expected = sum(len(document) * enumerated_nelbo(network, document) for document in documents) / len(window)
        together = enumerated_nelbo(lambda x_t: network(x_t, batch.attention_mask), window)
        across = enumerated_nelbo(network, window)
    assert together == pytest.approx(expected, abs=1e-6)
    assert abs(across - expected) > 0.01
    nll = nll_by_model(MaskPredictor(network, MASK, MASK), choose_precision("fp32", torch.device("cpu")))
    result = estimate_nelbo(nll, batch, BoundOptions(masks_per_window=400, batch_size=200))
    assert result.within_documents
    assert result.mask_stderr is not None
    assert abs(result.nelbo_nats_per_token - expected) < 4 * result.mask_stderr < 0.2


def test_a_window_of_nothing_but_an_end_is_left_out() -> None:
    tokens = np.array([3, 4, 2, 5, 6], dtype=np.uint8)
    windows, places = scored_windows(tokens, 1, eos_id=2)
    assert windows.tolist() == [[3], [4], [5], [6]]
    assert places is not None
    assert bool(places.all())
    windows, places = scored_windows(tokens, 2, eos_id=9)
    assert (windows.tolist(), places) == ([[3, 4], [2, 5]], None)
    with pytest.raises(UserError, match="nothing to score but the ends of documents") as caught:
        scored_windows(np.array([2], dtype=np.uint8), 1, eos_id=2)
    assert_one_sentence(caught.value)


def test_bits_a_byte_and_a_word_are_of_the_same_text() -> None:
    result = measure(same_everywhere(torch.zeros(4)), windows(25))
    size = TextSize.of("né à" * 25)  # 100 characters, 4 bytes of 6 a piece, 26 words
    assert (size.characters, size.bytes, size.words) == (100, 150, 26)
    bits = result.bits_per(size)
    assert bits["bits_per_character"] == pytest.approx(2.0)
    assert bits["bits_per_byte"] == pytest.approx(200 / 150)
    assert bits["bits_per_word"] == pytest.approx(200 / 26)


def test_texts_apart_share_no_word_at_their_edges() -> None:
    apart = TextSize.sum([TextSize.of("ä b"), TextSize.of("c d")])
    assert apart == TextSize(characters=6, bytes=7, words=4)
    assert TextSize.of("ä bc d").words == 3


def test_result_does_not_depend_on_the_batch_size() -> None:
    found = [measure(TABLE_NLL, windows(23), batch_size=size) for size in (1, 7, 17, 64)]
    assert len({(result.nelbo_nats_per_token, result.nelbo_stderr, result.mask_stderr) for result in found}) == 1


def test_progress_ends_at_the_result() -> None:
    states: list[tuple[float, float]] = []
    options = BoundOptions(masks_per_window=4, batch_size=5)
    result = estimate_nelbo(TABLE_NLL, TokenBatch(windows(8)), options, lambda *state: states.append(state))
    assert states[-1] == pytest.approx((1.0, result.nelbo_nats_per_token))
    assert [fraction_done for fraction_done, _ in states] == sorted(fraction_done for fraction_done, _ in states)


def test_broken_model_is_named() -> None:
    with pytest.raises(UserError, match="not finite numbers"):
        measure(same_everywhere(torch.full((N_TOKENS,), math.nan)), windows(4))


def test_odd_number_of_masks_is_refused() -> None:
    with pytest.raises(ValueError, match="even number of them, not 3"):
        measure(TABLE_NLL, windows(4), masks_per_window=3)


def test_one_window_has_no_error() -> None:
    result = measure(TABLE_NLL, windows(1))
    assert result.nelbo_stderr is None
    assert result.to_json()["nelbo_stderr"] is None
    assert result.with_error(2) == f"{result.nelbo_nats_per_token:.2f} (one window, no error)"


def test_empty_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        measure(TABLE_NLL, windows(4), batch_size=0)


def test_windows_do_not_overlap_and_leave_out_the_rest() -> None:
    tokens = np.arange(11, dtype=np.uint8)
    assert cut_windows(tokens, 3).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert cut_windows(tokens, 3, at_most=2).tolist() == [[0, 1, 2], [6, 7, 8]]
    assert cut_windows(tokens, 11).tolist() == [list(range(11))]
    with pytest.raises(UserError, match="11 tokens is shorter than a window of 12"):
        cut_windows(tokens, 12)


def predict_by_counting(x_t: Tensor, *, attention_mask: Tensor | None = None, positions: Tensor) -> Tensor:
    """Every token is as likely as it is frequent among those that are attended to, and one more of each."""
    counted = (x_t != MASK) if attention_mask is None else (x_t != MASK) & attention_mask
    counts = 1 + (F.one_hot(x_t.masked_fill(x_t == MASK, 0), N_TOKENS) * counted[..., None]).sum(1)
    return counts.log()[:, None].expand(*x_t.shape, N_TOKENS)[positions]


def test_padding_moves_the_bound_no_more_than_other_masks_do() -> None:
    text = (torch.rand(40, 12, generator=torch.Generator().manual_seed(0)) < 0.8).long() + 1
    padded, real = torch.zeros(40, 20, dtype=torch.long), (torch.arange(20) < 12).expand(40, 20)
    padded[:, :12] = text
    nll, options = nll_by_logits(predict_by_counting, MASK), BoundOptions(masks_per_window=64)
    alone = estimate_nelbo(nll, TokenBatch(text), options)
    beside = estimate_nelbo(nll, TokenBatch(padded, real, real), options)
    assert alone.mask_stderr is not None
    assert alone.tokens_scored == beside.tokens_scored
    assert beside.nelbo_nats_per_token == pytest.approx(alone.nelbo_nats_per_token, abs=5 * alone.mask_stderr)
    as_text = estimate_nelbo(nll, TokenBatch(padded, real), options)
    assert as_text.nelbo_nats_per_token > alone.nelbo_nats_per_token + 20 * alone.mask_stderr


def test_bf16_has_the_bound_of_fp32_to_5_thousandths() -> None:
    torch.manual_seed(0)
    config = LLaDAConfig(
        d_model=32, n_heads=2, n_layers=2, vocab_size=4, mask_token_id=3, pad_token_id=0, eos_token_id=0,
        mlp_hidden_size=64, max_sequence_length=64,
    )  # fmt: skip
    network = build_network(config)
    for name, parameter in network.named_parameters():
        if "blocks" in name and parameter.dim() == 2:
            parameter.data *= 4  # so that the layers matter
    model, device = MaskPredictor(network, MASK, 3).eval(), torch.device("cpu")
    text = torch.randint(0, N_TOKENS, (40, 32), generator=torch.Generator().manual_seed(0))
    first, second = (
        measure(nll_by_model(model, choose_precision(name, device)), text).nelbo_nats_per_token
        for name in ("fp32", "bf16")
    )
    assert first != second
    assert first == pytest.approx(second, abs=0.005)
