"""Batches from a prepared folder: windows at any offset, and the stored sequences."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llada.data.batches import random_windows, stored_sequences
from llada.data.prepared import PreparedText, prepare
from llada.system.errors import UserError
from tests.support.sentences import assert_one_sentence
from tests.support.texts import content_of, corpus_of, prepare_text

# Twenty characters with the ids 3..22 in this order, so that an id shows where in the text it stands.
ORDERED_TEXT = "abcdefghijklmnopqrst"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return prepare_text(tmp_path / "prepared")


@pytest.fixture
def ordered(tmp_path: Path) -> PreparedText:
    """`ORDERED_TEXT`, whose training part is the ids 3..20."""
    return prepare(corpus_of(ORDERED_TEXT), tmp_path / "ordered", 3)


# Windows at any offset


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("length", [1, 4, 17])
def test_windows_are_pieces_of_the_training_text(ordered: PreparedText, length: int) -> None:
    batch = random_windows(ordered, 6, length)(0, generator_of(0))
    assert batch.x_0.shape == (6, length)
    assert batch.x_0.dtype == torch.int64
    assert batch.maskable is None
    for window in batch.x_0.tolist():
        assert window == list(range(window[0], window[0] + length))
        assert 3 <= window[0] <= window[-1] <= 20


def test_windows_start_everywhere_alike(ordered: PreparedText) -> None:
    """15 offsets, the last included; a count of 15,000 draws has mean 1,000 and standard deviation 31."""
    starts = random_windows(ordered, 15_000, 4)(0, generator_of(0)).x_0[:, 0]
    offsets, counts = starts.unique(return_counts=True)
    assert offsets.tolist() == list(range(3, 18))
    assert counts.min() > 1_000 - 5 * 31
    assert counts.max() < 1_000 + 5 * 31


def test_a_window_may_be_all_of_the_text(ordered: PreparedText) -> None:
    x_0 = random_windows(ordered, 2, 18)(0, generator_of(0)).x_0
    assert x_0.tolist() == [list(range(3, 21))] * 2


def test_windows_do_not_see_the_padding(folder: Path) -> None:
    """18 characters are stored in 20 places."""
    x_0 = random_windows(PreparedText.open(folder), 500, 3)(0, generator_of(0)).x_0
    assert x_0.min() == 3


def test_windows_of_two_byte_ids_are_right(tmp_path: Path) -> None:
    text = "".join(chr(0x4E00 + i) for i in range(300))
    x_0 = random_windows(prepare(corpus_of(text), tmp_path / "prepared", 7), 1, 270)(0, generator_of(0)).x_0
    assert x_0.tolist() == [list(range(3, 273))]


def test_the_same_generator_gives_the_same_windows(ordered: PreparedText) -> None:
    draw = random_windows(ordered, 32, 4)
    first = draw(5, generator_of(7)).x_0
    assert draw(5, generator_of(7)).x_0.equal(first)
    assert random_windows(ordered, 32, 4)(5, generator_of(7)).x_0.equal(first)
    assert not draw(5, generator_of(8)).x_0.equal(first)


def test_a_window_longer_than_the_text_is_refused(ordered: PreparedText) -> None:
    with pytest.raises(UserError, match="A window of 19 does not fit the training text of 18 tokens") as caught:
        random_windows(ordered, 2, 19)
    assert_one_sentence(caught.value)


# The stored sequences


@pytest.fixture
def many(tmp_path: Path) -> PreparedText:
    """200 characters: 180 for training, 12 rows of 15, each of which starts with another character."""
    text = "".join(chr(0x4E00 + i) for i in range(200))
    return prepare(corpus_of(text), tmp_path / "many", 15)


def stream_of(data: PreparedText, batch_size: int, seed: int, n_rows: int) -> list[list[int]]:
    """The first rows that batches of this size bring."""
    draw = stored_sequences(data, batch_size, seed)
    batches = [draw(step * batch_size, generator_of(step)).x_0 for step in range(-(-n_rows // batch_size))]
    assert all(batch.shape == (batch_size, data.sequence_length) for batch in batches)
    return torch.cat(batches)[:n_rows].tolist()


@pytest.mark.parametrize("batch_size", [1, 3, 5, 12, 30])
def test_every_row_comes_once_in_every_epoch(many: PreparedText, batch_size: int) -> None:
    rows = [list(range(3 + 15 * i, 18 + 15 * i)) for i in range(12)]
    stream = stream_of(many, batch_size, seed=1, n_rows=36)
    for epoch in (stream[:12], stream[12:24], stream[24:]):
        assert sorted(epoch) == rows


def test_every_epoch_and_every_seed_has_its_order(many: PreparedText) -> None:
    stream = stream_of(many, 4, seed=1, n_rows=36)
    orders = [stream[:12], stream[12:24], stream[24:], stream_of(many, 4, seed=2, n_rows=12), sorted(stream[:12])]
    assert all(orders[i] != orders[j] for i in range(5) for j in range(i))


@pytest.mark.parametrize("batch_size", [2, 5, 12, 36, 40])
def test_the_order_of_the_rows_does_not_depend_on_the_batch_size(many: PreparedText, batch_size: int) -> None:
    assert stream_of(many, batch_size, seed=1, n_rows=36) == stream_of(many, 1, seed=1, n_rows=36)


def test_a_step_brings_the_same_rows_whenever_it_is_asked_for(many: PreparedText) -> None:
    """Hence a resumed run goes on where it was, in the middle of an epoch."""
    stream = stream_of(many, 5, seed=1, n_rows=45)
    draw = stored_sequences(many, 5, seed=1)
    assert draw(35, generator_of(0)).x_0.tolist() == stream[35:40]
    assert draw(10, generator_of(9)).x_0.tolist() == stream[10:15]
    assert draw(11, generator_of(9)).x_0.tolist() == stream[11:16]  # after another number a step


def test_padding_is_marked(folder: Path) -> None:
    """Of the five rows, the one with the ids 9, 10 ends with two PAD."""
    batch = stored_sequences(PreparedText.open(folder), 5, seed=0)(0, generator_of(0))
    assert batch.maskable is not None
    assert batch.maskable.dtype == torch.bool
    assert sorted(zip(batch.x_0.tolist(), batch.maskable.tolist(), strict=True)) == [
        ([3, 4, 5, 6], [True] * 4),
        ([5, 6, 7, 8], [True] * 4),
        ([7, 8, 9, 10], [True] * 4),
        ([9, 10, 0, 0], [True, True, False, False]),
        ([11, 12, 3, 4], [True] * 4),
    ]


def test_without_padding_nothing_is_marked(many: PreparedText, folder: Path) -> None:
    assert all(stored_sequences(many, 5, seed=0)(5 * step, generator_of(0)).maskable is None for step in range(8))
    draw = stored_sequences(PreparedText.open(folder), 1, seed=0)
    batches = [draw(step, generator_of(0)) for step in range(5)]
    assert [batch.maskable is None for batch in batches] == [bool((batch.x_0 != 0).all()) for batch in batches]
    assert sum(batch.maskable is None for batch in batches) == 4


@pytest.mark.parametrize(
    "draw_from", [lambda data: random_windows(data, 2, 3), lambda data: stored_sequences(data, 2, 0)]
)
def test_a_batch_may_be_changed_without_harm(ordered: PreparedText, draw_from: Callable[[PreparedText], Any]) -> None:
    before = content_of(ordered.folder)
    draw_from(ordered)(0, generator_of(0)).x_0.zero_()
    assert content_of(ordered.folder) == before
