"""The command `llada data`: what is in a folder of shards, whether it is whole, and statistics of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from llada.cli import Program
from llada.cli.options import parse
from llada.data.corpus_folder import refuse_half_done
from llada.data.corpus_inspection import QUANTILES, describe_split, find_faults
from llada.data.prepared import METADATA_FILE, PreparedText
from llada.data.sharded import SPLITS, ShardedText, check_there, read_manifest
from llada.system.errors import UserError
from llada.system.format import bytes_in_words, number_of
from llada.system.terminal import say, tell

DESCRIPTION = """Look at a folder that `llada prepare` wrote.

  llada data inspect FOLDER     what is in it, and where it comes from
  llada data validate FOLDER    check every file, id and count; the exit code is 1 if something is wrong
  llada data stats FOLDER       lengths of documents, most frequent tokens, bytes per token"""

MOST_FAULTS = 20
FAULTY = 1  # exit code of a folder that is not whole


@dataclass(frozen=True)
class DataCommandOptions:
    action: tyro.conf.Positional[Literal["inspect", "validate", "stats"]]
    """What to do."""
    folder: tyro.conf.Positional[Path]
    """Folder with prepared text."""


def run(arguments: Sequence[str], program: Program) -> int:
    options = parse(DataCommandOptions, program.name, arguments, DESCRIPTION)
    folder = options.folder
    if (folder / METADATA_FILE).is_file():
        return _small(options.action, folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: check the path.")
    refuse_half_done(folder)
    if options.action == "inspect":
        _inspect(folder)
        return 0
    return _validate(folder) if options.action == "validate" else _tell_statistics(ShardedText.open(folder))


def _small(action: str, folder: Path) -> int:
    """Do the same for a prepared text in five files, which is verified whenever it is opened."""
    data = PreparedText.open(folder)
    if action == "stats":
        raise UserError(f"{folder} is a prepared text in five files: statistics are for a folder of shards.")
    metadata = data.metadata
    tell(f"{folder}: a prepared text in five files, whole")
    tell(f"Source: {metadata['source']}, {metadata['origin']}")
    for split in SPLITS:
        tell(f"  {split}: {metadata['splits'][split]['tokens']:,} {data.tokenizer.unit}s")
    return 0


def _inspect(folder: Path) -> None:
    manifest = read_manifest(folder)
    check_there(folder, manifest)
    source, tokenizer = manifest["source"], manifest["tokenizer"]
    tell(f"{folder}: a corpus in shards, {manifest['format']} version {manifest['format_version']}")
    if source["kind"] == "files":
        first = ", ".join(name for name, _ in source["files"][:3])
        more = ", ..." if source["n_files"] > 3 else ""
        tell(f"Source: {number_of(source['n_files'], 'file')}, {bytes_in_words(source['bytes'])}: {first}{more}")
    elif source["kind"] == "hub":
        tell(f"Source: the data set {source['name']}, split {source['split']}")
    else:
        tell(f"Source: the package {source['name']}, {source['license']}")
    tell(f"Tokenizer: {tokenizer['kind']}, {manifest['vocab_size']:,} ids, fingerprint {tokenizer['fingerprint'][:16]}")
    tell(
        f"Ids: PAD {manifest['pad_token_id']}, EOS {manifest['eos_token_id']}, MASK {manifest['mask_token_id']}; "
        f"stored as {manifest['dtype']}"
    )
    for split in SPLITS:
        facts = manifest["splits"][split]
        tell(
            f"  {split}: {number_of(facts['tokens'], 'token')}, {number_of(facts['documents'], 'document')}, "
            f"{bytes_in_words(facts['bytes'])} of text, {number_of(len(facts['shards']), 'shard')}, "
            f"{number_of(facts['sequences'], 'sequence')} of {manifest['sequence_length']}"
        )
    tell(f"Sequences: {manifest['packing']}; validation share {manifest['validation']['share']:g}, by document hash")
    left_out, copies = manifest["left_out"], manifest["duplicates"]
    counts = {"broken": left_out["bad"], "empty": left_out["empty"], **{k: v for k, v in copies.items() if k != "rule"}}
    counted = ", ".join(f"{value:,} {name}" for name, value in counts.items() if isinstance(value, int))
    tell(f"Left out: {counted}; duplicates: {copies['rule']}")


def _validate(folder: Path) -> int:
    faults = []
    for fault in find_faults(folder):
        faults.append(fault)
        if len(faults) > MOST_FAULTS:
            break
    for fault in faults[:MOST_FAULTS]:
        tell(fault)
    if len(faults) > MOST_FAULTS:
        tell("...")
    if faults:
        say(f"{folder} is damaged: restore the files, or run `llada prepare` again with --overwrite.")
        return FAULTY
    manifest: dict[str, Any] = read_manifest(folder)
    shards = sum(len(manifest["splits"][split]["shards"]) for split in SPLITS)
    tokens = sum(manifest["splits"][split]["tokens"] for split in SPLITS)
    counts = f"{number_of(shards, 'shard')}, {number_of(tokens, 'token')}"
    tell(f"{folder} is whole: {counts}, every checksum, id and count as it was written")
    return 0


def _tell_statistics(data: ShardedText) -> int:
    for split in SPLITS:
        found = describe_split(data, split)
        tell(f"{split}: {found.documents:,} documents, {found.tokens:,} tokens")
        tell(f"  bytes per token: {found.bytes_per_token:.3f}; entropy by frequency: {found.nats:.3f} nats per token")
        lengths = ", ".join(f"{_quantile(q)} {found.lengths[q]:,}" for q in QUANTILES)
        tell(f"  tokens per document: mean {found.mean_length:,.1f}, {lengths}")
        frequent = ", ".join(f"{token!r} {100 * share:.1f} %" for token, share in found.most_frequent)
        tell(f"  most frequent: {frequent}")
        tell(f"  ids that never come: {found.unused_ids:,} of {data.tokenizer.vocab_size:,}")
    return 0


def _quantile(q: float) -> str:
    return {0.0: "shortest", 0.5: "median", 1.0: "longest"}.get(q, f"{100 * q:.0f} %")
