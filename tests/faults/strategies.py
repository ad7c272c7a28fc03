"""Inputs for the loaders: valid ones with pieces changed, nonsense, and other things in a file's place."""

import gzip
import json
import os
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([2**31, 2**63, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf")]),
    st.floats(),
)
SCALARS = st.one_of(
    st.none(), st.booleans(), NUMBERS, st.text(max_size=12), st.sampled_from(["", "llada", "..", "\x00"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
DEEP = st.sampled_from(
    [b"[" * 100_000, b'{"a":' * 50_000, b"[" * 500 + b"]" * 500, b"9" * 5000, b'"' + b"\\ud800" + b'"']
)


def changed(valid: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A few keys with other values, without some, with new ones."""

    def apply(edits: list[tuple[str, Any]], gone: set[str], new: dict[str, Any]) -> dict[str, Any]:
        content = {**valid, **dict(edits), **new}
        return {key: value for key, value in content.items() if key not in gone}

    keys = st.sampled_from(sorted(valid)) if valid else st.text(max_size=5)
    return st.builds(
        apply,
        st.lists(st.tuples(keys, VALUES), max_size=3),
        st.sets(keys, max_size=1),
        st.dictionaries(st.text(string.ascii_lowercase + "_", max_size=8), VALUES, max_size=1),
    )


def corrupted(valid: bytes) -> st.SearchStrategy[bytes]:
    """A few bytes changed, put in or cut out anywhere."""

    def apply(edits: list[tuple[float, int, bytes]]) -> bytes:
        content = valid
        for where, n_gone, new in edits:
            place = int(where * len(content))
            content = content[:place] + new + content[place + n_gone :]
        return content

    edit = st.tuples(st.floats(0, 1), st.integers(0, 3) | st.integers(0, 10_000), st.binary(max_size=6))
    return st.builds(apply, st.lists(edit, min_size=1, max_size=4))


def json_files(valid: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Files that should hold this object: other values mostly, broken text, and nonsense."""
    text = json.dumps(valid).encode()
    return st.one_of(
        changed(valid).map(_dump),
        changed(valid).map(_dump),
        VALUES.map(_dump),
        corrupted(text),
        st.binary(max_size=40),
        DEEP,
    )


def _dump(value: Any) -> bytes:
    return json.dumps(value).encode()


def _make_huge(path: Path) -> None:
    """Of nothing but holes, which take no room on the disk."""
    path.touch()
    os.truncate(path, 1 << 40)


KINDS: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "folder": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "link to nothing": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to its folder": lambda path: path.symlink_to("."),
    "empty": lambda path: path.touch(),
    "huge": _make_huge,
    "compressed": lambda path: path.write_bytes(gzip.compress(b"{}")),
    "zip": lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18)),
    "UTF-16": lambda path: path.write_bytes('{"a": 1}'.encode("utf-16")),
    "zeros": lambda path: path.write_bytes(bytes(100_000)),
}
"""What may be in the place of a file, by its name, and how it is made."""


def put(path: Path, content: bytes | str) -> None:
    """Put bytes, or one of `KINDS`, in the place of whatever is there."""
    remove(path)
    if isinstance(content, str):
        KINDS[content](path)
    else:
        path.write_bytes(content)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
