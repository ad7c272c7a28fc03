"""Checkpoints of several files, and folders that hold no safetensors checkpoint at all."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llada.checkpoints.folder import make_predictor, read_checkpoint, save_weights
from tests.support.checkpoints import assert_refused, edit_json, save_small, snapshot
from tests.support.configurations import TINY_LLADA, TOKENIZER


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_small(tmp_path / "checkpoint")


# Several files


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    weights = {
        name: torch.randn(t.shape) for name, t in make_predictor(TINY_LLADA, TOKENIZER).network.state_dict().items()
    }
    save_weights(tmp_path, TINY_LLADA, TOKENIZER, weights, shard_bytes=1500)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    return tmp_path


@pytest.mark.parametrize(("before", "after"), [(1500, 10**6), (10**6, 1500), (1000, 1500)])
def test_weights_take_the_place_of_those_in_other_files(tmp_path: Path, before: int, after: int) -> None:
    """Several to one, one to several, and several to fewer."""
    (tmp_path / "adapter_model.safetensors").touch()
    shapes = {name: tensor.shape for name, tensor in make_predictor(TINY_LLADA, TOKENIZER).network.state_dict().items()}
    n_files = []
    for shard_bytes in (before, after):
        weights = {name: torch.randn(shape) for name, shape in shapes.items()}
        save_weights(tmp_path, TINY_LLADA, TOKENIZER, weights, shard_bytes)
        n_files.append(len(list(tmp_path.glob("model*.safetensors"))))
    assert n_files[0] != n_files[1]
    names = {path.name for path in tmp_path.glob("model*")}
    if after == 10**6:
        assert names == {"model.safetensors"}
    else:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert names == {"model.safetensors.index.json", *index["weight_map"].values()}
    loaded = read_checkpoint(tmp_path).model.network.state_dict()
    assert all(loaded[name].equal(tensor) for name, tensor in weights.items())
    assert (tmp_path / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../model.safetensors", "config.json", "model\n.safetensors", "\x1b.safetensors", 5]
)
def test_an_index_names_weight_files_of_its_own_folder(shards: Path, name: Any) -> None:
    index = shards / "model.safetensors.index.json"
    edit_json(index, lambda content: content["weight_map"].update({"model.transformer.ln_f.weight": name}))
    assert_refused(shards, "names no files of its folder")


def test_an_index_that_disagrees_with_its_files_is_refused(shards: Path) -> None:
    index = shards / "model.safetensors.index.json"
    whole, name = index.read_text(), "model.transformer.ln_f.weight"
    last = sorted(shards.glob("model-*.safetensors"))[-1].name
    first = sorted(shards.glob("model-*.safetensors"))[0].name
    at = json.loads(whole)["weight_map"][name]
    for edit, words in (
        (lambda content: content["weight_map"].update({name: first if at == last else last}), f"is in {at}"),
        (lambda content: content["weight_map"].pop(name), "should be in no file"),
        (lambda content: content["weight_map"].update(phantom=last), "phantom should be in"),
        (lambda content: content["weight_map"].update({name: "model-00009-of-00009.safetensors"}), "cannot be read"),
    ):
        edit_json(index, edit)
        assert_refused(shards, words)
        index.write_text(whole)
    assert read_checkpoint(shards).config.n_layers == 2


def test_a_tensor_in_two_files_is_refused(shards: Path) -> None:
    first, second = sorted(shards.glob("model-*.safetensors"))[:2]
    save_file(load_file(first) | load_file(second), second)
    assert_refused(shards, "is both in", first.name, second.name)


def test_shards_without_their_index_are_refused(shards: Path) -> None:
    (shards / "model.safetensors.index.json").unlink()
    assert_refused(shards, "no index")


# Folders without a safetensors checkpoint, and code that comes along


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.pth"])
def test_weights_that_could_run_code_are_never_opened(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    before = snapshot(folder)
    assert_refused(folder, f"no weights in safetensors ({name}", "convert it")
    assert_refused(folder / name, "convert it")
    assert snapshot(folder) == before


def test_weights_without_a_configuration_and_files_for_folders_are_told_apart(folder: Path) -> None:
    assert_refused(folder / "model.safetensors", "is one file of a checkpoint", "name its folder")
    (folder / "config.json").unlink()
    assert_refused(folder, "has weights but no config.json")


def test_code_of_a_folder_is_not_run(folder: Path) -> None:
    for name in ("modeling_llada.py", "configuration_llada.py", "setup.py", "__init__.py"):
        (folder / name).write_text("raise SystemExit('run')", encoding="utf-8")
    auto_map = {"AutoModel": "modeling_llada.LLaDAModelLM", "AutoConfig": "configuration_llada.LLaDAConfig"}
    edit_json(folder / "config.json", lambda content: content.update(auto_map=auto_map))
    before = snapshot(folder)
    read_checkpoint(folder)
    assert snapshot(folder) == before
