"""Checksums of a folder, kept in the folder: checksums.json holds the SHA-256 of each of its files.

A bit that a disk flips, or a file that lost its end, is found when the folder is opened, and named. This guards
against accidents; whoever can write the folder can write its checksums as well.
"""

import os
from collections.abc import Collection
from pathlib import Path

from llada.system.errors import UserError
from llada.system.files import read_json, sha256_of, write_json

CHECKSUMS_FILE = "checksums.json"
FORMAT_VERSION = 1


def write_checksums(folder: Path) -> None:
    """Add the checksums of all files that are in the folder now."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != CHECKSUMS_FILE)
    sums = {name: sha256_of(folder / name) for name in names}
    write_json(folder / CHECKSUMS_FILE, {"format_version": FORMAT_VERSION, "sha256": sums})


def find_damage(folder: Path, expected: Collection[str] = ()) -> str | None:
    """Say what is wrong with the files of a folder, or return None; damage does not show in a folder without checksums.

    Args:
        expected: files that must be there.
    """
    for name in expected:
        if not (folder / name).is_file():
            return f"{name} is missing"
    if not os.path.lexists(folder / CHECKSUMS_FILE):
        return None
    try:
        content = read_json(folder / CHECKSUMS_FILE)
    except UserError:
        return f"{CHECKSUMS_FILE} is not valid JSON"
    except OSError as error:
        return _unreadable(error)
    sums = content.get("sha256")
    if content.get("format_version") != FORMAT_VERSION or not isinstance(sums, dict) or not sums:
        return f"{CHECKSUMS_FILE} holds no checksums"
    for name, expected_sum in sums.items():
        try:
            if Path(name).name != name or not name.isprintable():
                return f"{CHECKSUMS_FILE} names no file of its folder"
            if not (folder / name).is_file():
                return f"{name} is missing"
            if sha256_of(folder / name) != expected_sum:
                return f"{name} has another checksum than when it was written"
        except UserError:
            return f"{name} is not a whole file"
        except (OSError, ValueError) as error:
            return _unreadable(error)
    return None


def _unreadable(error: Exception) -> str:
    return f"it cannot be read ({getattr(error, 'strerror', None) or error})"


def check_complete(folder: Path, remedy: str) -> None:
    """Refuse a folder that lacks a file which its checksums name. No file is read but theirs; see `check_whole`.

    Raises:
        UserError: it does; the sentence ends with the remedy.
    """
    try:
        sums = read_json(folder / CHECKSUMS_FILE).get("sha256")
    except (UserError, OSError):  # none, or damaged ones, which `find_damage` reports
        return
    missing = [name for name in sums if not os.path.isfile(folder / name)] if isinstance(sums, dict) else []
    if missing and folder.is_dir():  # and not removed meanwhile
        raise UserError(f"{folder} is damaged ({missing[0]} is missing): {remedy}.")


def check_whole(folder: Path, remedy: str) -> None:
    """Refuse a damaged folder.

    Raises:
        UserError: it is damaged; the sentence ends with the remedy.
    """
    damage = find_damage(folder)
    if damage:
        raise UserError(f"{folder} is damaged ({damage}): {remedy}.")
