"""The preparation of a sharded folder: blocks of the source, read by several processes, become shards.

A preparation has up to four stages: scan the documents, make the tokenizer, find duplicates, write the shards. What is
done is kept in `unfinished/` in the folder, a record a block, until the manifest is written. A preparation that was
stopped or killed goes on with the blocks that have no record; the result is the same, byte for byte, and does not
depend on the number of processes.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llada.data.blocks import Bad, Block, Piece, blocks_of
from llada.data.corpus_work import (
    SPLITS,
    Scanner,
    ShardWriter,
    Work,
    file_of,
    record_of_scan,
    record_of_shards,
)
from llada.data.duplicates import load_datasketch, mark_duplicates
from llada.data.prepared import METADATA_FILE, OWN_RAW_FILE, RAW_FILE, SPLIT_FILES, TOKENISED_FOLDER
from llada.data.sharded import (
    COUNTS_FILE,
    FORMAT,
    FORMAT_VERSION,
    MANIFEST_FILE,
    SEAL,
    Packing,
    ShardedText,
    read_manifest,
    seal_of,
)
from llada.data.sources import Source
from llada.system.errors import UserError
from llada.system.files import (
    file_written_whole,
    folder_written_whole,
    read_json,
    remove_leftovers,
    sha256_of,
    write_json,
)
from llada.system.locks import locked
from llada.system.temporary_names import is_aside, remove_asides
from llada.system.worker_processes import map_in_order
from llada.tokenizers.base import Tokenizer, ids_of, load_tokenizer
from llada.tokenizers.bpe import MODEL_FILE, OTHER_FILES
from llada.tokenizers.char import VOCAB_FILE, CharTokenizer
from llada.tokenizers.train_bpe import SMALLEST_VOCABULARY, train_bpe

UNFINISHED = "unfinished"
SETTINGS_FILE, TOKENIZER_FOLDER, IDS_FILE, DUPLICATES_FILE = "settings.json", "tokenizer", "ids.json", "duplicates.json"
LARGEST_SETTINGS = 1 << 28  # bytes: the names of some million files
LISTED_FILES = 1000
_BATCH_CHARACTERS = 1 << 20
_OWN = re.compile(r"(train|val)-\d{5,}(\.ends|\.rows)?\.bin")
RULE = (
    "A document is for validation if the first 8 bytes of the blake2b digest (of 16 bytes) of its UTF-8 text, as a "
    "big-endian number, are below share * 2**64."
)

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
        tokenizer: "characters" of the text, "bpe" trained on it, or the tokenizer of a checkpoint.
        processes: number of processes that read and encode.
        overwrite: whether to remove what another preparation left in the folder.

    Raises:
        UserError: the source is broken, or gives no training or no validation text; the folder holds other things or
            another preparation, or another process writes it.
    """
    if tokenizer == "bpe" and settings.vocab_size < SMALLEST_VOCABULARY:
        raise UserError(f"`vocab_size={settings.vocab_size}` is too small: choose {SMALLEST_VOCABULARY} or more.")
    if settings.dedup == "near":
        load_datasketch()
    with locked(folder):
        remove_leftovers(folder)
        preparation = _Preparation(source, text_key, tokenizer, folder, settings, processes, report)
        try:
            return preparation.run(overwrite)
        except Exception:
            preparation.leave_nothing()
            raise


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

    def run(self, overwrite: bool) -> ShardedText:
        self._take_folder(overwrite)
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

    def leave_nothing(self) -> None:
        """Remove a preparation of which nothing was done, so that it holds up no other one."""
        if self.unfinished.is_dir() and not any(self.unfinished.glob("*-*.json")):
            shutil.rmtree(self.unfinished)
            with contextlib.suppress(OSError):  # there are other things in it
                self.folder.rmdir()

    # What is there already

    def _take_folder(self, overwrite: bool) -> None:
        """Make the folder ready for this preparation, or refuse."""
        folder = self.folder
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file: choose another `output_dir`.")
        folder.mkdir(parents=True, exist_ok=True)
        remove_asides(folder)
        foreign = sorted(path.name for path in folder.iterdir() if not _is_own(path.name))
        if foreign:
            raise UserError(f"{folder} holds {foreign[0]}, which is not of a corpus: choose another `output_dir`.")
        if self.unfinished.is_dir() and not (self.unfinished / SETTINGS_FILE).exists():
            shutil.rmtree(self.unfinished)  # killed as it began, or as it removed what was no longer needed
        if overwrite:
            # First what says what is there, so that a kill in between leaves nothing that looks whole, or half done.
            for name in (MANIFEST_FILE, f"{UNFINISHED}/{SETTINGS_FILE}"):
                (folder / name).unlink(missing_ok=True)
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        elif (folder / MANIFEST_FILE).is_file():
            if read_manifest(folder).get("preparation") != _digest(self.identity):
                raise UserError(
                    f"{folder} holds a corpus that was prepared with other settings or from other sources: choose "
                    "another `output_dir`, or add `overwrite=True`."
                )
            return
        elif (folder / METADATA_FILE).exists():
            raise UserError(f"{folder} holds a prepared text: choose another `output_dir`, or add `overwrite=True`.")
        elif (self.unfinished / SETTINGS_FILE).exists():
            self._compare(read_json(self.unfinished / SETTINGS_FILE, LARGEST_SETTINGS))
            remove_asides(self.unfinished)
            return
        elif any(folder.iterdir()):
            raise UserError(f"{folder} is not empty: choose another `output_dir`, or add `overwrite=True`.")
        self.unfinished.mkdir()
        write_json(self.unfinished / SETTINGS_FILE, self.identity)

    def _compare(self, before: Mapping[str, Any]) -> None:
        now = json.loads(json.dumps(self.identity))
        changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
        if not changed:
            return
        if changed == ["source"]:
            what = "from other sources, or before they changed"
        else:
            options = [name for name in changed if name != "source"]
            what = "with other settings (" + ", ".join(f"`{name}`, then {before.get(name)}" for name in options) + ")"
        raise UserError(
            f"{self.folder} holds a preparation that is half done, {what}: repeat the command as it was, choose "
            "another `output_dir`, or add `overwrite=True`."
        )

    # The stages

    def _each_block(
        self, stage: str, make: Callable[[], Callable[[Block], int]], record_of: Callable[[Path, int], Path]
    ) -> int:
        """Work on every block that has no record yet, and return how many blocks there are."""
        n_blocks = n_bytes = 0

        def open_blocks() -> Iterator[Block]:
            nonlocal n_blocks, n_bytes
            size = int(self.settings.shard_mb * 1e6)
            for block in blocks_of(self.source.pieces(size, self.unfinished), size):
                n_blocks += 1
                if record_of(self.unfinished, block.number).is_file():
                    n_bytes += block.size
                    _remove_copies(block)
                else:
                    yield block

        self.report(stage, 0, self.source.size)
        for block, _ in map_in_order(make, open_blocks(), self.processes):
            n_bytes += block.size
            _remove_copies(block)
            self.report(stage, n_bytes, self.source.size)
        return n_blocks

    def _scan(self) -> None:
        settings = self.settings
        work = dataclasses.replace(
            self.work,
            scan_characters=self.tokenizer == "characters",
            scan_digests=settings.dedup != "keep",
            scan_signatures=settings.dedup == "near",
            sample_bytes=int(settings.sample_mb * 1e6 or 2**62) if self.tokenizer == "bpe" else 0,
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
            raise UserError("The source holds no text: check `input` and `text_key`.")
        return CharTokenizer(found)

    def _byte_pairs(self) -> Tokenizer:
        self.report("training the tokenizer", 0, None)
        return train_bpe(self._sample(), self.settings.vocab_size)

    def _sample(self) -> Iterator[list[str]]:
        """Iterate over batches of the sampled texts, in the order of the source."""
        batch: list[str] = []
        waiting = 0
        for number in range(self.n_scanned):
            with open(file_of(record_of_scan(self.unfinished, number), ".sample.jsonl"), encoding="utf-8") as lines:
                for line in lines:
                    batch.append(json.loads(line))
                    waiting += len(batch[-1])
                    if waiting >= _BATCH_CHARACTERS:
                        yield batch
                        batch, waiting = [], 0
        if batch:
            yield batch

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

    # The end

    def _write_manifest(self, tokenizer: Tokenizer, work: Work, n_blocks: int, n_duplicates: Mapping[str, int]) -> None:
        records = [read_json(record_of_shards(self.unfinished, number)) for number in range(n_blocks)]
        splits = {split: _gather([record["splits"][split] for record in records], work) for split in SPLITS}
        self._check_splits(splits)
        counts = np.zeros((len(SPLITS), tokenizer.vocab_size), dtype=np.int64)
        for number in range(n_blocks):
            counts += np.load(file_of(record_of_shards(self.unfinished, number), ".counts.npy"))
        with file_written_whole(self.folder / COUNTS_FILE) as aside, open(aside, "wb") as file:
            np.save(file, counts)
        for name in tokenizer.file_names:
            with file_written_whole(self.folder / name) as aside:
                shutil.copyfile(self.unfinished / TOKENIZER_FOLDER / name, aside)
        text = hashlib.sha256("".join(record["text_sha256"] for record in records).encode())
        first_bad = next((record["first_bad"] for record in records if record["first_bad"]), None)
        near = {"near_threshold": self.settings.near_threshold} if self.settings.dedup == "near" else {}
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "preparation": _digest(self.identity),
            "source": _shortened(self.source.provenance()),
            "text_key": work.text_key,
            "text_sha256": text.hexdigest(),
            "tokenizer": {
                "kind": self.tokenizer if isinstance(self.tokenizer, str) else "checkpoint",
                "fingerprint": fingerprint_of(tokenizer),
                "sha256": {name: sha256_of(self.folder / name) for name in tokenizer.file_names},
            },
            **ids_of(tokenizer),
            "dtype": work.dtype,
            "sequence_length": work.sequence_length,
            "packing": work.packing,
            "validation": {"rule": RULE, "share": work.val_share},
            "duplicates": {"rule": self.settings.dedup, **near, **n_duplicates},
            "left_out": {name: sum(record[name] for record in records) for name in ("empty", "bad")},
            "first_bad": _bad_of(first_bad).describe() if first_bad else None,
            "splits": splits,
            "token_counts_sha256": sha256_of(self.folder / COUNTS_FILE),
        }
        write_json(self.folder / MANIFEST_FILE, {**manifest, SEAL: seal_of(manifest)})

    def _check_splits(self, splits: Mapping[str, Mapping[str, Any]]) -> None:
        n_train, n_val = (splits[split]["documents"] for split in SPLITS)
        if not n_train + n_val:
            raise UserError("The source holds no text: check `input` and `text_key`.")
        if not n_train or not n_val:
            which, change = ("validation", "raise") if n_train else ("training", "lower")
            raise UserError(
                f"None of the {n_train + n_val:,} documents is for {which}: {change} `val_share`, which is "
                f"{self.settings.val_share:g}, and add `overwrite=True`."
            )


def fingerprint_of(tokenizer: Tokenizer) -> str:
    """Return a SHA-256 that two tokenizers share if they give the same ids for every text."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="llada-") as name:
        tokenizer.save(Path(name))
        digests = {file: sha256_of(Path(name, file)) for file in tokenizer.file_names}
    content = {"files": digests, **ids_of(tokenizer)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _gather(shards: list[dict[str, Any] | None], work: Work) -> dict[str, Any]:
    """Sum up the shards of a split; blocks without a document of it have none."""
    there = [shard for shard in shards if shard is not None]
    total = {name: sum(s[name] for s in there) for name in ("tokens", "documents", "characters", "bytes", "sequences")}
    if work.packing == "stream":
        total["sequences"] = -(-total["tokens"] // work.sequence_length)
    return {**total, "shards": there}


def _shortened(provenance: dict[str, Any]) -> dict[str, Any]:
    """Sum up the names of very many files."""
    files = provenance.get("files")
    if files is None:
        return provenance
    sums = {"n_files": len(files), "bytes": sum(size for _, size in files), "files_sha256": _digest(files)}
    return {**provenance, **sums, "files": files[:LISTED_FILES]}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _bad_of(content: Mapping[str, Any]) -> Bad:
    return Bad(Piece(**content["piece"]), content["number"], content["problem"])


def _remove_copies(block: Block) -> None:
    for piece in block.pieces:
        if piece.copy:
            Path(piece.copy).unlink(missing_ok=True)


def _is_own(name: str) -> bool:
    own = {
        UNFINISHED, MANIFEST_FILE, COUNTS_FILE, VOCAB_FILE, MODEL_FILE, *OTHER_FILES, METADATA_FILE, RAW_FILE,
        OWN_RAW_FILE, TOKENISED_FOLDER, *SPLIT_FILES.values(),
    }  # fmt: skip
    return name in own or _OWN.fullmatch(name) is not None or is_aside(name)
