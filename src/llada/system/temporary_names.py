"""Temporary names for unfinished files and folders, in a form that nobody else's names have.

A file or folder is written as `.NAME.llada-XXXXXXXX.tmp` next to its destination; one that makes room for another is
`....old`, and one that is being removed is `....leaving`. What a killed process left is recognised by exactly this
form, so nothing that a person or another program keeps there is ever mistaken for it.
"""

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

Kind = Literal["tmp", "old", "leaving"]
_OURS = re.compile(r"\.(.+)\.llada-[0-9a-f]{8}\.(tmp|old|leaving)", re.DOTALL)
_RANDOM_BYTES = 4


def aside_of(path: Path, kind: Kind = "tmp") -> Path:
    """Make up a new temporary name next to a path, for what will be moved there or away from there."""
    return path.with_name(f".{path.name}.llada-{secrets.token_hex(_RANDOM_BYTES)}.{kind}")


def is_aside(name: str) -> bool:
    return _OURS.fullmatch(name) is not None


def asides_in(folder: Path, of: str | None = None, kind: Kind | None = None) -> list[Path]:
    """List what a folder holds under temporary names; `of` and `kind` select some of it.

    Args:
        of: the name of the destination.
    """
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = ((name, _OURS.fullmatch(name)) for name in names)
    return [folder / name for name, match in found if match and of in (None, match[1]) and kind in (None, match[2])]


def remove_asides(folder: Path, of: str | None = None, kind: Kind | None = None) -> None:
    """Remove leftovers, as far as the disk allows, after putting back what had made room for something that never came.

    Only the holder of the folder's lock may call this (locks.py): a running writer's files look the same.
    """
    if kind in (None, "old"):
        for old in asides_in(folder, of, "old"):
            put_back(old)
    for path in asides_in(folder, of, kind):
        with contextlib.suppress(OSError):
            remove(path)


def put_back(old: Path) -> None:
    """Give what had made room its name again, if nothing has that name now."""
    match = _OURS.fullmatch(old.name)
    if match and not os.path.lexists(old.with_name(match[1])):
        os.rename(old, old.with_name(match[1]))


def remove(path: Path) -> None:
    """Remove a file, a link (not what it leads to), or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """Make a new folder next to a path, and remove it at the end if it is still there."""
    aside = aside_of(path)
    aside.mkdir()  # with the permissions that the umask leaves
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)
