"""Numbers are refused by their range in one place, and misspelled names are answered with the right one."""

import contextlib
import dataclasses

import pytest

from llada.cli.chat import ChatOptions
from llada.cli.evaluate import EvaluateOptions
from llada.cli.export import ExportOptions
from llada.cli.options import RANGES, check_ranges, parse
from llada.cli.sample import SampleOptions
from llada.cli.size_report import SizeOptions
from llada.evaluation.nelbo import MOST_MASKS
from llada.sampling.config import SamplerConfig
from llada.system.errors import UserError
from llada.system.literals import LARGEST, LARGEST_FLOAT
from llada.training.config import LARGEST_SEED, TrainConfig
from tests.support.commands import RunCommand


def test_the_largest_seed_is_that_of_a_run() -> None:
    assert RANGES["seed"] == RANGES["chat_split_seed"] == (0, LARGEST_SEED)


def test_no_more_masks_can_be_asked_for_than_are_drawn_for_an_error() -> None:
    assert RANGES["masks_per_window"][1] == MOST_MASKS


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (SampleOptions, "--checkpoint a --seed 18446744073709551616"),
        (SampleOptions, "--checkpoint a --seed -1"),
        (SampleOptions, "--checkpoint a --n_samples 1000000000"),
        (SampleOptions, "--checkpoint a --frames 100000000"),
        (SampleOptions, "--checkpoint a --temperature 1e308"),
        (ChatOptions, "--checkpoint a --seed 18446744073709551616"),
        (EvaluateOptions, "--checkpoint a --seed 18446744073709551616"),
        (EvaluateOptions, "--checkpoint a --samples 100000000"),
        (EvaluateOptions, "--checkpoint a --masks_per_window 1000000000"),
        (ExportOptions, "--checkpoint a --output_dir b --shard_gb 1e300"),
        (SizeOptions, f"--d_model 1{'0' * 400}"),
        (TrainConfig, f"--steps 1{'0' * 400}"),
        (TrainConfig, f"--warmup_steps 1{'0' * 400}"),
        (TrainConfig, "--steps None --epochs 1e308"),
        (TrainConfig, "--accumulate 1000000000"),
        (TrainConfig, "--learning_rate nan"),
        (TrainConfig, "--clip inf"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(options: type, line: str) -> None:
    flag = line.split()[-2]
    with pytest.raises(UserError, match=rf"^{flag} must be .*, not .*: (choose another|correct it)\.$") as refusal:
        parse(options, "llada x", line.split(), "")
    assert len(str(refusal.value)) < 150


def test_the_edges_are_in() -> None:
    @dataclasses.dataclass
    class Inner:
        frames: int = 10_000

    @dataclasses.dataclass
    class Outer:
        inner: Inner = dataclasses.field(default_factory=Inner)
        seed: int = LARGEST_SEED
        steps: int | None = None
        rate: float = LARGEST_FLOAT
        windows: int = -LARGEST
        json: bool = True

    check_ranges(Outer())
    with pytest.raises(UserError, match=r"--frames must be from 0 to 10000, not 10001: choose another\."):
        check_ranges(Outer(Inner(10_001)))
    with pytest.raises(UserError, match=r"--rate must be a number of at most 1e\+30, not"):
        check_ranges(Outer(rate=1.0001e30))


@pytest.mark.parametrize(
    ("options", "wrong", "right"),
    [
        (TrainConfig, "--learnig_rate", "--learning_rate"),
        (TrainConfig, "--bach-size", "--batch_size"),
        (SampleOptions, "--temprature", "--temperature"),
        (EvaluateOptions, "--mask_per_window", "--masks_per_window"),
    ],
)
def test_a_misspelled_flag_is_answered_with_the_right_one(options: type, wrong: str, right: str) -> None:
    with pytest.raises(UserError) as refusal:
        parse(options, "llada x", ["--checkpoint", "a", wrong, "1"], "")
    assert f"Unrecognized options: {wrong}, 1: did you mean {right}?" in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "line", "sentence"),
    [
        (TrainConfig, "--steps x", "--steps must be a whole number, not 'x'"),
        (TrainConfig, "--learning-rate=x", "--learning_rate must be a number, not 'x'"),
        (TrainConfig, "--steps 5 --steps 1.5", "--steps must be a whole number, not '1.5'"),
        (TrainConfig, "--steps", "--steps needs a value"),
        (TrainConfig, "--masking x", "--masking must be one of bernoulli, exact_count, not 'x'"),
        (TrainConfig, "--model_name", "--model_name needs a value"),  # another name of --base
        (TrainConfig, "extra", "Unrecognized options: extra"),
        (SizeOptions, "--layers x", "--layers must be a whole number, not 'x'"),
        (EvaluateOptions, "", "--checkpoint must be given"),
        (EvaluateOptions, "--chekpoint x", "Unrecognized options: --chekpoint, x: did you mean --checkpoint?"),
    ],
)
def test_what_the_parser_refuses_is_one_sentence(options: type, line: str, sentence: str) -> None:
    with pytest.raises(UserError) as refusal:
        parse(options, "llada x", line.split(), "")
    assert str(refusal.value) == f"{sentence} (`llada x --help` lists the options)."


def test_without_its_events_the_parser_speaks_for_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are not of its public interface, and may go."""
    monkeypatch.setattr("llada.cli.options.on_parse_error", lambda _: contextlib.nullcontext())
    with pytest.raises(SystemExit) as end:
        parse(TrainConfig, "llada x", ["--steps", "x"], "")
    assert end.value.code == 2
    assert "--steps" in capsys.readouterr().err


def test_a_flag_that_is_like_none_is_only_refused() -> None:
    with pytest.raises(UserError) as refusal:
        parse(SampleOptions, "llada x", ["--checkpoint", "a", "--qqqqqq", "1"], "")
    assert "did you mean" not in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (SampleOptions, SamplerConfig(steps=None, temperature=1.0, remasking="random")),
        (ChatOptions, SamplerConfig(steps=None, block_length=32)),
    ],
)
def test_commands_that_write_have_the_sampler_of_their_purpose(
    options: type[SampleOptions | ChatOptions], expected: SamplerConfig
) -> None:
    line = ["--checkpoint", "a"]
    assert parse(options, "llada x", line, "").sampler == expected
    changed = parse(options, "llada x", [*line, "--steps", "3", "--cfg-scale", "2", "--mask_schedule", "cosine"], "")
    assert changed.sampler == dataclasses.replace(expected, steps=3, cfg_scale=2.0, mask_schedule="cosine")


def test_a_flag_that_a_nested_dataclass_refuses_is_named() -> None:
    with pytest.raises(
        UserError, match=r"^--block_length must be at least 1, not 0 \(`llada x --help` lists the options\)\.$"
    ):
        parse(ChatOptions, "llada x", ["--checkpoint", "a", "--block_length", "0"], "")


@pytest.mark.parametrize("flags", [["--sample_steps", "4"], ["--sample-steps=4"], ["--steps", "4"]])
def test_older_names_of_flags_are_read(flags: list[str]) -> None:
    line = ["--checkpoint", "a", "--samples", "1", *flags]
    options = parse(EvaluateOptions, "llada x", line, "", renamed={"sample_steps": "steps"})
    assert options.quality.sampler == SamplerConfig(steps=4, temperature=1.0, remasking="random")


def test_a_misspelled_command_is_answered_with_the_right_one(llada: RunCommand) -> None:
    assert "did you mean `llada train`?" in llada("trian").err
    assert "did you mean --resume?" in llada("train", "--resum", "x").err
    assert "did you mean --checkpoint?" in llada("finetune", "--chekpoint", "x").err
    assert "did you mean `llada evaluate`?" in llada("evalaute").err
    assert "did you mean" not in llada("qqqqqq").err
