"""Weights as they are stored: mapped or read piece by piece, in every type, and heads that are the embedding."""

import ctypes
import errno
import mmap
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llada.checkpoints import pieces
from llada.checkpoints import safetensors as weights_module
from llada.checkpoints.folder import load_weights, make_predictor, read_checkpoint, save_weights
from llada.checkpoints.safetensors import StoredWeights, save_tensors, write_safetensors
from llada.models import NetworkConfig
from tests.support.checkpoints import BOTH, X_T, assert_refused, save_new, save_small, snapshot, write_by_hand
from tests.support.configurations import TINY_ILLADA, TINY_LLADA, TINY_TIED, TOKENIZER


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_small(tmp_path / "checkpoint")


# Weights as they are stored


def mappings_of(path: Path) -> list[range]:
    """Addresses of this process that are this file."""
    lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    places = [line[0].split("-") for line in lines if line[5:] == [str(path)]]
    return [range(int(start, 16), int(end, 16)) for start, end in places]


tells_mappings = pytest.mark.skipif(
    not Path("/proc/self/maps").exists(), reason="the kernel does not tell what is mapped"
)


@tells_mappings
def test_weights_in_the_wanted_type_are_the_mapped_file_and_writing_leaves_it_alone(folder: Path) -> None:
    before = snapshot(folder)
    for dtype in (torch.float32, None):
        network = read_checkpoint(folder, dtype=dtype).model.network
        mapped = mappings_of(folder / "model.safetensors")
        for tensor in network.state_dict().values():
            assert any(tensor.data_ptr() in addresses for addresses in mapped)
        for parameter in network.parameters():
            assert parameter.requires_grad
            parameter.data.add_(1)
    assert snapshot(folder) == before


@tells_mappings
def test_a_tensor_has_its_own_bytes_mapped_until_it_is_forgotten(tmp_path: Path) -> None:
    """Not the whole file for each, and no file stays open."""
    path = tmp_path / "model.safetensors"
    save_tensors(tmp_path, {f"{i}": torch.randn(50_000) for i in range(8)}, shard_bytes=10**9)
    stored, n_open = StoredWeights.of(tmp_path), len(os.listdir("/proc/self/fd"))
    tensors = {name: stored.tensor(name, torch.device("cpu"), None) for name in stored.entries}
    assert sum(map(len, mappings_of(path))) <= path.stat().st_size + len(tensors) * 2 * mmap.PAGESIZE
    assert len(os.listdir("/proc/self/fd")) == n_open
    assert all(tensor.equal(load_file(path)[name]) for name, tensor in tensors.items())
    part = tensors["3"][1000:]
    expected = part.clone()
    tensors.clear()
    assert sum(map(len, mappings_of(path))) <= part.untyped_storage().nbytes() + 2 * mmap.PAGESIZE
    assert part.equal(expected)
    del part
    assert mappings_of(path) == []


def test_a_system_that_maps_nothing_more_is_told_in_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the C library returns when it fails, and the reason that it leaves behind."""
    monkeypatch.setattr(weights_module._LIBC, "mmap", lambda *args: weights_module._MAP_FAILED)
    monkeypatch.setattr(ctypes, "get_errno", lambda: errno.ENOMEM)
    assert_refused(folder, "model.safetensors cannot be read", "Cannot allocate memory", "`ulimit -v`")


@pytest.mark.parametrize("padding", range(4))
@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "F32"), (torch.bfloat16, "BF16")])
def test_numbers_may_begin_anywhere_in_a_file(tmp_path: Path, dtype: torch.dtype, name: str, padding: int) -> None:
    numbers = torch.arange(6, dtype=dtype).view(2, 3)
    data = bytes(numbers.view(torch.uint8).flatten().tolist())
    header = {"x": {"dtype": name, "shape": [2, 3], "data_offsets": [0, len(data)]}}
    write_by_hand(tmp_path / "model.safetensors", header, data, padding)
    read = StoredWeights.of(tmp_path).tensor("x", torch.device("cpu"), None)
    assert read.equal(numbers)
    assert read.data_ptr() % dtype.itemsize == 0


def test_a_tensor_without_numbers_is_read(tmp_path: Path) -> None:
    save_tensors(tmp_path, {"empty": torch.zeros(0, 4), "full": torch.ones(2)}, shard_bytes=1000)
    stored = StoredWeights.of(tmp_path)
    for dtype in (None, torch.bfloat16):
        assert stored.tensor("empty", torch.device("cpu"), dtype).shape == (0, 4)
    assert stored.are_equal("empty", "empty")
    assert not stored.are_equal("empty", "full")


@BOTH
def test_stored_types_that_differ_become_that_of_the_embedding(tmp_path: Path, config: NetworkConfig) -> None:
    weights = save_new(tmp_path, config)
    mixed = {name: tensor.bfloat16() if tensor.dim() == 2 else tensor for name, tensor in weights.items()}
    save_weights(tmp_path, config, TOKENIZER, mixed)
    model = read_checkpoint(tmp_path, dtype=None).model
    assert {tensor.dtype for tensor in model.network.state_dict().values()} == {torch.bfloat16}
    with torch.inference_mode():
        assert model(X_T).isfinite().all()


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, None])
def test_each_type_is_read_into_each(folder: Path, stored: torch.dtype, wanted: torch.dtype | None) -> None:
    kept = load_file(folder / "model.safetensors")  # mapped, and the file is about to be written anew
    weights = {name: tensor.to(stored, copy=True) for name, tensor in kept.items()}
    save_file(weights, folder / "model.safetensors")
    computed = torch.bfloat16 if stored == torch.float16 else stored  # fp16 ends at 65,504
    for keep_fp16, expected in ((False, wanted or computed), (True, wanted or stored)):
        loaded = read_checkpoint(folder, dtype=wanted, keep_fp16=keep_fp16).model.network.state_dict()
        assert all(tensor.equal(weights[name].to(expected)) for name, tensor in loaded.items())
        assert {tensor.dtype for tensor in loaded.values()} == {expected}


def test_a_tensor_of_many_pieces_is_read_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_module, "PIECE_BYTES", 70)  # two rows of most tensors, and a part of the norms
    expected = load_file(folder / "model.safetensors")
    loaded = read_checkpoint(folder, dtype=torch.float64).model.network.state_dict()
    assert all(tensor.equal(expected[name].double()) for name, tensor in loaded.items())


def test_loading_into_a_model_fills_its_own_tensors(folder: Path) -> None:
    model = make_predictor(TINY_LLADA, TOKENIZER)
    places = {name: tensor.data_ptr() for name, tensor in model.network.state_dict().items()}
    load_weights(model, folder)
    expected = load_file(folder / "model.safetensors")
    for name, tensor in model.network.state_dict().items():
        assert tensor.data_ptr() == places[name]
        assert tensor.equal(expected[name])


def test_a_mapped_model_can_be_saved_over_its_own_file(folder: Path) -> None:
    checkpoint = read_checkpoint(folder)
    expected = {name: tensor.clone() for name, tensor in checkpoint.model.network.state_dict().items()}
    save_weights(folder, checkpoint.config, checkpoint.tokenizer, checkpoint.model.network.state_dict())
    assert all(tensor.equal(expected[name]) for name, tensor in load_file(folder / "model.safetensors").items())
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "vocab.json"]


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.int64, "I64"), (torch.bool, "BOOL"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.uint8, "U8")],
)
def test_other_types_are_refused_by_name(folder: Path, dtype: torch.dtype, name: str) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.transformer.ln_f.weight"] = torch.ones(8).to(dtype)
    save_file(weights, folder / "model.safetensors")
    assert_refused(folder, "model.transformer.ln_f.weight", f"stored as {name}", "fp32, bf16 and fp16")


def test_what_is_missing_and_what_is_left_over_are_both_named(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.transformer.wte.weight"], weights["model.transformer.ln_f.weight"]
    save_file(weights | {"extra": torch.ones(2)}, folder / "model.safetensors")
    assert_refused(folder, "model.transformer.ln_f.weight and 1 more are missing", "extra is not part of it")


# Tied heads


def test_a_tied_head_may_be_stored_if_it_is_the_embedding(tmp_path: Path) -> None:
    weights = save_new(tmp_path, TINY_TIED)
    table = weights["model.transformer.wte.weight"]
    save_file({**weights, "model.transformer.ff_out.weight": table.clone()}, tmp_path / "model.safetensors")
    assert "model.transformer.ff_out.weight" not in read_checkpoint(tmp_path).model.network.state_dict()
    save_file({**weights, "model.transformer.ff_out.weight": table + 0.1}, tmp_path / "model.safetensors")
    assert_refused(tmp_path, "ff_out.weight is not model.transformer.wte.weight", "tied")
    save_file({**weights, "model.transformer.ff_out.weight": table.bfloat16()}, tmp_path / "model.safetensors")
    assert_refused(tmp_path, "tied")


def test_a_tied_head_without_a_shape_is_refused(tmp_path: Path) -> None:
    one = torch.tensor(1.0)
    weights = save_new(tmp_path, TINY_TIED)
    scalars = {"model.transformer.wte.weight": one, "model.transformer.ff_out.weight": one.clone()}
    save_file({**weights, **scalars}, tmp_path / "model.safetensors")
    assert_refused(tmp_path, "wte.weight has shape [] instead of [10, 8]")


def test_tensors_are_compared_bit_for_bit_and_those_of_two_types_by_value(tmp_path: Path) -> None:
    table = torch.randn(3, 4).bfloat16()
    table[1, 1] = torch.nan
    tensors = {"x": table, "same": table.clone(), "wide": table.float()}
    tensors["other"] = table.float() + torch.eye(3, 4) * 1e-6
    save_tensors(tmp_path, tensors, shard_bytes=10**6)
    stored = StoredWeights.of(tmp_path)
    assert stored.are_equal("x", "same")
    assert stored.are_equal("x", "wide")
    assert stored.are_equal("wide", "x")
    assert not stored.are_equal("wide", "other")
    assert not stored.are_equal("x", "other")


def test_a_tied_illada_is_stored_with_its_head(tmp_path: Path) -> None:
    weights = save_new(tmp_path, TINY_ILLADA)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored.keys() - weights.keys() == {"lm_head.weight"}
    assert stored["lm_head.weight"].equal(weights["model.embed_tokens.weight"])
    assert read_checkpoint(tmp_path).model.network.state_dict().keys() == weights.keys()


def test_tensors_that_share_memory_are_stored_each(tmp_path: Path) -> None:
    weights = make_predictor(TINY_LLADA, TOKENIZER).network.state_dict()
    weights["model.transformer.ff_out.weight"] = weights["model.transformer.wte.weight"]
    save_weights(tmp_path, TINY_LLADA, TOKENIZER, weights)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["model.transformer.ff_out.weight"].equal(stored["model.transformer.wte.weight"])


def test_a_tensor_may_be_a_number(tmp_path: Path) -> None:
    """The shares of the local network are."""
    save_tensors(tmp_path, {"share": torch.tensor(0.75)}, shard_bytes=1000)
    stored = StoredWeights.of(tmp_path)
    assert float(stored.tensor("share", torch.device("cpu"), torch.bfloat16)) == 0.75
    assert stored.are_equal("share", "share")


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="the system limits no file's size")
def test_what_the_disk_says_of_a_file_of_tensors_is_an_error_of_the_disk(tmp_path: Path) -> None:
    """Here a file may not become larger than 1000 bytes."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[0][1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            save_tensors(tmp_path, {"a": torch.zeros(1000)}, 10**9)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before[0])
        signal.signal(signal.SIGXFSZ, before[1])
    assert caught.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_a_file_has_the_bytes_that_the_library_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the order of the tensors, their types, shapes and names, and the size of the pieces."""
    tensors = {
        "b": torch.randn(3, 2),
        "a.weight": torch.randn(5).bfloat16(),
        'an "ä" \\ \n': torch.randn(2, 2).bfloat16(),
        "number": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "a": torch.ones(3).half(),
    }
    save_file(tensors, tmp_path / "library", metadata={"format": "pt"})
    for piece in (pieces.PIECE, 2):
        monkeypatch.setattr(pieces, "PIECE", piece)
        write_safetensors(tmp_path / "ours", dict(reversed(tensors.items())), {"format": "pt"})
        assert (tmp_path / "ours").read_bytes() == (tmp_path / "library").read_bytes()
    turned = {"turned": tensors["b"].T}
    write_safetensors(tmp_path / "turned", turned, {"z": "1", "format": "pt"})
    assert load_file(tmp_path / "turned")["turned"].equal(turned["turned"])


def test_rows_of_a_tensor_are_read_without_the_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, read = "model.transformer.wte.weight", []
    whole, map_entry = load_file(folder / "model.safetensors")[name], weights_module._map

    def map_and_count(entry: weights_module.Entry) -> torch.Tensor:
        read.append(entry.n_bytes)
        return map_entry(entry)

    monkeypatch.setattr(weights_module, "_map", map_and_count)
    for first, last in ((0, 4), (3, 10), (10, 10)):
        target = torch.empty(last - first, whole.shape[1], dtype=torch.float64)
        StoredWeights.of(folder).copy_into(name, target, first)
        assert target.equal(whole[first:last].double())
    assert sum(read) == 11 * whole[0].nbytes


def test_files_of_others_stay_where_weights_are_replaced(tmp_path: Path) -> None:
    others = ["model-mine.safetensors", "model-00001-of-00002-copy.safetensors", "notes.txt"]
    for name in (*others, "model-00001-of-00002.safetensors", "model.safetensors.index.json"):
        (tmp_path / name).write_bytes(b"1")
    save_tensors(tmp_path, {"a": torch.zeros(3)}, 10**9)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["model.safetensors", *others])
