"""The folder that a preparation writes into: whether it is free, done, half done, or somebody's own."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from llada.cli.prepare import tokenizer_named
from llada.data import corpus_preparation
from llada.data.corpus_preparation import Made
from llada.data.prepared import PreparedText
from llada.system.errors import UserError
from tests.support.corpora import (
    documents_in,
    files_in_folder,
    prepare_files,
    prepare_half,
    some_documents,
    to_lines,
    write_as,
)
from tests.support.sentences import assert_one_sentence

DOCUMENTS = some_documents(80)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_as(tmp_path, "jsonl", DOCUMENTS)


def test_a_kill_while_another_preparation_is_removed_leaves_nothing_that_goes_on(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its records of blocks that are done would be believed, though their shards are gone."""

    def kill(*arguments: Any) -> None:
        raise RuntimeError

    prepare_half(monkeypatch, tmp_path / "corpus", source)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", kill)  # as it comes to `unfinished`
        with pytest.raises(RuntimeError):
            prepare_files(tmp_path / "corpus", source, overwrite=True)
    assert (tmp_path / "corpus" / "unfinished").is_dir()
    if any((tmp_path / "corpus").glob("*.bin")):
        with pytest.raises(UserError, match="is not empty"):
            prepare_files(tmp_path / "corpus", source)
    else:
        assert len(documents_in(prepare_files(tmp_path / "corpus", source), "train")) > 0


def test_a_preparation_with_other_settings_is_not_continued(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_half(monkeypatch, tmp_path / "corpus", source)
    with pytest.raises(UserError, match=r"half done, with other settings \(`val_share`, then 0\.2\)") as caught:
        prepare_files(tmp_path / "corpus", source, val_share=0.3)
    assert_one_sentence(caught.value)
    write_as(tmp_path, "jsonl", DOCUMENTS[:70])
    with pytest.raises(UserError, match="half done, from other sources, or before they changed"):
        prepare_files(tmp_path / "corpus", source)
    data = prepare_files(tmp_path / "corpus", source, val_share=0.3, overwrite=True)
    assert {*documents_in(data, "train"), *documents_in(data, "val")} == {*DOCUMENTS[:70]}


def test_a_preparation_that_was_killed_as_it_began_holds_up_nothing(tmp_path: Path, source: Path) -> None:
    (tmp_path / "corpus" / "unfinished").mkdir(parents=True)
    prepare_files(tmp_path / "corpus", source)
    prepare_files(tmp_path / "whole", source)
    assert files_in_folder(tmp_path / "corpus") == files_in_folder(tmp_path / "whole")


def test_another_corpus_is_replaced_only_when_that_is_asked_for(tmp_path: Path, source: Path) -> None:
    prepare_files(tmp_path / "corpus", source)
    before = files_in_folder(tmp_path / "corpus")
    with pytest.raises(UserError, match="holds a corpus that was prepared with other settings") as caught:
        prepare_files(tmp_path / "corpus", source, tokenizer="bpe", vocab_size=300)
    assert_one_sentence(caught.value)
    assert files_in_folder(tmp_path / "corpus") == before
    data = prepare_files(tmp_path / "corpus", source, tokenizer="bpe", vocab_size=300, overwrite=True)
    assert not (tmp_path / "corpus" / "vocab.json").exists()
    assert data.metadata["tokenizer"]["kind"] == "bpe"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "holds no text"),
        (to_lines(["one"]), "A single document"),
        (b"broken\n" + to_lines(DOCUMENTS), "Line 1 of"),
        (to_lines(DOCUMENTS, key="body"), "has no 'text'"),
    ],
)
def test_another_corpus_is_not_replaced_by_nothing(
    tmp_path: Path, source: Path, content: bytes, complaint: str
) -> None:
    prepare_files(tmp_path / "corpus", source)
    before = files_in_folder(tmp_path / "corpus")
    (tmp_path / "other.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        prepare_files(tmp_path / "corpus", tmp_path / "other.jsonl", overwrite=True)
    assert files_in_folder(tmp_path / "corpus") == before


@pytest.mark.parametrize(("vocab_size", "remedy"), [(259, "260 or more"), (2**22 + 1, "4194304 or less")])
def test_a_number_of_ids_that_cannot_be_leaves_the_corpus_that_is_there(
    tmp_path: Path, source: Path, vocab_size: int, remedy: str
) -> None:
    prepare_files(tmp_path / "corpus", source)
    before = files_in_folder(tmp_path / "corpus")
    with pytest.raises(UserError, match=rf"`vocab_size={vocab_size}` .*: choose {remedy}\.") as caught:
        prepare_files(tmp_path / "corpus", source, tokenizer="bpe", vocab_size=vocab_size, overwrite=True)
    assert_one_sentence(caught.value)
    assert files_in_folder(tmp_path / "corpus") == before


def test_what_is_half_done_is_no_text_and_no_tokenizer(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_half(monkeypatch, tmp_path / "corpus", source)
    for use in (PreparedText.open, lambda folder: tokenizer_named(str(folder))):
        with pytest.raises(UserError, match=r"corpus is half done: repeat the `llada prepare` that began it\.$"):
            use(tmp_path / "corpus")
    with pytest.raises(UserError, match=r"documents\.jsonl is a file, not a prepared text: give it to `llada prepare`"):
        PreparedText.open(source)


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path, source: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "diary.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"holds diary\.txt, which is not of a corpus") as caught:
            prepare_files(tmp_path / "corpus", source, overwrite=overwrite)
        assert_one_sentence(caught.value)
    assert files_in_folder(tmp_path / "corpus") == {"diary.txt": b"mine"}


@pytest.mark.parametrize("name", ["draft.txt", "settings.json/draft.txt", "tokenizer/draft.txt"])
@pytest.mark.parametrize("other", [None, "readme.md"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_ones_own_that_is_named_unfinished_is_left_alone(
    tmp_path: Path, source: Path, name: str, other: str | None, overwrite: bool
) -> None:
    """Also where the folder is refused for something else in it."""
    kept = {f"unfinished/{name}": b"mine"} | ({other: b"mine"} if other else {})
    for path, content in kept.items():
        (tmp_path / "corpus" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "corpus" / path).write_bytes(content)
    with pytest.raises(UserError, match=rf"holds {other or f'unfinished/{name}'}, which is not of a corpus") as caught:
        prepare_files(tmp_path / "corpus", source, overwrite=overwrite)
    assert_one_sentence(caught.value)
    assert files_in_folder(tmp_path / "corpus") == kept


def test_what_is_half_done_is_kept_when_other_settings_are_refused(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if no block of it is done yet, as by another process on a disk without locks."""
    prepare_files(tmp_path / "whole", source)
    with monkeypatch.context() as patch:
        patch.setattr(corpus_preparation, "leave_nothing", lambda *arguments, **options: None)
        patch.setattr(corpus_preparation._Preparation, "_scan", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare_files(tmp_path / "corpus", source)
    before = files_in_folder(tmp_path / "corpus")
    assert list(before) == ["unfinished/settings.json"]
    with pytest.raises(UserError, match="half done, with other settings"):
        prepare_files(tmp_path / "corpus", source, val_share=0.3)
    assert files_in_folder(tmp_path / "corpus") == before
    prepare_files(tmp_path / "corpus", source)
    assert files_in_folder(tmp_path / "corpus") == files_in_folder(tmp_path / "whole")


@pytest.mark.parametrize("tokenizer", ["characters", "bpe"])
def test_all_that_a_preparation_leaves_is_known_as_its_own(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Made
) -> None:
    """Killed as it removed its records, the settings first."""
    settings: dict[str, Any] = {"tokenizer": tokenizer, "vocab_size": 300, "dedup": "near"}
    prepare_half(monkeypatch, tmp_path / "corpus", source, **settings)
    unfinished = tmp_path / "corpus" / "unfinished"
    (unfinished / ".copy.llada-01234567.tmp").write_bytes(b"of a killed process")
    (unfinished / "settings.json").unlink()
    for path in (tmp_path / "corpus").glob("*.bin"):
        path.unlink()
    assert len(list(unfinished.iterdir())) > 5
    data = prepare_files(tmp_path / "corpus", source, **settings)
    assert not unfinished.exists()
    assert len(documents_in(data, "train")) > 0
