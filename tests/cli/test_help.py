"""The help of every command: each option is explained in a sentence that stands alone and fits a terminal of 80."""

import dataclasses
import re
from typing import Any

import pytest

from llada.cli.chat import ChatOptions
from llada.cli.compare import CompareOptions
from llada.cli.doctor import DoctorOptions
from llada.cli.evaluate import EvaluateOptions
from llada.cli.export import ExportOptions
from llada.cli.options import _join_help_lines, _nested, parse
from llada.cli.plot import PlotOptions
from llada.cli.prepare import PrepareOptions
from llada.cli.sample import SampleOptions
from llada.cli.serve import ServeOptions
from llada.cli.size_report import SizeOptions
from llada.training.config import TrainConfig

OPTIONS: dict[str, type] = {
    "prepare": PrepareOptions,
    "train": TrainConfig,
    "finetune": TrainConfig,
    "chat": ChatOptions,
    "evaluate": EvaluateOptions,
    "compare": CompareOptions,
    "sample": SampleOptions,
    "serve": ServeOptions,
    "export": ExportOptions,
    "plot": PlotOptions,
    "doctor": DoctorOptions,
    "size": SizeOptions,
}
FOREIGN_WORDS = (
    "beside", "product", "products", "linear map", "linear maps", "by heart", "mended", "told", "tells",
    "to be had", "is no", "are no", "founding document", "recomputed", "tables of",
)  # fmt: skip


def explanations(options: type) -> dict[str, str]:
    _join_help_lines(options)
    found: dict[str, str] = {}
    for option in dataclasses.fields(options):
        inner = _nested(option)
        found.update({option.name: option.metadata.get("help", "")} if inner is None else explanations(inner))
    return found


@pytest.mark.parametrize("command", OPTIONS)
def test_every_option_is_explained_in_words_that_stand_alone(command: str) -> None:
    for name, text in explanations(OPTIONS[command]).items():
        assert re.match(r'[A-Z]|"', text), f"{name}: {text!r} begins small"
        assert len(text.split()) >= 4, f"{name}: {text!r} is short"
        assert text.endswith("."), f"{name}: {text!r} has no end"
        assert not re.match(r"(Of|By|With|As|To) \w+( \w+)?[;.]", text), f"{name}: {text!r} hangs on its name"


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", OPTIONS)
def test_help_fits_the_terminal_and_has_the_words_of_the_field(
    llada: Any, command: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = llada(command, "--help").out
    assert [line for line in text.splitlines() if len(line) > columns] == []
    words = " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())
    assert [word for word in FOREIGN_WORDS if re.search(rf"\b{word}\b", words)] == []


def test_a_docstring_of_several_lines_is_one_paragraph(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    @dataclasses.dataclass
    class Options:
        """Options with a text that the source breaks before a quote and before a digit."""

        size: int = 3
        """Number of things, which is
        1 or more, or
        "all" of them."""

    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit):
        parse(Options, "llada x", ["--help"], "Do a thing\nor two.")
    out = capsys.readouterr().out
    assert '--size INT  Number of things, which is 1 or more, or "all" of them. (default: 3)' in out
    assert "  Do a thing or two.\n" in out


def test_defaults_of_nested_options_stay_flags_without_a_prefix() -> None:
    options = parse(EvaluateOptions, "llada evaluate", ["--checkpoint", "a", "--order", "random", "--samples", "3"], "")
    assert (options.quality.sampler.order, options.quality.samples) == ("random", 3)
