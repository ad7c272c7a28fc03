"""The library names options as Python does; the command line spells them as they are typed."""

import pytest

from llada.cli.flags import flag_of, in_flags, refuse_empty_paths
from llada.system.errors import UserError


@pytest.mark.parametrize(
    ("sentence", "typed"),
    [
        ("lower `gen_length`.", "lower --gen_length."),
        ('add `device="cpu"`.', "add --device cpu."),
        ("add `steps=100`, or `ema=0`.", "add --steps 100, or --ema 0."),
        ("add `complementary=False`.", "add --no-complementary."),
        ("add `activation_checkpointing=True`.", "add --activation_checkpointing."),
        ("add `compile=False`.", "add --compile False."),
        ("add `chat=FILE`.", "add --chat FILE."),
        ('go on with `resume="runs/a b"`.', "go on with --resume runs/a b."),
        ("run `llada prepare` first.", "run `llada prepare` first."),
        ('run `llada prepare` with `output_dir="x/y"`.', "run `llada prepare --output_dir x/y`."),
        (
            'use `llada train`, with `steps=5` and `device="cpu"`.',
            "use `llada train`, with --steps 5 and --device cpu.",
        ),
    ],
)
def test_names_become_flags(sentence: str, typed: str) -> None:
    assert in_flags(sentence) == typed


@pytest.mark.parametrize(
    "sentence", ["see `pip install x`", "raise `ulimit -v`", "a ` b", "`A` and `Some.thing()`", "``"]
)
def test_all_else_in_backticks_stays(sentence: str) -> None:
    assert in_flags(sentence) == sentence


def test_spelling_twice_changes_nothing() -> None:
    once = in_flags('run `llada prepare` with `output_dir="x"`, or add `complementary=False`')
    assert in_flags(once) == once


def test_a_program_names_what_prepares_its_texts() -> None:
    sentence = 'run `llada prepare` with `output_dir="x"` or `llada train`'
    assert in_flags(sentence, "python get.py") == "run `python get.py --output_dir x` or `llada train`"


def test_a_flag_without_a_value_is_its_name() -> None:
    assert flag_of("steps") == "--steps"


@pytest.mark.parametrize(
    ("line", "flag"),
    [
        (["--checkpoint", ""], "checkpoint"),
        (["--output-dir="], "output_dir"),
        (["--steps", "3", "--resume", ""], "resume"),
        (["--data_dir", "a", "", "--steps", "3"], "data_dir"),
    ],
)
def test_an_empty_path_is_refused(line: list[str], flag: str) -> None:
    """As a shell passes for a variable that is not set; the current folder would be meant otherwise."""
    with pytest.raises(UserError, match=rf"^--{flag} has an empty value: name a file or a folder, or leave it out\.$"):
        refuse_empty_paths(line)


def test_other_empty_values_are_taken() -> None:
    """A prompt may be empty, and `--resume` has no value where the run is the default one."""
    for line in (
        ["--prompt", ""],
        ["--resume"],
        ["--resume", "--steps", "3"],
        [],
        ["--checkpoint", "."],
        ["--log", ""],
    ):
        refuse_empty_paths(line)
