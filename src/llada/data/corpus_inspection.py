"""What is in a sharded folder: a check of every file, and statistics of its documents and tokens."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llada.data.corpus_work import PLACE_TYPE
from llada.data.prepared import Ids, Split
from llada.data.sharded import (
    COUNTS_FILE,
    REMEDY,
    SPLITS,
    ShardedText,
    check_size,
    files_in,
    read_counts,
    read_manifest,
)
from llada.system.errors import UserError
from llada.system.files import sha256_of
from llada.tokenizers.base import load_tokenizer

_TOKENS_AT_ONCE = 1 << 22
QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)


def find_faults(folder: Path, report: Callable[[int, int], None] = lambda done, of: None) -> Iterator[str]:
    """Check everything in a sharded folder, and describe each fault as a clause that names its file.

    Checked are the manifest, the presence, size and SHA-256 of every file, the range of all ids, the places where
    documents end, the EOS there, and all counts.

    Args:
        report: called with the number of files that are checked, and of all.

    Raises:
        UserError: the manifest is missing or damaged.
    """
    manifest = read_manifest(folder)
    files = files_in(manifest)
    damaged = set()
    for i, (name, digest) in enumerate(files):
        problem = _problem_of(folder / name, digest)
        if problem:
            damaged.add(name)
            yield f"{name} {problem}"
        report(i + 1, len(files))
    if damaged & {COUNTS_FILE, *manifest["tokenizer"]["sha256"]}:
        return
    tokenizer = load_tokenizer(folder, manifest)
    counts = np.zeros((len(SPLITS), tokenizer.vocab_size), dtype=np.int64)
    for i, split in enumerate(SPLITS):
        for shard in manifest["splits"][split]["shards"]:
            stem = Path(shard["file"]).stem
            if {shard["file"], f"{stem}.ends.bin"} & damaged:
                continue
            try:
                tokens = _map(folder / shard["file"], manifest["dtype"], shard["tokens"])
                ends = _map(folder / f"{stem}.ends.bin", PLACE_TYPE, shard["documents"]).astype(np.int64)
            except UserError as error:
                yield str(error).removesuffix(".")
                continue
            found = _count(tokens, tokenizer.vocab_size)
            if found is None:
                yield f"{shard['file']} has ids that the vocabulary lacks"
                continue
            counts[i] += found
            if not _are_ends(ends, len(tokens)) or not (tokens[ends - 1] == tokenizer.eos_id).all():
                yield f"{stem}.ends.bin does not say where the documents of {shard['file']} end"
    if not damaged and not (counts == read_counts(folder, tokenizer.vocab_size)).all():
        yield f"{COUNTS_FILE} does not count the ids of the shards"


def _problem_of(path: Path, digest: str) -> str | None:
    if not path.is_file():
        return "is missing"
    return None if sha256_of(path) == digest else "has another checksum than when it was written"


def _map(path: Path, dtype: str, length: int) -> Ids:
    check_size(path, length * np.dtype(dtype).itemsize)
    return np.memmap(path, dtype, "r", shape=(length,))


def _are_ends(ends: npt.NDArray[np.int64], n_tokens: int) -> bool:
    """Whether documents that follow each other may end there."""
    return bool((np.diff(ends, prepend=0) > 0).all() and ends[-1] == n_tokens)


def _count(tokens: Ids, n_ids: int) -> npt.NDArray[np.int64] | None:
    """Count each id, some tokens at a time; None if one is too large."""
    counts = np.zeros(n_ids, dtype=np.int64)
    for start in range(0, len(tokens), _TOKENS_AT_ONCE):
        piece = tokens[start : start + _TOKENS_AT_ONCE].astype(np.int64)
        if piece.max() >= n_ids:
            return None
        counts += np.bincount(piece, minlength=n_ids)
    return counts


@dataclass(frozen=True)
class SplitStatistics:
    """Statistics of a split."""

    documents: int
    tokens: int
    """Number of tokens, the EOS behind each document included."""
    bytes_per_token: float
    """Bytes of UTF-8 for each token that is not an EOS."""
    mean_length: float
    """Tokens of a document, its EOS included."""
    lengths: dict[float, int]
    """Tokens of a document by quantile."""
    most_frequent: list[tuple[str, float]]
    """The most frequent tokens, decoded, and their shares."""
    unused_ids: int
    """Number of ids that never come."""
    nats: float
    """Entropy in nats of a token by its frequency alone."""


def describe_split(data: ShardedText, split: Split, n_frequent: int = 10) -> SplitStatistics:
    """Compute the statistics of a split from its counts and the ends of its documents; the ids are not read."""
    facts = data.metadata["splits"][split]
    counts = read_counts(data.folder, data.tokenizer.vocab_size)[SPLITS.index(split)]
    lengths = []
    for shard in facts["shards"]:
        path = data.folder / f"{Path(shard['file']).stem}.ends.bin"
        ends = _map(path, PLACE_TYPE, shard["documents"]).astype(np.int64)
        if not _are_ends(ends, shard["tokens"]):
            raise UserError(f"{path} is damaged: {REMEDY}.")
        lengths.append(np.diff(ends, prepend=0))
    together = np.concatenate(lengths)
    shares = counts / counts.sum()
    order = np.argsort(-counts, kind="stable")[:n_frequent]
    frequent = [(_shown(data, int(id_)), float(shares[id_])) for id_ in order if counts[id_]]
    positive = shares[shares > 0]
    return SplitStatistics(
        documents=facts["documents"],
        tokens=facts["tokens"],
        bytes_per_token=facts["bytes"] / (facts["tokens"] - facts["documents"]),
        mean_length=float(together.mean()),
        lengths={q: int(value) for q, value in zip(QUANTILES, np.quantile(together, QUANTILES), strict=True)},
        most_frequent=frequent,
        unused_ids=int((counts == 0).sum()),
        nats=float(-(positive * np.log(positive)).sum()),
    )


def _shown(data: ShardedText, id_: int) -> str:
    return "<EOS>" if id_ == data.tokenizer.eos_id else data.tokenizer.decode([id_])
