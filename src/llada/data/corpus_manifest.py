"""The manifest of a sharded folder, gathered from the records of its blocks when all of them are done."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llada.data.corpus_work import SPLITS, Work, file_of, record_of_shards
from llada.data.pieces import Bad, Piece
from llada.data.sharded import COUNTS_FILE, FORMAT, FORMAT_VERSION, MANIFEST_FILE, SEAL, seal_of
from llada.system.errors import UserError
from llada.system.files import file_written_whole, read_json, sha256_of, write_json
from llada.tokenizers.base import Tokenizer, ids_of

LISTED_FILES = 1000
NO_TEXT = "The source holds no text: check `input` and `text_key`."
RULE = (
    "A document is for validation if the first 8 bytes of the blake2b digest (of 16 bytes) of its UTF-8 text, as a "
    "big-endian number, are below share * 2**64."
)


class NoTextError(UserError):
    """A source has no text in any document."""


@dataclass(frozen=True)
class Origin:
    """What a manifest says about where its corpus comes from."""

    preparation: str
    """SHA-256 of what decides on the result."""
    source: dict[str, Any]
    """The source's description (`Source.provenance`)."""
    tokenizer_kind: str
    duplicates: dict[str, Any]
    """The rule, and how many documents it left out."""


def write_manifest(origin: Origin, tokenizer: Tokenizer, tokenizer_folder: Path, work: Work, n_blocks: int) -> None:
    """Write the tokenizer, the counts of all ids and, last, the manifest of a corpus whose blocks are done.

    Raises:
        UserError: a split has no document.
    """
    folder, unfinished = Path(work.folder), Path(work.unfinished)
    paths = [record_of_shards(unfinished, number) for number in range(n_blocks)]
    records = [read_json(path) for path in paths]
    splits = {split: _gather([record["splits"][split] for record in records], work) for split in SPLITS}
    _check_splits(splits, work.val_share)
    counts = np.zeros((len(SPLITS), tokenizer.vocab_size), dtype=np.int64)
    for path in paths:
        counts += np.load(file_of(path, ".counts.npy"))
    with file_written_whole(folder / COUNTS_FILE) as aside, open(aside, "wb") as file:
        np.save(file, counts)
    for name in tokenizer.file_names:
        with file_written_whole(folder / name) as aside:
            shutil.copyfile(tokenizer_folder / name, aside)
    text = hashlib.sha256("".join(record["text_sha256"] for record in records).encode())
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "preparation": origin.preparation,
        "source": _shortened(origin.source),
        "text_key": work.text_key,
        "text_sha256": text.hexdigest(),
        "tokenizer": {
            "kind": origin.tokenizer_kind,
            "fingerprint": fingerprint_of(tokenizer),
            "sha256": {name: sha256_of(folder / name) for name in tokenizer.file_names},
        },
        **ids_of(tokenizer),
        "dtype": work.dtype,
        "sequence_length": work.sequence_length,
        "packing": work.packing,
        "validation": {"rule": RULE, "share": work.val_share},
        "duplicates": origin.duplicates,
        "left_out": {name: sum(record[name] for record in records) for name in ("empty", "bad")},
        "first_bad": _first_bad(records),
        "splits": splits,
        "token_counts_sha256": sha256_of(folder / COUNTS_FILE),
    }
    write_json(folder / MANIFEST_FILE, {**manifest, SEAL: seal_of(manifest)})


def fingerprint_of(tokenizer: Tokenizer) -> str:
    """Return a SHA-256 that two tokenizers share if they give the same ids for every text."""
    with tempfile.TemporaryDirectory(prefix="llada-") as name:
        tokenizer.save(Path(name))
        digests = {file: sha256_of(Path(name, file)) for file in tokenizer.file_names}
    return digest_of_json({"files": digests, **ids_of(tokenizer)})


def digest_of_json(content: Any) -> str:
    """Compute the SHA-256 of a content, however its keys are ordered."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_number(n_documents: int) -> None:
    """Refuse less than two documents.

    Raises:
        UserError: there are none, as a NoTextError, or there is one.
    """
    if not n_documents:
        raise NoTextError(NO_TEXT)
    if n_documents == 1:
        raise UserError(
            "A single document is either for training or for validation: give several, and add `overwrite=True`, or "
            'prepare a text file of one by `format="small"`.'
        )


def _check_splits(splits: Mapping[str, Mapping[str, Any]], val_share: float) -> None:
    n_train, n_val = (splits[split]["documents"] for split in SPLITS)
    check_number(n_train + n_val)
    if not n_train or not n_val:
        which, change = ("validation", "raise") if n_train else ("training", "lower")
        raise UserError(
            f"None of the {n_train + n_val:,} documents is for {which}: {change} `val_share`, which is {val_share:g}, "
            "and add `overwrite=True`."
        )


def _gather(shards: list[dict[str, Any] | None], work: Work) -> dict[str, Any]:
    """Sum up the shards of a split; blocks without a document of it have none."""
    there = [shard for shard in shards if shard is not None]
    total = {name: sum(s[name] for s in there) for name in ("tokens", "documents", "characters", "bytes", "sequences")}
    if work.packing == "stream":
        total["sequences"] = -(-total["tokens"] // work.sequence_length)
    return {**total, "shards": there}


def _first_bad(records: Sequence[Mapping[str, Any]]) -> str | None:
    found = next((record["first_bad"] for record in records if record["first_bad"]), None)
    return Bad(Piece(**found["piece"]), found["number"], found["problem"]).describe() if found else None


def _shortened(provenance: dict[str, Any]) -> dict[str, Any]:
    """Sum up the names of very many files."""
    files = provenance.get("files")
    if files is None:
        return provenance
    sums = {"n_files": len(files), "bytes": sum(size for _, size in files), "files_sha256": digest_of_json(files)}
    return {**provenance, **sums, "files": files[:LISTED_FILES]}
