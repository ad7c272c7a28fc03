"""`find_faults` finds each kind of damage and names the file; statistics are those of the documents."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from llada.data.corpus_inspection import describe_split, find_faults
from llada.data.sharded import ShardedText
from tests.support.corpora import documents_in, edit_manifest, prepare_files, some_documents, write_as


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ShardedText:
    folder = tmp_path_factory.mktemp("inspected")
    return prepare_files(folder / "corpus", write_as(folder, "jsonl", some_documents(60)))


@pytest.fixture
def copy(data: ShardedText, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data.folder, tmp_path / "corpus"))


def test_a_whole_folder_has_no_faults(data: ShardedText) -> None:
    seen: list[tuple[int, int]] = []
    assert list(find_faults(data.folder, lambda done, of: seen.append((done, of)))) == []
    assert seen[-1][0] == seen[-1][1] == len(list(data.folder.iterdir())) - 1


def test_every_flipped_bit_is_found_and_named(copy: Path) -> None:
    for path in sorted(copy.iterdir()):
        if path.name == "manifest.json":
            continue
        content = path.read_bytes()
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        assert f"{path.name} has another checksum than when it was written" in list(find_faults(copy))
        path.write_bytes(content)
    assert list(find_faults(copy)) == []


def test_every_missing_file_is_found_and_named(copy: Path) -> None:
    for path in sorted(copy.iterdir()):
        if path.name != "manifest.json":
            hidden = path.rename(copy / "hidden")
            assert f"{path.name} is missing" in list(find_faults(copy))
            hidden.rename(path)


def with_new_checksum(folder: Path, name: str, kind: str) -> None:
    """Write the checksum that a changed file has now into the manifest, as a faulty writer would."""
    from llada.data.sharded import read_manifest
    from llada.system.files import sha256_of

    manifest = read_manifest(folder)
    for split in ("train", "val"):
        for shard in manifest["splits"][split]["shards"]:
            if shard["file"].split(".")[0] == name.split(".")[0]:
                shard["sha256"][kind] = sha256_of(folder / name)
    edit_manifest(folder, splits=manifest["splits"])


@pytest.mark.parametrize(
    ("name", "kind", "place", "value", "fault"),
    [
        ("train-00001.bin", "tokens", 3, 255, "train-00001.bin has ids that the vocabulary lacks"),
        ("train-00001.bin", "tokens", 3, 4, "token_counts.npy does not count the ids of the shards"),
        ("train-00001.bin", "tokens", -1, 4, "train-00001.ends.bin does not say where the documents"),
        ("train-00001.ends.bin", "ends", 0, 1, "train-00001.ends.bin does not say where the documents"),
    ],
)
def test_what_a_faulty_writer_wrote_is_found(
    copy: Path, name: str, kind: str, place: int, value: int, fault: str
) -> None:
    content = bytearray((copy / name).read_bytes())
    content[place] = value
    (copy / name).write_bytes(content)
    with_new_checksum(copy, name, kind)
    assert any(found.startswith(fault) for found in find_faults(copy))


def test_statistics_are_those_of_the_documents(data: ShardedText) -> None:
    documents = documents_in(data, "train")
    found = describe_split(data, "train", n_frequent=3)
    lengths = [len(text) + 1 for text in documents]
    assert found.documents == len(documents)
    assert found.tokens == sum(lengths)
    assert found.mean_length == pytest.approx(np.mean(lengths))
    assert (found.lengths[0.0], found.lengths[1.0]) == (min(lengths), max(lengths))
    assert found.lengths[0.5] == int(np.median(lengths))
    assert found.bytes_per_token == pytest.approx(len("".join(documents).encode()) / len("".join(documents)))
    counts = Counter("".join(documents))
    assert [token for token, _ in found.most_frequent] == [token for token, _ in counts.most_common(3)]
    assert found.most_frequent[0][1] == pytest.approx(counts.most_common(1)[0][1] / sum(lengths))
    shares = np.array([*counts.values(), len(documents)]) / sum(lengths)
    assert found.nats == pytest.approx(float(-(shares * np.log(shares)).sum()))
    assert found.unused_ids == data.tokenizer.vocab_size - len(counts) - 1
