"""The prepared folder, number by number, also when writing fails or a file is damaged."""

import errno
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llada.data.corpus import Corpus
from llada.data.prepared import PreparedText, Split, prepare, retokenise
from llada.system.errors import UserError
from llada.tokenizers.char import CharTokenizer
from tests.support.sentences import assert_one_sentence
from tests.support.texts import TEXT, characters_of, content_of, corpus_of, prepare_text

FILES = ["metadata.json", "prepared_text.txt", "train_data.npy", "val_data.npy", "vocab.json"]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def edit_metadata(folder: Path, **changes: Any) -> None:
    """Change metadata.json and its seal, as somebody would who means it."""
    content = json.loads((folder / "metadata.json").read_text(encoding="utf-8")) | changes
    del content["metadata_sha256"]
    seal = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (folder / "metadata.json").write_text(json.dumps({**content, "metadata_sha256": seal}), encoding="utf-8")


def write_rows(folder: Path, name: str, array: Any, **options: Any) -> None:
    """Put an array in the place of a split's, with its checksum."""
    np.save(folder / name, array, **options)
    sums = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))["sha256"]
    edit_metadata(folder, sha256={**sums, name: hashlib.sha256((folder / name).read_bytes()).hexdigest()})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return prepare_text(tmp_path / "prepared")


# What is written


def test_the_folder_holds_five_files(folder: Path) -> None:
    assert names_in(folder) == FILES
    assert names_in(folder.parent) == ["prepared"]
    assert (folder / "prepared_text.txt").read_bytes() == TEXT.encode()


@pytest.mark.parametrize("source", ["url", "package"])
def test_only_shakespeare_is_called_so(tmp_path: Path, source: str) -> None:
    data = prepare(Corpus(TEXT, source, "address"), tmp_path / "prepared", 4)
    assert (tmp_path / "prepared" / "shakespeare_raw.txt").read_bytes() == TEXT.encode()
    assert not (tmp_path / "prepared" / "prepared_text.txt").exists()
    assert data.raw_text == TEXT
    own = prepare(corpus_of(TEXT), tmp_path / "prepared", 4)
    assert own.text_sha256 == data.text_sha256
    assert names_in(tmp_path / "prepared") == FILES


def test_a_text_of_ones_own_that_an_earlier_version_prepared_opens(folder: Path) -> None:
    """It had the name of Shakespeare's."""
    expected = PreparedText.open(folder)
    content = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    (folder / "prepared_text.txt").rename(folder / "shakespeare_raw.txt")
    sums = {name.replace("prepared_text", "shakespeare_raw"): digest for name, digest in content["sha256"].items()}
    edit_metadata(folder, sha256=sums)
    data = PreparedText.open(folder)
    assert data.fingerprints == expected.fingerprints
    assert data.raw_text == TEXT
    assert data.text("val") == "ij"
    prepare(corpus_of(TEXT), folder, 4)
    assert names_in(folder) == FILES


# Documents


def test_documents_have_an_eos_between_them(tmp_path: Path) -> None:
    """Of the 18 characters with the blank lines, 16 are for training: "ij" of the last document is cut off."""
    corpus = Corpus("abcd\n\nefg\n\ncdefgij", "file", "x", (4, 9))
    data = prepare(corpus, tmp_path / "prepared", 4)
    a, b, c, d, e, f, g, i, j = data.tokenizer.encode("abcdefgij")
    assert data.tokens("train").tolist() == [a, b, c, d, 2, e, f, g, 2, c, d, e, f, g]
    assert data.tokens("val").tolist() == [i, j]


@pytest.mark.parametrize(
    ("n_before", "train", "val"),
    [
        (14, "x" * 14 + "|yy", "yy"),
        (15, "x" * 15 + "|y", "yy"),
        (16, "x" * 16, "yy"),
        (17, "x" * 17, "y"),
        (18, "x" * 18, "y"),
    ],
)
def test_a_cut_at_the_end_of_a_document_needs_no_eos(tmp_path: Path, n_before: int, train: str, val: str) -> None:
    """The cut is behind 18 characters; the blank line is before it, across it, and behind it."""
    text = "x" * n_before + "\n\n" + "y" * max(1, 18 - n_before)
    data = prepare(Corpus(text, "file", "x", (n_before,)), tmp_path / "prepared", 4)
    id_of = {"x": data.tokenizer.encode("x")[0], "y": data.tokenizer.encode("y")[0], "|": data.tokenizer.eos_id}
    assert data.tokens("train").tolist() == [id_of[c] for c in train]
    assert data.tokens("val").tolist() == [id_of[c] for c in val]


def test_documents_are_the_same_in_other_tokens(tmp_path: Path) -> None:
    corpus = Corpus("abcd\n\nefg\n\ncdefg" + "ij" * 10, "file", "x", (4, 9))
    data = prepare(corpus, tmp_path / "prepared", 4)
    assert data.breaks == (4, 9)
    other = retokenise(data, CharTokenizer(corpus.text + "xyz"))
    assert other.breaks == (4, 9)
    assert other.tokenizer.decode(other.tokens("train")) == data.tokenizer.decode(data.tokens("train"))
    assert other.tokens("train").tolist().count(2) == 2
    assert retokenise(data, CharTokenizer(corpus.text + "xyz")).folder == other.folder


@pytest.mark.parametrize("breaks", [None, "4", [4, "9"], [9, 4], [True], [-1]])
def test_documents_that_end_nowhere_are_refused(tmp_path: Path, breaks: Any) -> None:
    data = prepare(Corpus("abcd\n\nefg\n\ncdefgij", "file", "x", (4, 9)), tmp_path / "prepared", 4)
    edit_metadata(data.folder, document_breaks=breaks)
    with pytest.raises(UserError, match="does not say where documents end: run `llada prepare") as caught:
        retokenise(PreparedText.open(data.folder), CharTokenizer("abcdefgij\nx"))
    assert_one_sentence(caught.value)


# What the arrays are


def test_the_sequences_are_the_text_cut_at_90_percent_and_padded_at_the_end(folder: Path) -> None:
    train, val = np.load(folder / "train_data.npy"), np.load(folder / "val_data.npy")
    assert train.dtype == val.dtype == np.uint8
    assert train.tolist() == [[3, 4, 5, 6], [7, 8, 9, 10], [11, 12, 3, 4], [5, 6, 7, 8], [9, 10, 0, 0]]
    assert val.tolist() == [[11, 12, 0, 0]]


def test_a_text_that_fits_is_not_padded(tmp_path: Path) -> None:
    data = prepare(corpus_of(TEXT), tmp_path / "prepared", 9)
    assert data.rows["train"].tolist() == [[*range(3, 12)], [12, *range(3, 11)]]
    assert data.rows["val"].tolist() == [[11, 12] + [0] * 7]


def test_the_metadata_say_everything(folder: Path) -> None:
    metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    others = [name for name in FILES if name != "metadata.json"]
    assert metadata.pop("sha256") == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in others}
    assert len(metadata.pop("metadata_sha256")) == 64
    assert metadata == {
        "format_version": 2,
        "source": "file",
        "origin": "my.txt",
        "characters": 20,
        "sequence_length": 4,
        "train_fraction": 0.9,
        "splits": {"train": {"tokens": 18, "sequences": 5}, "val": {"tokens": 2, "sequences": 1}},
        "vocab_size": 14,
        "mask_token_id": 126_336,
        "pad_token_id": 0,
        "eos_token_id": 2,
        "dtype": "uint8",
    }


@pytest.mark.parametrize(
    ("n_characters", "n_train", "n_val"),
    [(2, 1, 1), (10, 9, 1), (11, 9, 2), (19, 17, 2), (1_115_394, 1_003_854, 111_540)],
)
def test_nine_tenths_are_for_training(tmp_path: Path, n_characters: int, n_train: int, n_val: int) -> None:
    """The last case is Tiny Shakespeare, whose usual split nanoGPT's `data/shakespeare_char` prints."""
    data = prepare(corpus_of("a" * n_characters), tmp_path / "prepared", 1)
    assert (len(data.tokens("train")), len(data.tokens("val"))) == (n_train, n_val)
    assert (len(data.rows["train"]), len(data.rows["val"])) == (n_train, n_val)


@pytest.mark.parametrize(("n_distinct", "dtype"), [(252, np.uint8), (253, np.uint16), (300, np.uint16)])
def test_ids_take_one_byte_while_all_rows_of_a_network_do(tmp_path: Path, n_distinct: int, dtype: type) -> None:
    """With 252 characters the row of MASK is 255, the largest number of one byte."""
    text = "".join(chr(0x4E00 + i) for i in range(n_distinct))
    data = prepare(corpus_of(text), tmp_path / "prepared", 7)
    assert data.rows["train"].dtype == data.rows["val"].dtype == dtype
    assert data.metadata["dtype"] == np.dtype(dtype).name
    assert [*data.tokens("train"), *data.tokens("val")] == list(range(3, 3 + n_distinct))


@pytest.mark.parametrize("sequence_length", [1, 5, 16, 60])
def test_the_rows_in_order_are_the_text(tmp_path: Path, sequence_length: int) -> None:
    text = "Zwölf Boxkämpfer jagen\r\n\tViktor quer über den großen Sylter Deich. 世界"
    data = prepare(corpus_of(text), tmp_path / "prepared", sequence_length)
    ids = np.concatenate([data.tokens("train"), data.tokens("val")])
    alphabet = sorted(set(text))
    assert ids.tolist() == [3 + alphabet.index(character) for character in text]
    assert data.tokenizer.decode(ids) == text
    for rows in data.rows.values():
        assert rows.shape[1] == sequence_length == data.sequence_length
        assert (rows.reshape(-1) == 0).sum() < sequence_length
    assert (tmp_path / "prepared" / "prepared_text.txt").read_bytes() == text.encode("utf-8")


def test_the_vocabulary_is_that_of_the_whole_text(tmp_path: Path) -> None:
    data = prepare(corpus_of("a" * 18 + "zy"), tmp_path / "prepared", 4)
    assert characters_of(data.tokenizer) == ["a", "y", "z"]
    assert data.tokens("val").tolist() == [5, 4]


# What is refused, replaced, left alone


@pytest.mark.parametrize(("text", "sequence_length"), [(TEXT, 19), (TEXT, 0), (TEXT, -4)])
def test_a_length_that_does_not_fit_is_refused_and_nothing_written(
    tmp_path: Path, text: str, sequence_length: int
) -> None:
    with pytest.raises(UserError, match=f"`sequence_length={sequence_length}` does not fit") as caught:
        prepare(corpus_of(text), tmp_path / "some" / "where", sequence_length)
    assert_one_sentence(caught.value)
    assert names_in(tmp_path) == []


def test_a_text_that_cannot_be_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too short to split") as caught:
        prepare(corpus_of("a"), tmp_path / "some" / "where", 1)
    assert_one_sentence(caught.value)
    assert names_in(tmp_path) == []


def test_the_whole_training_text_may_be_one_sequence(tmp_path: Path) -> None:
    assert prepare(corpus_of(TEXT), tmp_path / "prepared", 18).rows["train"].shape == (1, 18)


def test_a_length_that_does_not_fit_leaves_the_earlier_folder(folder: Path) -> None:
    before = content_of(folder)
    with pytest.raises(UserError, match="does not fit"):
        prepare(corpus_of(TEXT), folder, 19)
    assert content_of(folder) == before


def test_preparing_again_replaces_the_folder(folder: Path) -> None:
    prepare(corpus_of("xyz" * 10), folder, 6)
    assert names_in(folder) == FILES
    assert names_in(folder.parent) == ["prepared"]
    data = PreparedText.open(folder)
    assert data.sequence_length == 6
    assert characters_of(data.tokenizer) == ["x", "y", "z"]
    assert data.rows["train"].shape == (5, 6)  # 27 of the 30 characters


def test_preparing_twice_gives_the_same_bytes(folder: Path) -> None:
    before = content_of(folder)
    prepare(corpus_of(TEXT), folder, 4)
    assert content_of(folder) == before


def test_an_empty_or_incomplete_folder_is_filled(folder: Path) -> None:
    before = content_of(folder)
    (folder / "metadata.json").unlink()
    prepare(corpus_of(TEXT), folder, 4)
    assert content_of(folder) == before
    for name in FILES:
        (folder / name).unlink()
    prepare(corpus_of(TEXT), folder, 4)
    assert content_of(folder) == before


@pytest.mark.parametrize("foreign", ["diary.txt", ".hidden"])
def test_a_folder_with_other_things_is_left_alone(folder: Path, foreign: str) -> None:
    (folder / foreign).write_text("mine", encoding="utf-8")
    before = content_of(folder)
    with pytest.raises(UserError, match=f"holds {foreign}") as caught:
        prepare(corpus_of(TEXT), folder, 6)
    assert_one_sentence(caught.value)
    assert content_of(folder) == before
    assert names_in(folder.parent) == ["prepared"]


def test_a_file_in_the_place_of_the_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "prepared").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="is a file") as caught:
        prepare(corpus_of(TEXT), tmp_path / "prepared", 4)
    assert_one_sentence(caught.value)
    assert content_of(tmp_path) == {"prepared": b"mine"}


@pytest.mark.parametrize("failing", [1, 2])
def test_a_full_disk_leaves_the_earlier_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    before = content_of(folder)
    save, written = np.save, []

    def save_until_full(path: Path, rows: np.ndarray) -> None:
        written.append(path)
        save(path, rows)
        if len(written) == failing:
            path.write_bytes(path.read_bytes()[:20])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", save_until_full)
    with pytest.raises(OSError, match="No space left"):
        prepare(corpus_of("xyz" * 10), folder, 6)
    assert content_of(folder) == before
    assert names_in(folder.parent) == ["prepared"]
    written.clear()
    with pytest.raises(OSError, match="No space left"):
        prepare(corpus_of("xyz" * 10), folder.parent / "new", 6)
    assert names_in(folder.parent) == ["prepared"]


# Opening


def test_opening_gives_what_was_prepared(folder: Path) -> None:
    data = PreparedText.open(folder)
    assert data.folder == folder
    assert data.sequence_length == 4
    assert data.tokenizer.decode(data.tokens("train")) == TEXT[:18]
    assert data.tokenizer.decode(data.tokens("val")) == TEXT[18:]


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_sequences_stay_on_the_disk(folder: Path, split: Split) -> None:
    data = PreparedText.open(folder)
    assert isinstance(data.rows[split], np.memmap)
    assert np.shares_memory(data.tokens(split), data.rows[split])
    with pytest.raises(ValueError, match="read-only"):
        data.rows[split][0, 0] = 1


@pytest.mark.parametrize("exists", [False, True])
def test_a_missing_or_empty_folder_is_refused(tmp_path: Path, exists: bool) -> None:
    if exists:
        (tmp_path / "prepared").mkdir()
    with pytest.raises(UserError, match="run `llada prepare") as caught:
        PreparedText.open(tmp_path / "prepared")
    assert_one_sentence(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match="run `llada prepare") as caught:
        PreparedText.open(folder)
    assert_one_sentence(caught.value)
    assert name == "metadata.json" or name in str(caught.value)


@pytest.mark.parametrize("position", [0, -1])
@pytest.mark.parametrize("name", [name for name in FILES if name != "metadata.json"])
def test_a_changed_byte_is_refused(folder: Path, name: str, position: int) -> None:
    data = bytearray((folder / name).read_bytes())
    data[position] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(UserError, match="wrong checksum") as caught:
        PreparedText.open(folder)
    assert_one_sentence(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_cut_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:-3])
    with pytest.raises(UserError) as caught:
        PreparedText.open(folder)
    assert_one_sentence(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("version", [0, 3, "1", True, None])
def test_another_version_is_refused(folder: Path, version: Any) -> None:
    edit_metadata(folder, format_version=version)
    with pytest.raises(UserError, match="another format than version 2") as caught:
        PreparedText.open(folder)
    assert_one_sentence(caught.value)


@pytest.mark.parametrize("checksums", [{}, [], None, "none"])
def test_metadata_without_checksums_are_refused(folder: Path, checksums: Any) -> None:
    edit_metadata(folder, sha256=checksums)
    with pytest.raises(UserError, match="run `llada prepare") as caught:
        PreparedText.open(folder)
    assert_one_sentence(caught.value)


@pytest.mark.parametrize(("old", "new"), [('"tokens": 18', '"tokens": 19'), ("my.txt", "me.txt"), ("0.9", "0.8")])
def test_a_changed_number_of_the_metadata_is_refused(folder: Path, old: str, new: str) -> None:
    """Nineteen tokens would fit the arrays, and take padding for text."""
    text = (folder / "metadata.json").read_text(encoding="utf-8")
    (folder / "metadata.json").write_text(text.replace(old, new, 1), encoding="utf-8")
    assert text.count(old) == 1
    with pytest.raises(UserError, match="wrong checksum of its own") as caught:
        PreparedText.open(folder)
    assert_one_sentence(caught.value)


def test_folders_from_before_the_seal_open(folder: Path) -> None:
    content = json.loads((folder / "metadata.json").read_text(encoding="utf-8")) | {"format_version": 1}
    del content["metadata_sha256"]
    (folder / "metadata.json").write_text(json.dumps(content), encoding="utf-8")
    assert PreparedText.open(folder).sequence_length == 4


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("went_off"),)


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(np.array([[Bomb()] * 4] * 5, dtype=object), id="objects"),
        pytest.param(np.full((5, 4), -1), id="negative"),
        pytest.param(np.zeros((5, 4)), id="fractions"),
        pytest.param(np.zeros(20, dtype=np.uint8), id="one row"),
        pytest.param(np.full((5, 4), 14, dtype=np.uint8), id="no id of the vocabulary"),
    ],
)
def test_arrays_of_something_else_are_refused(
    folder: Path, array: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With right checksums: by somebody, not by accident."""
    monkeypatch.chdir(tmp_path)
    write_rows(folder, "train_data.npy", array, allow_pickle=True)
    with pytest.raises(UserError) as caught:
        PreparedText.open(folder)
    assert_one_sentence(caught.value)
    assert not Path("went_off").exists()


def test_too_many_open_files_are_not_called_damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(np, "load", refuse)
    with pytest.raises(UserError, match=r"cannot be read .*: close some files, or raise `ulimit -n`\.$"):
        PreparedText.open(folder)


def test_fingerprints_tell_text_vocabulary_and_split_apart(tmp_path: Path) -> None:
    """And do not depend on the length of the stored sequences."""
    of = {
        name: prepare(corpus_of(text), tmp_path / name, length).fingerprints
        for name, text, length in (
            ("one", "abcd" * 10, 4),
            ("cut", "abcd" * 10, 7),
            ("end", "abcd" * 9 + "dcba", 4),
            ("xyz", "wxyz" * 10, 4),
        )
    }
    assert of["one"] == of["cut"]
    assert {key for key in of["one"] if of["one"][key] != of["end"][key]} == {"text", "validation split"}
    assert {key for key in of["one"] if of["one"][key] != of["xyz"][key]} == {"text", "vocabulary"}


def test_a_folder_of_others_is_left_alone_though_it_has_names_of_ours(tmp_path: Path) -> None:
    """A prepared text that lost files can be prepared anew."""
    corpus = Corpus("to be or not to be " * 20, "file", "x")
    for number, names in enumerate((["metadata.json"], ["vocab.json", "metadata.json"], ["train_data.npy"])):
        mine = tmp_path / f"mine-{number}"
        mine.mkdir()
        for name in names:
            (mine / name).write_text('{"title": "mine"}', encoding="utf-8")
        with pytest.raises(UserError, match=r"which is not a prepared text: choose another `output_dir`") as caught:
            prepare(corpus, mine, 10)
        assert_one_sentence(caught.value)
        assert sorted(path.name for path in mine.iterdir()) == sorted(names)
    for lost in (
        ["metadata.json"],
        ["vocab.json", "train_data.npy"],
        ["val_data.npy", "vocab.json", "prepared_text.txt"],
    ):
        prepare(corpus, tmp_path / "data", 10)
        for name in lost:
            (tmp_path / "data" / name).unlink()
    assert prepare(corpus, tmp_path / "data", 10).raw_text == corpus.text


def test_a_link_is_not_followed_to_keep_other_tokens(tmp_path: Path) -> None:
    data = prepare(Corpus("to be or not to be " * 20, "file", "x"), tmp_path / "data", 10)
    (tmp_path / "elsewhere").mkdir()
    (data.folder / "tokenised").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="tokenised is a link, which is not followed to write there"):
        retokenise(data, CharTokenizer(data.raw_text + "xyz"))
    assert list((tmp_path / "elsewhere").iterdir()) == []
