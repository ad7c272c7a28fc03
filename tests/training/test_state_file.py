"""The file of a run's state: what torch reads of it, that its bytes depend on its content alone, and mapped parts."""

import errno
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llada.checkpoints import pieces
from llada.system.mapped_files import give_back_pages
from llada.training.state_file import ALIGNMENT, give_back, read_state_file, write_state_file


def make_state() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    moments = {"step": torch.tensor(3.0), "mean": torch.randn(9, 5, generator=generator), "empty": torch.zeros(0, 4)}
    return {
        "progress": {"step": 3, "best": float("inf"), "order": None, "words": ["ä", "b"]},
        "optimizers": [{"state": {0: moments}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.95), "params": [0]}]}],
        "weights": {"turned": torch.randn(6, 4, generator=generator).T, "half": torch.randn(7).bfloat16()},
        "meters": {
            "counts": torch.arange(4),
            "numbers": torch.ones(300, dtype=torch.uint8),
            "is_it": torch.tensor([True, False]),
            "sum": torch.ones((), dtype=torch.float64),
        },
    }


def assert_equal(one: Any, two: Any) -> None:
    if isinstance(one, Tensor):
        assert (one.dtype, one.shape) == (two.dtype, two.shape)
        assert one.equal(two)
    elif isinstance(one, dict):
        assert list(one) == list(two)
        for key in one:
            assert_equal(one[key], two[key])
    elif isinstance(one, list) and one and isinstance(one[0], dict):
        for a, b in zip(one, two, strict=True):
            assert_equal(a, b)
    else:
        assert one == two


@pytest.mark.parametrize("is_mapped", [False, True])
def test_torch_reads_what_was_written_and_a_file_of_torchs_own_is_read_as_well(is_mapped: bool, tmp_path: Path) -> None:
    state = make_state()
    write_state_file(tmp_path / "state.pt", state)
    torch.save(state, tmp_path / "torch.pt")
    for name in ("state.pt", "torch.pt"):
        assert_equal(read_state_file(tmp_path / name, is_mapped), state)


def test_the_bytes_depend_on_the_content_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on the name, the time, the size of the pieces, what tensors are views of, and which equal words are one."""
    state = make_state()
    state["progress"]["words"] = ["".join(("a", "b")), "".join(("a", "b"))]
    write_state_file(tmp_path / "a.pt", state)
    monkeypatch.setattr(pieces, "PIECE", 7)
    state["meters"]["counts"] = torch.arange(10)[:4]
    state["progress"]["words"] = ["ab"] * 2
    write_state_file(tmp_path / "b.pt", state)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_it_is_a_sound_archive_whose_tensors_begin_where_they_can_be_used(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    write_state_file(path, make_state())
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        for entry in archive.infolist():
            name, extra = (int.from_bytes(content[entry.header_offset + at :][:2], "little") for at in (26, 28))
            start = entry.header_offset + 30 + name + extra
            assert start % ALIGNMENT == 0
            assert archive.read(entry) == content[start : start + entry.file_size]


def test_what_is_mapped_and_given_back_is_read_anew(tmp_path: Path) -> None:
    numbers = torch.randn(100_000)
    write_state_file(tmp_path / "state.pt", {"numbers": numbers})
    mapped = read_state_file(tmp_path / "state.pt", is_mapped=True)["numbers"]
    for _ in range(2):
        assert mapped.equal(numbers)
        give_back(mapped[10:])
    give_back_pages(mapped.data_ptr(), 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no disk that is always full")
def test_a_full_disk_is_an_error_of_the_disk(tmp_path: Path) -> None:
    (tmp_path / "state.pt").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space") as caught:
        write_state_file(tmp_path / "state.pt", make_state())
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.skipif(sys.platform != "linux", reason="the system reports no pages of a mapping")
def test_memory_that_is_given_back_does_not_count_any_more(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    write_state_file(path, {"numbers": torch.zeros(2_000_000)})
    mapped = read_state_file(path, is_mapped=True)["numbers"]

    def resident() -> int:
        lines = Path("/proc/self/smaps").read_text().splitlines()
        first = next(number for number, line in enumerate(lines) if line.endswith(str(path)))
        return next(int(line.split()[1]) for line in lines[first:] if line.startswith("Rss:")) * 1024

    assert mapped.sum() == 0
    before = resident()
    give_back(mapped)
    assert before > 7_000_000
    assert resident() < 100_000
