"""What goes wrong in training is foreseen or named: memory, time, a loss that does not fall; and bad options."""

import json
import math
import resource
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from llada import cli
from llada.cli.flags import in_flags
from llada.cli.prepare import PrepareOptions
from llada.cli.size_report import SizeOptions
from llada.costs.fit import with_length
from llada.costs.memory import training_memory
from llada.data.prepared import PreparedText
from llada.system.errors import UserError, is_out_of_memory
from llada.training import forecast, run_memory
from llada.training.config import DataOptions, NetworkOptions, OptimizerOptions, TrainConfig
from llada.training.diagnostics import ConvergenceWatch, likely_setting, unigram_entropy
from llada.training.forecast import check_memory, out_of_memory, reasons_for_slowness
from llada.training.plan import RunPlan
from llada.training.run_memory import TORCH_BYTES, setting_of
from tests.support.commands import PATIENCE
from tests.support.corpora import prepare_files, some_documents, write_as

TINY = ["--preset", "tiny", "--d_model", "16", "--n_layers", "1", "--batch_size", "4", "--sequence_length", "24"]


def complaint(capsys: pytest.CaptureFixture[str], command: str, *arguments: object) -> str:
    """The one sentence that a command ends with; nothing else is said and the exit code is 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        cli.main([command, *map(str, arguments)])
    captured = capsys.readouterr()
    assert exit_.value.code == 2
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if line.startswith("llada: ")]
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    return lines[0]


# --- memory


@pytest.fixture
def large(small_run: TrainConfig, data: PreparedText) -> RunPlan:
    """A run whose activations with dropout are far larger than its weights."""
    network = NetworkOptions("encoder", d_model=64, n_heads=2, n_layers=8, dropout=0.1)
    config = replace(small_run, network=network, data=DataOptions((data.folder,), sequence_length=512), batch_size=8)
    return RunPlan.of(config, data)


def test_what_does_not_fit_is_refused_with_what_does(large: RunPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each setting that is named is tried against the formula and the limit."""
    needed = training_memory(large.network_config, setting_of(large)).total
    limit = needed / 3 + TORCH_BYTES
    monkeypatch.setattr(run_memory, "memory_bytes", lambda device: int(limit))
    with pytest.raises(UserError) as error:
        check_memory(large)
    sentence = in_flags(str(error.value))
    assert "--batch_size 2 --accumulate 4" in sentence
    assert "--activation_checkpointing" in sentence
    assert "--force" in sentence
    smaller = replace(setting_of(large), batch_size=2, accumulates=True)
    assert training_memory(large.network_config, smaller).total < limit - TORCH_BYTES
    larger = replace(setting_of(large), batch_size=4, accumulates=True)
    assert training_memory(large.network_config, larger).total > limit - TORCH_BYTES
    check_memory(RunPlan.of(replace(large.config, force=True), large.data))


def test_tight_runs_give_memory_back(large: RunPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = training_memory(large.network_config, setting_of(large)).total
    called: list[bool] = []
    monkeypatch.setattr(forecast, "give_back_freed_memory", lambda: called.append(True))
    for factor, expected in ((6.0, []), (1.5, [True])):
        monkeypatch.setattr(run_memory, "memory_bytes", lambda device, f=factor: int(f * needed + TORCH_BYTES))
        check_memory(large)
        assert called == expected


def test_running_out_of_memory_names_what_would_have_fitted(large: RunPlan) -> None:
    """Even though the machine has more in all: less than was asked for was to be had."""
    needed = training_memory(large.network_config, setting_of(large)).total
    sentence = in_flags(str(out_of_memory(large, "runs/x", has_checkpoint=True)))
    assert "--batch_size 4 --accumulate 2" in sentence
    assert "--resume runs/x" in sentence
    smaller = replace(setting_of(large), batch_size=4, accumulates=True)
    assert training_memory(with_length(large.network_config, 512), smaller).total < 0.9 * needed
    assert "--resume" not in str(out_of_memory(large, "runs/x", has_checkpoint=False))


def test_a_run_that_ended_before_its_first_checkpoint_can_be_started_again(
    capsys: pytest.CaptureFixture[str], data: PreparedText, tmp_path: Path
) -> None:
    """As the advice for a shortage of memory says; --resume has nothing to go on with, and says so."""
    options = [*TINY, "--data_dir", str(data.folder), "--steps", "4", "--evaluation_windows", "2"]
    run = tmp_path / "run"
    run.mkdir()
    config = TrainConfig(data=DataOptions((data.folder,)), output_dir=run)
    (run / "config.json").write_text(json.dumps(config.to_json()))
    assert "start the run again without --resume" in complaint(capsys, "train", "--resume", run)
    with pytest.raises(SystemExit) as exit_:
        cli.main(["train", *options, "--output_dir", str(run)])
    assert not exit_.value.code


def test_an_encoder_goes_on_with_shorter_sequences(
    capsys: pytest.CaptureFixture[str], data: PreparedText, tmp_path: Path
) -> None:
    """As the advice for a shortage of memory says."""
    options = [*TINY, "--network", "encoder", "--data_dir", data.folder, "--output_dir", tmp_path / "run"]
    for more in (["--steps", "4"], ["--steps", "8", "--sequence_length", "12", "--resume"]):
        arguments = options if "--resume" not in more else ["--output_dir", tmp_path / "run"]
        with pytest.raises(SystemExit) as exit_:
            cli.main(["train", *map(str, arguments), *more, "--evaluation_windows", "2"])
        assert not exit_.value.code, capsys.readouterr().err


def test_errors_of_allocation_are_told_from_others() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60)
    assert is_out_of_memory(error.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_a_real_shortage_ends_with_the_sentence(text: str, tmp_path: Path) -> None:
    """The process is allowed a gigabyte of data and asked to try all the same."""
    (tmp_path / "my.txt").write_text(text, encoding="utf-8")
    run = [sys.executable, "-m", "llada"]
    prepare = [*run, "prepare", "--input", "my.txt", "--output_dir", "data", "--sequence_length", "100"]
    subprocess.run(prepare, cwd=tmp_path, check=True, capture_output=True)
    shape = [
        "--network",
        "llada",
        "--d_model",
        "128",
        "--n_heads",
        "2",
        "--n_layers",
        "8",
        "--sequence_length",
        "512",
        "--batch_size",
        "64",
    ]
    options = ["--data_dir", "data", "--steps", "3", "--device", "cpu", "--precision", "fp32", "--force"]
    result = subprocess.run(
        [*run, "train", *shape, *options],
        cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (1_200_000_000, 1_200_000_000)),
    )  # fmt: skip
    assert result.returncode == 2, result.stderr
    assert "The memory did not suffice for this run" in result.stderr
    assert "--activation_checkpointing" in result.stderr
    assert "Traceback" not in result.stderr


def test_documents_that_are_kept_apart_are_prepared_shorter_if_the_validation_text_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = write_as(tmp_path, "jsonl", some_documents(30))
    data = prepare_files(tmp_path / "data", source, packing="documents", sequence_length=600)
    n = len(data.tokens("val"))
    options = ["--data_dir", data.folder, "--windows", "stored", "--output_dir", tmp_path / "run", "--steps", 2]
    said = complaint(capsys, "train", *TINY, *options)
    assert f"longer than the validation text of {n} tokens" in said
    assert f"prepare it with --sequence_length {n} or less" in said
    prepare_files(data.folder, source, packing="documents", sequence_length=n, overwrite=True)
    with pytest.raises(SystemExit) as exit_:
        cli.main(["train", *map(str, [*TINY, *options])])
    assert not exit_.value.code, capsys.readouterr().err


def test_sequences_longer_than_the_validation_text_are_refused_with_the_length_that_fits(
    capsys: pytest.CaptureFixture[str], data: PreparedText, tmp_path: Path
) -> None:
    n = len(data.tokens("val"))
    place = ["--data_dir", data.folder, "--output_dir", tmp_path / "run"]
    sentence = complaint(capsys, "train", *place, "--sequence_length", n + 1)
    assert f"--windows random --sequence_length {n}" in sentence
    assert not (tmp_path / "run").exists()


# --- time


def test_slowness_is_explained(large: RunPlan) -> None:
    """No GPU, dropout on the CPU, fp32, attention over 512 tokens of a narrow network, recomputing."""
    slow = RunPlan.of(replace(large.config, activation_checkpointing=True), large.data)
    reasons = in_flags(" / ".join(reasons_for_slowness(slow)))
    for words in ("on a CPU", "--dropout 0", "fp32", "attention over 512 tokens", "--sequence_length 128", "twice"):
        assert words in reasons
    plain = replace(
        large.config,
        network=NetworkOptions(d_model=512, n_heads=4, n_layers=1),
        data=DataOptions(sequence_length=24),
    )
    reasons = in_flags(" / ".join(reasons_for_slowness(RunPlan.of(plain, large.data))))
    for words in ("--dropout", "attention", "twice"):
        assert words not in reasons


def test_long_runs_are_announced_with_their_reasons(
    capsys: pytest.CaptureFixture[str], data: PreparedText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first step: the run is then stopped."""

    class StoppedError(Exception):
        pass

    def stop(*_: object) -> None:
        raise StoppedError

    monkeypatch.setattr("llada.cli.train.Trainer", stop)
    with pytest.raises(SystemExit):
        cli.main(["train", "--data_dir", str(data.folder), "--output_dir", str(tmp_path / "r"), "--steps", str(10**7)])
    said = " ".join(capsys.readouterr().err.split())
    assert "What costs the time:" in said
    assert "parameters on a CPU" in said or torch.cuda.is_available()


# --- a loss that does not fall


def test_unigram_entropy_by_hand() -> None:
    import numpy as np

    assert unigram_entropy(np.array([3, 3, 4, 5], dtype=np.uint8)) == pytest.approx(1.5 * math.log(2))


@pytest.fixture
def plan(small_run: TrainConfig, data: PreparedText) -> RunPlan:
    return RunPlan.of(replace(small_run, steps=1000, optimizer=OptimizerOptions(warmup_steps=10)), data)


def warnings_of(plan: RunPlan, course: list[float]) -> list[str]:
    """What is said of a course of cross-entropies, one each ten steps of a thousand."""
    watch = ConvergenceWatch(plan)
    said = [watch.add(10 * (i + 1), (i + 1) / 100, nll) for i, nll in enumerate(course)]
    return [warning for warning in said if warning]


def test_a_loss_that_falls_is_not_commented(plan: RunPlan) -> None:
    unlearnt = ConvergenceWatch(plan).unlearnt
    course = [max(0.8 * unlearnt, 4.2 - 0.1 * i) for i in range(100)]
    assert warnings_of(plan, course) == []


def test_a_loss_that_stays_at_the_frequencies_is_named_once(plan: RunPlan) -> None:
    unlearnt = ConvergenceWatch(plan).unlearnt
    (warning,) = warnings_of(plan, [4.2] * 5 + [unlearnt] * 95)
    assert "hardly falls" in warning
    assert "more steps" in warning
    slow = RunPlan.of(
        replace(plan.config, optimizer=OptimizerOptions(muon_learning_rate=1e-4, warmup_steps=10)), plan.data
    )
    (warning,) = warnings_of(slow, [4.2] * 5 + [unlearnt] * 95)
    assert "`muon_learning_rate=0.0001`, which is low: try 0.02" in warning


def test_a_loss_that_rises_and_one_that_is_too_high_are_named(plan: RunPlan) -> None:
    unlearnt = ConvergenceWatch(plan).unlearnt
    rising, high = warnings_of(plan, [0.5 * unlearnt] * 40 + [0.9 * unlearnt] * 30 + [3 * unlearnt] * 30)
    assert f"rose from {0.5 * unlearnt:.2f}" in rising
    assert "does not fall" in high
    assert "the likely cause is `muon_learning_rate`: try 0.007" in rising


def test_the_likely_setting_is_the_one_that_is_far_from_usual(plan: RunPlan) -> None:
    def likely(too_fast: bool = True, **options: object) -> str:
        config = replace(plan.config, optimizer=replace(OptimizerOptions(optimizer="adamw"), **options))  # type: ignore[arg-type]
        return likely_setting(RunPlan.of(config, plan.data), too_fast)

    assert "`learning_rate=10`, which is high: try 0.003" in likely(learning_rate=10.0)
    assert "`learning_rate=1e-05`, which is low" in likely(too_fast=False, learning_rate=1e-5)
    assert "`warmup_steps=0`" in likely(learning_rate=0.003, warmup_steps=0)


def run_at_rate(rate: str, capsys: pytest.CaptureFixture[str], data: PreparedText, folder: Path) -> tuple[object, str]:
    """Exit code and words of a short run of AdamW at this rate."""
    options = ["--optimizer", "adamw", "--learning_rate", rate, "--steps", "120", "--warmup_steps", "5"]
    with pytest.raises(SystemExit) as exit_:
        cli.main(
            ["train", *TINY, *options, "--log_every", "2", "--data_dir", str(data.folder), "--output_dir", str(folder)]
        )
    return exit_.value.code, " ".join(capsys.readouterr().err.split())


def test_real_runs_at_mad_rates_are_named(
    capsys: pytest.CaptureFixture[str], data: PreparedText, tmp_path: Path
) -> None:
    code, said = run_at_rate("1", capsys, data, tmp_path / "high")
    assert not code
    assert "The loss does not fall" in said
    assert "--learning_rate 1, which is high: try 0.003" in said
    code, said = run_at_rate("1e30", capsys, data, tmp_path / "mad")
    assert code == 2
    assert "The loss became" in said
    assert "--learning_rate 1e+30, which is high: try 0.003, and start again" in said


# --- bad options


def flags_of(options: type, *kinds: type) -> list[str]:
    """Flags of a dataclass, and of those within, whose values are of these types."""
    found = []
    for field in fields(options):
        inner = field.type if isinstance(field.type, type) else None
        if inner is not None and hasattr(inner, "__dataclass_fields__"):
            found += flags_of(inner, *kinds)
        elif inner in kinds or any({arg, *get_args(arg)} & set(kinds) for arg in get_args(field.type)):
            found.append(field.name)
    return found


NUMBERS = {
    command: flags_of(options, int, float)
    for command, options in (("prepare", PrepareOptions), ("train", TrainConfig), ("size", SizeOptions))
}


def test_flags_were_found() -> None:
    assert {"sequence_length", "vocab_size"} <= set(NUMBERS["prepare"])
    assert {"d_model", "n_heads", "n_layers", "dropout", "batch_size", "epochs", "learning_rate"} <= set(
        NUMBERS["train"]
    )
    assert {"n_layers", "hardware_memory", "tflops"} <= set(NUMBERS["size"])


@pytest.mark.parametrize(("command", "flag"), [(c, flag) for c, flags in NUMBERS.items() for flag in flags])
def test_each_number_of_a_wrong_type_or_sign_is_refused(
    capsys: pytest.CaptureFixture[str], command: str, flag: str, data: PreparedText, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.txt").write_text("to be or not to be " * 50)
    places: dict[str, list[object]] = {
        "prepare": ["--input", "my.txt"],
        "train": [*TINY, "--data_dir", data.folder],
        "size": [],
    }
    place = places[command]
    if (command, flag) == ("train", "dropout"):
        place = [*place, "--network", "encoder"]
    sentence = complaint(capsys, command, *place, f"--{flag}", "many")
    assert f"--{flag}" in sentence
    assert "number" in sentence or "many" in sentence
    for value in ("nan", "inf", "-inf"):
        if command != "prepare" and flag not in ("d_model", "n_heads", "n_layers", "mlp_hidden_size", "dropout"):
            assert flag.replace("_", "-") in complaint(capsys, command, *place, f"--{flag}={value}").replace("_", "-")
    negative = complaint(capsys, command, *place, f"--{flag}=-1")
    assert flag in negative or flag in ("d_model", "n_heads", "n_layers", "mlp_hidden_size", "dropout")
    assert [path.name for path in tmp_path.iterdir()] == ["my.txt"]
