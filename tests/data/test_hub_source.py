"""Data sets that the Hugging Face library streams, as sources."""

import json
from pathlib import Path

import pytest

from llada.data.blocks import blocks_of, documents_of
from llada.data.hub_source import HubSource
from llada.system.errors import UserError
from tests.support.corpora import some_documents, to_lines
from tests.support.sentences import assert_one_sentence


@pytest.mark.parametrize("size", [200, 10**6])
def test_a_data_set_is_streamed_by_the_hugging_face_library(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    documents = some_documents(20)
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(to_lines(documents))
    source = HubSource(str(folder), "train", "text")
    blocks = list(blocks_of(source.pieces(size, tmp_path), size))
    assert (len(blocks) > 1) == (size == 200)
    assert [found for block in blocks for found in documents_of(block, "text")] == documents
    with pytest.raises(UserError, match=r"has no column 'body' \(its columns: id, text\)"):
        next(HubSource(str(folder), "train", "body").pieces(size, tmp_path))
    with pytest.raises(
        UserError, match=r"The column 'id' of .* holds int, not text: choose another `text_key`"
    ) as caught:
        next(HubSource(str(folder), "train", "id").pieces(size, tmp_path))
    assert_one_sentence(caught.value)
    with pytest.raises(UserError, match="cannot be read") as caught:
        next(HubSource(str(folder), "missing", "text").pieces(size, tmp_path))
    assert_one_sentence(caught.value)
    assert json.dumps(source.identity())
