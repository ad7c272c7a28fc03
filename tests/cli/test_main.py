"""The commands as a person or a program meets them: output, exit codes, one sentence for bad input."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llada import cli
from tests.support.commands import PATIENCE, RunCommand, assert_one_sentence

TINY = ["--preset", "tiny", "--d_model", "16", "--n_layers", "1", "--batch_size", "4", "--sequence-length", "24"]
SHORT = ["--steps", "8", "--evaluate_every", "4", "--evaluation-windows", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def world(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, its prepared form, and a trained run, all made by the commands."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "text.txt").write_text(text, encoding="utf-8")
    for arguments in (
        ["prepare", "--input", folder / "text.txt", "--output_dir", folder / "data", "--sequence_length", "100"],
        ["train", *TINY, *SHORT, "--data_dir", folder / "data", "--output_dir", folder / "run"],
    ):
        with pytest.raises(SystemExit) as exit_:
            cli.main([str(argument) for argument in arguments])
        assert not exit_.value.code
    return folder


def test_help_names_every_command(llada: RunCommand) -> None:
    result = llada("--help")
    assert result.code == 0
    for name in cli.COMMANDS:
        assert re.search(rf"^  {name} ", result.out, re.MULTILINE)
        command = llada(name, "--help")
        assert command.code == 0
        assert f"usage: llada {name}" in command.out


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("prepare", ["source", "input", "output-dir", "sequence-length"]),
        (
            "train",
            ["data-dir", "output-dir", "sequence-length", "preset", "resume", "config", "seed", "device", "epochs"],
        ),
        ("evaluate", ["checkpoint", "data-dir", "sequence-length", "seed", "device", "json"]),
        ("sample", ["checkpoint", "steps", "block-length", "temperature", "cfg-scale", "remasking", "seed", "json"]),
    ],
)
def test_help_names_every_flag(llada: RunCommand, command: str, flags: list[str]) -> None:
    text = llada(command, "--help").out
    for flag in flags:
        assert f"--{flag}" in text


def test_unknown_commands_and_flags_are_refused(llada: RunCommand) -> None:
    assert_one_sentence(llada("trian"), "no command 'trian'", "train")
    result = llada("prepare", "--out_dir", "x")
    assert result.code == 2
    assert "Unrecognized options" in result.err


def test_underscores_and_dashes_are_the_same(llada: RunCommand, world: Path, tmp_path: Path) -> None:
    for flag in ("--output_dir", "--output-dir"):
        target = tmp_path / flag.strip("-")
        assert llada("prepare", "--input", world / "text.txt", flag, target, "--sequence_length", 50).code == 0
        assert json.loads((target / "metadata.json").read_text())["sequence_length"] == 50


def test_evaluate_prints_one_object_with_the_documented_keys(llada: RunCommand, world: Path) -> None:
    result = llada("evaluate", "--checkpoint", world / "run", "--data_dir", world / "data", "--json")
    assert result.code == 0
    content = json.loads(result.out)
    assert list(content) == [
        "nelbo_nats_per_token", "nelbo_stderr", "mask_stderr", "bits_per_token", "windows", "masks_per_window",
        "sequence_length", "tokens_scored", "seconds", "is_exact", "within_documents", "by_t", "bits_per_character",
        "bits_per_byte", "bits_per_word",
    ]  # fmt: skip
    metadata = json.loads((world / "data" / "metadata.json").read_text())
    assert content["windows"] == metadata["splits"]["val"]["tokens"] // 24
    assert content["tokens_scored"] == content["windows"] * 24
    assert content["bits_per_token"] == pytest.approx(content["nelbo_nats_per_token"] / 0.6931471805599453)
    again = llada("evaluate", "--checkpoint", world / "run", "--data_dir", world / "data", "--json", "--batch_size", 3)
    assert json.loads(again.out)["nelbo_nats_per_token"] == pytest.approx(content["nelbo_nats_per_token"], rel=1e-6)
    people = llada("evaluate", "--checkpoint", world / "run", "--data_dir", world / "data")
    assert f"NELBO {content['nelbo_nats_per_token']:.4f} ± {content['nelbo_stderr']:.4f}" in people.out


def test_sample_prints_one_object_with_the_documented_keys(llada: RunCommand, world: Path) -> None:
    result = llada(
        "sample", "--checkpoint", world / "run", "--prompt", "to be", "--n_samples", 2, "--steps", 5, "--json"
    )
    assert result.code == 0
    content = json.loads(result.out)
    assert list(content) == ["samples", "nfe", "seconds"]
    assert content["nfe"] == 5
    assert len(content["samples"]) == 2
    for sample in content["samples"]:
        assert sample.startswith("to be")
        assert len(sample) == 24  # every token became a character: no MASK, PAD or BOS
    again = llada(
        "sample", "--checkpoint", world / "run", "--prompt", "to be", "--n_samples", 2, "--steps", 5, "--json"
    )
    assert json.loads(again.out)["samples"] == content["samples"]


def test_template_is_filled_where_it_says_so(llada: RunCommand, world: Path) -> None:
    result = llada("sample", "--checkpoint", world / "run", "--template", "to <MASK*3>or<MASK>", "--show")
    assert result.code == 0
    assert re.fullmatch(r"to (?s:.{3})or(?s:.)\n", result.out)
    assert "4 evaluations" in result.err


def test_frames_show_the_way_from_masks_to_text(llada: RunCommand, world: Path) -> None:
    out = llada("sample", "--checkpoint", world / "run", "--prompt", "to be", "--gen_length", 12, "--frames", 3).out
    assert re.findall(r"^--- (\d+) of 12 masked$", out, re.MULTILINE) == ["12", "8", "4"]
    assert "to be" + "░" * 12 in out
    assert out.count("░") == 12 + 8 + 4


@pytest.mark.parametrize(
    "options",
    [
        ["--remasking", "low_confidence", "--temperature", "0"],
        ["--block_length", "6", "--steps", "9"],
        ["--cfg_scale", "1.5", "--prompt", "the"],
        ["--gen_length", "7"],
    ],
    ids=" ".join,
)
def test_every_sampler_option_works(llada: RunCommand, world: Path, options: list[str]) -> None:
    result = llada("sample", "--checkpoint", world / "run", "--json", *options)
    assert result.code == 0
    expected = {"--gen_length": 7, "--block_length": 24, "--cfg_scale": 24, "--remasking": 24}[options[0]]
    assert len(json.loads(result.out)["samples"][0]) == expected
    assert json.loads(result.out)["nfe"] == {"--block_length": 9, "--cfg_scale": 2 * 21}.get(options[0], expected)


def test_run_can_be_repeated_from_its_configuration(llada: RunCommand, world: Path, tmp_path: Path) -> None:
    result = llada("train", "--config", world / "run" / "config.json", "--output_dir", tmp_path / "again")
    assert result.code == 0
    first, second = (
        (folder / "checkpoints" / "last" / "model.safetensors").read_bytes()
        for folder in (world / "run", tmp_path / "again")
    )
    assert first == second


def test_epochs_and_steps_take_each_others_place(llada: RunCommand, world: Path, tmp_path: Path) -> None:
    for preset, arguments, expected in (
        ("tiny", ["--epochs", "0.5"], (0.5, None)),
        ("founding", ["--steps=2"], (None, 2)),
    ):
        small = ["--d_model", "16", "--n_heads", "2", "--n_layers", "1", "--evaluation_windows", "1"]
        folder = tmp_path / preset
        result = llada(
            "train", "--preset", preset, *arguments, *small, "--data_dir", world / "data", "--output_dir", folder
        )
        assert result.code == 0, result.err
        config = json.loads((folder / "config.json").read_text())
        assert (config["epochs"], config["steps"]) == expected
    assert_one_sentence(llada("train", "--epochs", "1", "--steps", "2"), "give one of them")


def test_evaluate_finds_the_text_of_the_run(llada: RunCommand, world: Path) -> None:
    named = llada("evaluate", "--checkpoint", world / "run", "--data_dir", world / "data", "--json")
    for folder in (world / "run", world / "run" / "checkpoints" / "last"):
        found = llada("evaluate", "--checkpoint", folder, "--json")
        assert json.loads(found.out)["tokens_scored"] == json.loads(named.out)["tokens_scored"]


def test_complete_run_can_be_trained_further(llada: RunCommand, world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert llada("train", *TINY, *SHORT, "--data_dir", world / "data", "--output_dir", run).code == 0
    complete = llada("train", "--resume", run)
    assert complete.code == 0
    assert "is complete; raise --steps" in complete.out
    assert_one_sentence(llada("train", *TINY, "--data_dir", world / "data", "--output_dir", run), "--resume")
    for arguments in (["--resume", run, "--steps", 10], ["--resume", "--output_dir", run, "--steps", 12]):
        result = llada("train", *arguments)
        assert result.code == 0
        assert f"Trained {arguments[-1]} steps" in result.out


def test_first_lines_tell_what_the_run_takes(llada: RunCommand, world: Path, tmp_path: Path) -> None:
    result = llada("train", *TINY, *SHORT, "--data_dir", world / "data", "--output_dir", tmp_path / "run")
    for word in ("parameters", "memory", "time", "device", "epochs"):
        assert word in result.err
    assert "NELBO" in result.out
    assert str(tmp_path / "run") in result.out.replace("\n", "")


def test_founding_default_is_answered_with_the_preset_to_use(llada: RunCommand, world: Path, tmp_path: Path) -> None:
    """24 layers of 768, 512 sequences of 512 at once: 170 million parameters and hundreds of GB of activations."""
    shape = ["--windows", "random", "--sequence_length", 512, "--batch_size", 512, "--device", "cpu"]
    result = llada(
        "train", "--preset", "founding", *shape, "--data_dir", world / "data", "--output_dir", tmp_path / "run"
    )
    assert_one_sentence(result, "GB of memory", "--batch_size", "--preset laptop")
    assert not (tmp_path / "run").exists()


class TestBadInput:
    def test_missing_data_folder(self, llada: RunCommand, world: Path, tmp_path: Path) -> None:
        result = llada("train", *TINY, "--data_dir", tmp_path / "none", "--output_dir", tmp_path / "run")
        assert_one_sentence(result, "not a complete prepared text", "llada prepare")
        assert not (tmp_path / "run").exists()

    def test_changed_data_file(self, llada: RunCommand, world: Path, text: str, tmp_path: Path) -> None:
        assert (
            llada(
                "prepare", "--input", world / "text.txt", "--output_dir", tmp_path / "d", "--sequence_length", 50
            ).code
            == 0
        )
        (tmp_path / "d" / "train_data.npy").write_bytes(b"half")
        assert_one_sentence(
            llada("evaluate", "--checkpoint", world / "run", "--data_dir", tmp_path / "d"), "checksum", "again"
        )

    def test_checkpoint_of_another_vocabulary(self, llada: RunCommand, world: Path, tmp_path: Path) -> None:
        (tmp_path / "x.txt").write_text("abc " * 500)
        llada("prepare", "--input", tmp_path / "x.txt", "--output_dir", tmp_path / "d", "--sequence_length", 50)
        result = llada("evaluate", "--checkpoint", world / "run", "--data_dir", tmp_path / "d")
        assert_one_sentence(result, "characters", "trained on")

    def test_prompt_outside_the_vocabulary(self, llada: RunCommand, world: Path) -> None:
        assert_one_sentence(llada("sample", "--checkpoint", world / "run", "--prompt", "tö be"), "'ö'")

    def test_prompt_too_long(self, llada: RunCommand, world: Path) -> None:
        assert_one_sentence(llada("sample", "--checkpoint", world / "run", "--prompt", "to be " * 9), "shorten")
        result = llada("sample", "--checkpoint", world / "run", "--prompt", "to be", "--gen_length", 99)
        assert_one_sentence(result, "24", "shorten")

    def test_nothing_to_fill_in(self, llada: RunCommand, world: Path) -> None:
        assert_one_sentence(llada("sample", "--checkpoint", world / "run", "--template", "to be"), "<MASK>")

    def test_width_not_divisible_by_heads(self, llada: RunCommand, world: Path, tmp_path: Path) -> None:
        for network in ("llada", "encoder"):
            shape = ["--network", network, "--d_model", 100, "--n_heads", 3]
            result = llada("train", *shape, "--data_dir", world / "data", "--output_dir", tmp_path / "run")
            assert_one_sentence(result, "d_model 100", "try d_model")
        assert not (tmp_path / "run").exists()

    def test_sequence_longer_than_the_text(self, llada: RunCommand, world: Path, tmp_path: Path) -> None:
        result = llada(
            "prepare", "--input", world / "text.txt", "--output_dir", tmp_path / "d", "--sequence_length", 10**6
        )
        assert_one_sentence(result, "--sequence_length 1000000")
        result = llada(
            "train", "--data_dir", world / "data", "--output_dir", tmp_path / "r", "--sequence_length", 10**5
        )
        assert_one_sentence(result, "shorten")
        assert list(tmp_path.iterdir()) == []

    def test_missing_and_broken_checkpoints(self, llada: RunCommand, world: Path, tmp_path: Path) -> None:
        assert_one_sentence(llada("sample", "--checkpoint", tmp_path / "none"), "is not there")
        assert_one_sentence(llada("sample", "--checkpoint", tmp_path), "no checkpoint")
        assert_one_sentence(llada("train", "--resume", tmp_path), "no run to resume")

    def test_odd_options(self, llada: RunCommand, world: Path) -> None:
        run, data = world / "run", world / "data"
        assert_one_sentence(
            llada("evaluate", "--checkpoint", run, "--data_dir", data, "--masks_per_window", 3), "pairs"
        )
        assert_one_sentence(llada("sample", "--checkpoint", run, "--temperature", "-1"), "temperature")
        assert_one_sentence(
            llada("train", "--data_dir", data, "--batch_size=5", "--complementary", "--output_dir", run / "x"), "even"
        )
        assert llada("train", "--preset", "laptob").code == 2

    def test_full_disk_loses_nothing(self, llada: RunCommand, world: Path, tmp_path: Path) -> None:
        """The real writers meet a limit on the size of files; what the run had saved stays and can be resumed."""
        run = tmp_path / "run"
        assert llada("train", *TINY, *SHORT, "--data_dir", world / "data", "--output_dir", run).code == 0
        before = {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()}
        weights = (run / "checkpoints" / "last" / "model.safetensors").stat().st_size
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            for allowed in (weights - 1000, weights + 1000):  # the weights do not fit; they do, but not the state
                resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, limits[1]))
                result = llada("train", "--resume", run, "--steps", 12)
                assert_one_sentence(result, "could not be written", "unharmed", "--resume")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        after = {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()}
        assert after == before
        assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
            "best",
            "last",
            "step-00000004",
            "step-00000008",
        ]
        assert llada("train", "--resume", run, "--steps", 12).code == 0

    def test_impossible_numbers(self, llada: RunCommand, world: Path, tmp_path: Path) -> None:
        run = world / "run"
        for flag in ("--batch_size", "--sequence_length"):
            for value in ("0", "-5"):
                assert_one_sentence(llada("evaluate", "--checkpoint", run, flag, value), flag, "must be")
        assert_one_sentence(llada("sample", "--checkpoint", run, "--steps", "0"), "steps must be at least 1")
        for arguments in (
            ["--steps", "-3"],
            ["--minutes", "0"],
            ["--decay", "0"],
            ["--network", "encoder", "--dropout", "2"],
        ):
            result = llada("train", *arguments, "--data_dir", world / "data", "--output_dir", tmp_path / "r")
            assert_one_sentence(result, arguments[-1].split("=")[-1])
        assert not (tmp_path / "r").exists()


def test_output_may_be_cut_off(world: Path) -> None:
    """As by `llada sample | head`: no complaint."""
    process = subprocess.Popen(
        [sys.executable, "-m", "llada", "sample", "--checkpoint", str(world / "run"), "--n_samples", "2"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert "Broken pipe" not in process.stderr.read()
    process.wait(timeout=PATIENCE)


def test_ctrl_c_saves_and_says_how_to_go_on(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "llada",
        "train",
        *TINY,
        "--data_dir",
        str(world / "data"),
        "--output_dir",
        str(run),
    ]
    process = subprocess.Popen(
        [*command, "--steps", "1000000", "--log_every", "1", "--device", "cpu"], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + PATIENCE
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, err
    assert f"llada train --resume {run}" in err
    assert "Traceback" not in err
    assert (run / "checkpoints" / "last" / "model.safetensors").is_file()


def test_module_runs_like_the_command() -> None:
    result = subprocess.run([sys.executable, "-m", "llada", "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"llada-trainer \d+\.\d+\.\d+\n", result.stdout)
