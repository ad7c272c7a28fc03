"""The work on one block of a large source, in any process: to scan its documents, and to write its shards.

All that a block gives is in files of its own: its shards, and a record of them, which is written last. So a block is
done or not, and a preparation that was stopped goes on with those that are not. This module does without torch.
"""

import contextlib
import hashlib
import importlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from llada.data.blocks import Block, documents_of
from llada.data.pieces import Bad
from llada.system.errors import UserError
from llada.system.files import file_written_whole, write_json
from llada.tokenizers.bulk import N_CODES, bulk_encoder, codes_of, parts_of

SPLITS = ("train", "val")
PLACE_TYPE = "<u8"
"""Type of places in a shard, as numpy names it: ends of documents, starts of rows."""
DIGEST_BYTES = 16
SHINGLE_WORDS = 5
UNSPACED = (
    "\u0e00-\u109f\u1780-\u17ff"  # Thai, Lao, Tibetan, Myanmar, Khmer
    "\u2e80-\u2fdf\u3005-\u3007\u3040-\u312f\u31a0-\u31ff\uff66-\uff9f"  # radicals, kana, Bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
"""Characters, as in a class of a regular expression, of scripts that are written without spaces between words."""
_WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
PERMUTATIONS = 128
CANDIDATES = 4
"""How many times as much as is wanted the sample is taken from: so much less than a source may be its text."""
_BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class Work:
    """What is done with each block."""

    folder: str
    """Folder of the corpus."""
    unfinished: str
    """Folder of what is only needed until the corpus is complete."""
    text_key: str
    skip_bad: bool
    val_share: float
    scan_characters: bool = False
    scan_digests: bool = False
    scan_signatures: bool = False
    sample_bytes: int = 0
    """Number of bytes of text, about, on which a tokenizer is trained."""
    source_bytes: int | None = None
    """Number of bytes of the source, about; None if nobody knows."""
    vocabulary: Mapping[str, int] = field(default_factory=dict)
    dtype: str = "<u2"
    packing: str = "stream"
    sequence_length: int = 4096
    drops_duplicates: bool = False


def record_of_scan(unfinished: Path, number: int) -> Path:
    return unfinished / f"scan-{number:05d}.json"


def record_of_shards(unfinished: Path, number: int) -> Path:
    return unfinished / f"done-{number:05d}.json"


def file_of(record: Path, ending: str) -> Path:
    """Return the file of a block that goes with its record: `.digests.npy`, `.keep.npy`, ..."""
    return record.with_suffix(ending)


def digest_of(data: bytes) -> bytes:
    """Compute what stands for a document: the first half decides on its split, the second whether it is sampled."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def split_of(digest: bytes, val_share: float) -> str:
    """Return the split of a document by its digest: so it does not change when other documents come or go."""
    return "val" if int.from_bytes(digest[:8], "big") < val_share * 2**64 else "train"


@dataclass
class Counts:
    """What was left out of a block."""

    empty: int = 0
    bad: int = 0
    first_bad: Bad | None = None

    def to_json(self) -> dict[str, Any]:
        return {"empty": self.empty, "bad": self.bad}


def texts_in(block: Block, work: Work, counts: Counts) -> Iterator[tuple[str, bytes, bytes]]:
    """Iterate over the texts of a block, their bytes in UTF-8, and digests.

    Raises:
        UserError: a part is broken, and it should not be skipped.
    """
    for found in documents_of(block, work.text_key):
        if isinstance(found, Bad):
            if not work.skip_bad:
                raise UserError(f"{found.describe()}: add `skip_bad=True`, or correct it and add `overwrite=True`.")
            counts.bad += 1
            counts.first_bad = counts.first_bad or found
        elif not found or found.isspace():
            counts.empty += 1
        else:
            data = found.encode("utf-8")
            yield found, data, digest_of(data)


# -- scanning ---------------------------------------------------------------------------------------------------------


class Scanner:
    """Look at the documents of blocks: their characters, what identifies them, and a sample of them."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def __call__(self, block: Block) -> int:
        """Scan a block and write what was found; returns the block's number."""
        work, counts = self.work, Counts()
        record = record_of_scan(Path(work.unfinished), block.number)
        seen = np.zeros(N_CODES if work.scan_characters else 0, dtype=bool)
        digests, signatures = [], []
        share, n_bytes = self._candidate_share(block), 0
        with contextlib.ExitStack() as stack:
            sample = _opened(stack, file_of(record, ".sample.jsonl")) if share else None
            for text, data, digest in texts_in(block, work, counts):
                if work.scan_characters:
                    for part in parts_of(text):
                        seen[codes_of(part)] = True
                if work.scan_digests:
                    digests.append(digest)
                if work.scan_signatures:
                    signatures.append(signature_of(text))
                if sample and split_of(digest, work.val_share) == "train":
                    n_bytes += len(data)
                    if is_sampled(digest, share):
                        sample.write(json.dumps(text).encode() + b"\n")
        if work.scan_digests:
            found = np.frombuffer(b"".join(digests), dtype=">u8").reshape(-1, 2)
            _save(file_of(record, ".digests.npy"), found.astype("<u8"))
        if work.scan_signatures:
            _save(file_of(record, ".signatures.npy"), np.array(signatures, dtype="<u4").reshape(-1, PERMUTATIONS))
        characters = "".join(map(chr, np.flatnonzero(seen)))
        write_json(record, {**counts.to_json(), "characters": characters, "train_bytes": n_bytes})
        return block.number

    def _candidate_share(self, block: Block) -> float:
        """Return the share of a block's documents among which the sample is found when all text has been counted.

        Of a source of unknown size, later blocks give less.
        """
        work = self.work
        size = work.source_bytes or (block.number + 1) * max(block.size, 1)
        return min(1.0, CANDIDATES * work.sample_bytes / size)


def is_sampled(digest: bytes, share: float) -> bool:
    """Whether a document is in a sample of this share, which is part of every sample of a larger share."""
    return int.from_bytes(digest[8:16], "big") < share * 2**64


def signature_of(text: str) -> npt.NDArray[np.uint32]:
    """Return the MinHash signature (PERMUTATIONS,) of a text, by runs of `SHINGLE_WORDS` words without case.

    A word is what spaces separate; a character of a script that is written without them is one by itself.
    """
    datasketch = importlib.import_module("datasketch")  # an extra
    words = _WORD.findall(text.casefold())
    n = max(1, len(words) - SHINGLE_WORDS + 1)
    shingles = {" ".join(words[i : i + SHINGLE_WORDS]).encode() for i in range(n)}
    signature = datasketch.MinHash(num_perm=PERMUTATIONS, hashfunc=zlib.crc32, scheme="affine32")
    signature.update_batch(sorted(shingles))
    values: npt.NDArray[np.uint32] = signature.hashvalues.astype(np.uint32)
    return values


# -- writing ----------------------------------------------------------------------------------------------------------


class ShardWriter:
    """Write the documents of blocks as shards of ids, one for each split."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.encoder = bulk_encoder(Path(work.unfinished) / "tokenizer", work.vocabulary, work.dtype)

    def __call__(self, block: Block) -> int:
        """Write the shards of a block, and then its record; returns the block's number."""
        work, counts = self.work, Counts()
        record = record_of_shards(Path(work.unfinished), block.number)
        keep = None
        if work.drops_duplicates:
            keep = np.load(file_of(record_of_scan(Path(work.unfinished), block.number), ".keep.npy"))
        all_text, n_dropped = hashlib.sha256(), 0
        with contextlib.ExitStack() as stack:
            shards = {split: _Shard(self, split, block.number, stack) for split in SPLITS}
            for i, (text, data, digest) in enumerate(texts_in(block, work, counts)):
                if keep is not None and not keep[i]:
                    n_dropped += 1
                    continue
                all_text.update(digest)
                shards[split_of(digest, work.val_share)].add(text, len(data))
            facts = {split: shard.finish() for split, shard in shards.items()}
        _save(file_of(record, ".counts.npy"), np.stack([shard.counts for shard in shards.values()]))
        content = {
            **counts.to_json(),
            "first_bad": asdict(counts.first_bad) if counts.first_bad else None,
            "dropped": n_dropped,
            "text_sha256": all_text.hexdigest(),
            "splits": facts,
        }
        write_json(record, content)
        return block.number


class _Shard:
    """The ids of a split of a block, written as they come."""

    def __init__(self, writer: ShardWriter, split: str, number: int, stack: contextlib.ExitStack) -> None:
        self.counts = np.zeros(writer.work.vocabulary["vocab_size"], dtype=np.int64)
        self._writer, self._stack = writer, stack
        self._path = Path(writer.work.folder) / f"{split}-{number:05d}.bin"
        self._texts: list[str] = []
        self._waiting = self._n_tokens = self._n_documents = self._n_characters = self._n_bytes = self._n_rows = 0
        self._files: dict[str, tuple[BinaryIO, Any]] = {}

    def add(self, text: str, n_bytes: int) -> None:
        self._texts.append(text)
        self._n_bytes += n_bytes
        self._waiting += len(text)
        if self._waiting >= _BATCH_CHARACTERS:
            self._flush()

    def finish(self) -> dict[str, Any] | None:
        """Write what is left, and return the facts of the shard; None if it is empty, and there is no file."""
        self._flush()
        if not self._n_documents:
            return None
        if self._writer.work.packing == "documents":
            self._write("rows", np.array([self._n_tokens], dtype=PLACE_TYPE))  # the end of the last row
        return {
            "file": self._path.name,
            "tokens": self._n_tokens,
            "documents": self._n_documents,
            "characters": self._n_characters,
            "bytes": self._n_bytes,
            "sequences": self._n_rows,
            "sha256": {name: digest.hexdigest() for name, (_, digest) in self._files.items()},
        }

    def _flush(self) -> None:
        if not self._texts:
            return
        work = self._writer.work
        eos_id = work.vocabulary["eos_token_id"]
        ids, ends = self._writer.encoder.encode(self._texts, eos_id)
        for start in range(0, len(ids), _BATCH_CHARACTERS):  # numpy counts 64-bit copies
            self.counts += np.bincount(ids[start : start + _BATCH_CHARACTERS], minlength=len(self.counts))
        starts = self._n_tokens + np.concatenate([[0], ends[:-1]])
        ends = self._n_tokens + ends
        self._write("tokens", ids)
        self._write("ends", ends.astype(PLACE_TYPE))
        if work.packing == "documents":
            rows = row_starts(starts, ends, work.sequence_length)
            self._write("rows", rows.astype(PLACE_TYPE))
            self._n_rows += len(rows)
        self._n_tokens += len(ids)
        self._n_documents += len(ends)
        self._n_characters += self._waiting
        self._texts, self._waiting = [], 0

    def _write(self, name: str, values: npt.NDArray[Any]) -> None:
        if name not in self._files:
            path = self._path if name == "tokens" else self._path.with_suffix(f".{name}.bin")
            self._files[name] = _opened(self._stack, path), hashlib.sha256()
        file, digest = self._files[name]
        data = np.ascontiguousarray(values).data.cast("B")
        file.write(data)
        digest.update(data)


def row_starts(starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
    """Return where the rows of at most `length` tokens begin, none of which has tokens of two documents."""
    n_rows = -(-(ends - starts) // length)
    number = np.arange(n_rows.sum()) - np.repeat(np.cumsum(n_rows, dtype=np.int64) - n_rows, n_rows)
    return np.repeat(starts, n_rows) + length * number


def _opened(stack: contextlib.ExitStack, path: Path) -> BinaryIO:
    """Open a file that takes its name when the stack ends well."""
    aside = stack.enter_context(file_written_whole(path))
    return stack.enter_context(open(aside, "wb", buffering=1 << 20))


def _save(path: Path, array: npt.NDArray[Any]) -> None:
    with file_written_whole(path) as aside, open(aside, "wb") as file:
        np.save(file, array)
