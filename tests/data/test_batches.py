"""Windows that hold several documents, whose numbers keep attention within each."""

from pathlib import Path

import pytest
import torch

from llada.data.batches import DrawBatch, TokenBatch, document_numbers, drawn_within_documents, stored_sequences
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
