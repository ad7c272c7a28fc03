"""Pairs of prompt and answer, and batches of them. Shape letters: B batch, L length."""

import json
from pathlib import Path

import pytest
import torch
from torch import Generator

from llada.errors import UserError
from llada.forward_process import mask_bernoulli
from llada.objective import loss_weights, weighted_loss
from llada.text.answers import Answers, Pair
from llada.text.batches import answers, pad_answers
from llada.text.dialogues import Message
from llada.text.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer("abcdefghij\n")
BOS, EOS, MASK = TOKENIZER.bos_id, TOKENIZER.eos_id, TOKENIZER.mask_id


def write(path: Path, *dialogues: str) -> Path:
    """Dialogues as messages by turns, separated by commas."""
    lines = []
    for dialogue in dialogues:
        roles = ("user", "assistant")
        turns = [{"role": roles[i % 2], "content": content} for i, content in enumerate(dialogue.split(","))]
        lines.append(json.dumps({"messages": turns}))
    path.write_text("\n".join(lines) + "\n")
    return path


def pair(given: str, answer: str) -> Pair:
    ids = (BOS, *TOKENIZER.encode(given), EOS)
    return Pair((*ids, *TOKENIZER.encode(answer), EOS), len(ids), (Message("user", given),))


def test_n_answers_make_n_pairs(tmp_path: Path) -> None:
    data = Answers.load(write(tmp_path / "a.jsonl", "ab,c,d,ef", "g,h"), TOKENIZER, 100)
    first, second = data.pairs["train"]
    a, b, c, d, e, f, *_ = TOKENIZER.encode("abcdef")
    assert first.ids == (BOS, a, b, EOS, c, EOS)
    assert first.answer == (c, EOS)
    assert second.ids == (BOS, a, b, EOS, c, EOS, d, EOS, e, f, EOS)
    assert second.answer == (e, f, EOS)
    assert [p.answer for p in data.pairs["val"]] == [(*TOKENIZER.encode("h"), EOS)]
    assert data.tokens("train").tolist() == [c, EOS, e, f, EOS]
    assert data.sequence_length == 11
    assert (data.n_shortened, data.n_left_out) == (0, 0)


def test_long_dialogues_lose_their_oldest_turns_or_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "ab,c,d,ef", "abcdefghij,a", "g,h")
    data = Answers.load(path, TOKENIZER, 10)
    assert [p.ids for p in data.pairs["train"]] == [pair("ab", "c").ids, pair("d", "ef").ids]
    assert (data.n_shortened, data.n_left_out) == (1, 1)
    with pytest.raises(UserError, match=r"None of the 2 dialogues .* fits 4 tokens: raise --chat_length"):
        Answers.load(path, TOKENIZER, 4)


def test_validation_is_the_last_part_or_a_file_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *(f"{c},{c}" for c in "abcdefghij"))
    data = Answers.load(path, TOKENIZER, 100, validation_share=0.3)
    assert [p.messages[0].content for p in data.pairs["val"]] == ["h", "i", "j"]
    assert len(data.pairs["train"]) == 7
    other = write(tmp_path / "b.jsonl", "a,b")
    data = Answers.load(path, TOKENIZER, 100, validation=other)
    assert (len(data.pairs["train"]), len(data.pairs["val"])) == (10, 1)
    with pytest.raises(UserError, match="too short to keep a dialogue for validation"):
        Answers.load(other, TOKENIZER, 100)


def test_answers_are_padded_with_eos_that_is_learned() -> None:
    """Two rows at a time: as long as the longer of them, and the padding of it maskable; behind it, nothing is."""
    pairs = [pair("ab", "c"), pair("a", "bcdef"), pair("a", "b"), pair("b", "a")]
    draw = answers(pairs, batch_size=4, padded_together=2, end_id=EOS, seed=0)
    batch = draw(0, Generator())
    assert batch.attended is None
    assert batch.maskable is not None
    rows = {tuple(row[:9].tolist()): maskable for row, maskable in zip(batch.x_0, batch.maskable, strict=True)}
    assert len(rows) == 4
    for first in (0, 2):
        both = slice(first, first + 2)
        ids, maskable = batch.x_0[both], batch.maskable[both]
        drawn = [next(p for p in pairs if tuple(row[: len(p.ids)].tolist()) == p.ids) for row in ids]
        longest = max(len(p.ids) for p in drawn)
        for p, row, may in zip(drawn, ids, maskable, strict=True):
            assert (row[len(p.ids) :] == EOS).all()
            assert may.tolist() == [p.n_given <= i < longest for i in range(len(row))]
        assert batch.rows(both).needed_columns == longest


def test_each_pair_comes_once_an_epoch() -> None:
    pairs = [pair(c, c) for c in "abcdefghij"]
    draw = answers(pairs, batch_size=4, padded_together=4, end_id=EOS, seed=3)
    seen = [tuple(row.tolist()) for step in range(5) for row in draw(step, Generator()).x_0]
    for epoch in (seen[:10], seen[10:]):
        assert sorted(epoch) == sorted(p.ids for p in pairs)
    assert seen[:10] != seen[10:]


def test_the_loss_is_that_of_the_guidelines() -> None:
    """sum(CE / p / answer length with padding) / B, written as in the published code; prompts are never masked."""
    pairs = [pair("ab", "c"), pair("a", "bcdef")]
    batch = answers(pairs, 2, 2, EOS, seed=0)(0, Generator())
    noisy = mask_bernoulli(batch.x_0, MASK, Generator().manual_seed(1), batch.maskable)
    nll = torch.rand(int(noisy.is_masked.sum()), generator=Generator().manual_seed(2))
    ours = weighted_loss(nll, noisy, loss_weights(noisy, average="sequences"))
    prompt_length = torch.tensor(
        [[next(p.n_given for p in pairs if tuple(r[: len(p.ids)].tolist()) == p.ids)] for r in batch.x_0]
    )
    is_prompt = torch.arange(batch.x_0.shape[1]) < prompt_length
    assert not (noisy.is_masked & is_prompt).any()
    answer_length = (~is_prompt).sum(1, keepdim=True).expand_as(batch.x_0)
    p_mask = noisy.p_mask.expand_as(batch.x_0)
    expected = (nll / p_mask[noisy.is_masked] / answer_length[noisy.is_masked]).sum() / 2
    assert ours == pytest.approx(float(expected), rel=1e-6)


def test_measured_answers_do_not_depend_on_their_padding() -> None:
    pairs = [pair("ab", "c"), pair("a", "bcdef")]
    x_0, maskable, attended = pad_answers(pairs, EOS)
    for p, ids, scored, seen in zip(pairs, x_0, maskable, attended, strict=True):
        assert tuple(ids[: len(p.ids)].tolist()) == p.ids
        assert seen.tolist() == [i < len(p.ids) for i in range(len(ids))]
        assert scored.tolist() == [p.n_given <= i < len(p.ids) for i in range(len(ids))]
