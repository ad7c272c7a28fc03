"""A small text and a small run that many tests share."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llada import cli
from llada.data.corpus import Corpus
from llada.data.prepared import PreparedText, prepare
from llada.training.config import DataOptions, NetworkOptions, NoiseOptions, OptimizerOptions, TrainConfig
from tests.support.commands import Result, RunCommand
from tests.support.warm_python import fork_server

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background of a shell; many tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)

WORDS = (
    "to be or not to be that is the question ",
    "whether tis nobler in the mind to suffer\n",
    "ay there's the rub ",
)


@pytest.fixture(scope="session")
def text() -> str:
    """Some 9,000 characters without much to learn from."""
    return "".join(WORDS[(i * i + i // 3) % 3] for i in range(260))


@pytest.fixture(scope="session")
def data(text: str, tmp_path_factory: pytest.TempPathFactory) -> PreparedText:
    folder = tmp_path_factory.mktemp("data") / "prepared"
    return prepare(Corpus(text, "file", "made up"), folder, sequence_length=100)


@pytest.fixture
def small_run(data: PreparedText, tmp_path: Path) -> TrainConfig:
    """A run of a second."""
    return TrainConfig(
        network=NetworkOptions(d_model=16, n_heads=2, n_layers=1),
        data=DataOptions(data_dir=(data.folder,), sequence_length=24),
        noise=NoiseOptions(complementary=True),
        optimizer=OptimizerOptions(warmup_steps=2),
        output_dir=tmp_path / "run",
        batch_size=4,
        steps=12,
        log_every=1,
        evaluate_every=6,
        evaluation_windows=4,
        device="cpu",
        precision="fp32",
    )


@pytest.fixture
def llada(capsys: pytest.CaptureFixture[str]) -> RunCommand:
    """Run a command in this process."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        try:
            cli.main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def warm_python() -> Iterator[list[str]]:
    """The words that start a Python process that has torch and the package imported as it begins."""
    with fork_server() as words:
        yield words


def _with_threads(n_threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On a busy machine, two threads wait for each other longer than such small products take."""
    yield from _with_threads(1)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Also where the machine has one core, or the environment asks for one thread."""
    yield from _with_threads(2)
