"""The folder that a preparation writes: whether it is free, done, half done, or holds something else."""

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llada.data.corpus_manifest import digest_of_json
from llada.data.documentation import KEPT
from llada.data.prepared import METADATA_FILE, OWN_RAW_FILE, RAW_FILE, SPLIT_FILES, TOKENISED_FOLDER
from llada.data.sharded import COUNTS_FILE, MANIFEST_FILE, read_manifest
from llada.system.errors import UserError
from llada.system.files import read_json, write_json
from llada.system.temporary_names import is_aside, remove_asides
from llada.tokenizers.bpe import MODEL_FILE, OTHER_FILES
from llada.tokenizers.char import VOCAB_FILE

UNFINISHED, SETTINGS_FILE = "unfinished", "settings.json"
TOKENIZER_FOLDER, IDS_FILE, DUPLICATES_FILE = "tokenizer", "ids.json", "duplicates.json"  # in `unfinished`
LARGEST_SETTINGS = 1 << 28  # bytes: the names of some million files
PATIENCE = 5.0  # seconds in which processes that are being ended may still write a file
_SHARD = re.compile(r"(train|val)-\d{5,}(\.ends|\.rows)?\.bin")
_OF_BLOCK = re.compile(r"(scan|done)-\d{5,}(\.[a-z]+)+")
_OF_TOKENIZER = {VOCAB_FILE, MODEL_FILE, *OTHER_FILES}
_OWN = {
    UNFINISHED, MANIFEST_FILE, COUNTS_FILE, *_OF_TOKENIZER, METADATA_FILE, RAW_FILE, OWN_RAW_FILE, TOKENISED_FOLDER,
    *SPLIT_FILES.values(),
}  # fmt: skip
_OF_UNFINISHED = {SETTINGS_FILE, TOKENIZER_FOLDER, *_OF_TOKENIZER, IDS_FILE, DUPLICATES_FILE, KEPT}


def take_folder(folder: Path, identity: Mapping[str, Any], overwrite: bool) -> None:
    """Make a folder ready for a preparation; one that is done, or half done, stays as it is.

    Args:
        identity: what decides on the result: source, tokenizer and settings.
        overwrite: whether to remove what another preparation left in the folder.

    Raises:
        UserError: it holds other things, or another preparation.
    """
    unfinished = folder / UNFINISHED
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another `output_dir`.")
    folder.mkdir(parents=True, exist_ok=True)
    remove_asides(folder)
    foreign = [path for path in folder.iterdir() if not _is_own(path.name)] or _foreign_in(unfinished)
    if foreign:
        name = min(path.relative_to(folder).as_posix() for path in foreign)
        raise UserError(f"{folder} holds {name}, which is not of a corpus: choose another `output_dir`.")
    if unfinished.is_dir() and not (unfinished / SETTINGS_FILE).exists():
        shutil.rmtree(unfinished)  # killed as it began, or as it removed what was no longer needed
    if overwrite:
        _empty(folder)
    elif (folder / MANIFEST_FILE).is_file():
        if read_manifest(folder).get("preparation") != digest_of_json(identity):
            raise UserError(
                f"{folder} holds a corpus that was prepared with other settings or from other sources: choose "
                "another `output_dir`, or add `overwrite=True`."
            )
        return
    elif (folder / METADATA_FILE).exists():
        raise UserError(f"{folder} holds a prepared text: choose another `output_dir`, or add `overwrite=True`.")
    elif (unfinished / SETTINGS_FILE).exists():
        before = read_json(unfinished / SETTINGS_FILE, LARGEST_SETTINGS)
        if {**before, "skip_bad": True} == json.loads(json.dumps(identity)):  # nothing was bad in what is done
            write_json(unfinished / SETTINGS_FILE, identity)
        else:
            _compare(folder, before, identity)
        remove_asides(unfinished)
        return
    elif any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: choose another `output_dir`, or add `overwrite=True`.")
    unfinished.mkdir()
    write_json(unfinished / SETTINGS_FILE, identity)


def is_half_done(folder: Path) -> bool:
    """Whether a folder holds a preparation that was stopped."""
    unfinished = folder / UNFINISHED
    return os.path.isfile(unfinished / SETTINGS_FILE) and not _foreign_in(unfinished)


def refuse_half_done(folder: Path) -> None:
    """Refuse a folder that holds a preparation that was stopped, and no corpus.

    Raises:
        UserError: it does.
    """
    if is_half_done(folder) and not (folder / MANIFEST_FILE).is_file():
        raise UserError(f"{folder} is half done: repeat the `llada prepare` that began it.")


def leave_nothing(folder: Path, though_done: bool = False) -> None:
    """Remove a preparation of which nothing was done, so that it holds up no other one.

    Only for a folder that was taken (`take_folder`): in another one, `unfinished` may be anybody's.

    Args:
        though_done: remove it also if a part of it was done.
    """
    unfinished = folder / UNFINISHED
    if unfinished.is_dir() and (though_done or not any(unfinished.glob("*-*.json"))):
        end = time.monotonic() + PATIENCE
        while unfinished.is_dir() and time.monotonic() < end:
            shutil.rmtree(unfinished, ignore_errors=True)
            time.sleep(0.02)
        with contextlib.suppress(OSError):  # there are other things in it
            folder.rmdir()


def _empty(folder: Path) -> None:
    # First what says what is there, so that a kill in between leaves nothing that looks whole, or half done.
    for name in (MANIFEST_FILE, f"{UNFINISHED}/{SETTINGS_FILE}"):
        (folder / name).unlink(missing_ok=True)
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _compare(folder: Path, before: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    now = json.loads(json.dumps(identity))
    changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    if not changed:
        return
    if changed == ["source"]:
        what = "from other sources, or before they changed"
    else:
        options = [name for name in changed if name != "source"]
        what = "with other settings (" + ", ".join(f"`{name}`, then {before.get(name)}" for name in options) + ")"
    raise UserError(
        f"{folder} holds a preparation that is half done, {what}: repeat the command as it was, choose another "
        "`output_dir`, or add `overwrite=True`."
    )


def _is_own(name: str) -> bool:
    return name in _OWN or _SHARD.fullmatch(name) is not None or is_aside(name)


def _foreign_in(unfinished: Path) -> list[Path]:
    """List what no preparation writes into `unfinished`, a name that anybody may give a folder."""
    return [
        path
        for path in unfinished.rglob("*")
        if path.name not in _OF_UNFINISHED and not _OF_BLOCK.fullmatch(path.name) and not is_aside(path.name)
    ]
