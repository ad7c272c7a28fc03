"""The sharded folder: a corpus of any size as ids, read by memory map.

    manifest.json          what is in the folder: counts, tokenizer, sources, rules, sha256 of each file, and its own
    vocab.json             the vocabulary; tokenizer.json and its companions, of byte pairs
    train-00000.bin        ids of the documents of a block of the source, each with an EOS behind it, little-endian
    train-00000.ends.bin   where each of these documents ends in it, 64 bits each
    train-00000.rows.bin   with `packing="documents"`, where its rows begin, and the end of the last
    val-00000.bin          the same of the documents for validation
    token_counts.npy       how often each id comes in each split

Shards without a document have no files. Letters: N tokens of a split, R rows, B batch, L length.
"""

import hashlib
import json
import mmap
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from llada.data.corpus_work import PLACE_TYPE
from llada.data.order import Numbers
from llada.data.prepared import Ids, PreparedText, Split, how_to_prepare
from llada.system.errors import UserError
from llada.system.files import read_json
from llada.system.mapped_files import FileState, remember
from llada.tokenizers.base import load_tokenizer

FORMAT, FORMAT_VERSION = "llada-corpus", 1
MANIFEST_FILE, COUNTS_FILE = "manifest.json", "token_counts.npy"
SEAL = "manifest_sha256"
LARGEST_MANIFEST = 1 << 28  # bytes: half a million shards
SPLITS: tuple[Split, ...] = ("train", "val")
MOST_MAPS = 128
"""Number of files that are mapped at a time: a system allows a process some thousand open files."""
LONGEST_TEXT = 20_000_000
"""Largest number of tokens that `ShardedText.text` puts into one text."""
REMEDY = "restore it, or run `llada prepare` again with `overwrite=True`"

Packing = Literal["stream", "documents"]


def seal_of(manifest: Mapping[str, Any]) -> str:
    """Compute the SHA-256 of a manifest without the seal, however it is laid out."""
    content = {key: value for key, value in manifest.items() if key != SEAL}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class MappedFiles:
    """Raw arrays in the files of a folder, mapped when they are needed; the least recently used are let go."""

    def __init__(self, folder: Path, dtype: str) -> None:
        self.folder, self.dtype = folder, np.dtype(dtype)
        self._maps: OrderedDict[str, npt.NDArray[Any]] = OrderedDict()

    def __call__(self, name: str, length: int) -> npt.NDArray[Any]:
        """Map a file of `length` numbers.

        Raises:
            UserError: it is missing, or has another size.
        """
        if name in self._maps:
            self._maps.move_to_end(name)
            return self._maps[name]
        path = self.folder / name
        check_size(path, length * self.dtype.itemsize)
        state = FileState.of(path.stat())
        array = np.memmap(path, self.dtype, "r", shape=(length,))
        mapping: mmap.mmap = array._mmap  # type: ignore[attr-defined]
        if hasattr(mmap, "MADV_RANDOM"):  # windows are short and far from each other: reading ahead is lost work
            mapping.madvise(mmap.MADV_RANDOM)
        remember(mapping, path, state)
        self._maps[name] = array
        if len(self._maps) > MOST_MAPS:
            self._maps.popitem(last=False)
        return array

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the maps: another process has its own."""
        return {**self.__dict__, "_maps": OrderedDict()}


def check_size(path: Path, n_bytes: int) -> None:
    """Refuse a file of a shard that is missing or has another size.

    Raises:
        UserError: it does.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: {REMEDY}.")
    if path.stat().st_size != n_bytes:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes instead of {n_bytes:,}: {REMEDY}.")


class ShardedIds:
    """The ids (N,) of a split, across its shards; what is indexed is copied, and nothing else is read."""

    ndim = 1

    def __init__(self, files: MappedFiles, shards: Sequence[Mapping[str, Any]], n_rows: int) -> None:
        """Describe the ids.

        Args:
            n_rows: number of rows of the network's embedding and one more id, MASK's; ids are checked against it.
        """
        self._files, self._shards, self._n_rows = files, shards, n_rows
        self._edges = np.cumsum([0, *(shard["tokens"] for shard in shards)], dtype=np.int64)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._files.dtype

    @property
    def size(self) -> int:
        return len(self)

    @property
    def shape(self) -> tuple[int]:
        return (len(self),)

    def __len__(self) -> int:
        return int(self._edges[-1])

    def __getitem__(self, index: Any) -> Any:
        """Return the ids at an index, as numpy does: a number, a slice, or an array of numbers of any shape."""
        if isinstance(index, slice):
            start, end, step = index.indices(len(self))
            return self.run(start, end) if step == 1 else self[np.arange(start, end, step)]
        places = np.asarray(index)
        if places.dtype.kind not in "iu":
            raise TypeError(f"ids are indexed by whole numbers, not by {places.dtype}")
        flat = places.reshape(-1).astype(np.int64)
        flat = np.where(flat < 0, flat + len(self), flat)
        if flat.size and not 0 <= flat.min() <= flat.max() < len(self):
            raise IndexError(f"an index is out of range for {len(self)} ids")
        shard_of = np.searchsorted(self._edges, flat, side="right") - 1
        found = np.empty(len(flat), dtype=self.dtype)
        for shard in np.unique(shard_of):
            here = shard_of == shard
            found[here] = self._map(int(shard))[flat[here] - self._edges[shard]]
        return self._checked(found.reshape(places.shape))[()]

    def run(self, start: int, end: int) -> Ids:
        """Return the ids from `start` to `end` (end - start,)."""
        parts = []
        for shard in range(max(0, int(np.searchsorted(self._edges, start, side="right")) - 1), len(self._shards)):
            edge = int(self._edges[shard])
            if edge >= end:
                break
            parts.append(self._map(shard)[max(0, start - edge) : end - edge])
        return self._checked(np.concatenate(parts) if parts else np.empty(0, dtype=self.dtype))

    def counts(self) -> npt.NDArray[np.int64]:
        """Return how often each id comes."""
        return read_counts(self._files.folder, self._n_rows)[0 if self._is_train else 1]

    @property
    def _is_train(self) -> bool:
        return bool(self._shards) and str(self._shards[0]["file"]).startswith("train")

    def _map(self, shard: int) -> Ids:
        facts = self._shards[shard]
        return self._files(str(facts["file"]), int(facts["tokens"]))

    def _checked(self, ids: Ids) -> Ids:
        if int(ids.max(initial=0)) >= self._n_rows:
            raise UserError(
                f"{self._files.folder} has ids that its vocabulary lacks: `llada data validate` names the damaged file."
            )
        return ids


class StreamRows:
    """The ids of a split as rows (R, L) that follow each other, the last one padded."""

    def __init__(self, tokens: ShardedIds, length: int, pad_id: int) -> None:
        self._tokens, self._length, self._pad_id = tokens, length, pad_id
        self.shape = (-(-len(tokens) // length), length)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Ids:
        """Return the rows (B, L) at numbers (B,), or one row (L,)."""
        numbers = _numbers(index, len(self))
        places = numbers[..., None] * self._length + np.arange(self._length)
        rows: Ids = self._tokens[np.minimum(places, len(self._tokens) - 1)]
        rows[places >= len(self._tokens)] = self._pad_id
        return rows


class DocumentRows:
    """Rows (R, L) with tokens of one document each, padded behind it."""

    def __init__(
        self, tokens: ShardedIds, files: MappedFiles, shards: Sequence[Mapping[str, Any]], length: int, pad_id: int
    ) -> None:
        self._tokens, self._files, self._shards = tokens, files, shards
        self._length, self._pad_id = length, pad_id
        self._edges = np.cumsum([0, *(shard["sequences"] for shard in shards)], dtype=np.int64)
        self._token_edges = np.cumsum([0, *(shard["tokens"] for shard in shards)], dtype=np.int64)
        self.shape = (int(self._edges[-1]), length)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Ids:
        """Return the rows (B, L) at numbers (B,), or one row (L,)."""
        numbers = _numbers(index, len(self))
        flat = numbers.reshape(-1)
        rows = np.full((len(flat), self._length), self._pad_id, dtype=self._tokens.dtype)
        for row, number in zip(rows, flat.tolist(), strict=True):
            start, end = self._bounds(number)
            row[: end - start] = self._tokens.run(start, end)
        return rows.reshape(*numbers.shape, self._length)

    def lengths(self, numbers: Numbers) -> Numbers:
        """Return how many tokens (B,) the rows of these numbers (B,) have before their padding."""
        return np.array([end - start for start, end in map(self._bounds, numbers.tolist())], dtype=np.int64)

    def _bounds(self, number: int) -> tuple[int, int]:
        """Where the tokens of a row begin and end among those of the split."""
        shard = int(np.searchsorted(self._edges, number, side="right")) - 1
        name = Path(self._shards[shard]["file"]).with_suffix(".rows.bin").name
        starts = self._files(name, int(self._shards[shard]["sequences"]) + 1)
        start, end = starts[number - self._edges[shard] : number - self._edges[shard] + 2].tolist()
        if not 0 <= start < end <= self._shards[shard]["tokens"]:
            raise UserError(f"{self._files.folder / name} is damaged: {REMEDY}.")
        edge = int(self._token_edges[shard])
        return edge + start, edge + min(end, start + self._length)


def _numbers(index: Any, n: int) -> npt.NDArray[np.int64]:
    numbers = np.arange(n)[index] if isinstance(index, slice) else np.asarray(index, dtype=np.int64)
    numbers = np.where(numbers < 0, numbers + n, numbers)
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < n:
        raise IndexError(f"a number is out of range for {n} rows")
    return numbers


@dataclass(frozen=True)
class ShardedText(PreparedText):
    """A sharded folder, opened by memory map.

    The manifest is verified when it is opened, and the size of each shard when it is first read; the checksums of the
    shards are verified by `llada data validate` only, since that reads all of them.
    """

    @classmethod
    def open(cls, folder: Path) -> "ShardedText":
        """Verify the manifest, and that each of its files is there.

        Raises:
            UserError: a file is missing, or the manifest is damaged or of another format.
        """
        manifest = read_manifest(folder)
        tokenizer = load_tokenizer(folder, manifest)
        check_there(folder, manifest)
        tokens, places = MappedFiles(folder, manifest["dtype"]), MappedFiles(folder, PLACE_TYPE)
        length, rows = int(manifest["sequence_length"]), {}
        for split in SPLITS:
            shards = manifest["splits"][split]["shards"]
            ids = ShardedIds(tokens, shards, tokenizer.vocab_size)
            rows[split] = (
                DocumentRows(ids, places, shards, length, tokenizer.pad_id)
                if manifest["packing"] == "documents"
                else StreamRows(ids, length, tokenizer.pad_id)
            )
        # Windows and rows are read by indexing, which these do as arrays in memory would.
        return cls(folder, tokenizer, manifest, cast(dict[str, Ids], rows), MANIFEST_FILE)

    @property
    def text_sha256(self) -> str:
        """SHA-256 of the digests of all documents in their order."""
        return str(self.metadata["text_sha256"])

    @property
    def raw_text(self) -> str:
        """A sharded folder does not keep its text.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"{self.folder} holds ids of its own tokenizer and not the text: run `llada prepare` with "
            "`tokenizer=CHECKPOINT` to have the text in the tokens of a checkpoint."
        )

    @property
    def fingerprints(self) -> dict[str, str]:
        """Checksums of what a run learns from, all from the manifest."""
        parts = {"text": self.text_sha256, "vocabulary": self.metadata["tokenizer"]["fingerprint"]}
        for split, name in (("train", "training split"), ("val", "validation split")):
            sums = [shard["sha256"]["tokens"] for shard in self.metadata["splits"][split]["shards"]]
            parts[name] = hashlib.sha256(" ".join(sums).encode()).hexdigest()
        return parts

    def text(self, split: Split) -> str:
        """Return the text of a split, decoded.

        Raises:
            UserError: it is too long.
        """
        tokens = self.tokens(split)
        if len(tokens) > LONGEST_TEXT:
            raise UserError(
                f"The {len(tokens):,} tokens of {self.folder} are more than the {LONGEST_TEXT:,} that are put into one "
                "text: use a part of the corpus for this."
            )
        return self.tokenizer.decode(tokens[:].tolist())

    def tokens(self, split: Split) -> Ids:
        """Return the ids (N,) of a split, which are read where they are indexed (`ShardedIds`)."""
        return cast(Ids, cast(Any, self.rows[split])._tokens)

    def row_lengths(self, split: Split, numbers: Numbers) -> Numbers:
        rows: object = self.rows[split]
        return rows.lengths(numbers) if isinstance(rows, DocumentRows) else super().row_lengths(split, numbers)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest and verify that it is whole.

    Raises:
        UserError: it is missing, damaged, or of another format.
    """
    remedy = f"run {how_to_prepare(folder)} again"
    manifest = read_json(folder / MANIFEST_FILE, LARGEST_MANIFEST)
    if manifest.get("format") != FORMAT or manifest.get("format_version") != FORMAT_VERSION:
        raise UserError(f"{folder} has another format than version {FORMAT_VERSION} of {FORMAT}: {remedy}.")
    if manifest.get(SEAL) != seal_of(manifest):
        raise UserError(
            f"{folder / MANIFEST_FILE} has changed since it was written (wrong checksum of its own): {remedy}."
        )
    return manifest


def read_counts(folder: Path, n_ids: int) -> npt.NDArray[np.int64]:
    """Read how often each id comes in each split (2, n_ids).

    Raises:
        UserError: the file is damaged.
    """
    try:
        counts: npt.NDArray[np.int64] = np.load(folder / COUNTS_FILE)
        if counts.shape == (len(SPLITS), n_ids):
            return counts
    except (EOFError, ValueError):
        pass
    raise UserError(f"{folder / COUNTS_FILE} is damaged: {REMEDY}.")


def check_there(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse a folder that lacks a file.

    Raises:
        UserError: it does.
    """
    for name, _ in files_in(manifest):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing: {REMEDY}.")


def files_in(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List the names of all files of a corpus and their SHA-256, in the order of their names within each kind."""
    files = [*manifest["tokenizer"]["sha256"].items(), (COUNTS_FILE, manifest["token_counts_sha256"])]
    for split in SPLITS:
        for shard in manifest["splits"][split]["shards"]:
            stem = Path(shard["file"]).stem
            names = {"tokens": f"{stem}.bin", "ends": f"{stem}.ends.bin", "rows": f"{stem}.rows.bin"}
            files += [(names[kind], digest) for kind, digest in shard["sha256"].items()]
    return files
