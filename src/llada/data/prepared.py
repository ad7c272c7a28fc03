"""The prepared folder: a text as ids, cut into sequences, with its vocabulary and checksums.

    shakespeare_raw.txt   the text; prepared_text.txt, if it is one of your own
    vocab.json            its vocabulary
    train_data.npy        (rows, sequence_length) ids of the first 90 % of the text, the last row padded
    val_data.npy          the same of the rest
    metadata.json         counts, split, source, the sha256 of every other file, and that of its own content
    tokenised/            the same text in the ids of other tokenizers, each a prepared folder again

A text of several documents has a blank line between two of them, and in
the arrays an EOS in its place; metadata.json says where. Letters: N rows, L length, B batch.
"""

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llada.data.corpus import Corpus
from llada.data.order import Numbers
from llada.system.errors import UserError, first_line, system_remedy
from llada.system.files import folder_written_whole, read_json, remove_leftovers, sha256_of, write_json
from llada.system.locks import locked
from llada.system.mapped_files import FileState, remember
from llada.system.regular_files import check_no_link, check_regular
from llada.tokenizers.base import Tokenizer, ids_of, load_tokenizer
from llada.tokenizers.char import CharTokenizer

FORMAT_VERSION = 2  # version 1 had no seal
TRAIN_FRACTION = 0.9
DEFAULT_FOLDER, DOCUMENTATION_FOLDER = Path("data/shakespeare"), Path("data/documentation")
RAW_FILE, OWN_RAW_FILE, METADATA_FILE = "shakespeare_raw.txt", "prepared_text.txt", "metadata.json"
BREAKS_KEY = "document_breaks"  # in metadata.json, for several documents: Corpus.breaks
SPLIT_FILES = {"train": "train_data.npy", "val": "val_data.npy"}
TOKENISED_FOLDER = "tokenised"
SMALL_REST = 2  # with so few files, a folder counts as a prepared text, which has five, only by its metadata.json
SEAL = "metadata_sha256"  # in metadata.json, the checksum of the rest of it

Split = Literal["train", "val"]
Ids = npt.NDArray[np.unsignedinteger[Any]]
_kept_until_the_end: list[tempfile.TemporaryDirectory[str]] = []  # each goes when this process ends


def how_to_prepare(folder: Path) -> str:
    """Name the command that makes a prepared folder."""
    if folder == DOCUMENTATION_FOLDER:  # it was hardly Tiny Shakespeare
        return '`llada prepare` with `source="documentation"`'
    return f'`llada prepare` with `output_dir="{folder}"`'


def prepare(corpus: Corpus, folder: Path, sequence_length: int) -> "PreparedText":
    """Write the prepared folder, whole or not at all, and open it.

    A prepared folder that is there already is replaced; a folder with anything else in it is left alone.

    Raises:
        UserError: the text is shorter than a sequence, `folder` holds other things, or another process writes it.
    """
    n_train = _n_train(corpus.text)
    if n_train == 0:
        raise UserError(f"A text of {len(corpus.text)} characters is too short to split: use a longer one.")
    if not 1 <= sequence_length <= n_train:
        raise UserError(
            f"`sequence_length={sequence_length}` does not fit the training text of {n_train:,} characters: "
            f"choose a length from 1 to {n_train:,}."
        )
    with locked(folder):
        remove_leftovers(folder)
        _refuse_foreign_folder(folder)
        return _write(folder, corpus, CharTokenizer(corpus.text), sequence_length)


def text_for(tokenizer: Tokenizer, data: "PreparedText") -> "PreparedText":
    """Return the text of a prepared folder in the ids of this tokenizer: as it is, or retokenised.

    Raises:
        UserError: the tokenizer knows the characters of another text only.
    """
    if tokenizer == data.tokenizer:
        return data
    if isinstance(tokenizer, CharTokenizer):
        known, there = len(tokenizer.characters), len(set(data.raw_text))
        raise UserError(
            f"The checkpoint knows {known} characters and {data.folder} has {there}, not the same ones: use the data "
            "folder that it was trained on."
        )
    return retokenise(data, tokenizer)


def retokenise(data: "PreparedText", tokenizer: Tokenizer) -> "PreparedText":
    """Encode the text of a prepared folder by another tokenizer, split at the same place of the text.

    Kept inside the folder, so that it is made once, and goes when the folder is prepared anew. Where nothing can be
    written there, as on a read-only disk, it is made for this process alone, among the temporary files.
    """
    with tempfile.TemporaryDirectory(prefix="llada-") as name:
        tokenizer.save(Path(name))
        digests = [sha256_of(Path(name, file)) for file in tokenizer.file_names]
    key = hashlib.sha256(repr((digests, ids_of(tokenizer))).encode()).hexdigest()[:12]
    check_no_link(data.folder / TOKENISED_FOLDER)
    try:
        return _retokenised(data, tokenizer, data.folder / TOKENISED_FOLDER / key)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
    temporary = tempfile.TemporaryDirectory(prefix="llada-")
    _kept_until_the_end.append(temporary)
    return _retokenised(data, tokenizer, Path(temporary.name) / key)


def _retokenised(data: "PreparedText", tokenizer: Tokenizer, folder: Path) -> "PreparedText":
    """What is in a folder if it is this, or it is made there."""
    with contextlib.ExitStack() as stack:
        if not folder.exists() or os.access(folder.parent, os.W_OK):
            stack.enter_context(locked(folder, wait=True))  # the second of two runs that start together finds it made
            remove_leftovers(folder)
        with contextlib.suppress(UserError):  # none yet, or a damaged one, which is made anew
            cached = PreparedText.open(folder)
            parts = ("text_sha256", "sequence_length", "breaks")
            if all(getattr(cached, part) == getattr(data, part) for part in parts):
                return cached
        corpus = Corpus(data.raw_text, str(data.metadata["source"]), str(data.metadata["origin"]), data.breaks)
        return _write(folder, corpus, tokenizer, data.sequence_length)


def _n_train(text: str) -> int:
    return int(TRAIN_FRACTION * len(text))


def _write(folder: Path, corpus: Corpus, tokenizer: Tokenizer, sequence_length: int) -> "PreparedText":
    n_train = _n_train(corpus.text)
    parts = {"train": corpus.documents(0, n_train), "val": corpus.documents(n_train)}
    raw_file = OWN_RAW_FILE if corpus.source == "file" else RAW_FILE
    with folder_written_whole(folder) as aside:
        (aside / raw_file).write_bytes(corpus.text.encode("utf-8"))
        tokenizer.save(aside)
        shapes = {}
        for split, documents in parts.items():
            ids = _join([tokenizer.encode(document) for document in documents], tokenizer.eos_id)
            rows = _rows_of(ids, sequence_length, tokenizer)
            shapes[split] = {"tokens": len(ids), "sequences": len(rows)}
            np.save(aside / SPLIT_FILES[split], rows)
        metadata = {
            "format_version": FORMAT_VERSION,
            "source": corpus.source,
            "origin": corpus.origin,
            "characters": len(corpus.text),
            "sequence_length": sequence_length,
            "train_fraction": TRAIN_FRACTION,
            "splits": shapes,
            **ids_of(tokenizer),
            "dtype": str(rows.dtype),
            "sha256": {name: sha256_of(aside / name) for name in _content_files(tokenizer, raw_file)},
        }
        if corpus.breaks:
            metadata[BREAKS_KEY] = list(corpus.breaks)
        write_json(aside / METADATA_FILE, {**metadata, SEAL: _seal_of(metadata)})
    return PreparedText.open(folder)


def _seal_of(metadata: dict[str, Any]) -> str:
    """Compute the SHA-256 of metadata without the seal, however it is laid out."""
    content = {key: value for key, value in metadata.items() if key != SEAL}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _join(parts: Sequence[list[int]], between: int) -> list[int]:
    """Join lists of ids with this id between them; an empty one, at a cut, needs none."""
    ids: list[int] = []
    for part in filter(None, parts):
        ids += [between, *part] if ids else part
    return ids


def _content_files(tokenizer: Tokenizer, raw_file: str) -> tuple[str, ...]:
    return (raw_file, *tokenizer.file_names, *SPLIT_FILES.values())


def _refuse_foreign_folder(folder: Path) -> None:
    """Refuse to replace a folder that is not a prepared text; a few of its file names may be anybody's."""
    if folder.is_dir():
        own = {
            RAW_FILE,
            OWN_RAW_FILE,
            *CharTokenizer.file_names,
            *SPLIT_FILES.values(),
            METADATA_FILE,
            TOKENISED_FOLDER,
        }
        there = {path.name for path in folder.iterdir()}
        foreign = sorted(there if len(there) <= SMALL_REST and not _has_own_metadata(folder) else there - own)
        if foreign:
            raise UserError(f"{folder} holds {foreign[0]}, which is not a prepared text: choose another `output_dir`.")
    elif folder.exists():
        raise UserError(f"{folder} is a file: choose another `output_dir`.")


def _has_own_metadata(folder: Path) -> bool:
    try:
        return {"format_version", "sha256", "splits"} <= read_json(folder / METADATA_FILE).keys()
    except (UserError, OSError):
        return False


def _rows_of(ids: list[int], sequence_length: int, tokenizer: Tokenizer) -> Ids:
    """Cut ids into rows (N, L), the last one padded, in the smallest type that holds a network row's number."""
    n_rows = -(-len(ids) // sequence_length)
    rows = np.full(n_rows * sequence_length, tokenizer.pad_id, dtype=np.min_scalar_type(tokenizer.vocab_size - 1))
    rows[: len(ids)] = ids
    return rows.reshape(n_rows, sequence_length)


@dataclass(frozen=True)
class PreparedText:
    """A prepared folder, verified and opened by memory map."""

    folder: Path
    tokenizer: Tokenizer
    metadata: dict[str, Any]
    rows: dict[str, Ids]
    """Ids (N, L) of each split, padded at the end."""
    raw_file: str = RAW_FILE
    """Name of the file that holds the text."""

    @classmethod
    def open(cls, folder: Path) -> "PreparedText":
        """Verify every file against metadata.json and map the arrays; a sharded folder is opened as `ShardedText`.

        Raises:
            UserError: a file is missing or not what was written.
        """
        if (folder / "manifest.json").is_file() and not (folder / METADATA_FILE).is_file():
            from llada.data.sharded import ShardedText

            return ShardedText.open(folder)
        if not (folder / METADATA_FILE).is_file():
            from llada.data.corpus_folder import refuse_half_done

            refuse_half_done(folder)
            if folder.is_file():
                raise UserError(f"{folder} is a file, not a prepared text: give it to `llada prepare` first.")
            raise UserError(f"{folder} is not a complete prepared text: run {how_to_prepare(folder)}.")
        metadata = read_json(folder / METADATA_FILE)
        remedy = f"run {how_to_prepare(folder)} again"
        version = metadata.get("format_version")
        if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
            raise UserError(f"{folder} has another format than version {FORMAT_VERSION}: {remedy}.")
        if (version > 1 or SEAL in metadata) and metadata.get(SEAL) != _seal_of(metadata):
            raise UserError(
                f"{folder / METADATA_FILE} has changed since it was written (wrong checksum of its own): {remedy}."
            )
        checksums = metadata.get("sha256")
        if not isinstance(checksums, dict):
            raise UserError(f"{folder / METADATA_FILE} holds no checksums: {remedy}.")
        raw_file = OWN_RAW_FILE if OWN_RAW_FILE in checksums else RAW_FILE
        named = set(checksums) | {raw_file, *SPLIT_FILES.values()}
        for name in sorted(name for name in named if Path(name).name == name):
            if not (folder / name).is_file():
                raise UserError(f"{folder / name} is missing: {remedy}.")
            if sha256_of(folder / name) != checksums.get(name):
                raise UserError(f"{folder / name} has changed since it was written (wrong checksum): {remedy}.")
        rows = {split: _map_rows(folder / name, remedy) for split, name in SPLIT_FILES.items()}
        if not _counts_fit(metadata, rows):
            raise UserError(f"{folder / METADATA_FILE} does not fit the arrays next to it: {remedy}.")
        tokenizer = load_tokenizer(folder, metadata)
        for split, name in SPLIT_FILES.items():
            if int(rows[split].max(initial=0)) >= tokenizer.vocab_size:
                raise UserError(f"{folder / name} has ids that the vocabulary lacks: {remedy}.")
        unchecked = set(_content_files(tokenizer, raw_file)) - set(checksums)
        if unchecked:
            raise UserError(f"{folder / METADATA_FILE} has no checksum of {min(unchecked)}: {remedy}.")
        return cls(folder, tokenizer, metadata, rows, raw_file)

    @property
    def sequence_length(self) -> int:
        return int(self.metadata["sequence_length"])

    @property
    def text_sha256(self) -> str:
        """SHA-256 of the raw text, which fixes vocabulary, split and ids."""
        return str(self.metadata["sha256"][self.raw_file])

    @property
    def raw_text(self) -> str:
        """The characters of both splits."""
        return (self.folder / self.raw_file).read_bytes().decode("utf-8")

    @property
    def breaks(self) -> tuple[int, ...]:
        """Places in the text where a document ends and another begins.

        Raises:
            UserError: the metadata hold something else.
        """
        breaks, previous = self.metadata.get(BREAKS_KEY, []), -1
        if not isinstance(breaks, list):
            breaks = [None]
        for place in breaks:
            if type(place) is not int or place <= previous:
                raise UserError(
                    f"{self.folder / METADATA_FILE} does not say where documents end: run "
                    f"{how_to_prepare(self.folder)} again."
                )
            previous = place
        return tuple(breaks)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Checksums of what a run learns from: the text, the vocabulary, and the tokens of both splits.

        They do not depend on the length of the stored sequences.
        """
        sums = self.metadata["sha256"]
        parts = {"text": self.text_sha256, "vocabulary": " ".join(sums[name] for name in self.tokenizer.file_names)}
        for split, name in (("train", "training split"), ("val", "validation split")):
            parts[name] = hashlib.sha256(np.ascontiguousarray(self.tokens(split)).data).hexdigest()  # type: ignore[arg-type]
        return parts

    def text(self, split: Split) -> str:
        """Return the characters of a split."""
        text = self.raw_text
        return text[: _n_train(text)] if split == "train" else text[_n_train(text) :]

    def tokens(self, split: Split) -> Ids:
        """Return a split as one run of ids, without its padding."""
        return self.rows[split].reshape(-1)[: self.metadata["splits"][split]["tokens"]]

    def row_lengths(self, split: Split, numbers: Numbers) -> Numbers:
        """Return how many tokens (B,) the rows of these numbers (B,) have before their padding."""
        before = numbers * self.sequence_length
        return np.clip(self.metadata["splits"][split]["tokens"] - before, 0, self.sequence_length)


def _map_rows(path: Path, remedy: str) -> Ids:
    """Map the ids of a split.

    Raises:
        UserError: the file is not an array of whole numbers. Nothing is unpickled.
    """
    check_regular(path)  # numpy would wait for a pipe
    try:
        state = FileState.of(path.stat())
        rows = np.load(path, mmap_mode="r")  # by default this loads plain numbers only
    except Exception as error:  # the header is parsed as a piece of Python, which can fail in any way
        lack = system_remedy(error)
        if lack is not None:
            raise UserError(f"{path} cannot be read ({first_line(error)}): {lack}.") from error
        raise UserError(f"{path} is not an array of ids ({first_line(error)}): {remedy}.") from error
    if not isinstance(rows, np.ndarray) or rows.dtype.kind != "u" or rows.ndim != 2:
        raise UserError(f"{path} is not an array of ids: {remedy}.")
    remember(getattr(rows, "_mmap", rows), path, state)  # the mapping lives as long as any part of the array
    return rows


def _counts_fit(metadata: dict[str, Any], rows: dict[str, Ids]) -> bool:
    try:
        length = metadata["sequence_length"]
        return type(length) is int and all(
            array.shape == (metadata["splits"][split]["sequences"], length)
            and 0 <= array.size - metadata["splits"][split]["tokens"] < length
            for split, array in rows.items()
        )
    except (KeyError, TypeError):
        return False
