"""The files of a folder that is given as input: without hidden ones, and without what `llada prepare` wrote there."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from llada.data.corpus_folder import is_half_done
from llada.data.prepared import METADATA_FILE, SPLIT_FILES
from llada.data.sharded import COUNTS_FILE, MANIFEST_FILE
from llada.system.files import resolved

SHOWN_FILES = 3


def files_below(
    folder: Path,
    suffixes: Iterable[str],
    output_dir: Path | None = None,
    other: str = "",
    say: Callable[[str], None] = lambda sentence: None,
) -> list[Path]:
    """Find the files with these suffixes in a folder and its subfolders, sorted, and report what else may hold text.

    What is hidden is left out without a word, as a shell's `*` does.

    Args:
        output_dir: what is in it is never read, whatever it holds.
        other: what files without these suffixes are called.
        say: called with a sentence on what was left out, if anything was.
    """
    output_dir = output_dir and resolved(output_dir)
    files, written, links = [], [], []
    for place, folders, names in os.walk(folder):
        within = []
        for path in (Path(place, name) for name in folders if not name.startswith(".")):
            if path.is_symlink():  # it may lead to a folder that it is in
                links.append(path)
            elif resolved(path) == output_dir or _is_written(path):
                written.append(path)
            else:
                within.append(path.name)
        folders[:] = within
        files += [path for path in (Path(place, name) for name in names if not name.startswith(".")) if path.is_file()]
    found = [path for path in files if path.name.lower().endswith(tuple(suffixes))]
    left_out = {
        other: sorted(set(files) - set(found)),
        "written by `llada prepare`": sorted(written),
        "links to folders": sorted(links),
    }
    reasons = [f"{reason}: {first_names(paths)} ({len(paths):,} in all)" for reason, paths in left_out.items() if paths]
    if reasons:
        say(f"Left out of {folder}, {'; '.join(reasons)}.")
    return sorted(found)


def first_names(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths[:SHOWN_FILES])) + (", ..." if len(paths) > SHOWN_FILES else "")


def _is_written(folder: Path) -> bool:
    """Whether a folder is a prepared text in five files or in shards, or is half done."""
    marks = ((METADATA_FILE, *SPLIT_FILES.values()), (MANIFEST_FILE, COUNTS_FILE))
    return any(all(os.path.isfile(folder / name) for name in names) for names in marks) or is_half_done(folder)
