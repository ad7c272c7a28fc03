"""Small sources of many documents, in every kind of file, and the folder that a preparation of them gives."""

import gzip
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llada.data import corpus_preparation
from llada.data.corpus_preparation import CorpusSettings, Made, prepare_corpus
from llada.data.sharded import ShardedText, read_manifest, seal_of
from llada.data.sources import find_files
from llada.tokenizers.base import Tokenizer

WORDS = ("to", "be", "or", "not", "that", "is", "the", "question", "whether", "nobler", "in", "mind", "arrows", "of")


def some_documents(n: int, start: int = 0) -> list[str]:
    """Documents of some 20 to 200 characters, each different, with a few that are not ASCII."""
    return [
        f"{i}: "
        + " ".join(WORDS[(i * i + 7 * j) % len(WORDS)] for j in range(4 + i % 31))
        + ("é世" if i % 5 == 0 else ".")
        for i in range(start, start + n)
    ]


def to_lines(documents: Sequence[str], key: str = "text") -> bytes:
    return b"".join(json.dumps({"id": i, key: text}).encode() + b"\n" for i, text in enumerate(documents))


def write_parquet(path: Path, documents: Sequence[str | None], key: str = "text", rows_in_group: int = 16) -> Path:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"id": list(range(len(documents))), key: list(documents)})
    parquet.write_table(table, path, row_group_size=rows_in_group)
    return path


def write_as(folder: Path, kind: str, documents: Sequence[str]) -> Path:
    """Write documents into one file of a kind: "jsonl", "jsonl.gz", "jsonl.zst" or "parquet"."""
    path = folder / f"documents.{kind}"
    if kind == "parquet":
        return write_parquet(path, documents)
    data = to_lines(documents)
    if kind == "jsonl.gz":
        data = gzip.compress(data[:1000], mtime=0) + gzip.compress(data[1000:], mtime=0)  # two members
    elif kind == "jsonl.zst":
        import zstandard

        data = zstandard.compress(data[:1000]) + zstandard.compress(data[1000:])  # two frames
    path.write_bytes(data)
    return path


def prepare_files(
    folder: Path,
    *inputs: Path,
    tokenizer: Made | Tokenizer = "characters",
    text_key: str = "text",
    processes: int = 1,
    overwrite: bool = False,
    **settings: Any,
) -> ShardedText:
    """Prepare files into a folder of shards of a few kilobytes."""
    chosen = CorpusSettings(**{"shard_mb": 0.002, "sequence_length": 8, "val_share": 0.2, **settings})
    source = find_files([str(path) for path in inputs], text_key)
    return prepare_corpus(source, text_key, tokenizer, folder, chosen, processes, overwrite)


def prepare_half(monkeypatch: pytest.MonkeyPatch, folder: Path, *inputs: Path, **settings: Any) -> None:
    """Prepare files as far as the manifest, which would be written last."""
    with monkeypatch.context() as patch:
        patch.setattr(corpus_preparation._Preparation, "_write_manifest", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare_files(folder, *inputs, **settings)


def documents_in(data: ShardedText, split: str) -> list[str]:
    """The documents of a split, decoded one by one: an independent path through the shards."""
    tokens = data.tokens("train" if split == "train" else "val")[:].tolist()
    documents: list[list[int]] = [[]]
    for id_ in tokens:
        if id_ == data.tokenizer.eos_id:
            documents.append([])
        else:
            documents[-1].append(id_)
    assert documents.pop() == []
    return [data.tokenizer.decode(ids) for ids in documents]


def files_in_folder(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit_manifest(folder: Path, **changes: Any) -> None:
    """Change the manifest and its seal, as somebody would who means it."""
    manifest = read_manifest(folder) | changes
    (folder / "manifest.json").write_text(json.dumps({**manifest, "manifest_sha256": seal_of(manifest)}))


def make_sparse(folder: Path, data: ShardedText, n_shards: int, n_tokens: int) -> None:
    """A corpus whose shards take no room on the disk; all their ids are 0."""
    shutil.copytree(data.folder, folder)
    manifest = read_manifest(folder)
    facts = manifest["splits"]["train"]
    shards = []
    for i in range(n_shards):
        name = f"train-{i:05d}.bin"
        for stale in (name, f"train-{i:05d}.ends.bin"):
            with open(folder / stale, "wb") as file:
                file.truncate(n_tokens if stale == name else 8)
        shards.append({**facts["shards"][0], "file": name, "tokens": n_tokens, "documents": 1})
    edit_manifest(
        folder, splits={**manifest["splits"], "train": {**facts, "tokens": n_shards * n_tokens, "shards": shards}}
    )
