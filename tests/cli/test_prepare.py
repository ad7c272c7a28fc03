"""`llada prepare` with texts of one's own: what is read, and what is refused before anything is written."""

import json
from pathlib import Path

import pytest

from llada.cli import main
from llada.data.prepared import PreparedText
from tests.support.corpora import prepare_files, some_documents, write_as


def prepare(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["prepare", *map(str, arguments), "--sequence_length", "10"])
    return int(exit_.value.code or 0)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, text in (("a.txt", "abc" * 20), ("b.txt", "cab" * 20), ("notes.md", "not this")):
        (folder / name).write_text(text)
    return folder


def test_a_folder_files_and_a_glob_are_the_same(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = {"folder": [corpus], "files": [corpus / "a.txt", corpus / "b.txt"], "glob": [corpus / "*.txt"]}
    opened = []
    for name, values in inputs.items():
        assert prepare("--input", *values, "--output_dir", tmp_path / name) == 0
        result = capsys.readouterr()
        assert "Documents: 2, with an EOS between two" in result.out
        assert ("(1 in all)" in result.err) == (name == "folder")
        opened.append(PreparedText.open(tmp_path / name))
    assert len({json.dumps(data.fingerprints) for data in opened}) == 1
    ids = [*opened[0].tokens("train"), *opened[0].tokens("val")]
    assert opened[0].tokenizer.decode(ids) == "abc" * 20 + "cab" * 20
    assert ids.index(2) == 60
    assert ids.count(2) == 1


@pytest.mark.parametrize("options", [(), ("--format", "sharded", "--val_share", "0.5", "--processes", "1")])
def test_what_was_prepared_within_the_input_is_not_learned(
    options: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither by repeating the command, nor by preparing into another folder of it."""
    (tmp_path / "data").mkdir()
    for i, text in enumerate(some_documents(20)):
        (tmp_path / "data" / f"{i}.txt").write_text(text)
    counts = []
    for i, name in enumerate(("prep", "prep", "again")):
        assert prepare("--input", tmp_path / "data", "--output_dir", tmp_path / "data" / name, *options) == 0
        splits = PreparedText.open(tmp_path / "data" / name).metadata["splits"]
        counts.append(splits["train"]["tokens"] + splits["val"]["tokens"])
        said = capsys.readouterr().err
        assert (f"written by `llada prepare`: {tmp_path / 'data' / 'prep'} (1 in all)." in said) == (i > 0)
    n_characters = sum(map(len, some_documents(20)))
    assert counts == [n_characters + (20 if options else 19)] * 3


def test_one_text_has_no_documents(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare("--input", corpus / "a.txt", "--output_dir", tmp_path / "data") == 0
    assert "Documents" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("chat.jsonl", b'{"messages": []}\n', "has no 'text' (its keys: messages)"),
        ("table.parquet", b"PAR1\x15\x04", "table.parquet is damaged, or not Parquet"),
        ("a.txt", b"caf\xe9", "is not UTF-8 (byte 3)"),
        ("a.bin", b"ab\0c", "is not text (byte 2 is NUL)"),
        ("", b"", "holds no .txt file"),
        ("nowhere.txt", None, "No file matches"),
    ],
)
def test_nothing_is_learned_by_mistake(
    name: str, content: bytes | None, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    if name and content is not None:
        (tmp_path / "in" / name).write_bytes(content)
    assert prepare("--input", tmp_path / "in" / name, "--output_dir", tmp_path / "data") == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert [line.startswith("llada: ") for line in error.splitlines() if line != "Scanning ..."] == [True]
    assert not (tmp_path / "data").exists()


def test_another_corpus_gives_its_tokenizer(tmp_path: Path) -> None:
    source = write_as(tmp_path, "jsonl", some_documents(80))
    first = prepare_files(tmp_path / "first", source, tokenizer="bpe", vocab_size=300)
    options = ("--processes", "1", "--val_share", "0.2", "--tokenizer", tmp_path / "first")
    assert prepare("--input", source, "--output_dir", tmp_path / "second", *options) == 0
    second = PreparedText.open(tmp_path / "second")
    assert second.tokenizer == first.tokenizer
    assert second.tokens("train")[:].tolist() == first.tokens("train")[:].tolist()
