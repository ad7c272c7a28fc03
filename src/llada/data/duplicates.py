"""Documents that come again in a corpus: the same text (exact), or nearly the same (MinHash with LSH, by datasketch).

The first one of the source is kept. Exact copies are found in parts of all digests, so that memory does not grow with
the digests but for one byte a document; nearly equal ones need their signatures' buckets in memory, 7 kB a document at
a threshold of 0.8.
"""

import functools
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llada.data.corpus_work import PERMUTATIONS, file_of, record_of_scan
from llada.system.errors import UserError
from llada.system.files import file_written_whole

DOCUMENTS_AT_ONCE = 4_000_000
"""Number of documents whose digests are sorted together."""

MOST_OPEN = 128
"""Number of files of a kind that are mapped at a time: a system allows a process some thousand open files."""

LEAST_FOUND = 0.99
"""Least share of the pairs of documents right at the threshold that are to be found."""

Flags = npt.NDArray[np.bool_]


class _Arrays(Sequence[npt.NDArray[Any]]):
    """The arrays of all blocks, each mapped when it is needed; the least recently used are let go."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._map = functools.lru_cache(MOST_OPEN)(lambda path: np.load(path, mmap_mode="r"))

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: Any) -> Any:
        """Return the array of a block."""
        return self._map(self._paths[number])


def mark_duplicates(unfinished: Path, n_blocks: int, near: float | None) -> tuple[int, int]:
    """Write for each block which of its documents are kept, and return how many are exact and nearly equal copies.

    Args:
        near: least estimated Jaccard similarity of nearly equal documents; None looks for exact copies only.

    Raises:
        UserError: datasketch is not installed.
    """
    records = [record_of_scan(unfinished, number) for number in range(n_blocks)]
    digests = _Arrays([file_of(record, ".digests.npy") for record in records])
    keep = first_of_equal(digests)
    n_exact, n_near = int((~keep).sum()), 0
    if near is not None:
        signatures = _Arrays([file_of(record, ".signatures.npy") for record in records])
        n_near = drop_near(signatures, keep, near)
    edges = np.cumsum([0, *map(len, digests)], dtype=np.int64)
    for record, start, end in zip(records, edges[:-1], edges[1:], strict=True):
        with file_written_whole(file_of(record, ".keep.npy")) as aside, open(aside, "wb") as file:
            np.save(file, keep[start:end])
    return n_exact, n_near


def first_of_equal(digests: Sequence[npt.NDArray[np.uint64]], at_once: int = DOCUMENTS_AT_ONCE) -> Flags:
    """Mark the documents whose digest no earlier one has.

    Args:
        digests: the digests (D, 2) of each block.
        at_once: number of documents, about, that are compared at a time.
    """
    n = sum(map(len, digests))
    keep, n_parts = np.ones(n, dtype=bool), -(-n // at_once)
    for part in range(n_parts):
        found, places, start = [], [], 0
        for block in digests:
            mine = np.flatnonzero(block[:, 0] % np.uint64(n_parts) == part)
            found.append(block[mine])
            places.append(mine + start)
            start += len(block)
        keys, place = np.concatenate(found), np.concatenate(places)
        order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: of equal ones, the first comes first
        keys = keys[order]
        is_copy = (keys[1:] == keys[:-1]).all(axis=1)
        keep[place[order[1:][is_copy]]] = False
    return keep


def drop_near(signatures: Sequence[npt.NDArray[np.uint32]], keep: Flags, threshold: float) -> int:
    """Unmark documents that are nearly equal to an earlier one that is kept; returns how many.

    Args:
        signatures: the MinHash signatures (D, PERMUTATIONS) of each block.
        keep: which documents are kept (D,), of all blocks; changed in place.
        threshold: least share of equal places of two signatures, which estimates the Jaccard similarity.
    """
    sketches = load_datasketch()
    rows = rows_of_band(threshold)
    index = sketches.MinHashLSH(num_perm=PERMUTATIONS, params=(PERMUTATIONS // rows, rows))
    edges = np.cumsum([0, *map(len, signatures)], dtype=np.int64)
    n_dropped = 0

    def signature(number: int) -> npt.NDArray[np.uint32]:
        block = int(np.searchsorted(edges, number, side="right")) - 1
        return signatures[block][number - edges[block]]

    for number in np.flatnonzero(keep).tolist():
        own = signature(number)
        sketch = sketches.LeanMinHash(seed=1, hashvalues=own, scheme="affine32")
        if any((signature(other) == own).mean() >= threshold for other in index.query(sketch)):
            keep[number] = False
            n_dropped += 1
        else:
            index.insert(number, sketch, check_duplication=False)
    return n_dropped


def rows_of_band(threshold: float) -> int:
    """Return in how many places a band of two signatures has to be equal for them to be compared.

    As many as can be if pairs that agree in just this share of all places are to be found nearly always. A band of r
    places is equal with probability t^r, so that one of b is with 1 - (1 - t^r)^b (Leskovec, Rajaraman and Ullman,
    "Mining of Massive Datasets", section 3.4). Those that are found are compared in all places.
    """
    sizes = range(1, PERMUTATIONS // 2 + 1)
    found = [rows for rows in sizes if 1 - (1 - threshold**rows) ** (PERMUTATIONS // rows) >= LEAST_FOUND]
    return max(found, default=1)


def load_datasketch() -> Any:
    try:
        return importlib.import_module("datasketch")
    except ImportError:
        raise UserError(
            "datasketch finds documents that are nearly equal: `pip install datasketch` (the extra dedup), or choose "
            '`dedup="exact"`.'
        ) from None
