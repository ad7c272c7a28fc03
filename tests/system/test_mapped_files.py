"""Files whose mapped numbers are in use: a change to one is found, and what leaves the numbers alone is none."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llada.checkpoints.safetensors import StoredWeights
from llada.data.corpus import Corpus
from llada.data.prepared import PreparedText, prepare
from llada.system.errors import UserError
from llada.system.mapped_files import check_mapped
from tests.support.sentences import assert_one_sentence

CPU = torch.device("cpu")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(6.0), "b": torch.ones(3)}, path)
    return path


def write_other(path: Path) -> None:
    """As `cp new old` does."""
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.write(content[:-4] + b"1234")
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))  # whatever the clock of the disk is


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 4)


@pytest.mark.parametrize("harm", [write_other, cut])
def test_a_file_that_is_written_into_is_found_for_as_long_as_it_is_mapped(
    file: Path, harm: Callable[[Path], None]
) -> None:
    tensor = StoredWeights.of(file.parent).tensor("a", CPU, None)[2:4]
    check_mapped()
    harm(file)
    with pytest.raises(UserError, match=r"model\.safetensors was changed while it was in use") as caught:
        check_mapped()
    assert_one_sentence(caught.value)
    assert tensor.tolist() == [2.0, 3.0]
    del tensor
    check_mapped()


def test_a_file_that_is_replaced_or_removed_leaves_the_numbers_alone(file: Path) -> None:
    tensor = StoredWeights.of(file.parent).tensor("a", CPU, None)
    save_file({"a": torch.zeros(6)}, file.with_name("new"))
    os.replace(file.with_name("new"), file)
    check_mapped()
    file.unlink()
    check_mapped()
    assert tensor.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_what_is_copied_is_not_watched(file: Path) -> None:
    copied = StoredWeights.of(file.parent).tensor("a", CPU, torch.bfloat16)
    write_other(file)
    check_mapped()
    assert copied.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_prepared_texts_are_watched_and_can_be_prepared_anew(tmp_path: Path) -> None:
    """A part of an array is enough to keep it."""
    corpus = Corpus("to be or not to be " * 20, "file", "x")
    tokens = prepare(corpus, tmp_path / "data", 10).tokens("train")[3:9]
    for _ in range(3):
        prepare(corpus, tmp_path / "data", 20)
        check_mapped()
    kept = PreparedText.open(tmp_path / "data").tokens("val")[:5]
    os.utime(tmp_path / "data" / "train_data.npy", ns=(0, 0))  # of the split that is not used any more
    check_mapped()
    write_other(tmp_path / "data" / "val_data.npy")
    with pytest.raises(UserError, match=r"val_data\.npy was changed while it was in use"):
        check_mapped()
    assert (len(tokens), len(kept)) == (6, 5)
    del kept
    check_mapped()
