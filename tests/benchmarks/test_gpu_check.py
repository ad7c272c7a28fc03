"""scripts/gpu-check without a GPU: a rehearsal to its end, and what it reports when something goes wrong."""

import json
import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from gpu_check import LIMITS, SECONDS, Check, parse
from gpu_large import RANK, large_config
from gpu_rows import Row, Rows, draw_table, read_rows
from llada.cli.size_report import SizeOptions, make_report
from tests.support.documents import ROOT

SCRIPT = str(ROOT / "scripts" / "gpu-check")


def check(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [SCRIPT, "--python", sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=1500)


def rows_of(out: Path) -> dict[str, list[dict[str, Any]]]:
    report = json.loads((out / "gpu-check.json").read_text())
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in report["rows"]:
        rows.setdefault(row["section"], []).append(row)
    return rows


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a whole rehearsal; where something fails, the test shows what it printed."""
    out = tmp_path_factory.mktemp("gpu-check")
    result = check("--device", "cpu", "--tiny", "--out", out, "--commit", "abc123")
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}\n{(out / 'gpu-check.log').read_text()}"
    assert result.stdout == (out / "gpu-check.txt").read_text()
    return out


def test_every_section_has_rows_of_finite_numbers(rehearsal: Path) -> None:
    report, rows = json.loads((rehearsal / "gpu-check.json").read_text()), rows_of(rehearsal)
    assert list(rows) == list(LIMITS)
    assert report["is_complete"]
    assert report["commit"] == "abc123"
    assert report["machine"]["torch"]
    assert not [row for found in rows.values() for row in found if row["outcome"] == "failed"]
    for section, row in ((section, row) for section, found in rows.items() for row in found):
        assert row["outcome"] == "ok" or row["sentence"], row
        assert all(math.isfinite(value) for value in row["figures"].values()), row
        speeds = {key: row["figures"].get(key) for key in ("tokens_per_second", "tflops")}
        if section in ("lora", "qlora", "bf16", "speed", "sampling", "machine") and row["outcome"] == "ok":
            assert any(value is not None and value > 0 for value in speeds.values()), row
    assert len(rows["speed"]) == 8
    assert len(rows["sampling"]) == 7
    assert sum(row["outcome"] == "ok" for row in rows["tests"]) > 20


def test_the_forecast_in_the_report_is_that_of_llada_size(rehearsal: Path) -> None:
    pytest.importorskip("peft")
    (row,) = rows_of(rehearsal)["lora"]
    config = large_config(tiny=True)
    options = SizeOptions(
        n_layers=config.n_layers, d_model=config.d_model, n_heads=config.n_heads, vocab_size=config.vocab_size,
        mlp_hidden_size=config.mlp_hidden_size, sequence_length=config.max_sequence_length, lora_rank=RANK,
        hardware="cpu", tflops=1.0,
    )  # fmt: skip
    report = make_report(options)
    assert row["figures"]["predicted_bytes"] == report["lora"]["lora_total"]
    full = [row for row in rows_of(rehearsal)["bf16"] if "fp32 moments" in row["name"]]
    assert full[0]["figures"]["predicted_bytes"] == report["bf16"]["fp32_moments_total"]


def test_a_section_that_dies_is_a_row_and_the_others_go_on(tmp_path: Path) -> None:
    """A GPU is asked for where there is none, and doctor needs none."""
    result = subprocess.run(
        [SCRIPT, "--only", "machine,lora", "--out", str(tmp_path), f"--python={sys.executable}"],
        capture_output=True, text=True, timeout=300, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert result.returncode == 1
    rows = rows_of(tmp_path)
    assert list(rows) == ["machine", "lora"]
    for (row,) in rows.values():
        assert row["outcome"] == "failed"
        assert "No CUDA device is available" in row["sentence"]


def test_a_section_is_ended_at_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that it started; the rows that it had are kept."""
    monkeypatch.setitem(LIMITS, "lora", 1)
    monkeypatch.setattr("gpu_check.WORTH_STARTING", 0.5)
    program = (
        "import sys, time, json\n"
        "open(sys.argv[2], 'w').write(json.dumps({'section': 'lora', 'name': 'first', 'outcome': 'ok'}) + chr(10))\n"
        "time.sleep(300)\n"
    )
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "gpu_sections.py").write_text(program)
    (tmp_path / "benchmarks" / "gpu_packages.py").write_text("")
    monkeypatch.setattr("gpu_check.ROOT", tmp_path)
    options = parse(["--device", "cpu", "--out", str(tmp_path), "--only", "lora"])
    run = Check(options, tmp_path)
    run.run(["lora"])
    assert [(row.name, row.outcome) for row in run.rows] == [("first", "ok"), ("", "failed")]
    assert run.rows[1].sentence == "ended at its limit of 1 s"
    run.started -= SECONDS
    run.run(["lora"])
    assert "not started" in run.rows[-1].sentence


def test_what_is_missing_is_named_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\ndependencies = ["rich>=13", "not-there-at-all>=1,<2"]\n')
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    monkeypatch.setattr("gpu_check.ROOT", tmp_path)
    run = Check(parse(["--out", str(tmp_path), "--only", "doctor"]), tmp_path)
    run.run(["doctor"])
    (row,) = run.rows
    assert row.outcome == "failed"
    assert row.sentence == (
        "Missing here: not-there-at-all (lacks not_there_at_all): put wheels of these into a folder and name it by "
        "--wheels."
    )


def test_a_folder_without_wheels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = check("--wheels", tmp_path / "empty", "--out", tmp_path / "out")
    assert result.returncode == 1
    assert "There are no wheels in" in result.stdout


def test_wheels_come_before_what_is_installed(tmp_path: Path) -> None:
    """A wheel made here by hand: a zip with a module and its metadata."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "dacite-99.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("dacite/__init__.py", "raise ImportError('this is the wheel', name='the_wheel')\n")
        wheel.writestr("dacite-99.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: dacite\nVersion: 99.0\n")
        wheel.writestr("dacite-99.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("dacite-99.0.dist-info/RECORD", "")
    result = check("--wheels", wheels, "--out", tmp_path / "out", "--only", "doctor")
    assert result.returncode == 1
    assert "dacite (lacks this is the wheel)" in result.stdout


def test_a_figure_that_is_no_number_is_a_failure(tmp_path: Path) -> None:
    rows = Rows("speed", tmp_path / "rows")
    rows.add("one", tokens_per_second=math.nan, seconds=1.0)
    with rows.case("two"):
        raise ValueError("first line\nsecond line")
    with (tmp_path / "rows").open("a") as file:
        file.write('{"section": "speed", "na')  # the process was killed here
    one, two = read_rows(tmp_path / "rows")
    assert one == Row("speed", "one", "failed", "tokens_per_second: not a finite number", {"seconds": 1.0})
    assert two == Row("speed", "two", "failed", "ValueError: first line")


def test_the_table_is_aligned() -> None:
    rows = [
        Row("speed", "small", "ok", "", {"tokens_per_second": 1234567.0}),
        Row("speed", "a longer name", "skipped", "for a reason"),
    ]
    head, _, first, second = draw_table(rows).split("\n")
    assert "1,234,567" in first
    assert head.index("tokens/s") + len("tokens/s") == first.index("1,234,567") + len("1,234,567")
    assert second.endswith("for a reason")
    assert "NFE/s" not in head  # a column that no row fills
