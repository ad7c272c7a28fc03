"""Letters: B batch, L length."""

from pathlib import Path

import numpy as np
import pytest
import torch

from llada.data.batches import TokenBatch
from llada.data.interleaving import Interleaving
from llada.data.mixture import Mixture, check_distinct, mixed_rows
from llada.data.order import Numbers
from llada.data.prepared import PreparedText, prepare
from llada.system.errors import UserError
from tests.support.texts import TEXT, corpus_of, prepare_text


def test_rows_are_where_the_interleaving_has_them_with_their_masks() -> None:
    """Row j of folder f is filled with 100 f + j; those of folder 1 begin with a place that is not maskable."""

    def draw_of(folder: int, is_masked: bool) -> object:
        def draw(numbers: Numbers) -> TokenBatch:
            x_0 = torch.from_numpy(100 * folder + numbers)[:, None].expand(-1, 3)
            maskable = torch.tensor([False, True, True]).expand(len(numbers), -1)
            return TokenBatch(x_0, maskable, maskable) if is_masked else TokenBatch(x_0)

        return draw

    draws = [draw_of(0, False), draw_of(1, True), draw_of(2, False)]
    draw = mixed_rows(Interleaving((3, 1, 1)), np.array([0, 1, 2, 4, 2]), draws)  # type: ignore[arg-type]
    batch = draw(5, torch.Generator())  # rows 5, 6, 7, 9 and 7 again
    assert batch.x_0[:, 0].tolist() == [3, 4, 101, 201, 101]
    assert batch.is_maskable[:, 0].tolist() == [True, True, False, True, False]
    assert batch.attention_mask is not None
    assert batch.is_maskable[:, 1:].all()
    plain = mixed_rows(Interleaving((1, 1)), np.arange(4), [draw_of(0, False), draw_of(1, False)])  # type: ignore[list-item]
    assert plain(0, torch.Generator()).maskable is None
    assert plain(2, torch.Generator()).x_0[:, 0].tolist() == [1, 101, 2, 102]


def test_folders_have_names_that_differ(tmp_path: Path) -> None:
    text = PreparedText.open(prepare_text(tmp_path / "one" / "a"))

    def names(*folders: Path) -> tuple[str, ...]:
        return Mixture(folders, (text,) * len(folders), (1.0,) * len(folders)).names

    assert names(tmp_path / "one" / "a", tmp_path / "b") == ("a", "b")
    alike = (tmp_path / "one" / "a", tmp_path / "two" / "a")
    assert names(*alike, tmp_path / "b") == (*map(str, alike), "b")


def test_a_folder_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    prepare_text(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    check_distinct([tmp_path / "a", tmp_path / "b"])
    for again in (tmp_path / "a", tmp_path / "link", tmp_path / "b" / ".." / "a"):
        with pytest.raises(UserError, match=r"`data_dir` names .* twice: name it once, and raise its weight"):
            check_distinct([tmp_path / "a", tmp_path / "b", again])


def test_other_tokens_are_refused_and_both_folders_named(tmp_path: Path) -> None:
    text, reversed_text = (
        prepare(corpus_of(content), tmp_path / name, 4) for name, content in (("a", TEXT), ("b", TEXT[::-1]))
    )
    other = prepare(corpus_of("xyz" * 9), tmp_path / "other", 4)
    folders = (tmp_path / "a", tmp_path / "b", tmp_path / "other")
    Mixture(folders[:2], (text, reversed_text), (1, 1)).check_same_tokens()
    with pytest.raises(UserError, match=rf"^{folders[2]} and {folders[0]} were prepared with different tokenizers"):
        Mixture(folders, (text, reversed_text, other), (1, 1, 1)).check_same_tokens()


def test_what_a_run_learns_from_is_each_text_and_the_proportion(tmp_path: Path) -> None:
    text = PreparedText.open(prepare_text(tmp_path / "a"))
    folders = (tmp_path / "a", tmp_path / "b")
    one, same, other = (Mixture(folders, (text, text), weights).fingerprints for weights in ((3, 1), (6, 2), (3, 2)))
    assert one["training split of folder 2"] == text.fingerprints["training split"]
    assert one == same
    assert {name for name in one if one[name] != other[name]} == {"weights"}
