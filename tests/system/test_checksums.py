"""Every bit of a folder is covered by its checksums, the checksums included."""

import json
import random
from pathlib import Path

import pytest

from llada.system.checksums import CHECKSUMS_FILE, check_whole, find_damage, write_checksums
from llada.system.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "one").write_bytes(b"abc")
    (tmp_path / "two").write_bytes(bytes(range(256)) * 8)
    write_checksums(tmp_path)
    return tmp_path


def test_checksums_are_those_of_the_files(folder: Path) -> None:
    """That of "abc" is the example of the standard, FIPS 180-2."""
    sums = json.loads((folder / CHECKSUMS_FILE).read_text())["sha256"]
    assert sums["one"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert set(sums) == {"one", "two"}
    assert find_damage(folder) is None


def test_every_flipped_bit_and_every_cut_is_found(folder: Path) -> None:
    """300 places, the file of checksums among them; what changes no value there (white space) is harmless."""
    rng = random.Random(0)
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    sums = json.loads(whole[folder / CHECKSUMS_FILE])
    for _ in range(300):
        path = rng.choice(sorted(whole))
        broken = bytearray(whole[path])
        if rng.random() < 0.2:
            del broken[rng.randrange(len(broken)) :]
        else:
            broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        is_harmless = path.name == CHECKSUMS_FILE and _reads(bytes(broken)) == sums
        assert (find_damage(folder) is None) == is_harmless, (path.name, broken)
        path.write_bytes(whole[path])


def _reads(data: bytes) -> object:
    try:
        return json.loads(data)
    except ValueError:
        return None


def test_damage_is_named(folder: Path) -> None:
    (folder / "two").write_bytes(b"")
    with pytest.raises(UserError, match=r"is damaged \(two has another checksum .*\): use another\.$"):
        check_whole(folder, "use another")
    (folder / "two").unlink()
    assert find_damage(folder) == "two is missing"
    assert find_damage(folder, ["three"]) == "three is missing"


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "..", "", "sub/one", "one\x00", "a\nb"])
def test_no_file_outside_of_the_folder_is_asked_for(folder: Path, name: str) -> None:
    (folder / CHECKSUMS_FILE).write_text(json.dumps({"format_version": 1, "sha256": {name: "0" * 64}}))
    assert find_damage(folder) is not None
    assert "names no file" in str(find_damage(folder)) or "missing" in str(find_damage(folder))


def test_a_folder_without_checksums_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"abc")
    assert find_damage(tmp_path, ["one"]) is None
