"""The files of paths, folders and globs: of a folder, without hidden ones, and without what `llada prepare` wrote."""

import glob
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from llada.data.corpus_folder import is_half_done
from llada.data.prepared import METADATA_FILE, SPLIT_FILES
from llada.data.sharded import COUNTS_FILE, MANIFEST_FILE
from llada.system.errors import UserError
from llada.system.files import resolved

SHOWN_FILES = 3

Say = Callable[[str], None]


def input_files(
    inputs: Sequence[str], suffixes: Collection[str], wanted: str, output_dir: Path | None, other: str, say: Say
) -> list[Path]:
    """Find the files of paths, folders and globs, each once, whatever names lead to it.

    Args:
        suffixes: those of the files that are read in a folder.
        wanted: what such a file is called.
        output_dir: what is in it is read only if it is given itself.
        other: what files without these suffixes are called.
        say: called with a sentence on what was left out, if anything was.

    Raises:
        UserError: a name is empty, or no file is found for it.
    """
    found: dict[Path, Path] = {}
    for name in inputs:
        if not name:  # as of a variable that is not set; it would be the current folder
            raise UserError("`input` has an empty name: name a file, a folder or a glob.")
        files = files_named(name, suffixes, output_dir, other, say)
        if not files and Path(name).is_dir():
            raise UserError(f"{name} holds no {wanted}: name the files themselves, or a glob.")
        if not files and _matches(name):
            raise UserError(f"What matches {name!r} is in `output_dir`, {output_dir}: choose another one.")
        if not files:
            raise UserError(f"No file matches {name!r}: check `input`.")
        for path in files:
            found.setdefault(resolved(path), path)
    return list(found.values())


def files_named(
    name: str,
    suffixes: Collection[str],
    output_dir: Path | None = None,
    other: str = "",
    say: Say = lambda sentence: None,
) -> list[Path]:
    """Find the files of a path, folder or glob, those of the last two sorted; there may be none.

    The arguments are those of `input_files`.
    """
    path = Path(name)
    if path.is_dir():
        return _files_below(path, suffixes, output_dir, other, say)
    if path.exists():
        return [path]
    found = _matches(name)
    target = output_dir and resolved(output_dir)
    files = [path for path in found if target is None or not resolved(path).is_relative_to(target)]
    within = sorted({*found} - {*files})
    if within:
        say(f"Left out of {name}, in the folder that is written: {first_names(within)} ({len(within):,} in all).")
    return files


def _matches(pattern: str) -> list[Path]:
    """Find the files that match a glob, sorted."""
    return [path for path in map(Path, sorted(glob.glob(pattern, recursive=True))) if not path.is_dir()]


def _files_below(folder: Path, suffixes: Collection[str], output_dir: Path | None, other: str, say: Say) -> list[Path]:
    """Find the files with these suffixes in a folder and its subfolders, sorted, and report what else may hold text.

    What is hidden is left out without a word, as a shell's `*` does.
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
