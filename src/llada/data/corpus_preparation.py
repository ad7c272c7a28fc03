"""The preparation of a sharded folder: blocks of the source, read by several processes, become shards.

A preparation has up to four stages: scan the documents, make the tokenizer, find duplicates, write the shards. What is
done is kept in `unfinished/` in the folder, a record a block, until the manifest is written. A preparation that was
stopped or killed goes on with the blocks that have no record; the result is the same, byte for byte, and does not
depend on the number of processes.
"""

import dataclasses
import functools
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from llada.data.blocks import Block, blocks_of
from llada.data.corpus_folder import (
    DUPLICATES_FILE,
    IDS_FILE,
    TOKENIZER_FOLDER,
    UNFINISHED,
    leave_nothing,
    take_folder,
)
from llada.data.corpus_manifest import (
    NO_TEXT,
    NoTextError,
    Origin,
    check_number,
    digest_of_json,
    fingerprint_of,
    write_manifest,
)
from llada.data.corpus_work import (
    Counts,
    Scanner,
    ShardWriter,
    Work,
    digest_of,
    file_of,
    is_sampled,
    record_of_scan,
    record_of_shards,
    texts_in,
)
from llada.data.duplicates import load_datasketch, mark_duplicates
from llada.data.prepared import METADATA_FILE
from llada.data.sharded import MANIFEST_FILE, Packing, ShardedText
from llada.data.sources import Source
from llada.system.errors import UserError
from llada.system.files import folder_written_whole, read_json, remove_leftovers, write_json
from llada.system.locks import locked
from llada.system.worker_processes import map_in_order
from llada.tokenizers.base import Tokenizer, ids_of, load_tokenizer
from llada.tokenizers.char import CharTokenizer
from llada.tokenizers.train_bpe import check_vocab_size, train_bpe

_BATCH_CHARACTERS = 1 << 20
_BEGINNING_BYTES = 1 << 20  # of a piece of which only the first documents are wanted

Made = Literal["characters", "bpe"]
Duplicates = Literal["keep", "exact", "near"]
Report = Callable[[str, int, int | None], None]
"""A function `report(stage, done_bytes, all_bytes)`; the last is None if nobody knows."""


@dataclass(frozen=True)
class CorpusSettings:
    """How a corpus is prepared; all of it decides what is written."""

    vocab_size: int = 8192
    """Number of ids of a BPE that is trained here."""
    sample_mb: float = 100.0
    """Text that it is trained on, in MB; 0 means all."""
    sequence_length: int = 4096
    packing: Packing = "stream"
    val_share: float = 0.01
    dedup: Duplicates = "keep"
    near_threshold: float = 0.8
    skip_bad: bool = False
    shard_mb: float = 64.0
    """Size of a block of the source in MB, and so, about, of a shard."""

    @property
    def block_bytes(self) -> int:
        """Number of bytes of a block."""
        return max(1, int(self.shard_mb * 1e6))


def prepare_corpus(
    source: Source,
    text_key: str,
    tokenizer: Made | Tokenizer,
    folder: Path,
    settings: CorpusSettings,
    processes: int = 1,
    overwrite: bool = False,
    report: Report = lambda stage, done, of: None,
) -> ShardedText:
    """Write a sharded folder, or go on with one that is half done, and open it.

    Args:
        text_key: key or column that holds the text of a row.
        tokenizer: "characters" of the text, "bpe" trained on it, or the tokenizer of a checkpoint or another corpus.
        processes: number of processes that read and encode.
        overwrite: whether to remove what another preparation left in the folder.

    Raises:
        UserError: the source is broken, or gives no training or no validation text; the folder holds other things or
            another preparation, or another process writes it.
    """
    if tokenizer == "bpe":
        check_vocab_size(settings.vocab_size)
    if settings.dedup == "near":
        load_datasketch()
    if overwrite and any((folder / name).is_file() for name in (MANIFEST_FILE, METADATA_FILE)):
        _check_beginning(source, text_key, settings)
    with locked(folder):
        remove_leftovers(folder)
        preparation = _Preparation(source, text_key, tokenizer, folder, settings, processes, report)
        take_folder(folder, preparation.identity, overwrite)
        try:
            return preparation.run()
        except BaseException as error:
            leave_nothing(folder, though_done=isinstance(error, NoTextError))
            raise


def _check_beginning(source: Source, text_key: str, settings: CorpusSettings) -> None:
    """Refuse a source that gives less than two documents, or is broken before them, for which a good folder should not
    be removed.

    Raises:
        UserError: it is.
    """
    size = min(settings.block_bytes, _BEGINNING_BYTES)
    # On Windows, a file that the source has still open stays.
    with tempfile.TemporaryDirectory(prefix="llada-", ignore_cleanup_errors=True) as name:
        work = Work(name, name, text_key, settings.skip_bad, settings.val_share)
        blocks = blocks_of(source.pieces(size, Path(name)), size)
        texts = (text for block in blocks for text in texts_in(block, work, Counts()))
        check_number(len(list(itertools.islice(texts, 2))))


class _Preparation:
    """A preparation in its folder, whose lock is held."""

    def __init__(
        self,
        source: Source,
        text_key: str,
        tokenizer: Made | Tokenizer,
        folder: Path,
        settings: CorpusSettings,
        processes: int,
        report: Report,
    ) -> None:
        self.source, self.tokenizer, self.folder, self.settings = source, tokenizer, folder, settings
        self.processes, self.report = processes, report
        self.unfinished = folder / UNFINISHED
        self.work = Work(
            str(folder), str(self.unfinished), text_key, settings.skip_bad, settings.val_share,
            packing=settings.packing, sequence_length=settings.sequence_length,
            drops_duplicates=settings.dedup != "keep",
        )  # fmt: skip
        name = tokenizer if isinstance(tokenizer, str) else fingerprint_of(tokenizer)
        options = dataclasses.asdict(settings)
        if tokenizer != "bpe":  # what does not matter must not be compared
            del options["vocab_size"], options["sample_mb"]
        self.identity = {"tokenizer": name, "text_key": text_key, **options, "source": source.identity()}

    def run(self) -> ShardedText:
        if (self.folder / MANIFEST_FILE).is_file():
            shutil.rmtree(self.unfinished, ignore_errors=True)
            return ShardedText.open(self.folder)
        self._scan()
        tokenizer = self._make_tokenizer()
        n_duplicates = self._mark_duplicates()
        dtype = np.min_scalar_type(tokenizer.vocab_size - 1).newbyteorder("<").str
        work = dataclasses.replace(self.work, vocabulary=ids_of(tokenizer), dtype=dtype)
        n_blocks = self._each_block("writing", functools.partial(ShardWriter, work), record_of_shards)
        self._write_manifest(tokenizer, work, n_blocks, n_duplicates)
        shutil.rmtree(self.unfinished, ignore_errors=True)
        return ShardedText.open(self.folder)

    # The stages

    def _each_block(
        self, stage: str, make: Callable[[], Callable[[Block], int]], record_of: Callable[[Path, int], Path]
    ) -> int:
        """Work on every block that has no record yet, and return how many blocks there are."""
        n_blocks = n_bytes = 0

        def open_blocks() -> Iterator[Block]:
            nonlocal n_blocks, n_bytes
            size = self.settings.block_bytes
            for block in blocks_of(self.source.pieces(size, self.unfinished), size):
                n_blocks += 1
                if record_of(self.unfinished, block.number).is_file():
                    n_bytes += block.size
                    _remove_copies(block)
                else:
                    yield block

        self.source.check()
        self.report(stage, 0, self.source.size)
        try:
            for block, _ in map_in_order(make, open_blocks(), self.processes):
                n_bytes += block.size
                _remove_copies(block)
                self.report(stage, n_bytes, self.source.size)
        except UserError:
            self.source.check()  # if it has changed, that is why
            raise
        self.source.check()
        return n_blocks

    def _scan(self) -> None:
        settings = self.settings
        work = dataclasses.replace(
            self.work,
            scan_characters=self.tokenizer == "characters",
            scan_digests=settings.dedup != "keep",
            scan_signatures=settings.dedup == "near",
            sample_bytes=self._sample_bytes() if self.tokenizer == "bpe" else 0,
            source_bytes=self.source.size,
        )
        self.n_scanned = 0
        if work.scan_characters or work.scan_digests or work.sample_bytes:
            self.n_scanned = self._each_block("scanning", functools.partial(Scanner, work), record_of_scan)

    def _make_tokenizer(self) -> Tokenizer:
        folder = self.unfinished / TOKENIZER_FOLDER
        if folder.is_dir():
            return load_tokenizer(folder, read_json(self.unfinished / IDS_FILE))
        if isinstance(self.tokenizer, str):
            tokenizer = self._characters() if self.tokenizer == "characters" else self._byte_pairs()
        else:
            tokenizer = self.tokenizer
        write_json(self.unfinished / IDS_FILE, ids_of(tokenizer))
        with folder_written_whole(folder) as aside:
            tokenizer.save(aside)
        return tokenizer

    def _characters(self) -> Tokenizer:
        found: set[str] = set()
        for number in range(self.n_scanned):
            found.update(read_json(record_of_scan(self.unfinished, number))["characters"])
        if not found:
            raise NoTextError(NO_TEXT)
        return CharTokenizer(found)

    def _byte_pairs(self) -> Tokenizer:
        self.report("training the tokenizer", 0, None)
        return train_bpe(self._sample(), self.settings.vocab_size)

    def _sample_bytes(self) -> int:
        return max(1, int(self.settings.sample_mb * 1e6)) if self.settings.sample_mb else 2**62

    def _sample(self) -> Iterator[list[str]]:
        """Iterate over batches of the sampled texts, in the order of the source.

        Raises:
            UserError: there are training documents, and none is in the sample.
        """
        records = [record_of_scan(self.unfinished, number) for number in range(self.n_scanned)]
        n_bytes = sum(read_json(record)["train_bytes"] for record in records)
        share = self._sample_bytes() / max(1, n_bytes)
        batch: list[str] = []
        waiting, is_empty = 0, True
        for record in records:
            with open(file_of(record, ".sample.jsonl"), encoding="utf-8") as lines:
                for text in map(json.loads, lines):
                    if not is_sampled(digest_of(text.encode()), share):
                        continue
                    is_empty = False
                    batch.append(text)
                    waiting += len(batch[-1])
                    if waiting >= _BATCH_CHARACTERS:
                        yield batch
                        batch, waiting = [], 0
        if batch:
            yield batch
        if is_empty and n_bytes:
            raise UserError(
                f"No document was drawn to train the byte pairs on: raise `sample_mb`, which is "
                f"{self.settings.sample_mb:g}, and add `overwrite=True`."
            )

    def _mark_duplicates(self) -> dict[str, int]:
        path = self.unfinished / DUPLICATES_FILE
        if self.settings.dedup == "keep":
            return {}
        if not path.is_file():
            self.report("looking for duplicates", 0, None)
            near = self.settings.near_threshold if self.settings.dedup == "near" else None
            n_exact, n_near = mark_duplicates(self.unfinished, self.n_scanned, near)
            write_json(path, {"exact": n_exact, **({} if near is None else {"near": n_near})})
        return read_json(path)

    def _write_manifest(self, tokenizer: Tokenizer, work: Work, n_blocks: int, n_duplicates: dict[str, int]) -> None:
        near = {"near_threshold": self.settings.near_threshold} if self.settings.dedup == "near" else {}
        origin = Origin(
            digest_of_json(self.identity),
            self.source.provenance(),
            self.tokenizer if isinstance(self.tokenizer, str) else "given",
            {"rule": self.settings.dedup, **near, **n_duplicates},
        )
        write_manifest(origin, tokenizer, self.unfinished / TOKENIZER_FOLDER, work, n_blocks)


def _remove_copies(block: Block) -> None:
    for piece in block.pieces:
        if piece.copy:
            Path(piece.copy).unlink(missing_ok=True)
