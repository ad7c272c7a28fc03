"""Which files of a folder are read: the same by both readers of folders, and nothing that a preparation wrote there."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llada.data.corpus import Corpus, read_files
from llada.data.prepared import prepare
from llada.data.sources import find_files
from llada.system.errors import UserError
from tests.support.corpora import prepare_files, prepare_half, some_documents, write_as
from tests.support.sentences import assert_one_sentence

Say = Callable[[str], None]


def read_small(folder: Path | list[Path], output_dir: Path, say: Say) -> list[str]:
    return list(read_files(names_of(folder), say, output_dir).documents())


def read_sharded(folder: Path | list[Path], output_dir: Path, say: Say) -> list[str]:
    return [file.path.read_text() for file in find_files(names_of(folder), "text", output_dir, say).files]


def names_of(inputs: Path | list[Path]) -> list[str]:
    return [str(path) for path in (inputs if isinstance(inputs, list) else [inputs])]


READERS = {"small": read_small, "sharded": read_sharded}
OTHER = {"small": "not ending in .txt", "sharded": "not named as text, JSONL or Parquet"}


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"text of {name}")


@pytest.mark.parametrize("reader", READERS)
def test_hidden_folders_are_not_read(tmp_path: Path, reader: str) -> None:
    write(tmp_path / ".in", "a.txt", "b/c.txt", ".git/d.txt", "b/.ipynb_checkpoints/c.txt", ".e.txt", "b/.f/g/h.txt")
    said: list[str] = []
    assert READERS[reader](tmp_path / ".in", tmp_path / "out", said.append) == ["text of a.txt", "text of b/c.txt"]
    assert said == []


@pytest.mark.parametrize("reader", READERS)
def test_what_a_preparation_wrote_is_not_read(tmp_path: Path, reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "in"
    mine = ("a.txt", "data/unfinished/b.txt", "data/unfinished/settings.txt", "e/vocab.txt", "z.txt")
    write(folder, *mine)
    expected = [f"text of {name}" for name in mine]
    source = write_as(tmp_path, "jsonl", some_documents(80))
    prepare(Corpus("abc " * 100, "file", "x"), folder / "five", 16)
    prepare_files(folder / "shards" / "inner", source)
    prepare_half(monkeypatch, folder / "half", source, tokenizer="bpe", vocab_size=300)
    assert (folder / "half" / "unfinished" / "scan-00000.sample.jsonl").is_file()
    write(folder, "five/own.txt", "shards/inner/own.txt", "half/own.txt")
    said: list[str] = []
    assert READERS[reader](folder, folder / "new", said.append) == expected
    written = ", ".join(str(folder / name) for name in ("five", "half", "shards/inner"))
    assert said == [f"Left out of {folder}, written by `llada prepare`: {written} (3 in all)."]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("place", ["out", "b/../out"])
def test_the_output_folder_is_not_read_whatever_it_holds(tmp_path: Path, reader: str, place: str) -> None:
    write(tmp_path / "in", "a.txt", "b/c.txt", "out/rest.txt", "out/d/rest.txt", "outer/d.txt")
    said: list[str] = []
    texts = READERS[reader](tmp_path / "in", tmp_path / "in" / place, said.append)
    assert texts == ["text of a.txt", "text of b/c.txt", "text of outer/d.txt"]
    assert said == [f"Left out of {tmp_path / 'in'}, written by `llada prepare`: {tmp_path / 'in' / 'out'} (1 in all)."]
    texts = READERS[reader](tmp_path / "in" / "out", tmp_path / "in", said.append)
    assert texts == ["text of out/d/rest.txt", "text of out/rest.txt"]


@pytest.mark.parametrize("reader", READERS)
def test_links_to_folders_and_other_files_are_named(tmp_path: Path, reader: str) -> None:
    write(tmp_path / "in", "a.txt", "README.md", "x.csv")
    write(tmp_path / "elsewhere", "b.txt")
    os.symlink(tmp_path / "elsewhere" / "b.txt", tmp_path / "in" / "b.txt")
    os.symlink(tmp_path / "elsewhere", tmp_path / "in" / "more")
    os.symlink(tmp_path / "in", tmp_path / "in" / "loop")
    said: list[str] = []
    folder = tmp_path / "in"
    assert READERS[reader](folder, tmp_path / "out", said.append) == ["text of a.txt", "text of b.txt"]
    assert said == [
        f"Left out of {folder}, {OTHER[reader]}: {folder / 'README.md'}, {folder / 'x.csv'} (2 in all); links to "
        f"folders: {folder / 'loop'}, {folder / 'more'} (2 in all)."
    ]


@pytest.mark.parametrize("reader", READERS)
def test_a_file_is_read_once_whatever_names_lead_to_it(
    tmp_path: Path, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "in/a.txt", "in/b.txt")
    (tmp_path / "link.txt").symlink_to(tmp_path / "in" / "b.txt")
    monkeypatch.chdir(tmp_path)
    inputs = [Path("link.txt"), tmp_path / "in", Path("in", "*.txt"), Path("in", "..", "in", "a.txt")]
    assert READERS[reader](inputs, tmp_path / "out", lambda sentence: None) == ["text of in/b.txt", "text of in/a.txt"]


@pytest.mark.parametrize("reader", READERS)
def test_a_glob_leaves_out_the_folder_that_is_written(tmp_path: Path, reader: str) -> None:
    write(tmp_path, "a.txt", "out/b.txt", "out/unfinished/c.txt", "outer/d.txt")
    said: list[str] = []
    pattern = tmp_path / "**" / "*.txt"
    assert READERS[reader](pattern, tmp_path / "out", said.append) == ["text of a.txt", "text of outer/d.txt"]
    assert said == [
        f"Left out of {pattern}, in the folder that is written: {tmp_path}/out/b.txt, "
        f"{tmp_path}/out/unfinished/c.txt (2 in all)."
    ]
    given = tmp_path / "out" / "b.txt"
    assert READERS[reader](given, tmp_path / "out", said.append) == ["text of out/b.txt"]
    with pytest.raises(UserError, match=r"^What matches .* is in `output_dir`, .*: choose another one\.$") as caught:
        READERS[reader](tmp_path / "out" / "*.txt", tmp_path / "out", said.append)
    assert_one_sentence(caught.value)
