"""The preparation of a corpus: the same folder from any kind of file, by any number of processes, after any kill."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llada.data.corpus_preparation import CorpusSettings, Made, prepare_corpus
from llada.data.corpus_work import ShardWriter
from llada.data.hub_source import HubSource
from llada.data.sharded import ShardedText
from llada.data.sources import find_files
from llada.system import files
from llada.system.errors import UserError
from llada.tokenizers.bpe import BPETokenizer
from llada.tokenizers.char import CharTokenizer
from llada.tokenizers.train_bpe import train_bpe
from tests.support.corpora import (
    documents_in,
    files_in_folder,
    prepare_files,
    some_documents,
    to_lines,
    write_as,
    write_parquet,
)
from tests.support.sentences import assert_one_sentence

DOCUMENTS = some_documents(80)


def is_for_validation(text: str, share: float) -> bool:
    """The rule of the manifest, by hand."""
    return int(hashlib.blake2b(text.encode(), digest_size=16).hexdigest()[:16], 16) / 2**64 < share


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_as(tmp_path, "jsonl", DOCUMENTS)


# What is written


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_every_document_is_in_its_split_in_the_order_of_the_source(tmp_path: Path, kind: str) -> None:
    data = prepare_files(tmp_path / "corpus", write_as(tmp_path, kind, DOCUMENTS))
    assert documents_in(data, "val") == [text for text in DOCUMENTS if is_for_validation(text, 0.2)]
    assert documents_in(data, "train") == [text for text in DOCUMENTS if not is_for_validation(text, 0.2)]
    assert isinstance(data.tokenizer, CharTokenizer)
    assert data.tokenizer.characters == sorted(set("".join(DOCUMENTS)))
    assert list((tmp_path / "corpus").glob("unfinished*")) == []


def test_the_hub_library_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    write_parquet(tmp_path / "set" / "train.parquet", DOCUMENTS)
    hub = HubSource(str(tmp_path / "set"), "train", "text")
    data = prepare_corpus(hub, "text", "characters", tmp_path / "a", CorpusSettings(shard_mb=0.002, val_share=0.2))
    assert documents_in(data, "train") == [text for text in DOCUMENTS if not is_for_validation(text, 0.2)]
    assert data.metadata["source"] == {"kind": "hub", "name": str(tmp_path / "set"), "split": "train"}


def test_the_manifest_says_everything(tmp_path: Path, source: Path) -> None:
    data = prepare_files(tmp_path / "corpus", source)
    manifest = json.loads((tmp_path / "corpus" / "manifest.json").read_text())
    val = [text for text in DOCUMENTS if is_for_validation(text, 0.2)]
    facts = manifest["splits"]["val"]
    assert facts["documents"] == len(val)
    assert facts["characters"] == sum(map(len, val))
    assert facts["bytes"] == sum(len(text.encode()) for text in val)
    assert facts["tokens"] == facts["characters"] + len(val)
    assert facts["sequences"] == -(-facts["tokens"] // 8)
    for split in ("train", "val"):
        for shard in manifest["splits"][split]["shards"]:
            stem = shard["file"].removesuffix(".bin")
            for name, digest in shard["sha256"].items():
                path = tmp_path / "corpus" / (shard["file"] if name == "tokens" else f"{stem}.{name}.bin")
                assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
            ends = np.fromfile(tmp_path / "corpus" / f"{stem}.ends.bin", "<u8")
            assert len(ends) == shard["documents"]
            assert ends[-1] == shard["tokens"]
    assert manifest["source"]["files"] == [[str(source), source.stat().st_size]]
    assert manifest["validation"]["share"] == 0.2
    assert manifest["dtype"] == "|u1"
    assert (manifest["pad_token_id"], manifest["eos_token_id"], manifest["mask_token_id"]) == (0, 2, 126_336)
    assert manifest["vocab_size"] == data.tokenizer.vocab_size
    assert manifest["left_out"] == {"empty": 0, "bad": 0}


def test_documents_keep_their_split_when_others_come(tmp_path: Path, source: Path) -> None:
    first = prepare_files(tmp_path / "a", source)
    (tmp_path / "more.jsonl").write_bytes(to_lines(some_documents(40, start=500)))
    more = prepare_files(tmp_path / "b", tmp_path / "more.jsonl", source)
    assert set(documents_in(first, "val")) < set(documents_in(more, "val"))
    assert not set(documents_in(first, "val")) & set(documents_in(more, "train"))


def test_large_ids_take_more_bytes(tmp_path: Path) -> None:
    characters = "".join(map(chr, range(0x4E00, 0x4E00 + 300)))
    (tmp_path / "a.jsonl").write_bytes(to_lines([characters, *some_documents(30)]))
    data = prepare_files(tmp_path / "corpus", tmp_path / "a.jsonl")
    assert data.metadata["dtype"] == "<u2"
    assert characters in documents_in(data, "train") + documents_in(data, "val")


# The same, whoever does it and whatever happens


@pytest.mark.parametrize(
    "settings", [{}, {"tokenizer": "bpe", "vocab_size": 300, "dedup": "exact", "packing": "documents"}]
)
def test_several_processes_write_the_same_bytes(tmp_path: Path, source: Path, settings: dict[str, Any]) -> None:
    prepare_files(tmp_path / "one", source, **settings)
    prepare_files(tmp_path / "three", source, processes=3, **settings)
    assert files_in_folder(tmp_path / "one") == files_in_folder(tmp_path / "three")


class KilledError(Exception):
    """What stands for a kill, which tests/faults/test_corpora.py does for real."""


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz"])
@pytest.mark.parametrize("settings", [{}, {"tokenizer": "bpe", "vocab_size": 300, "dedup": "near"}])
def test_a_preparation_that_was_killed_goes_on_and_gives_the_same(
    tmp_path: Path, kind: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after 1, 2, 3, ... further files were written, until it is done."""
    source = write_as(tmp_path, kind, DOCUMENTS)
    prepare_files(tmp_path / "whole", source, **settings)
    left, real, n_kills = 0, files.write_json, 0

    def write(path: Path, content: Any) -> None:
        nonlocal left
        real(path, content)
        left -= 1
        if left == 0:
            raise KilledError

    for module in ("corpus_folder", "corpus_manifest", "corpus_preparation", "corpus_work"):
        monkeypatch.setattr(f"llada.data.{module}.write_json", write)
    for round_ in range(1, 100):
        left = 1 + round_ % 4
        try:
            data = prepare_files(tmp_path / "killed", source, **settings)
        except KilledError:
            n_kills += 1
        else:
            break
    assert n_kills > 3
    assert files_in_folder(tmp_path / "killed") == files_in_folder(tmp_path / "whole")
    assert isinstance(data, ShardedText)


def test_what_is_done_is_not_done_again(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    real: Callable[..., int] = ShardWriter.__call__

    def count(self: ShardWriter, block: Any) -> int:
        if len(written) == 3 and 3 not in written:
            written.append(-1)
            raise KilledError
        written.append(block.number)
        return real(self, block)

    monkeypatch.setattr(ShardWriter, "__call__", count)
    with pytest.raises(KilledError):
        prepare_files(tmp_path / "corpus", source)
    prepare_files(tmp_path / "corpus", source)
    assert written[:5] == [0, 1, 2, -1, 3]
    done = len(written)
    prepare_files(tmp_path / "corpus", source)  # it is complete
    assert len(written) == done


# Tokenizers


def test_byte_pairs_are_trained_on_the_training_text_and_give_it_back(tmp_path: Path, source: Path) -> None:
    data = prepare_files(tmp_path / "corpus", source, tokenizer="bpe", vocab_size=400)
    tokenizer = data.tokenizer
    assert isinstance(tokenizer, BPETokenizer)
    assert tokenizer.special_tokens == {"<PAD>": 0, "<BOS>": 1, "<EOS>": 2, "<MASK>": tokenizer.vocab_size - 1}
    assert 300 < tokenizer.vocab_size <= 400
    assert documents_in(data, "train") == [text for text in DOCUMENTS if not is_for_validation(text, 0.2)]
    ids = [id_ for text in documents_in(data, "val") for id_ in (*tokenizer.encode(text), 2)]
    assert data.tokens("val")[:].tolist() == ids
    assert len(ids) < data.metadata["splits"]["val"]["bytes"]


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_byte_pairs_are_trained_on_as_much_text_as_was_asked_for(tmp_path: Path, kind: str) -> None:
    """However the source is compressed, and whatever else its rows hold: drawn by hash, by hand here."""
    documents = some_documents(400)
    source = write_as(tmp_path, kind, documents)
    data = prepare_files(tmp_path / "corpus", source, tokenizer="bpe", vocab_size=400, sample_mb=0.008)
    of_training = [text for text in documents if not is_for_validation(text, 0.2)]
    share = 8000 / sum(len(text.encode()) for text in of_training)
    drawn = [
        text
        for text in of_training
        if int(hashlib.blake2b(text.encode(), digest_size=16).hexdigest()[16:], 16) / 2**64 < share
    ]
    assert 7000 < sum(len(text.encode()) for text in drawn) < 9000
    assert data.tokenizer == train_bpe(iter([drawn]), 400)


def test_byte_pairs_are_not_trained_on_nothing(tmp_path: Path, source: Path) -> None:
    with pytest.raises(UserError, match=r"raise `sample_mb`, which is 1e-07, and add `overwrite=True`") as caught:
        prepare_files(tmp_path / "corpus", source, tokenizer="bpe", vocab_size=300, sample_mb=1e-7)
    assert_one_sentence(caught.value)


def test_a_shard_is_of_a_byte_at_least(tmp_path: Path) -> None:
    """Each line is a block of its own, and so are the bytes within it, which hold no document."""
    source = tmp_path / "a.jsonl"
    source.write_bytes(to_lines(["abc", "def", "ghi"]))
    data = prepare_files(tmp_path / "corpus", source, shard_mb=1e-7, val_share=0.5)
    assert sorted(documents_in(data, "train") + documents_in(data, "val")) == ["abc", "def", "ghi"]
    names = [shard["file"] for split in ("train", "val") for shard in data.metadata["splits"][split]["shards"]]
    assert sorted(name.split("-")[1] for name in names) == ["00000.bin", "00025.bin", "00050.bin"]


def test_names_of_special_tokens_in_a_text_are_text(tmp_path: Path) -> None:
    documents = [*some_documents(30), "a <EOS> and a <MASK> in <PAD>"]
    (tmp_path / "a.jsonl").write_bytes(to_lines(documents))
    data = prepare_files(tmp_path / "corpus", tmp_path / "a.jsonl", tokenizer="bpe", vocab_size=300)
    assert documents[-1] in documents_in(data, "train") + documents_in(data, "val")
    counts = Counter(data.tokens("train")[:].tolist()) + Counter(data.tokens("val")[:].tolist())
    assert counts[2] == len(documents)
    assert counts[0] == counts[data.tokenizer.mask_id] == 0


def test_a_checkpoints_tokenizer_is_kept_byte_for_byte(tmp_path: Path, source: Path) -> None:
    first = prepare_files(tmp_path / "a", source, tokenizer="bpe", vocab_size=300)
    other = prepare_files(tmp_path / "b", source, tokenizer=first.tokenizer)
    assert other.tokenizer == first.tokenizer
    assert other.metadata["tokenizer"]["kind"] == "given"
    assert other.metadata["tokenizer"]["fingerprint"] == first.metadata["tokenizer"]["fingerprint"]
    assert other.tokens("train")[:].tolist() == first.tokens("train")[:].tolist()


def test_a_character_that_the_tokenizer_lacks_is_named(tmp_path: Path, source: Path) -> None:
    with pytest.raises(UserError, match="character '0' is not in the vocabulary of 26 characters") as caught:
        prepare_files(tmp_path / "corpus", source, tokenizer=CharTokenizer("abcdefghijklmnopqrstuvwxyz"))
    assert_one_sentence(caught.value)


def test_a_vocabulary_smaller_than_the_bytes_is_refused(tmp_path: Path, source: Path) -> None:
    with pytest.raises(UserError, match="`vocab_size=100` does not hold the 256 bytes") as caught:
        prepare_files(tmp_path / "corpus", source, tokenizer="bpe", vocab_size=100)
    assert_one_sentence(caught.value)
    assert not (tmp_path / "corpus").exists()


# Duplicates


def test_exact_copies_are_removed_and_counted(tmp_path: Path) -> None:
    documents = [*DOCUMENTS[:40], *DOCUMENTS[10:30], *DOCUMENTS[:5], *DOCUMENTS[40:]]
    (tmp_path / "a.jsonl").write_bytes(to_lines(documents))
    data = prepare_files(tmp_path / "corpus", tmp_path / "a.jsonl", dedup="exact")
    assert data.metadata["duplicates"] == {"rule": "exact", "exact": 25}
    assert documents_in(data, "train") == [text for text in DOCUMENTS if not is_for_validation(text, 0.2)]


def test_near_copies_are_removed_as_well(tmp_path: Path) -> None:
    long = " ".join(f"word{i}" for i in range(300))
    near = long.replace("word150", "other")  # 5 of 296 shingles differ: a Jaccard similarity of 291/301
    far = " ".join(f"word{i * 7 % 1000}" for i in range(300))
    (tmp_path / "a.jsonl").write_bytes(to_lines([long, far, long, near, *DOCUMENTS]))
    data = prepare_files(tmp_path / "corpus", tmp_path / "a.jsonl", dedup="near", near_threshold=0.9)
    facts = data.metadata["duplicates"]
    assert facts["exact"] == 1
    kept = documents_in(data, "train") + documents_in(data, "val")
    assert long in kept
    assert far in kept
    assert near not in kept
    assert facts["near_threshold"] == 0.9


# Bad input


def test_a_broken_line_stops_or_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(to_lines(DOCUMENTS[:50]) + b"{broken\n" + b'{"text": 5}\n' + to_lines(DOCUMENTS[50:]))
    with pytest.raises(UserError, match=r"Line 51 of .*a\.jsonl is not valid JSON .*add `skip_bad=True`") as caught:
        prepare_files(tmp_path / "corpus", path)
    assert_one_sentence(caught.value)
    data = prepare_files(tmp_path / "skipped", path, skip_bad=True)
    assert data.metadata["left_out"]["bad"] == 2
    assert data.metadata["first_bad"].startswith(f"Line 51 of {path} is not valid JSON")
    assert len(documents_in(data, "train") + documents_in(data, "val")) == 80


def test_names_that_utf8_cannot_hold_are_kept(tmp_path: Path) -> None:
    """A key that is half of a surrogate pair, in a file whose name is in Latin-1."""
    path = tmp_path / os.fsdecode(b"caf\xe9.jsonl")
    try:
        path.write_bytes(to_lines(DOCUMENTS) + b'{"\\ud800": 1}\n')
    except OSError:
        pytest.skip("names of files are UTF-8 on this system")
    data = prepare_files(tmp_path / "corpus", path, skip_bad=True)
    assert data.metadata["first_bad"] == f"Line 81 of {path} has no 'text' (its keys: \ud800)"
    assert data.metadata["source"]["files"][0][0] == str(path)
    assert ShardedText.open(tmp_path / "corpus").metadata == data.metadata  # it has a checksum of its own
    prepare_files(tmp_path / "corpus", path, skip_bad=True)  # it is the one that is there


def test_the_first_broken_line_is_named_whichever_process_is_faster(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(to_lines([text]) if i % 20 else b"broken\n" for i, text in enumerate(DOCUMENTS, 1)))
    with pytest.raises(UserError, match="Line 20 of"):
        prepare_files(tmp_path / "corpus", path, processes=2)


def test_empty_documents_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(to_lines(["", " \n", *DOCUMENTS, ""]))
    data = prepare_files(tmp_path / "corpus", tmp_path / "a.jsonl")
    assert data.metadata["left_out"]["empty"] == 3
    assert len(documents_in(data, "train") + documents_in(data, "val")) == 80


@pytest.mark.parametrize("settings", [{}, {"tokenizer": "bpe", "dedup": "near"}], ids=["characters", "bpe"])
@pytest.mark.parametrize("content", [b"", b"\n\n", to_lines(["", " "])])
def test_a_source_without_text_is_refused(tmp_path: Path, content: bytes, settings: dict[str, Any]) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(UserError, match="holds no text") as caught:
        prepare_files(tmp_path / "corpus", tmp_path / "a.jsonl", **settings)
    assert_one_sentence(caught.value)


def test_a_corpus_without_validation_text_is_refused(tmp_path: Path, source: Path) -> None:
    with pytest.raises(UserError, match="None of the 80 documents is for validation: raise `val_share`") as caught:
        prepare_files(tmp_path / "corpus", source, val_share=1e-9)
    assert_one_sentence(caught.value)


def test_a_single_document_is_not_split(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one text " * 100)
    with pytest.raises(UserError, match=r'A single document .* `overwrite=True`.* `format="small"`') as caught:
        prepare_files(tmp_path / "corpus", tmp_path / "a.txt")
    assert_one_sentence(caught.value)


def test_what_was_done_before_a_broken_line_is_kept_when_broken_lines_are_skipped(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.write_bytes(to_lines(DOCUMENTS[:70]) + b"broken\n" + to_lines(DOCUMENTS[70:]))
    prepare_files(tmp_path / "whole", source, skip_bad=True)
    with pytest.raises(UserError, match=r"Line 71 .* add `skip_bad=True`, or correct it and add `overwrite=True`"):
        prepare_files(tmp_path / "corpus", source)
    assert (tmp_path / "corpus" / "unfinished" / "scan-00001.json").is_file()
    data = prepare_files(tmp_path / "corpus", source, skip_bad=True)
    assert data.metadata["left_out"] == {"empty": 0, "bad": 1}
    assert files_in_folder(tmp_path / "corpus") == files_in_folder(tmp_path / "whole")


@pytest.mark.parametrize("tokenizer", ["characters", "bpe"])
def test_a_source_without_text_leaves_nothing(tmp_path: Path, tokenizer: Made, source: Path) -> None:
    (tmp_path / "empty.jsonl").write_bytes(to_lines([""] * 200))
    with pytest.raises(UserError, match="The source holds no text") as caught:
        prepare_files(tmp_path / "corpus", tmp_path / "empty.jsonl", tokenizer=tokenizer)
    assert_one_sentence(caught.value)
    assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize("at_end", [False, True], ids=["as the stage begins", "as it ends"])
@pytest.mark.parametrize(
    "change", [lambda data: data + data, lambda data: data[:-10], bytes], ids=["longer", "shorter", "same"]
)
def test_a_source_that_changes_meanwhile_is_named(
    tmp_path: Path, source: Path, change: Callable[[bytes], bytes], at_end: bool
) -> None:
    """A line that a change broke is not what is reported."""

    def report(stage: str, done: int, of: int | None) -> None:
        if (stage, done) == ("writing", size if at_end else 0):
            source.write_bytes(change(source.read_bytes()))
            os.utime(source, (1, 1))

    size, settings = source.stat().st_size, CorpusSettings(shard_mb=0.002, val_share=0.2)
    with pytest.raises(UserError, match=rf"^{source} has changed since its preparation began") as caught:
        prepare_corpus(find_files([str(source)], "text"), "text", "characters", tmp_path / "a", settings, report=report)
    assert_one_sentence(caught.value)
    assert not (tmp_path / "a" / "manifest.json").exists()


def test_the_size_of_blocks_does_not_change_the_documents(tmp_path: Path, source: Path) -> None:
    one = prepare_files(tmp_path / "a", source, shard_mb=10)
    many = prepare_files(tmp_path / "b", source, shard_mb=0.0005)
    assert len(one.metadata["splits"]["train"]["shards"]) == 1
    assert len(many.metadata["splits"]["train"]["shards"]) > 10
    for split in ("train", "val"):
        assert one.tokens(split)[:].tolist() == many.tokens(split)[:].tolist()


def test_files_are_found_once(tmp_path: Path, source: Path) -> None:
    assert len(find_files([str(source), str(tmp_path)], "text").files) == 1
