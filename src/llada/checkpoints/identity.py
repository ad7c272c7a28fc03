"""A checkpoint's identity: a short hash of its configuration, its weights and its tokenizer, wherever it lies."""

import hashlib
from pathlib import Path

from llada.system.checksums import CHECKSUMS_FILE
from llada.system.errors import UserError
from llada.system.files import read_json, sha256_of

DIGITS = 16
SUFFIXES = (".json", ".safetensors", ".jinja")
"""Files that a model is read from; those of a run's state are not."""


def identity_of(folder: Path) -> str:
    """Hash the files of a checkpoint or adapter folder, as hexadecimal digits.

    Files that its checksums name are not read again: the folder was compared with them when it was opened.

    Raises:
        UserError: a file cannot be read.
    """
    known = _known_sums(folder)
    names = sorted(path.name for path in folder.iterdir() if path.suffix in SUFFIXES and path.name != CHECKSUMS_FILE)
    lines = [f"{name} {known.get(name) or sha256_of(folder / name)}\n" for name in names]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:DIGITS]


def _known_sums(folder: Path) -> dict[str, str]:
    if not (folder / CHECKSUMS_FILE).is_file():
        return {}
    try:
        sums = read_json(folder / CHECKSUMS_FILE).get("sha256")
    except UserError:
        return {}
    return {name: str(sum_) for name, sum_ in sums.items()} if isinstance(sums, dict) else {}
