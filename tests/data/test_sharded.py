"""Reading a folder of shards: the same numbers as from one array in memory, whatever the window."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from llada.data.batches import random_windows, stored_sequences
from llada.data.corpus_inspection import describe_split
from llada.data.prepared import PreparedText, Split, text_for
from llada.data.sharded import MOST_MAPS, DocumentRows, MappedFiles, ShardedIds, ShardedText
from llada.system.errors import UserError
from llada.tokenizers.char import CharTokenizer
from tests.support.corpora import documents_in, edit_manifest, make_sparse, prepare_files, some_documents, write_as
from tests.support.sentences import assert_one_sentence

DOCUMENTS = some_documents(80)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ShardedText:
    folder = tmp_path_factory.mktemp("sharded")
    return prepare_files(folder / "corpus", write_as(folder, "jsonl", DOCUMENTS))


@pytest.fixture
def copy(data: ShardedText, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data.folder, tmp_path / "corpus"))


def naive(data: ShardedText, split: Split) -> list[int]:
    """The ids of a split from the documents themselves."""
    return [id_ for text in documents_in(data, split) for id_ in (*data.tokenizer.encode(text), data.tokenizer.eos_id)]


def test_the_fixture_has_several_shards_and_every_document(data: ShardedText) -> None:
    assert len(data.metadata["splits"]["train"]["shards"]) > 3
    assert sorted(documents_in(data, "train") + documents_in(data, "val")) == sorted(DOCUMENTS)


@pytest.mark.parametrize("split", ["train", "val"])
def test_indexing_is_that_of_an_array(data: ShardedText, split: Split) -> None:
    whole, tokens = np.array(naive(data, split)), data.tokens(split)
    assert len(tokens) == len(whole)
    assert tokens.dtype == np.dtype("<u1")
    assert tokens[:].tolist() == whole.tolist()
    generator = np.random.default_rng(0)
    for _ in range(50):
        start, end = sorted(generator.integers(0, len(whole) + 1, 2).tolist())
        assert tokens[start:end].tolist() == whole[start:end].tolist()
    places = generator.integers(-len(whole), len(whole), (5, 7, 3))
    assert tokens[places].tolist() == whole[places].tolist()
    assert tokens[5] == whole[5]
    assert tokens[-1] == whole[-1]
    assert tokens[3:40:7].tolist() == whole[3:40:7].tolist()
    assert tokens[10:3].tolist() == []
    for index in (len(whole), -len(whole) - 1):
        with pytest.raises(IndexError):
            tokens[index]


def test_a_window_may_lie_across_the_border_of_two_shards(data: ShardedText) -> None:
    whole, tokens = naive(data, "train"), data.tokens("train")
    border = data.metadata["splits"]["train"]["shards"][0]["tokens"]
    for start in range(border - 6, border + 2):
        assert tokens[start + np.arange(6)].tolist() == whole[start : start + 6]


def test_rows_are_the_stream_cut_and_padded(data: ShardedText) -> None:
    whole = naive(data, "train")
    padded = whole + [data.tokenizer.pad_id] * (-len(whole) % 8)
    expected = np.array(padded).reshape(-1, 8)
    rows = data.rows["train"]
    assert rows.shape == expected.shape
    assert rows[np.arange(len(rows))].tolist() == expected.tolist()
    assert rows[-1].tolist() == expected[-1].tolist()
    assert rows[2:5].tolist() == expected[2:5].tolist()


def test_rows_of_documents_never_hold_two(tmp_path: Path) -> None:
    data = prepare_files(tmp_path / "corpus", write_as(tmp_path, "jsonl", DOCUMENTS), packing="documents")
    rows = data.rows["train"]
    assert isinstance(rows, DocumentRows)
    expected = []
    for text in documents_in(data, "train"):
        ids = [*data.tokenizer.encode(text), data.tokenizer.eos_id]
        expected += [ids[i : i + 8] + [0] * (8 - len(ids[i : i + 8])) for i in range(0, len(ids), 8)]
    assert rows[np.arange(len(rows))].tolist() == expected
    batch = stored_sequences(data, 64, seed=0)(0, torch.Generator())
    assert batch.attention_mask is not None
    assert not batch.attention_mask.all()
    assert bool((batch.x_0[~batch.attention_mask] == 0).all())


def test_batches_come_from_shards_as_from_memory(data: ShardedText) -> None:
    whole = np.array(naive(data, "train"))
    batch = random_windows(data, 16, 12)(0, torch.Generator().manual_seed(3))
    starts = torch.randint(0, len(whole) - 11, (16,), generator=torch.Generator().manual_seed(3)).numpy()
    assert batch.x_0.tolist() == whole[starts[:, None] + np.arange(12)].tolist()


def test_the_counts_are_those_of_the_ids(data: ShardedText) -> None:
    for split in ("train", "val"):
        tokens = data.tokens(split)
        assert isinstance(tokens, ShardedIds)
        assert tokens.counts().tolist() == np.bincount(naive(data, split), minlength=data.tokenizer.vocab_size).tolist()


def test_few_files_are_mapped_at_a_time(tmp_path: Path) -> None:
    files = MappedFiles(tmp_path, "<u2")
    for i in range(MOST_MAPS + 20):
        np.array([i, i + 1], dtype="<u2").tofile(tmp_path / f"{i}.bin")
    for i in (*range(MOST_MAPS + 20), 0):
        assert files(f"{i}.bin", 2).tolist() == [i, i + 1]
    assert len(files._maps) == MOST_MAPS


# Opening


def test_either_format_is_opened_by_its_folder(data: ShardedText) -> None:
    opened = PreparedText.open(data.folder)
    assert isinstance(opened, ShardedText)
    assert opened.fingerprints == data.fingerprints
    assert set(opened.fingerprints) == {"text", "vocabulary", "training split", "validation split"}
    assert opened.sequence_length == 8
    assert opened.text("val") == "".join(documents_in(data, "val"))


def test_a_missing_shard_is_named_when_the_folder_is_opened(copy: Path) -> None:
    (copy / "train-00001.bin").unlink()
    with pytest.raises(UserError, match=r"train-00001\.bin is missing") as caught:
        PreparedText.open(copy)
    assert_one_sentence(caught.value)


def test_a_shard_of_another_size_is_named_when_it_is_read(copy: Path) -> None:
    with open(copy / "train-00001.bin", "ab") as file:
        file.write(b"x")
    opened = PreparedText.open(copy)
    with pytest.raises(UserError, match=r"train-00001\.bin has .* bytes instead of") as caught:
        opened.tokens("train")[:]
    assert_one_sentence(caught.value)


def test_ids_beyond_the_vocabulary_are_refused_when_they_are_read(copy: Path) -> None:
    content = bytearray((copy / "train-00001.bin").read_bytes())
    content[3] = 255
    (copy / "train-00001.bin").write_bytes(content)
    with pytest.raises(UserError, match="has ids that its vocabulary lacks: `llada data validate`") as caught:
        PreparedText.open(copy).tokens("train")[:]
    assert_one_sentence(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01", None])
def test_damaged_counts_are_named(copy: Path, content: bytes | None) -> None:
    path = copy / "token_counts.npy"
    if content is None:
        np.save(path, np.load(path)[:, 1:])
    else:
        path.write_bytes(content)
    tokens = PreparedText.open(copy).tokens("train")
    assert isinstance(tokens, ShardedIds)
    for read in (tokens.counts, lambda: describe_split(ShardedText.open(copy), "val")):
        with pytest.raises(UserError, match=r"token_counts\.npy is damaged: restore it") as caught:
            read()
        assert_one_sentence(caught.value)


@pytest.mark.parametrize("place", [2**62, 0, 5])
def test_a_place_in_the_rows_that_cannot_be_is_named(tmp_path: Path, place: int) -> None:
    data = prepare_files(tmp_path / "corpus", write_as(tmp_path, "jsonl", DOCUMENTS), packing="documents")
    path = data.folder / "train-00000.rows.bin"
    starts = np.fromfile(path, "<u8")
    assert starts[3] > 5
    starts[3] = place
    starts.tofile(path)
    rows = ShardedText.open(data.folder).rows["train"]
    assert len(rows[[0, 4]]) == 2
    with pytest.raises(UserError, match=r"train-00000\.rows\.bin is damaged: restore it") as caught:
        rows[[2, 3]]
    assert_one_sentence(caught.value)


@pytest.mark.parametrize("place", [0, 2**62, 2**64 - 1])
def test_statistics_of_damaged_ends_are_refused(copy: Path, place: int) -> None:
    path = copy / "train-00001.ends.bin"
    ends = np.fromfile(path, "<u8")
    ends[1] = place
    ends.tofile(path)
    with pytest.raises(UserError, match=r"train-00001\.ends\.bin is damaged: restore it") as caught:
        describe_split(ShardedText.open(copy), "train")
    assert_one_sentence(caught.value)


def test_a_changed_or_foreign_manifest_is_refused(copy: Path) -> None:
    edit_manifest(copy, format_version=2)
    with pytest.raises(UserError, match="has another format than version 1 of llada-corpus") as caught:
        PreparedText.open(copy)
    assert_one_sentence(caught.value)
    edit_manifest_text = (copy / "manifest.json").read_text().replace('"format_version": 2', '"format_version": 1')
    (copy / "manifest.json").write_text(edit_manifest_text)
    with pytest.raises(UserError, match="has changed since it was written"):
        PreparedText.open(copy)


def test_a_corpus_in_other_tokens_is_refused(data: ShardedText) -> None:
    """A retokenisation needs the text, which a corpus does not keep."""
    assert text_for(data.tokenizer, data) is data
    with pytest.raises(UserError, match="holds ids of its own tokenizer") as caught:
        text_for(CharTokenizer("abc"), data)
    assert_one_sentence(caught.value)


# Size


PROGRAM = """
import sys, psutil, torch
from pathlib import Path
from llada.data.batches import random_windows
from llada.data.prepared import PreparedText
memory = lambda: psutil.Process().memory_info().rss
before = memory()
data = PreparedText.open(Path(sys.argv[1]))
draw = random_windows(data, 64, 256)
for step in range(30):
    draw(step, torch.Generator().manual_seed(step))
print(len(data.tokens("train")), memory() - before)
"""


@pytest.mark.skipif(not hasattr(os, "SEEK_HOLE"), reason="the disk has no sparse files")
def test_ten_gigabytes_are_read_without_being_held(data: ShardedText, tmp_path: Path) -> None:
    """30 batches of 64 windows touch some 2,000 pages of 4 kB, of 10 GB."""
    make_sparse(tmp_path / "large", data, 160, 64_000_000)
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "large"], capture_output=True, text=True, check=True
    )
    n_tokens, grown = map(int, run.stdout.split())
    assert n_tokens == 10_240_000_000
    assert grown < 100e6
    assert psutil.Process().memory_info().rss < 10e9
