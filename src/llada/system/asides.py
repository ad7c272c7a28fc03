"""Names for what is not finished, with a mark that nobody else's names have.

A file or folder is written as `.NAME.llada-XXXXXXXX.tmp` next to the place that it will take; one that makes room for
another is `....old`, and one on its way out `....leaving`. What a killed process left is known by exactly this form, so
nothing that a person or another program keeps there is ever taken for it.
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
    """A new name next to a path, for what is on its way there or from there."""
    return path.with_name(f".{path.name}.llada-{secrets.token_hex(_RANDOM_BYTES)}.{kind}")


def is_aside(name: str) -> bool:
    return _OURS.fullmatch(name) is not None


def asides_in(folder: Path, of: str | None = None, kind: Kind | None = None) -> list[Path]:
    """What is in a folder under such names; those of one name, or of one kind.

    Args:
        of: the name that they stand next to.
    """
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = ((name, _OURS.fullmatch(name)) for name in names)
    return [folder / name for name, match in found if match and of in (None, match[1]) and kind in (None, match[2])]


def remove_asides(folder: Path, of: str | None = None, kind: Kind | None = None) -> None:
    """Remove them, as far as the disk allows, and first put back what had made room for something that never came.

    To be called by whoever holds the lock of the folder (locks.py): a living writer's files look the same.
    """
    if kind in (None, "old"):
        for old in asides_in(folder, of, "old"):
            put_back(old)
    for path in asides_in(folder, of, kind):
        with contextlib.suppress(OSError):
            remove(path)


def put_back(old: Path) -> None:
    """Give what had made room its name again, if nothing has that name."""
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
    """A new folder next to a path, which is removed at the end if it is still there."""
    aside = aside_of(path)
    aside.mkdir()  # with the permissions that the umask leaves
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)
