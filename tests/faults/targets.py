"""What is fuzzed: for each loader, inputs that are nearly right or plainly wrong, and how each is given to it."""

import contextlib
import copy
import json
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from llada import cli
from llada.checkpoints.dummy import write_random_checkpoint
from llada.checkpoints.folder import make_predictor, read_checkpoint, read_config, read_tokenizer, save_weights
from llada.checkpoints.lora_files import read_lora_values
from llada.checkpoints.safetensors import StoredWeights
from llada.data.corpus import Corpus
from llada.data.dialogues import Reading, read_dialogues
from llada.data.prepared import METADATA_FILE, SEAL, PreparedText, _map_rows, _seal_of, prepare
from llada.models import config_to_json
from llada.system.checksums import check_whole, find_damage, write_checksums
from llada.system.errors import UserError
from llada.system.files import read_json
from llada.system.regular_files import check_regular
from llada.tokenizers.bpe import BPETokenizer
from llada.tokenizers.chat_template import chat_format
from llada.training.config import DataOptions, NetworkOptions, OptimizerOptions, TrainConfig
from llada.training.metrics import read_metrics
from llada.training.presets import PRESETS
from llada.training.state import read_state
from tests.faults.strategies import KINDS, SCALARS, VALUES, changed, corrupted, json_files, put, remove
from tests.support.configurations import TINY_ENCODER, TINY_LLADA, TINY_MOE, TOKENIZER
from tests.support.runs import train

LINE = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "base_model_name_or_path": "x"}


@dataclass
class World:
    """One folder of each kind, whole."""

    root: Path

    def __post_init__(self) -> None:
        self.checkpoint = self.root / "checkpoint"
        self.checkpoint.mkdir(parents=True)
        config = TINY_LLADA
        self.weights = make_predictor(config, TOKENIZER).network.state_dict()
        save_weights(self.checkpoint, config, TOKENIZER, self.weights)
        self.sharded = self.root / "sharded"
        self.sharded.mkdir()
        save_weights(self.sharded, config, TOKENIZER, self.weights, shard_bytes=1000)
        self.summed = self.root / "summed"
        self.summed.mkdir()
        (self.summed / "file").write_bytes(b"abc")
        write_checksums(self.summed)
        self.prepared = prepare(Corpus("to be or not to be " * 9, "file", "made up"), self.root / "data", 10)
        self.data = self.prepared.folder
        self.run_config = TrainConfig(
            network=NetworkOptions(d_model=16, n_heads=2, n_layers=1), optimizer=OptimizerOptions(warmup_steps=1),
            data=DataOptions(data_dir=(self.data,), sequence_length=8), output_dir=self.root / "run",
            batch_size=2, steps=2, evaluation_windows=1, device="cpu", precision="fp32", compile=False,
        )  # fmt: skip
        self.state = self.root / "state"
        self.state.mkdir()
        saved = {"progress": {"step": 1}, "optimizers": [{"state": {0: torch.zeros(2)}}], "weights": None}
        torch.save({**saved, "n_averaged": 0}, self.state / "training_state.pt")
        self.scratch = self.root / "scratch"
        self.scratch.mkdir()

    def read(self, path: Path) -> Any:
        return json.loads(path.read_text(encoding="utf-8"))


# A target: the inputs, and what is done with one; anything but a UserError is a failure.
Target = Callable[[World], tuple[st.SearchStrategy[Any], Callable[[Any], object]]]
TARGETS: dict[str, tuple[Target, int]] = {}


def target(n_full: int) -> Callable[[Target], Target]:
    """Register a target with the number of inputs that the full run gives it."""

    def register(function: Target) -> Target:
        TARGETS[function.__name__] = (function, n_full)
        return function

    return register


def replacing(path: Path, act: Callable[[], object]) -> Callable[[bytes | str], object]:
    """Act with other content in a file, or something else in its place, and put the content back."""
    whole = path.read_bytes() if path.exists() else None

    def do(content: bytes | str) -> object:
        put(path, content)
        try:
            return act()
        finally:
            remove(path)
            if whole is not None:
                path.write_bytes(whole)

    return do


@target(16_000)
def config_json(world: World) -> tuple[st.SearchStrategy[Any], Callable[[Any], object]]:
    contents = st.one_of([json_files(config_to_json(config)) for config in (TINY_LLADA, TINY_MOE, TINY_ENCODER)])
    return contents, replacing(world.checkpoint / "config.json", lambda: read_config(world.checkpoint))


@target(4_000)
def config_json_of_a_checkpoint(world: World) -> tuple[st.SearchStrategy[Any], Callable[[Any], object]]:
    """Up to the network itself, which must not be built in a size that its weights have not."""
    contents = json_files(config_to_json(TINY_LLADA))
    return contents, replacing(world.checkpoint / "config.json", lambda: read_checkpoint(world.checkpoint))


@target(8_000)
def safetensors_index(world: World) -> tuple[st.SearchStrategy[Any], Callable[[Any], object]]:
    path = world.sharded / "model.safetensors.index.json"
    valid = world.read(path)
    maps = changed(valid["weight_map"]).map(lambda content: json.dumps({**valid, "weight_map": content}).encode())
    return maps | json_files(valid), replacing(path, lambda: StoredWeights.of(world.sharded))


@target(8_000)
def safetensors_header(world: World) -> tuple[st.SearchStrategy[Any], Callable[[Any], object]]:
    path = world.checkpoint / "model.safetensors"
    whole = path.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    name = next(name for name in header if name != "__metadata__")

    def pack(content: Any) -> bytes:
        text = json.dumps(content).encode()
        return struct.pack("<Q", len(text)) + text + data

    entries = changed(header[name]).map(lambda entry: pack({**header, name: entry}))
    contents = st.one_of(entries, changed(header).map(pack), corrupted(whole), st.binary(max_size=30))
    return contents, replacing(path, lambda: read_checkpoint(world.checkpoint))


@target(12_000)
def vocab_json(world: World) -> tuple[st.SearchStrategy[Any], Callable[[Any], object]]:
    path = world.checkpoint / "vocab.json"
    return json_files(world.read(path)), replacing(path, lambda: read_tokenizer(world.checkpoint))


@target(2_000)
def tokenizer_json(world: World) -> tuple[st.SearchStrategy[Any], Callable[[Any], object]]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    valid: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3}, "merges": ["a b"]},
    }  # fmt: skip
    model = changed(valid["model"]).map(lambda content: json.dumps({**valid, "model": content}).encode())
    ids = {"vocab_size": 4, "mask_token_id": 2, "pad_token_id": 0, "eos_token_id": 1}
    use = replacing(world.scratch / "tokenizer.json", lambda: BPETokenizer.load(world.scratch, ids))
    use(json.dumps(valid).encode())  # what the others are made of is valid
    return model | json_files(valid), use


@target(500)
def tokenizer_config_json(world: World) -> tuple[st.SearchStrategy[Any], Callable[[Any], object]]:
    """Which need not be there."""
    place = world.root / "bpe"
    write_random_checkpoint(place, "to be or not to be, that is the question. " * 20)
    path = place / "tokenizer_config.json"
    return json_files(world.read(path)), replacing(path, lambda: chat_format(read_tokenizer(place)))


@target(10_000)
def npy_header(world: World) -> tuple[st.SearchStrategy[Any], Callable[[Any], object]]:
    buffer = BytesIO()
    np.save(buffer, np.arange(20, dtype=np.uint8).reshape(5, 4))
    whole = buffer.getvalue()
    pieces = SCALARS.map(repr)

    def pack(descr: str, order: str, shape: str) -> bytes:
        header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + whole[128:]

    types = st.sampled_from(["'|u1'", "'<u2'", "'|O'", "'<U8'", "'<M8[s]'", "[('a', '|u1')]", "'<f8'", "'|V9'"])
    shapes = st.lists(st.integers(-2, 10) | st.sampled_from([2**31, 2**62, 10**30]), max_size=4).map(tuple).map(repr)
    headers = st.builds(pack, types | pieces, st.sampled_from(["False", "True", "0"]) | pieces, shapes | pieces)
    path = world.scratch / "rows.npy"
    return headers | corrupted(whole), replacing(path, lambda: _map_rows(path, "prepare it again"))


@target(10_000)
def metadata_json(world: World) -> tuple[st.SearchStrategy[Any], Callable[[Any], object]]:
    """By somebody who seals what he has changed, and as accidents have it."""
    path = world.data / METADATA_FILE
    valid = world.read(path)
    inner = changed(valid["splits"]["train"]).map(lambda train: {**valid["splits"], "train": train})
    sums = changed(valid["sha256"]).map(lambda content: {"sha256": content})
    meant = st.one_of(changed(valid), inner.map(lambda splits: {"splits": splits}), sums)
    contents = meant.map(lambda content: _sealed({**valid, **content}))

    def use() -> None:
        data = PreparedText.open(world.data)
        _ = (
            data.fingerprints,
            data.sequence_length,
            data.tokens("train")[:3],
            data.tokenizer.decode(data.rows["val"][0]),
        )

    return contents | json_files(valid), replacing(path, use)


def _sealed(content: dict[str, Any]) -> bytes:
    return json.dumps({**content, SEAL: _seal_of(content)}).encode()


@target(12_000)
def dialogues_jsonl(world: World) -> tuple[st.SearchStrategy[Any], Callable[[Any], object]]:
    path = world.scratch / "dialogues.jsonl"
    question, answer = LINE["messages"]
    messages = changed(question).map(lambda message: json.dumps({"messages": [message, answer]}).encode())
    forms: list[dict[str, Any]] = [
        {"prompt": "a", "answer": "b", "system": "c"},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 0}]},
        {"instruction": "a", "input": "b", "output": "c", "history": [["d", "e"]]},
        {"prompt": [question], "completion": [{**answer, "content": [{"type": "text", "text": "b"}]}]},
    ]
    line = st.one_of(json_files(LINE), messages, *map(json_files, forms))
    array = st.lists(line, max_size=2).map(lambda lines: b"[" + b",".join(lines) + b"]")
    layout = st.lists(line, min_size=1, max_size=2).map(b"\n".join) | array

    def use() -> None:
        for reading in (Reading(skip_bad=True), Reading(keys="ignore"), Reading(last_answer=True)):
            with contextlib.suppress(UserError):
                read_dialogues(path, reading)
        read_dialogues(path)

    return layout, replacing(path, use)


@target(6_000)
def metrics_jsonl(world: World) -> tuple[st.SearchStrategy[Any], Callable[[Any], object]]:
    path = world.scratch / "metrics.jsonl"
    lines = st.lists(json_files({"step": 1, "loss": 2.0, "nll_by_t": [None, 1.0]}), max_size=3).map(b"\n".join)
    return lines, replacing(path, lambda: read_metrics(path))


@target(8_000)
def run_config(world: World) -> tuple[st.SearchStrategy[Any], Callable[[Any], object]]:
    valid = PRESETS["laptop"].to_json()

    def within(name: str) -> st.SearchStrategy[dict[str, Any]]:
        return changed(valid[name]).map(lambda part: {**valid, name: part})

    inner = [within(name) for name in ("network", "optimizer")]
    path = world.scratch / "run.json"
    contents = st.one_of(json_files(valid), *(part.map(lambda content: json.dumps(content).encode()) for part in inner))
    return contents, replacing(path, lambda: TrainConfig.from_json(read_json(path)))


@target(4_000)
def checksums_json(world: World) -> tuple[st.SearchStrategy[Any], Callable[[Any], object]]:
    path = world.summed / "checksums.json"
    valid = world.read(path)
    sums = st.dictionaries(st.text(max_size=6), VALUES, max_size=2).map(lambda content: {**valid, "sha256": content})

    def check() -> None:
        find_damage(world.summed, ["file"])
        check_whole(world.summed, "use another")

    return json_files(valid) | sums.map(lambda content: json.dumps(content).encode()), replacing(path, check)


@target(4_000)
def adapter_config(world: World) -> tuple[st.SearchStrategy[Any], Callable[[Any], object]]:
    path = world.scratch / "adapter_config.json"
    return json_files(LORA), replacing(path, lambda: read_lora_values(world.scratch))


@target(4_000)
def training_state(world: World) -> tuple[st.SearchStrategy[Any], Callable[[Any], object]]:
    path = world.state / "training_state.pt"

    def use() -> None:
        check_regular(path)
        read_state(world.state)

    return corrupted(path.read_bytes()) | st.binary(max_size=60), replacing(path, use)


@target(3_000)
def foreign_state(world: World) -> tuple[st.SearchStrategy[Any], Callable[[Any], object]]:
    """Of a run, each entry put in the place of another, or something else there."""
    trainer = train(world.run_config, world.prepared)
    folder = trainer.folder.last
    saved = read_state(folder)
    ways = list(_ways(saved))
    tensors = [torch.zeros(()), torch.zeros(3), torch.zeros(16, 16), torch.full((16,), math.nan), torch.zeros(4).long()]
    other = st.sampled_from(ways).map(lambda way: _at(saved, way)) | st.sampled_from(tensors) | VALUES
    edits = st.lists(st.tuples(st.sampled_from(ways), other), min_size=1, max_size=3)

    def use(edits: list[tuple[tuple[Any, ...], Any]]) -> None:
        state = copy.deepcopy(saved)
        for way, value in edits:
            # An edit before it took its place away, or put a tensor there.
            with contextlib.suppress(KeyError, IndexError, TypeError, RuntimeError):
                _at(state, way[:-1])[way[-1]] = copy.deepcopy(value)  # later edits may go into it
        torch.save(state, folder / "training_state.pt")
        trainer.folder.load(trainer.state, trainer.plan.data.fingerprints, {}, allow_changed_data=True)

    return edits, use


def _ways(state: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """To all entries, however deep."""
    if way:
        yield way
    if isinstance(state, dict | list):
        for key, part in state.items() if isinstance(state, dict) else enumerate(state):
            yield from _ways(part, (*way, key))


def _at(state: Any, way: tuple[Any, ...]) -> Any:
    for key in way:
        state = state[key]
    return state


@target(2_000)
def foreign_folder(world: World) -> tuple[st.SearchStrategy[Any], Callable[[Any], object]]:
    """A folder with files of others under the names of its own, or something else there."""
    openers: dict[Path, Callable[[Path], object]] = {
        world.checkpoint: read_checkpoint, world.sharded: read_checkpoint, world.data: PreparedText.open,
        world.summed: lambda folder: check_whole(folder, "use another"),
    }  # fmt: skip
    contents = {path: path.read_bytes() for folder in openers for path in folder.iterdir() if path.is_file()}
    content = st.sampled_from([*contents.values(), *KINDS])
    swaps = st.lists(st.tuples(st.sampled_from(list(contents)), content), min_size=1, max_size=3)

    def use(swaps: list[tuple[Path, bytes | str]]) -> None:
        try:
            for path, new in swaps:
                put(path, new)
            openers[swaps[0][0].parent](swaps[0][0].parent)
        finally:
            for path, _ in swaps:
                remove(path)
                path.write_bytes(contents[path])

    return swaps, use


@target(700)
def command_line(world: World) -> tuple[st.SearchStrategy[Any], Callable[[Any], object]]:
    """Any words after a command; nothing is there that it could read."""
    flags = ["--checkpoint", "--steps", "--d_model", "--preset", "--layers", "--json", "--seed", "--resume", "--config"]
    values = ["0", "-1", "1e9", "nan", "tiny", "None", "", "--", "nowhere", "9" * 40, "\x00", "ä", "{}", "a=b", "[1]"]
    word = st.sampled_from(flags) | st.sampled_from(values) | st.text(max_size=8)
    place = {
        "train": ["--data_dir", str(world.root / "none"), "--output_dir", str(world.root / "run")],
        "prepare": ["--source", "file", "--output_dir", str(world.root / "prepared")],
    }

    def run(words: tuple[str, list[str]]) -> None:
        command, arguments = words
        arguments = [word for word in arguments if not word.startswith(("--output", "--data"))]
        with contextlib.suppress(SystemExit):
            cli.main([command, *arguments, *place.get(command, [])])

    commands = st.sampled_from(
        ["size", "prepare", "train", "sample", "evaluate", "export", "chat", "finetune", "", "nix"]
    )
    return st.tuples(commands, st.lists(word, max_size=5)), run
