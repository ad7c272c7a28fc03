"""Names of the checkpoints in a run folder: `step-NNNNNNNN`, and `best` and `last`, which stand for two of these.

A name is a link where the disk has links, and elsewhere a pointer, a small file with the name of the step's folder. A
run folder that was copied may have lost both, or have whole folders in their place, where the copy followed the links.
Readers understand all of these: by `followed` for a name, by `candidates` for a run.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from llada.system.checksums import CHECKSUMS_FILE, check_complete
from llada.system.errors import UserError
from llada.system.files import IS_WINDOWS, LARGEST_JSON, flush_to_disk, resolved, write_text_whole
from llada.system.regular_files import open_regular, read_bounded
from llada.system.temporary_names import aside_of

CHECKPOINTS_FOLDER, SAMPLES_FOLDER = "checkpoints", "samples"
METRICS_FILE, CURVES_FILE, TROUBLE_FILE = "metrics.jsonl", "curves.png", "trouble.json"
TRIES = 5
REMEDY = "use another checkpoint of the run, or restore this one from a copy"
BEST, LAST = "best", "last"
STEP = re.compile(r"step-(\d{8,})")
LONGEST_LINE = 1 << 20  # bytes of a line of metrics.jsonl; ours have a thousand
MOST_BYTES = 64  # bytes of a pointer

Result = TypeVar("Result")


def step_folder(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step:08d}"


def step_of(folder: Path) -> int | None:
    """Return the step that a folder is named after; None if it has another name."""
    match = STEP.fullmatch(folder.name)
    return int(match[1]) if match else None


def newest_first(checkpoints: Path) -> list[Path]:
    """List the folders of steps, newest first; other folders, like a person's copy of one, are left out."""
    steps = {folder: step for folder in checkpoints.glob("step-*") if (step := step_of(folder)) is not None}
    return sorted(steps, key=lambda folder: steps[folder], reverse=True)


def point(name: Path, folder: Path) -> None:
    """Make a name stand for a folder next to it, in one step, so that the name always leads somewhere."""
    aside = aside_of(name)
    if _is_linked(aside, folder):
        os.replace(aside, name)
    else:
        if IS_WINDOWS and name.is_symlink():  # made by a system with links; it can only be removed
            name.unlink()
        write_text_whole(name, f"{folder.name}\n")
    flush_to_disk(name.parent)


def _is_linked(link: Path, folder: Path) -> bool:
    """Make a link if that is possible, and return whether it was."""
    if IS_WINDOWS:  # there, few may make links, and none to a folder can be replaced in one step
        return False
    try:
        link.symlink_to(folder.name)
    except (OSError, NotImplementedError):  # of many numbers; if the disk is to blame, it says so about the pointer
        return False
    if not link.is_dir():
        link.unlink()
        return False
    return True


def followed(path: Path) -> Path:
    """Return the folder that a path stands for, which need not exist: the one that a pointer names, else the path
    itself.

    A folder in the place of a name, which copies that follow links leave, counts as its step's folder.
    """
    if path.is_symlink():
        return path
    if path.is_file():
        step = _read_pointer(path)
        return path if step is None else path.with_name(step)
    return (path.is_dir() and path.name in (BEST, LAST) and _twin(path)) or path


def _read_pointer(path: Path) -> str | None:
    """Return the name of a step's folder, if that is all that a file holds."""
    with open_regular(path) as file:
        content = file.read(MOST_BYTES + 1)
    name = content.decode("ascii", errors="replace").strip()
    return name if len(content) <= MOST_BYTES and STEP.fullmatch(name) else None


def _twin(copy: Path) -> Path | None:
    """Find the folder of a step next to `copy` that has the same checksums."""
    if not (copy / CHECKSUMS_FILE).is_file():
        return None
    sums = read_bounded(copy / CHECKSUMS_FILE, LARGEST_JSON)
    files = ((folder, folder / CHECKSUMS_FILE) for folder in newest_first(copy.parent))
    return next((folder for folder, file in files if file.is_file() and read_bounded(file, LARGEST_JSON) == sums), None)


def candidates(path: Path) -> Iterator[Path]:
    """What may be the checkpoint meant by a path, the likeliest first: itself, or, of a run, the best one, the last.

    Raises:
        UserError: one of them lacks a file; it is not passed over, since the next one would be taken without a word.
    """
    for folder in _candidates(path):
        check_complete(resolved(folder), REMEDY)
        yield folder


def _candidates(path: Path) -> Iterator[Path]:
    yield followed(path)
    checkpoints = path / CHECKPOINTS_FOLDER
    yield followed(checkpoints / BEST)
    best = _best_measured(path)
    if best is not None and not os.path.lexists(checkpoints / BEST):
        yield step_folder(checkpoints, best)
    yield followed(checkpoints / LAST)
    yield from newest_first(checkpoints)


def while_there(find: Callable[[], Path], read: Callable[[Path], Result]) -> Result:
    """Find a folder and read it, and try again if it vanished meanwhile: a running run removes old checkpoints."""
    for _ in range(TRIES - 1):
        folder = find()
        try:
            return read(folder)
        except (UserError, OSError):
            if folder.is_dir():
                raise
    return read(find())


def _best_measured(run: Path) -> int | None:
    """Return the step with the lowest bound among those that still exist, the first one in case of a tie."""
    if not (run / METRICS_FILE).is_file():
        return None
    bounds = {row["step"]: row.get("nelbo") for row in each_row(run / METRICS_FILE) if "nelbo" in row}
    there = {step_of(folder) for folder in newest_first(run / CHECKPOINTS_FOLDER)}
    measured = [(bound, step) for step, bound in bounds.items() if step in there and _is_number(bound)]
    return min(measured)[1] if measured else None


def _is_number(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def each_row(path: Path) -> Iterator[dict[str, Any]]:
    """Iterate over the rows of metrics.jsonl, up to the first invalid one: the last line may have been cut off."""
    with open_regular(path) as file:
        while line := file.readline(LONGEST_LINE):
            try:
                row = json.loads(line)
                if not isinstance(row["step"], int):
                    return
            except (ValueError, TypeError, KeyError, RecursionError):
                return
            yield row
