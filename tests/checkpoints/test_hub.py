"""Checkpoints in the public layout: read, fetched, put to a text; and the tokenizer that comes along."""

import errno
import http.server
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer as FastTokenizer

from llada.checkpoints import hub as pretrained
from llada.checkpoints.dummy import write_random_checkpoint
from llada.checkpoints.folder import read_checkpoint, read_tokenizer, save_weights
from llada.checkpoints.hub import LLADA_8B, fetch, read_published_config
from llada.cli.size_report import SizeOptions, make_report
from llada.costs.parameters import total_parameters
from llada.data.prepared import PreparedText, retokenise, text_for
from llada.system.errors import UserError
from llada.tokenizers.bpe import BPETokenizer
from llada.tokenizers.templates import LLADA_MOE_TEMPLATE, LLADA_MOE_TOKENS, LLADA_TEMPLATE, LLADA_TOKENS


@pytest.fixture(scope="module")
def folder(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained") / "random"
    write_random_checkpoint(folder, text)
    return folder


@pytest.fixture
def tokenizer(folder: Path) -> BPETokenizer:
    tokenizer = read_tokenizer(folder)
    assert isinstance(tokenizer, BPETokenizer)
    return tokenizer


# --- the checkpoint


def test_random_checkpoint_has_the_public_layout(folder: Path) -> None:
    """bf16 shards whose index accounts for every tensor, layers out of order, as in the public files."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    tensors = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert set(index["weight_map"]) == set(tensors)
    assert {file.name for file in folder.glob("*.safetensors")} == set(index["weight_map"].values())
    assert len(set(index["weight_map"].values())) >= 2
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    config = read_published_config(str(folder))
    assert sum(tensor.numel() for tensor in tensors.values()) == total_parameters(config)
    assert list(index["weight_map"]) != sorted(index["weight_map"])


def test_loaded_weights_are_those_of_the_files(folder: Path) -> None:
    network = read_checkpoint(folder, dtype=torch.float32).model.network
    stored = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    for name, tensor in network.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, stored[name].float())
    in_bf16 = read_checkpoint(folder, dtype=torch.bfloat16).model.network.state_dict()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in in_bf16.items())


def test_saved_again_it_is_byte_for_byte_the_same(folder: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(folder, dtype=torch.bfloat16)
    save_weights(tmp_path, checkpoint.config, checkpoint.tokenizer, checkpoint.model.network.state_dict(), 40_000)
    stored, again = (
        {name: tensor for file in place.glob("*.safetensors") for name, tensor in load_file(file).items()}
        for place in (folder, tmp_path)
    )
    assert stored.keys() == again.keys()
    assert all(torch.equal(stored[name], again[name]) for name in stored)
    for name in ("config.json", "tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    sizes = [sum(t.nbytes for t in load_file(file).values()) for file in tmp_path.glob("*.safetensors")]
    assert len(sizes) > 3
    largest = max(tensor.nbytes for tensor in stored.values())
    assert max(sizes) <= max(40_000, largest)


def damaged(folder: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def test_a_missing_shard_and_a_path_out_of_the_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = damaged(folder, tmp_path)
    shard = sorted(copy.glob("*.safetensors"))[0]
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(UserError, match=rf"{shard.name} cannot be read"):
        read_checkpoint(copy)
    shard.write_bytes(content)
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    for bad in ("../elsewhere.safetensors", "/tmp/x.safetensors", 3):
        index["weight_map"][next(iter(index["weight_map"]))] = bad
        (copy / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match="names no files of its folder"):
            read_checkpoint(copy)


def test_a_tokenizer_of_another_network_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = damaged(folder, tmp_path)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"vocab_size": 300, "embedding_size": 300}))
    with pytest.raises(UserError, match="cannot be used"):
        read_tokenizer(copy)
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read"):
        read_tokenizer(copy)


# --- its tokenizer


def test_text_survives_its_tokens(tokenizer: BPETokenizer, text: str) -> None:
    for sample in (text[:500], "Tö bé, ‐ 世界\n\n", ""):
        assert tokenizer.decode(tokenizer.encode(sample)) == sample
    assert len(tokenizer.encode(text)) < len(text)


def test_special_tokens_in_a_text_are_text(tokenizer: BPETokenizer) -> None:
    """A stored text never contains MASK, whatever it says."""
    ids = tokenizer.encode("<|mdm_mask|> and <|endoftext|>")
    assert tokenizer.mask_id not in ids
    assert tokenizer.eos_id not in ids
    assert tokenizer.decode(ids) == "<|mdm_mask|> and <|endoftext|>"
    assert tokenizer.decode([*ids, tokenizer.mask_id, tokenizer.mask_id], mask_symbol="░").endswith("░░")


def test_rows_without_a_token_and_mask_are_never_sampled(tokenizer: BPETokenizer) -> None:
    known = {int(id_) for id_ in json.loads(tokenizer._files["tokenizer.json"])["model"]["vocab"].values()}
    added = {token["id"] for token in json.loads(tokenizer._files["tokenizer.json"])["added_tokens"]}
    assert set(tokenizer.forbidden_rows) == set(range(tokenizer.vocab_size)) - known - added | {tokenizer.mask_id}
    assert tokenizer.eos_id not in tokenizer.forbidden_rows


# --- a text in its tokens


def test_retokenised_text_is_split_at_the_same_place(data: PreparedText, tokenizer: BPETokenizer, text: str) -> None:
    again = retokenise(data, tokenizer)
    n_train = int(0.9 * len(text))
    assert tokenizer.decode(again.tokens("train").tolist()) == text[:n_train]
    assert tokenizer.decode(again.tokens("val").tolist()) == text[n_train:]
    assert again.sequence_length == data.sequence_length
    assert again.text_sha256 == data.text_sha256
    assert again.folder.parent == data.folder / "tokenised"
    assert PreparedText.open(data.folder).tokenizer == data.tokenizer  # the folder itself is as it was


def test_retokenised_text_is_kept_and_mended(data: PreparedText, tokenizer: BPETokenizer) -> None:
    first = retokenise(data, tokenizer)
    written = (first.folder / "metadata.json").stat().st_mtime_ns
    assert retokenise(data, tokenizer).folder == first.folder
    assert (first.folder / "metadata.json").stat().st_mtime_ns == written
    expected = np.array(first.tokens("train"))
    (first.folder / "train_data.npy").write_bytes(b"damaged")
    assert np.array_equal(retokenise(data, tokenizer).tokens("train"), expected)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_text_on_a_read_only_disk_is_retokenised_elsewhere(
    data: PreparedText, tokenizer: BPETokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    copy = PreparedText.open(Path(shutil.copytree(data.folder, tmp_path / "data", ignore=lambda *_: ["tokenised"])))
    mkdir = Path.mkdir

    def refusing(path: Path, *arguments: Any, **options: Any) -> None:
        if path.is_relative_to(copy.folder):
            raise OSError(number, os.strerror(number), str(path))
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refusing)
    before = sorted(path.name for path in copy.folder.iterdir())
    made = retokenise(copy, tokenizer)
    assert tokenizer.decode(made.tokens("train")) == copy.text("train")
    assert not made.folder.is_relative_to(copy.folder)
    assert sorted(path.name for path in copy.folder.iterdir()) == before


def test_a_character_checkpoint_keeps_its_text_and_refuses_another(data: PreparedText, tmp_path: Path) -> None:
    assert text_for(data.tokenizer, data) is data
    other = type(data.tokenizer)("xyz")  # type: ignore[call-arg]
    with pytest.raises(UserError, match="knows 3 characters"):
        text_for(other, data)


# --- found by name


def test_published_networks_are_known_offline() -> None:
    for name in ("GSAI-ML/LLaDA-8B-Base", "GSAI-ML/LLaDA-8B-Instruct", "GSAI-ML/LLaDA-1.5"):
        assert read_published_config(name) == LLADA_8B
    assert total_parameters(LLADA_8B) == 8_015_581_184


def test_a_configuration_alone_is_enough_to_be_counted(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    expected = read_checkpoint(folder).config
    assert read_published_config(str(tmp_path / "config.json")) == expected
    assert read_published_config(str(tmp_path)) == expected
    (tmp_path / "config.json").write_text('{"architectures": ["LLaDA2MoeModelLM"]}')
    with pytest.raises(UserError, match="LLaDA2MoeModelLM"):
        read_published_config(str(tmp_path))


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "../up", "./x", ""])
def test_what_is_neither_folder_nor_name_is_refused_at_once(name: str) -> None:
    with pytest.raises(UserError):
        fetch(name, LLADA_8B)


class Asked(list[str]):
    """Paths, and the commit that the main branch is at."""

    commit = "0" * 40


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    """A hub on localhost that has one repository, someone/small; gives the paths that were asked for."""
    asked = Asked()
    files = {path.name: path.read_bytes() for path in folder.iterdir()} | {"modeling_llada.py": b"raise SystemExit"}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            asked.append(self.path)
            path = self.path.partition("?")[0]
            self.commit = next((part for part in path.split("/") if len(part) == 40), asked.commit)
            if path.startswith("/api/models/someone/small/tree/"):
                body = json.dumps(
                    [{"type": "file", "path": name, "size": len(c), "oid": "0"} for name, c in files.items()]
                )
                return self.answer(body.encode(), "application/json")
            if path.startswith("/api/models/someone/small"):
                siblings = [{"rfilename": name} for name in files]
                body = json.dumps({"id": "someone/small", "sha": self.commit, "siblings": siblings})
                return self.answer(body.encode(), "application/json")
            name = path.rpartition("/")[2]
            if path.startswith("/someone/small/resolve/") and name in files:
                return self.answer(files[name], "application/octet-stream")
            self.send_error(404)
            return None

        def answer(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Repo-Commit", self.commit)
            self.send_header("ETag", f'"{hash(body):x}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    from huggingface_hub import constants

    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setattr(pretrained, "_cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(pretrained, "_commits", {})
    yield asked
    server.shutdown()
    server.server_close()


def test_a_name_is_fetched_as_data_only_and_once(hub: list[str], folder: Path) -> None:
    config = read_published_config("someone/small")
    fetched = fetch("someone/small", config)
    assert read_checkpoint(fetched).tokenizer == read_tokenizer(folder)
    assert sorted(path.name for path in fetched.iterdir()) == sorted(path.name for path in folder.iterdir())
    assert not any("modeling" in path for path in hub)  # its code was neither fetched nor run
    n_asked = len(hub)
    assert fetch("someone/small", config) == fetched
    assert len(hub) == n_asked  # from the cache
    with pytest.raises(UserError, match="not a folder here"):
        read_published_config("someone/else")


def test_configuration_and_weights_are_of_one_commit(hub: Asked, folder: Path) -> None:
    """Somebody pushes between the two."""
    config = read_published_config("someone/small")
    hub.commit = "1" * 40
    hub.clear()
    fetched = fetch("someone/small", config)
    assert fetched.name == "0" * 40
    assert len(hub) > 3
    assert not any("/main" in path for path in hub)  # each by its commit
    assert read_published_config("someone/small") == config
    assert read_published_config(str(fetched)) == read_checkpoint(fetched).config


def test_a_download_that_was_cut_off_is_completed(hub: list[str], folder: Path) -> None:
    config = read_published_config("someone/small")
    fetched = fetch("someone/small", config)
    shard = sorted(fetched.glob("*.safetensors"))[-1]
    shard.resolve().unlink()
    shard.unlink()
    assert fetch("someone/small", config) == fetched
    assert shard.is_file()
    read_checkpoint(fetched)


def test_a_disk_that_is_too_small_is_found_before_the_download(hub: list[str]) -> None:
    huge = replace(LLADA_8B, n_layers=10**6)
    with pytest.raises(UserError, match="free some space"):
        fetch("someone/small", huge)
    assert not any(".safetensors" in path for path in hub)


# --- every public layout


@pytest.fixture(scope="module", params=["llada", "illada", "moe"])
def any_layout(request: pytest.FixtureRequest, text: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("layouts") / request.param
    write_random_checkpoint(folder, text, request.param, d_model=32, n_kv_heads=2, n_experts=3)
    return request.param, folder


def stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_each_layout_goes_there_and_back_byte_for_byte(any_layout: tuple[str, Path], tmp_path: Path) -> None:
    """Names, shapes, bytes, and the files and sizes of the index."""
    _, folder = any_layout
    checkpoint = read_checkpoint(folder, dtype=None)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    stored, own = stored_tensors(folder), checkpoint.model.network.state_dict()
    in_order = {name: own[name] for name in index["weight_map"] if name in own}
    total = index["metadata"]["total_size"]
    save_weights(tmp_path, checkpoint.config, checkpoint.tokenizer, in_order, total // 2)
    again = stored_tensors(tmp_path)
    assert stored.keys() == again.keys() == index["weight_map"].keys()
    for name, tensor in stored.items():
        assert tensor.dtype == again[name].dtype == torch.bfloat16
        assert torch.equal(tensor.view(torch.int16), again[name].view(torch.int16))
    assert total == sum(tensor.nbytes for tensor in stored.values())
    written = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert (written["metadata"], written["weight_map"].keys()) == (index["metadata"], index["weight_map"].keys())
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_each_layout_finds_its_own_special_ids(any_layout: tuple[str, Path]) -> None:
    layout, folder = any_layout
    tokenizer = read_tokenizer(folder)
    assert isinstance(tokenizer, BPETokenizer)
    mask_name = {"llada": "<|mdm_mask|>", "illada": "<[MASK]>", "moe": "<|mask|>"}[layout]
    assert tokenizer.mask_id == tokenizer.special_tokens[mask_name]
    assert read_published_config(str(folder)).mask_token_id == tokenizer.mask_id
    assert tokenizer.special_tokens[tokenizer.eos_token or ""] == tokenizer.eos_id
    assert tokenizer.bos_token in tokenizer.special_tokens
    if layout == "illada":
        names = ("<[BOS]>", "<[PAD]>", "<[EOS]>", "<[UNK]>", "<[MASK]>")
        assert [tokenizer.special_tokens[name] for name in names] == [0, 1, 2, 3, 5]
        assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.mask_id) == (1, 2, 5)
        assert tokenizer.pad_id in tokenizer.forbidden_rows  # it does not end a text here
    else:
        assert tokenizer.pad_id == tokenizer.eos_id
        assert tokenizer.eos_id not in tokenizer.forbidden_rows
    turns = LLADA_MOE_TOKENS if layout == "moe" else LLADA_TOKENS
    assert set(turns) <= set(tokenizer.special_tokens)
    assert tokenizer.template == (LLADA_MOE_TEMPLATE if layout == "moe" else LLADA_TEMPLATE)
    assert not set(tokenizer.encode("".join(tokenizer.special_tokens))) & set(tokenizer.special_tokens.values())


def test_a_tokenizer_without_mask_is_refused_and_none_at_all_means_the_published_row(text: str, tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "c", text, "illada", d_model=16, n_layers=1)
    for name, complaint in (("tokenizer.json", "do not agree"), ("tokenizer_config.json", "lacks the token")):
        content = (tmp_path / "c" / name).read_text()
        (tmp_path / "c" / name).write_text(content.replace("<[MASK]>", "<[GONE]>"))
        with pytest.raises(UserError, match=complaint):
            read_checkpoint(tmp_path / "c")
    (tmp_path / "c" / "tokenizer.json").unlink()
    assert read_published_config(str(tmp_path / "c")).mask_token_id == 5
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        read_checkpoint(tmp_path / "c")


def test_a_checkpoint_has_the_sizes_that_were_asked_for(text: str, tmp_path: Path) -> None:
    sizes = {"d_model": 24, "n_layers": 3, "n_heads": 6, "n_kv_heads": 2, "mlp_hidden_size": 40, "vocab_size": 500}
    write_random_checkpoint(tmp_path / "c", text, **sizes, dtype=torch.float32, shard_bytes=10**9)  # type: ignore[arg-type]
    config = read_published_config(str(tmp_path / "c"))
    assert {name: getattr(config, name) for name in sizes} == sizes
    assert (tmp_path / "c" / "model.safetensors").is_file()
    assert {tensor.dtype for tensor in stored_tensors(tmp_path / "c").values()} == {torch.float32}


def test_names_and_template_of_a_tokenizer_may_come_in_other_forms(folder: Path, tmp_path: Path) -> None:
    copy = damaged(folder, tmp_path)
    names = {"bos_token": {"content": "<|startoftext|>"}, "chat_template": [{"name": "default", "template": "one"}]}
    (copy / "tokenizer_config.json").write_text(json.dumps(names))
    tokenizer = read_tokenizer(copy)
    assert isinstance(tokenizer, BPETokenizer)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.template) == ("<|startoftext|>", "<|endoftext|>", "one")
    (copy / "chat_template.jinja").write_text("two")
    assert read_tokenizer(copy).template == "two"  # type: ignore[attr-defined]
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        (copy / name).unlink()
    bare = read_tokenizer(copy)
    assert isinstance(bare, BPETokenizer)
    assert (bare.bos_token, bare.eos_token, bare.template) == (None, "<|endoftext|>", None)
    (copy / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config\.json is not valid JSON"):
        read_tokenizer(copy)


def test_sizes_of_each_layout_are_reported_from_its_folder(any_layout: tuple[str, Path]) -> None:
    _, folder = any_layout
    report = make_report(SizeOptions(checkpoint=str(folder), sequence_length=64, tflops=1.0))
    network = read_checkpoint(folder).model.network
    assert report["parameters"]["total"] == sum(parameter.numel() for parameter in network.parameters())


# --- files of a tokenizer that say it differently


def rewrite(folder: Path, tmp_path: Path, **changes: object) -> Path:
    """A copy whose tokenizer.json has other values."""
    copy = damaged(folder, tmp_path)
    content = json.loads((copy / "tokenizer.json").read_text())
    (copy / "tokenizer.json").write_text(json.dumps({**content, **changes}))
    return copy


def test_special_tokens_may_be_declared_in_the_other_file_alone(
    folder: Path, tokenizer: BPETokenizer, tmp_path: Path
) -> None:
    again = read_tokenizer(rewrite(folder, tmp_path, added_tokens=[]))
    assert isinstance(again, BPETokenizer)
    assert again.special_tokens == tokenizer.special_tokens
    assert again.mask_id not in again.encode("<|mdm_mask|>")


def test_a_name_in_the_other_file_is_the_one_that_counts(folder: Path, tokenizer: BPETokenizer, tmp_path: Path) -> None:
    """tokenizer.json may still call MASK a reserved token."""
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    for token in added:
        if token["id"] == tokenizer.mask_id:
            token["content"] = "<|reserved_token_252|>"
    again = read_tokenizer(rewrite(folder, tmp_path, added_tokens=added))
    assert isinstance(again, BPETokenizer)
    assert again.special_tokens == tokenizer.special_tokens


def test_what_config_json_or_a_name_makes_special_is_special_whatever_the_flags_say(
    folder: Path, tokenizer: BPETokenizer, tmp_path: Path
) -> None:
    """MASK and the end by their ids, BOS by its name; a header is text here."""
    copy = damaged(folder, tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (copy / name).read_text()
        (copy / name).write_text(re.sub(r'"special": ?true', '"special": false', text))
    again = read_tokenizer(copy)
    assert isinstance(again, BPETokenizer)
    expected = ("<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>")
    assert again.special_tokens == {name: tokenizer.special_tokens[name] for name in expected}
    assert not set(again.encode("x<|mdm_mask|>y<|endoftext|><|startoftext|>")) & set(again.special_tokens.values())
    assert again.decode([tokenizer.eos_id]) == ""
    assert again.encode("<|eot_id|>") == [tokenizer.special_tokens["<|eot_id|>"]]
    assert again.decode(again.encode("<|eot_id|>")) == "<|eot_id|>"


def test_a_text_is_never_cut_or_padded(folder: Path, tokenizer: BPETokenizer, text: str, tmp_path: Path) -> None:
    model = FastTokenizer.from_file(str(folder / "tokenizer.json"))
    model.enable_truncation(4)
    model.enable_padding(length=600)
    copy = damaged(folder, tmp_path)
    (copy / "tokenizer.json").write_text(model.to_str())
    assert read_tokenizer(copy).encode(text[:500]) == tokenizer.encode(text[:500])


def test_a_vocabulary_beside_it_does_not_count(folder: Path, tokenizer: BPETokenizer, tmp_path: Path) -> None:
    """GPT-2's kind of vocab.json may lie next to tokenizer.json."""
    copy = damaged(folder, tmp_path)
    (copy / "vocab.json").write_text('{"a": 0}')
    assert read_tokenizer(copy) == tokenizer


def test_a_tokenizer_too_deep_to_be_read_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = damaged(folder, tmp_path)
    for name in ("tokenizer_config.json", "tokenizer.json"):
        (copy / name).write_text("[" * 100_000)
        with pytest.raises(UserError, match="cannot be used"):
            read_tokenizer(copy)
