"""A metrics.jsonl that is being written is read once, line by line, whatever happens to the file meanwhile."""

import os
from pathlib import Path
from typing import Any

import pytest

from llada.checkpoints.run_layout import LONGEST_LINE
from llada.training.metrics import MetricsFile
from llada.training.metrics_follower import Fresh, MetricsFollower


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def steps(fresh: Fresh) -> list[int]:
    return [row["step"] for row in fresh.rows]


def add(path: Path, text: str | bytes) -> None:
    with path.open("ab") as file:
        file.write(text.encode() if isinstance(text, str) else text)


def test_only_what_is_new_is_read(path: Path) -> None:
    follower = MetricsFollower(path)
    assert follower.read() == Fresh()  # there is no file yet
    add(path, '{"step": 1}\n{"step": 2}\n')
    assert steps(follower.read()) == [1, 2]
    assert follower.read() == Fresh()
    add(path, '{"step": 3}\n')
    assert steps(follower.read()) == [3]


def test_half_a_line_waits_for_its_other_half(path: Path) -> None:
    follower = MetricsFollower(path)
    whole = '{"step": 2, "text": "ä"}\n'.encode()
    add(path, b'{"step": 1}\n')
    for end in range(len(whole)):
        path.write_bytes(b'{"step": 1}\n' + whole[:end])
        assert steps(follower.read()) == ([1] if end == 0 else [])
    add(path, whole[-1:])
    assert follower.read().rows == [{"step": 2, "text": "ä"}]


def test_a_file_that_a_run_wrote_anew_is_read_from_its_beginning(path: Path) -> None:
    """As a resumed run does, whose file has lost the lines after its checkpoint."""
    follower = MetricsFollower(path)
    add(path, "".join(f'{{"step": {step}}}\n' for step in range(1, 9)))
    assert steps(follower.read()) == list(range(1, 9))
    resumed = MetricsFile(path, from_step=5)
    for step in range(6, 20):  # longer than before by the time that it is read
        resumed.write({"step": step})
    fresh = follower.read()
    assert fresh.starts_again
    assert steps(fresh) == list(range(1, 20))


@pytest.mark.parametrize("text", ['{"step": 1}\n', '{"step": 7}\n{"step": 8}\n{"step": 9}\n', ""])
def test_a_file_that_was_written_over_in_place_is_read_from_its_beginning(path: Path, text: str) -> None:
    follower = MetricsFollower(path)
    add(path, '{"step": 1}\n{"step": 2}\n')
    follower.read()
    path.write_text(text)
    fresh = follower.read()
    assert fresh.starts_again
    assert len(fresh.rows) == text.count("\n")


def test_a_file_that_goes_and_comes_back(path: Path) -> None:
    follower = MetricsFollower(path)
    add(path, '{"step": 1}\n')
    follower.read()
    path.unlink()
    assert follower.read() == Fresh(starts_again=True)
    assert follower.read() == Fresh()
    add(path, '{"step": 1}\n')
    assert follower.read() == Fresh([{"step": 1}])


@pytest.mark.parametrize(
    "bad", ["", "nonsense", "[1]", "{}", '{"step": "1"}', '{"step": true}', '{"step": -1}', f'{{"step": {10**30}}}',
            '{"step": 1.5}', "null", '"step"', '{"step": 1' + "[" * 100_000, "\x00\x1b"],
)  # fmt: skip
def test_lines_that_are_not_rows_are_left_out_and_counted(path: Path, bad: str) -> None:
    follower = MetricsFollower(path)
    add(path, f'{{"step": 1}}\n{bad}\n{{"step": 2}}\n')
    assert steps(follower.read()) == [1, 2]
    assert follower.n_bad_lines == (1 if bad else 0)


def test_a_line_longer_than_any_row_is_passed_over(path: Path) -> None:
    follower = MetricsFollower(path)
    add(path, '{"step": 1}\n')
    add(path, b"x" * (3 * LONGEST_LINE))
    assert steps(follower.read()) == [1]
    for _ in range(4):
        assert follower.read().rows == []
    add(path, 'xxx{"step": 2}\n{"step": 3}\n')
    assert steps(follower.read()) == [3]
    assert follower.n_bad_lines == 1


def test_a_long_file_is_read_in_pieces(path: Path) -> None:
    expected = list(range(1, 2000))
    add(path, "".join(f'{{"step": {step}}}\n' for step in expected))
    follower, pieces, has_more = MetricsFollower(path), list[Fresh](), True
    while has_more:
        pieces.append(follower.read(most_bytes=1000))
        has_more = pieces[-1].has_more
    assert [step for piece in pieces for step in steps(piece)] == expected
    assert len(pieces) > 20


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_nobody_waits_for_a_pipe(path: Path) -> None:
    os.mkfifo(path)
    assert MetricsFollower(path).read() == Fresh()


def test_versions_change_with_each_row(path: Path) -> None:
    follower, seen = MetricsFollower(path), list[Any]()
    for step in range(3):
        add(path, f'{{"step": {step}}}\n')
        follower.read()
        seen += [follower.version, follower.version]
    assert len(set(seen)) == 3
