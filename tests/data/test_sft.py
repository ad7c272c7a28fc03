"""Pairs of prompt and answer, and batches of them. Shape letters: B batch, L length."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch import Generator

from llada.checkpoints.dummy import write_random_checkpoint
from llada.checkpoints.folder import read_tokenizer
from llada.data.batches import answers, pad_answers
from llada.data.dialogues import Reading
from llada.data.sft import Answers, Pair, read_pairs
from llada.forward_process import mask_bernoulli
from llada.objective import loss_weights, weighted_loss
from llada.system.errors import UserError
from llada.tokenizers.bpe import BPETokenizer
from llada.tokenizers.char import CharTokenizer
from llada.tokenizers.message import Message
from tests.support.sentences import assert_one_sentence

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
    data = Answers.load(write(tmp_path / "a.jsonl", "ab,c,d,ef", "g,h"), TOKENIZER, 100, rule="last")
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
    data = Answers.load(path, TOKENIZER, 10, rule="last")
    assert [p.ids for p in data.pairs["train"]] == [pair("ab", "c").ids, pair("d", "ef").ids]
    assert (data.n_shortened, data.n_left_out) == (1, 1)
    with pytest.raises(UserError, match=r"None of the 2 dialogues .* fits 4 tokens: raise `chat_length`"):
        Answers.load(path, TOKENIZER, 4, rule="last")


def test_only_what_is_to_be_learned_becomes_a_pair(tmp_path: Path) -> None:
    """And what is not stays in the prompt of what comes after it."""
    path = tmp_path / "a.jsonl"
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "bbbb", "weight": 0},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d", "weight": 1},
    ]
    path.write_text(f"{json.dumps({'messages': turns})}\n" * 3)
    data = Answers.load(path, TOKENIZER, 100)
    a, b, c, d = TOKENIZER.encode("abcd")
    assert [p.ids for p in data.pairs["train"]] == [(BOS, a, EOS, b, b, b, b, EOS, c, EOS, d, EOS)] * 2
    assert {p.answer for split in data.pairs.values() for p in split} == {(d, EOS)}
    assert data.notes[0] == f"Answers of {path} that are not learned, as it says: 3."


def test_copies_between_training_and_validation_are_counted_and_named(tmp_path: Path) -> None:
    """Prompt and answer must be the same; a line that is both in one part only is not a copy."""
    path = write(tmp_path / "a.jsonl", "a,b", "a,b", "c,d", "e,f", "a,c")
    other = write(tmp_path / "b.jsonl", "g,h", "c,d", "c,e", "g,h", "a,b")
    data = Answers.load(path, TOKENIZER, 100, validation=other)
    (note,) = data.notes
    assert note.startswith("2 of the 5 answers to measure on are learned as well")
    assert f"(lines 2, 5 of {other})" in note
    assert Answers.load(path, TOKENIZER, 100, validation=write(tmp_path / "c.jsonl", "b,a")).notes == []
    many = write(tmp_path / "d.jsonl", *["a,b"] * 20)
    (note,) = Answers.load(path, TOKENIZER, 100, validation=many).notes
    assert "lines 1, 2, 3, 4, 5, 6, 7, 8, ... of" in note


def test_fingerprints_are_of_the_texts_and_the_split_not_of_the_tokens(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *(f"{c},{c}" for c in "abcdefghij"))
    whole = Answers.load(path, TOKENIZER, 100).fingerprints
    assert Answers.load(path, CharTokenizer("abcdefghijk\n"), 5).fingerprints == whole
    assert whole["text"] == hashlib.sha256(path.read_bytes()).hexdigest()
    for options in ({"seed": 1}, {"rule": "last"}, {"validation_share": 0.2}):
        other = Answers.load(path, TOKENIZER, 100, **options).fingerprints
        assert {name for name in whole if whole[name] != other[name]} == {"training dialogues", "validation dialogues"}


STRICT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system here') }}{% endif %}"
    "{{ m.role }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def strict(text: str, tmp_path_factory: pytest.TempPathFactory) -> BPETokenizer:
    """A tokenizer whose chat template refuses system messages."""
    folder = tmp_path_factory.mktemp("strict") / "random"
    write_random_checkpoint(folder, text)
    (folder / "chat_template.jinja").write_text(STRICT_TEMPLATE)
    tokenizer = read_tokenizer(folder)
    assert isinstance(tokenizer, BPETokenizer)
    assert tokenizer.template == STRICT_TEMPLATE
    return tokenizer


def test_what_the_template_does_not_take_is_named_by_its_line_or_skipped(strict: BPETokenizer, tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    rows: list[dict[str, str]] = [{"prompt": f"q {i}", "answer": f"a {i}"} for i in range(20)]
    rows[6]["system"] = rows[13]["system"] = "Be brief."
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(UserError, match=rf"^Line 7 of {path}: .*\(No system here\)") as caught:
        Answers.load(path, strict, 100)
    assert_one_sentence(caught.value)
    with pytest.raises(UserError, match=rf"^Line 7 of {path}: "):
        read_pairs(path, strict, 100)
    data = Answers.load(path, strict, 100, reading=Reading(skip_bad=True))
    assert sum(map(len, data.pairs.values())) == 18
    assert any(note.startswith(f"Skipped 2 of 18 dialogues; the first: Line 7 of {path}") for note in data.notes)
    for row in rows:
        row["system"] = "Be brief."
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(UserError, match="takes none of the 18 dialogues: Line 1 of"):
        Answers.load(path, strict, 100, reading=Reading(skip_bad=True))


def test_answers_are_padded_with_eos_that_is_learned() -> None:
    """Two rows at a time: as long as the longer of them, and the padding of it maskable; behind it, nothing is."""
    pairs = [pair("ab", "c"), pair("a", "bcdef"), pair("a", "b"), pair("b", "a")]
    draw = answers(pairs, batch=4, padded_together=2, end_id=EOS, seed=0)
    batch = draw(0, Generator())
    assert batch.attention_mask is None
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
    draw = answers(pairs, batch=4, padded_together=4, end_id=EOS, seed=3)
    seen = [tuple(row.tolist()) for step in range(5) for row in draw(4 * step, Generator()).x_0]
    for epoch in (seen[:10], seen[10:]):
        assert sorted(epoch) == sorted(p.ids for p in pairs)
    assert seen[:10] != seen[10:]


def test_the_loss_is_that_of_the_guidelines() -> None:
    """sum(CE / p / answer length with padding) / B, written as in the published code; prompts are never masked."""
    pairs = [pair("ab", "c"), pair("a", "bcdef")]
    batch = answers(pairs, 2, 2, EOS, seed=0)(0, Generator())
    noisy = mask_bernoulli(batch.x_0, MASK, Generator().manual_seed(1), batch.maskable)
    nll = torch.rand(int(noisy.is_masked.sum()), generator=Generator().manual_seed(2))
    ours = weighted_loss(nll, noisy.at_masked(loss_weights(noisy, average="sequences")))
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
    batch = pad_answers(pairs, EOS)
    assert batch.attention_mask is not None
    for p, ids, scored, given, is_text in zip(
        pairs, batch.x_0, batch.is_maskable, batch.is_given, batch.attention_mask, strict=True
    ):
        assert tuple(ids.tolist()) == (*p.ids, *[EOS] * (len(ids) - len(p.ids)))
        assert is_text.tolist() == [i < len(p.ids) for i in range(len(ids))]
        assert given.tolist() == [i < p.n_given for i in range(len(ids))]
        assert scored.tolist() == [p.n_given <= i < len(p.ids) for i in range(len(ids))]
