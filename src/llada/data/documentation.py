"""A real text of 30 MB for a model between Tiny Shakespeare and LLaDA-8B: the documentation within a package on PyPI.

The wheel of botocore 1.44.8 (Apache-2.0, 17 MB) describes the interfaces of 445 services in JSON, with a paragraph of
English for each operation, structure and member. The paragraphs of an operation or a structure make a document; one
that came before, in whichever service, is left out. The wheel is fetched as data: neither installed nor imported.
"""

import gzip
import html
import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llada.data.copies import pieces_of_texts
from llada.data.corpus import fetch_wheel
from llada.data.pieces import Piece
from llada.system.files import file_written_whole, sha256_of

WHEEL = "botocore==1.44.8"
WHEEL_SHA256 = "76342a76c338701db80dcb8afe1c9bd079283d6fffbb9d881442abb02a215043"
KEPT = "package.whl"
LEAST_CHARACTERS = 80
"""Shorter documents are left out: they say hardly more than a name."""
_SERVICE = re.compile(r"botocore/data/([^/]+)/([^/]+)/service-2\.json(?:\.gz)?")
_BREAK = re.compile(r"</?(?:p|li|ul|ol|br|dt|dd|dl|note|important|h\d|tr|pre)\b[^>]*>")
_TAG = re.compile(r"<[^>]*>")


@dataclass(frozen=True)
class Documentation:
    """The documentation in the wheel, as a source of documents (`sources.Source`)."""

    text_key: str = "text"

    @property
    def size(self) -> int | None:
        """Number of bytes, about."""
        return 43_000_000

    def pieces(self, size: int, folder: Path) -> Iterator[Piece]:
        """Iterate over pieces; the wheel is fetched once and then kept in the folder."""
        wheel = folder / KEPT
        if not wheel.is_file() or sha256_of(wheel) != WHEEL_SHA256:
            with tempfile.TemporaryDirectory(prefix="llada-") as name, file_written_whole(wheel) as aside:
                shutil.copyfile(fetch_wheel(WHEEL, WHEEL_SHA256, Path(name)), aside)
        yield from pieces_of_texts(WHEEL, documents_in(wheel), self.text_key, size, folder)

    def check(self) -> None:
        """Accept it: its checksum is pinned."""

    def identity(self) -> dict[str, Any]:
        return {"package": [WHEEL, WHEEL_SHA256]}

    def provenance(self) -> dict[str, Any]:
        return {"kind": "package", "name": WHEEL, "sha256": WHEEL_SHA256, "license": "Apache-2.0"}


def documents_in(wheel: Path) -> Iterator[str]:
    """Iterate over the documents of the wheel, service by service in the order of their names."""
    seen: set[str] = set()
    with zipfile.ZipFile(wheel) as archive:
        newest = {match[1]: name for name in sorted(archive.namelist()) if (match := _SERVICE.fullmatch(name))}
        for _, name in sorted(newest.items()):
            content = archive.read(name)
            yield from documents_of_service(
                json.loads(gzip.decompress(content) if name.endswith(".gz") else content), seen
            )


def documents_of_service(service: dict[str, Any], seen: set[str]) -> Iterator[str]:
    """Iterate over the documents of a service: its overview, its operations, its structures.

    Args:
        seen: the paragraphs that came before, to which its own are added.
    """
    title = service["metadata"].get("serviceFullName", "")
    parts: list[tuple[str, str, dict[str, Any]]] = [(title, service.get("documentation", ""), {})]
    for kind in ("operations", "shapes"):
        for name, content in service.get(kind, {}).items():
            parts.append((f"{title}: {name}", content.get("documentation", ""), content.get("members", {})))
    for heading, documentation, members in parts:
        paragraphs = [plain_text(documentation)]
        paragraphs += [
            f"{name}: {text}"
            for name, member in members.items()
            if (text := plain_text(member.get("documentation", "")))
        ]
        new = [text for text in paragraphs if text and text not in seen]
        seen.update(new)
        document = "\n\n".join([heading, *new])
        if new and len(document) >= LEAST_CHARACTERS:
            yield document


def plain_text(markup: str) -> str:
    """Take the text out of HTML: a line for each paragraph or item, single spaces."""
    text = html.unescape(_TAG.sub("", _BREAK.sub("\n", markup)))
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(filter(None, lines))
