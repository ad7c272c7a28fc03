"""Windows that hold several documents, whose numbers keep attention within each."""

from pathlib import Path

import pytest
import torch

from llada.data.batches import DrawBatch, TokenBatch, document_numbers, drawn_within_documents, stored_sequences
from llada.tokenizers.bpe import BPETokenizer
from llada.tokenizers.train_bpe import train_bpe
from tests.support.corpora import prepare_files, some_documents, write_as

END = 2
IDS = torch.tensor([[5, 6, END, 7, END, END, 8], [END, 3, 4, 5, 6, 7, END]])
NUMBERS = [[1, 1, 1, 2, 2, 3, 4], [1, 2, 2, 2, 2, 2, 2]]


def test_an_end_belongs_to_the_document_that_it_ends() -> None:
    assert document_numbers(IDS, END).tolist() == NUMBERS
    assert document_numbers(torch.tensor([[3, 4]]), END).tolist() == [[1, 1]]


def test_a_batch_within_documents_keeps_its_padding_and_its_ids() -> None:
    is_text = torch.tensor([[True] * 6 + [False], [True] * 7])
    batch = TokenBatch(IDS, is_text, is_text).within_documents(END)
    assert batch.is_within_documents
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[*NUMBERS[0][:6], 0], NUMBERS[1]]
    assert torch.equal(batch.x_0, IDS)
    assert not batch.is_given.any()
    for part, rows in ((batch.rows(slice(1, 2)), [1]), (batch.twice(), [0, 1, 0, 1])):
        assert part.attention_mask is not None
        assert part.attention_mask.tolist() == batch.attention_mask[rows].tolist()
    cut = batch.columns(4).attention_mask
    assert cut is not None
    assert cut.tolist() == [row[:4] for row in NUMBERS]


def test_given_tokens_of_documents_are_those_that_are_neither_masked_nor_padding() -> None:
    maskable = torch.tensor([[True, True, False, True, False, False, False], [True] * 7])
    padding = torch.tensor([[True] * 6 + [False], [True] * 7])
    given = TokenBatch(IDS, maskable, padding).within_documents(END).is_given
    assert given.tolist() == [[False, False, True, False, True, True, False], [False] * 7]


def test_numbers_are_needed_where_there_is_no_padding() -> None:
    """A mask of booleans that are all true is left out; one of numbers that are all above 0 is not."""
    plain = TokenBatch(IDS, attention_mask=torch.ones_like(IDS, dtype=torch.bool))
    assert not plain.is_within_documents
    assert plain.needed_attention_mask is None
    numbered = plain.within_documents(END).needed_attention_mask
    assert numbered is not None
    assert numbered.tolist() == NUMBERS


@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_stored_sequences_are_drawn_with_the_numbers_of_their_documents(tmp_path: Path, packing: str) -> None:
    data = prepare_files(
        tmp_path / "corpus", write_as(tmp_path, "jsonl", some_documents(40)), packing=packing, sequence_length=48
    )
    eos_id, pad_id = data.tokenizer.eos_id, data.tokenizer.pad_id
    draw: DrawBatch = drawn_within_documents(stored_sequences(data, 16, seed=0), eos_id)
    batch = draw(0, torch.Generator())
    assert batch.attention_mask is not None
    numbers = []
    for row in batch.x_0.tolist():
        number = 1
        for id_ in row:
            numbers.append(0 if id_ == pad_id else number)
            number += id_ == eos_id
    assert batch.attention_mask.flatten().tolist() == numbers
    assert (max(numbers) == 1) == (packing == "documents")


@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_an_end_whose_id_pads_as_well_is_learned_and_padding_is_not(tmp_path: Path, packing: str) -> None:
    """As of LLaDA-8B. Documents of 8 tokens fill a row of 8, so that their ends have rows of their own."""
    plain = train_bpe(iter([["to be or not"]]), 260)
    tokenizer = BPETokenizer(plain._files, {**plain.vocabulary, "pad_token_id": plain.eos_id})
    texts = [*(f"abcdefg{letter}" for letter in "hijklm"), *some_documents(30)]
    source = write_as(tmp_path, "jsonl", texts)
    data = prepare_files(tmp_path / "corpus", source, packing=packing, tokenizer=tokenizer)
    n_rows, n_tokens = len(data.rows["train"]), len(data.tokens("train"))
    batch = drawn_within_documents(stored_sequences(data, n_rows, seed=0), tokenizer.eos_id)(0, torch.Generator())
    assert batch.maskable is not None
    assert batch.attention_mask is not None
    assert int(batch.maskable.sum()) == n_tokens
    assert bool(batch.maskable.any(1).all())  # a row without anything to mask could not be learned
    ends = batch.maskable & (batch.x_0 == tokenizer.eos_id)
    assert int(ends.sum()) == data.metadata["splits"]["train"]["documents"]
    assert torch.equal(batch.attention_mask != 0, batch.maskable)
    assert bool((batch.x_0[~batch.maskable] == tokenizer.pad_id).all())
    assert not bool(batch.maskable.all())
