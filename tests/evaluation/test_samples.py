"""Measures of samples, worked out by hand, and judges."""

import math
from pathlib import Path

import pytest
import torch
from torch import Generator

from llada.checkpoints.folder import Checkpoint
from llada.evaluation.samples import (
    Mean,
    Piece,
    copied_shares,
    cut_pieces,
    entropy,
    judge_by_checkpoint,
    judge_by_transformers,
    measure_quality,
    words_of,
)
from llada.models import EncoderConfig, MaskPredictor, build_network
from llada.system.device import choose_precision
from llada.system.errors import UserError
from llada.tokenizers.char import CharTokenizer

TOKENIZER = CharTokenizer("abcdefgh .'\n")
CPU = torch.device("cpu")


def test_entropy_of_frequencies() -> None:
    assert entropy("aaaa") == 0
    assert entropy("abab") == pytest.approx(math.log(2))
    assert entropy("aabc") == pytest.approx(1.5 * math.log(2))


def test_words_are_runs_of_letters() -> None:
    assert words_of("There's  4 O'er-the Élan_x") == ["there's", "o'er", "the", "élan", "x"]


def test_copied_is_the_share_of_n_grams_found_in_the_training_text() -> None:
    # "abcde" has the 3-grams abc bcd cde; the text has the first two. The last is too short for any.
    assert copied_shares(["abcde", "xyz", "ab"], "..abcd..", 3) == pytest.approx([2 / 3, 0.0])


def test_measures_are_means_over_texts_with_their_errors() -> None:
    result = measure_quality(["the cat", "the dgo"], "the cat sat", ngram=4, judge=lambda text: 2.0 * len(text))
    assert result.judge_nats_per_character == Mean(2.0, 0.0)
    assert result.valid_words is not None
    assert result.valid_words.mean == pytest.approx(0.75)
    assert result.valid_words.stderr == pytest.approx(0.25)  # values 1 and 0.5: spread 0.3536 over sqrt(2)
    assert result.copied is not None
    assert result.copied.mean == pytest.approx((4 / 4 + 1 / 4) / 2)
    assert Mean.of([3.0]) == Mean(3.0, None)
    assert Mean.of([]) is None


@pytest.mark.parametrize(("n_tokens", "longest"), [(5, 8), (8, 8), (9, 8), (20, 8), (7, 1)])
def test_pieces_score_each_token_once_after_half_a_length_of_context(n_tokens: int, longest: int) -> None:
    pieces = cut_pieces(n_tokens, longest)
    scored = [i for piece in pieces for i in range(piece.first_scored, piece.end)]
    assert scored == list(range(n_tokens))
    assert all(piece.end - piece.begin <= longest for piece in pieces)
    assert all(piece.first_scored - piece.begin >= longest // 2 for piece in pieces[1:])
    assert pieces[0] == Piece(0, min(n_tokens, longest), 0)


def causal_checkpoint(max_sequence_length: int, is_causal: bool = True) -> Checkpoint:
    torch.manual_seed(0)
    config = EncoderConfig(
        vocab_size=TOKENIZER.vocab_size, mask_token_id=TOKENIZER.mask_row, max_sequence_length=max_sequence_length,
        d_model=16, n_heads=2, n_layers=2, dropout=0.0, is_causal=is_causal,
    )  # fmt: skip
    network = build_network(config)
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape)
    return Checkpoint(
        MaskPredictor(network, TOKENIZER.mask_id, TOKENIZER.mask_row).eval(), TOKENIZER, config, Path("j")
    )


def test_judge_multiplies_the_probabilities_of_the_next_token() -> None:
    checkpoint, text = causal_checkpoint(32), "a bad cab.\n"
    judge = judge_by_checkpoint(checkpoint, choose_precision("fp32", CPU), CPU)
    ids, expected = TOKENIZER.encode(text), 0.0
    checkpoint.model.requires_grad_(False)
    for i, token in enumerate(ids):  # what stands behind is unknown, as it is to a sampler
        x_t = torch.tensor([ids[:i] + [TOKENIZER.mask_id] * (len(ids) - i)])
        expected -= float(checkpoint.model(x_t)[0, i].log_softmax(-1)[token])
    assert judge(text) == pytest.approx(expected, rel=1e-4)


def test_judge_of_short_windows_reads_long_texts_in_pieces() -> None:
    checkpoint, text = causal_checkpoint(4), "abcdefgh"
    checkpoint.model.requires_grad_(False)
    judge = judge_by_checkpoint(checkpoint, choose_precision("fp32", CPU), CPU)

    def nll(piece: str) -> torch.Tensor:
        ids = torch.tensor([TOKENIZER.encode(piece)])
        return -checkpoint.model(ids).log_softmax(-1)[0].gather(1, ids[0][:, None])[:, 0]

    expected = float(nll("abcd").sum() + nll("cdef")[2:].sum() + nll("efgh")[2:].sum())
    assert judge(text) == pytest.approx(expected, rel=1e-4)


def test_model_with_a_bound_only_is_no_judge() -> None:
    with pytest.raises(UserError, match="gives a bound only: name an autoregressive model"):
        judge_by_checkpoint(causal_checkpoint(8, is_causal=False), choose_precision("fp32", CPU), CPU)


def test_judge_of_the_hugging_face_library_adds_up_next_token_losses(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    vocab = {"<s>": 0, "a": 1, "b": 2, "c": 3, "?": 4}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="?"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="?").save_pretrained(
        tmp_path
    )
    config = transformers.GPT2Config(vocab_size=5, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path)
    ids = torch.tensor([[0, 1, 2, 3, 1]])
    expected = float(model(ids, labels=ids).loss) * 4
    assert judge_by_transformers(str(tmp_path), CPU)("abca") == pytest.approx(expected, rel=1e-5)
    with pytest.raises(UserError, match="is not a causal language model that can be opened"):
        judge_by_transformers(str(tmp_path / "none"), CPU)


def test_causal_model_is_sampled_from_left_to_right() -> None:
    """Filled one after another, its text is the greedy continuation."""
    from llada.models import block_length_of
    from llada.sampling.config import SamplerConfig
    from llada.sampling.unmask import generate

    checkpoint = causal_checkpoint(12)
    config = SamplerConfig(steps=6, block_length=block_length_of(checkpoint.model, None))
    prompt = TOKENIZER.encode("a cab ")
    canvas = generate(checkpoint.predict, torch.tensor([prompt]), 6, TOKENIZER.mask_id, config, Generator())
    ids = list(prompt)
    for _ in range(6):
        x_t = torch.tensor([[*ids, TOKENIZER.mask_id]])
        ids.append(int(checkpoint.predict(x_t)[0, -1].argmax()))
    assert canvas.x_t[0].tolist() == ids
    with pytest.raises(ValueError, match="not blocks of 4"):
        block_length_of(checkpoint.model, 4)
