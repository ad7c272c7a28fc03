"""A run folder whose copy followed its links: folders in the place of `last` and `best` become names again."""

import filecmp
import os
import shutil
from pathlib import Path

from llada.checkpoints.run_layout import BEST, LAST, newest_first, step_folder
from llada.system.checksums import find_damage
from llada.system.errors import UserError
from llada.system.regular_files import check_regular
from llada.system.temporary_names import aside_of
from llada.training.state import STATE_FILE, read_state

DAMAGED = "damaged-"  # before the name of a checkpoint that was found to be


def take_in_copies(checkpoints: Path) -> list[str]:
    """Put away the folders that are in the place of names: to be called by the holder of the run folder's lock.

    One that equals the folder of its step, byte for byte, goes. One whose step has no folder, or a damaged one, becomes
    that. Any other is kept under another name.

    Returns:
        What was done, in sentences for people.
    """
    sentences = []
    for name in (LAST, BEST):
        copy = checkpoints / name
        if copy.is_symlink() or not copy.is_dir():
            continue
        twin = next((folder for folder in newest_first(checkpoints) if _are_equal(folder, copy)), None)
        if twin is None:
            sentences.append(_keep(copy))
            continue
        leaving = aside_of(copy, "leaving")  # a kill leaves no half of it under its name
        os.rename(copy, leaving)
        shutil.rmtree(leaving, ignore_errors=True)
        sentences.append(f"The folder {copy} was the same as {twin.name}, and is a name of it again.")
    return sentences


def _keep(copy: Path) -> str:
    """Find another name for a checkpoint that is there once only; returns what was done."""
    step = _step_in(copy)
    folder = None if step is None else step_folder(copy.parent, step)
    if folder is not None and folder.exists() and find_damage(folder) and not find_damage(copy):
        os.rename(folder, free_name(folder.with_name(f"{DAMAGED}{folder.name}")))
    if folder is None or folder.exists():
        folder = free_name(copy.with_name(f"copy-of-{copy.name}"))
    os.rename(copy, folder)
    return f"The folder {copy} was no name of a checkpoint, but one of its own: it is kept as {folder.name}."


def free_name(path: Path) -> Path:
    """The path, or one with a number where that is taken."""
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _step_in(copy: Path) -> int | None:
    """The step that a checkpoint's state is of; None if it has none that can be read."""
    try:
        check_regular(copy / STATE_FILE)
        step = read_state(copy)["progress"]["step"]
    except (UserError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) and step >= 0 else None


def _are_equal(one: Path, other: Path) -> bool:
    """Whether two folders have the same files, byte for byte; the smallest, which tell most apart, are read first."""
    names = sorted((path for path in one.iterdir()), key=lambda path: path.stat().st_size)
    if {path.name for path in names} != {path.name for path in other.iterdir()}:
        return False
    return all(filecmp.cmp(path, other / path.name, shallow=False) for path in names)
