"""The documents that are taken out of a package's documentation."""

import gzip
import json
import zipfile
from pathlib import Path

import pytest

from llada.data import documentation
from llada.data.blocks import blocks_of, documents_of
from llada.data.documentation import Documentation, documents_in, plain_text

SERVICE = {
    "metadata": {"serviceFullName": "Some Service"},
    "documentation": "<p>It does &amp; says some things to whoever asks it for them, at any time of the day.</p>",
    "operations": {"Ask": {"documentation": "<p>Asks   it <i>once</i>.</p><ul><li>One</li><li>Two</li></ul>"}},
    "shapes": {
        "Answer": {
            "type": "structure",
            "members": {
                "Text": {"documentation": "<p>What it said, in words that are as plain as it could find them.</p>"},
                "Time": {"documentation": "<p>When it said so.</p>"},
                "Code": {},
            },
        },
        "Short": {"documentation": "<p>A name.</p>"},
    },
}


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "package.whl"
    older = {**SERVICE, "documentation": "An older version."}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("botocore/data/b/2020-01-01/service-2.json", json.dumps(older))
        archive.writestr("botocore/data/b/2021-01-01/service-2.json.gz", gzip.compress(json.dumps(SERVICE).encode()))
        archive.writestr("botocore/data/c/2020-01-01/service-2.json", json.dumps(SERVICE))
        archive.writestr("botocore/data/b/2021-01-01/other-1.json", "{}")
    return path


def test_paragraphs_make_documents_and_come_once(wheel: Path) -> None:
    assert list(documents_in(wheel)) == [
        "Some Service\n\nIt does & says some things to whoever asks it for them, at any time of the day.",
        "Some Service: Answer\n\nText: What it said, in words that are as plain as it could find them.\n\n"
        "Time: When it said so.",
    ]


def test_markup_becomes_lines() -> None:
    assert plain_text(SERVICE["operations"]["Ask"]["documentation"]) == "Asks it once.\nOne\nTwo"  # type: ignore[index]
    assert plain_text("a &lt;b&gt; <code>c</code><br/>d") == "a <b> c\nd"


def test_it_is_a_source_like_others(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documentation, "fetch_wheel", lambda name, sha256, folder: wheel)
    blocks = list(blocks_of(Documentation().pieces(100, tmp_path), 100))
    assert len(blocks) == 2
    assert [found for block in blocks for found in documents_of(block, "text")] == list(documents_in(wheel))
