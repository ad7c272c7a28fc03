"""`llada data`, and `llada prepare` into a folder of shards."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from llada.data import corpus_preparation
from llada.data.blocks import Block
from llada.data.prepared import PreparedText
from llada.data.sharded import ShardedText
from llada.system.worker_processes import map_in_order
from tests.support.commands import RunCommand, assert_one_sentence
from tests.support.corpora import files_in_folder, some_documents, to_lines, write_as, write_parquet

SMALL = ("--shard_mb", 0.002, "--val_share", 0.2, "--sequence_length", 16, "--processes", 1)


@pytest.fixture
def corpus(llada: RunCommand, tmp_path: Path) -> Path:
    source = write_as(tmp_path, "jsonl", some_documents(60))
    assert llada("prepare", "--input", source, "--output_dir", tmp_path / "corpus", *SMALL).code == 0
    return tmp_path / "corpus"


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_files_that_only_shards_take_give_shards(llada: RunCommand, tmp_path: Path, kind: str) -> None:
    source = write_as(tmp_path, kind, some_documents(400))
    result = llada("prepare", "--input", source, "--output_dir", tmp_path / "corpus", "--processes", 1)
    assert result.code == 0
    assert "Vocabulary: " in result.out
    assert "Scanning ..." in result.err
    assert isinstance(PreparedText.open(tmp_path / "corpus"), ShardedText)


@pytest.mark.parametrize("pattern", ["in/*", "**/*", "in/[d]*"])
def test_a_glob_gives_shards_by_the_files_that_it_names(llada: RunCommand, tmp_path: Path, pattern: str) -> None:
    """As the same files do when a shell names them."""
    (tmp_path / "in" / "folder.gz").mkdir(parents=True)
    (tmp_path / "in" / "a.txt").write_text("abc " * 100)
    options = ("--output_dir", tmp_path / "text", "--sequence_length", 16)
    assert llada("prepare", "--input", tmp_path / "in" / "*", *options).code == 0
    assert "metadata.json" in files_in_folder(tmp_path / "text")
    (tmp_path / "in" / "a.txt").unlink()
    shutil.rmtree(tmp_path / "text")
    for kind in ("jsonl", "jsonl.gz"):
        write_as(tmp_path / "in", kind, some_documents(400))
    result = llada("prepare", "--input", tmp_path / pattern, "--output_dir", tmp_path / "corpus", "--processes", 1)
    assert result.code == 0
    splits = PreparedText.open(tmp_path / "corpus").metadata["splits"]
    assert splits["train"]["documents"] + splits["val"]["documents"] == 800


def test_a_text_gives_what_it_always_gave(llada: RunCommand, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc " * 100)
    for name, options in (("auto", ()), ("small", ("--format", "small"))):
        options = (*options, "--sequence_length", 16, "--output_dir", tmp_path / name)
        assert llada("prepare", "--input", tmp_path / "a.txt", *options).code == 0
    assert files_in_folder(tmp_path / "auto") == files_in_folder(tmp_path / "small")
    assert "metadata.json" in files_in_folder(tmp_path / "auto")


def test_a_text_is_prepared_over_itself(llada: RunCommand, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc " * 100)
    command = ("prepare", "--input", tmp_path / "a.txt", "--output_dir", tmp_path / "data", "--sequence_length", 16)
    assert llada(*command).code == 0
    before = files_in_folder(tmp_path / "data")
    assert llada(*command, "--overwrite").code == 0
    for option in (("--processes", 2), ("--skip_bad",)):
        assert_one_sentence(llada(*command, "--overwrite", *option), f"{option[0]} is for a folder of shards")
    assert files_in_folder(tmp_path / "data") == before


def test_a_text_gives_shards_where_that_is_asked_for(llada: RunCommand, tmp_path: Path) -> None:
    for i, text in enumerate(some_documents(60)):
        (tmp_path / f"{i:02d}.txt").write_text(text)
    result = llada("prepare", "--input", tmp_path / "*.txt", "--output_dir", tmp_path / "corpus", *SMALL)
    assert result.code == 0
    data = PreparedText.open(tmp_path / "corpus")
    assert data.metadata["splits"]["train"]["documents"] + data.metadata["splits"]["val"]["documents"] == 60


def test_byte_pairs_and_the_tokenizer_of_a_run(llada: RunCommand, tmp_path: Path) -> None:
    """Byte pairs are trained, a model learns on them, and another corpus takes that model's tokenizer."""
    source = write_as(tmp_path, "jsonl", some_documents(60))
    options = ("--tokenizer", "bpe", "--vocab_size", 300, *SMALL)
    result = llada("prepare", "--input", source, "--output_dir", tmp_path / "corpus", *options)
    assert result.code == 0
    assert "Vocabulary: 300 ids (bpe), stored as <u2" in result.out
    shape = ("--network", "encoder", "--d_model", 16, "--n_heads", 2, "--n_layers", 1, "--sequence_length", 16)
    run = ("--steps", 2, "--batch_size", 2, "--device", "cpu", "--evaluation_windows", 2, "--warmup_steps", 0)
    folders = ("--data_dir", tmp_path / "corpus", "--output_dir", tmp_path / "run")
    assert llada("train", *folders, *shape, *run).code == 0
    (tmp_path / "more.jsonl").write_bytes(to_lines(some_documents(60, start=100)))
    same = ("--tokenizer", tmp_path / "run", *SMALL)
    assert llada("prepare", "--input", tmp_path / "more.jsonl", "--output_dir", tmp_path / "more", *same).code == 0
    assert PreparedText.open(tmp_path / "more").tokenizer == PreparedText.open(tmp_path / "corpus").tokenizer
    evaluated = llada("evaluate", "--checkpoint", tmp_path / "run", "--data_dir", tmp_path / "more", "--windows", 2)
    assert evaluated.code == 0
    assert "NELBO" in evaluated.out


def test_what_is_left_out_is_counted(llada: RunCommand, tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_bytes(to_lines([*some_documents(60), "", *some_documents(5)]) + b"broken\n")
    options = ("--skip_bad", "--dedup", "exact", *SMALL)
    result = llada("prepare", "--input", source, "--output_dir", tmp_path / "corpus", *options)
    assert f"Left out: 1 broken, the first: Line 67 of {source} is not valid JSON" in result.out
    assert "Left out: 1 without text" in result.out
    assert "Left out: 5 that came before" in result.out


@pytest.mark.parametrize(("cores", "processes"), [(0.5, 1), (1.5, 1), (3.0, 3)])
def test_there_is_a_process_for_each_core_that_may_be_used(
    llada: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: float, processes: int
) -> None:
    asked = []

    def in_order(make: Callable[[], Callable[[Block], int]], blocks: Iterable[Block], processes: int) -> Any:
        asked.append(processes)
        return map_in_order(make, blocks, 1)

    monkeypatch.setattr("llada.cli.prepare.usable_cores", lambda: cores)
    monkeypatch.setattr(corpus_preparation, "map_in_order", in_order)
    source = write_as(tmp_path, "jsonl", some_documents(400))
    assert llada("prepare", "--input", source, "--output_dir", tmp_path / "corpus").code == 0
    assert asked == [processes, processes]  # to scan, and to write


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--format", "small", "--dedup", "exact"), ("--dedup is for a folder of shards",)),
        (("--val_share", 0), ("--val_share must be above 0",)),
        (("--text_key", "body"), ("has no column 'body' (its columns: id, text)", "--text_key")),
        (("--hf", "set"), ("--hf and --input both name a source",)),
        (("--source", "url", "--dedup", "exact"), ("needs --input FILES",)),
    ],
)
def test_options_that_do_not_go_together(
    llada: RunCommand, tmp_path: Path, options: tuple[object, ...], words: tuple[str, ...]
) -> None:
    source = write_parquet(tmp_path / "a.parquet", some_documents(5))
    result = llada("prepare", "--input", source, "--output_dir", tmp_path / "corpus", *options)
    assert_one_sentence(result, *words)
    assert not (tmp_path / "corpus").exists()


def test_a_broken_line_is_named_with_the_flag_that_skips_it(llada: RunCommand, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"broken\n")
    result = llada("prepare", "--input", tmp_path / "a.jsonl", "--output_dir", tmp_path / "corpus", "--processes", 1)
    assert result.code == 2
    assert "Line 1 of" in result.err
    assert "add --skip_bad, or correct it" in result.err


# llada data


def test_inspect_validate_and_stats(llada: RunCommand, corpus: Path) -> None:
    shown = llada("data", "inspect", corpus)
    assert shown.code == 0
    assert "llada-corpus version 1" in shown.out
    assert "Source: 1 file, " in shown.out
    assert llada("data", "validate", corpus).out.startswith(f"{corpus} is whole: ")
    assert "tokens per document: mean" in llada("data", "stats", corpus).out


def test_a_missing_shard_is_named_by_all(llada: RunCommand, corpus: Path) -> None:
    (corpus / "train-00001.bin").unlink()
    for action in ("inspect", "stats"):
        assert_one_sentence(llada("data", action, corpus), "train-00001.bin is missing: restore it")
    assert "train-00001.bin is missing" in llada("data", "validate", corpus).out


def test_validate_fails_and_names_what_is_damaged(llada: RunCommand, corpus: Path) -> None:
    (corpus / "train-00001.bin").write_bytes(b"x")
    result = llada("data", "validate", corpus)
    assert result.code == 1
    assert "train-00001.bin has another checksum than when it was written" in result.out
    assert "is damaged: restore the files" in result.err


def test_five_files_are_inspected_too(llada: RunCommand, data: PreparedText) -> None:
    assert "a prepared text in five files, whole" in llada("data", "validate", data.folder).out
    assert_one_sentence(llada("data", "stats", data.folder), "statistics are for a folder of shards")


@pytest.mark.parametrize("action", ["inspect", "validate", "stats"])
def test_a_half_done_folder_is_called_so(llada: RunCommand, tmp_path: Path, action: str) -> None:
    source = tmp_path / "a.jsonl"
    source.write_bytes(to_lines(some_documents(100)) + b"broken\n")
    assert llada("prepare", "--input", source, "--output_dir", tmp_path / "corpus", *SMALL).code == 2
    assert_one_sentence(llada("data", action, tmp_path / "corpus"), "is half done: repeat the `llada prepare`")


def test_what_is_not_a_prepared_folder_is_refused(llada: RunCommand, tmp_path: Path) -> None:
    assert_one_sentence(llada("data", "inspect", tmp_path), "manifest.json is missing")
    assert_one_sentence(llada("data", "stats", tmp_path / "nothing"), "is not a folder")
    assert_one_sentence(llada("data", "look", tmp_path), "must be one of inspect, stats, validate")
