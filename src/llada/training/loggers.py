"""Loggers, to which the lines of metrics.jsonl are copied: TensorBoard, Weights & Biases (`log`).

metrics.jsonl is the record of a run; a logger is a copy of it for another program. So a logger that fails is left out
for the rest of the run, which goes on.

To add a logger: a subclass of `Callback` that is made from a run folder and the run's settings, and its name in
`LOGGERS`.
"""

import importlib
import importlib.util
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from llada.evaluation.nelbo import Nelbo
from llada.system.errors import UserError, first_line
from llada.system.files import write_text_whole
from llada.system.regular_files import make_own_folder
from llada.training.callbacks import Callback
from llada.training.data_source import Sample
from llada.training.log import StepResult
from llada.training.state import Progress


class Logger(Callback):
    """A callback that is made for a run by its name on the command line."""

    package: ClassVar[str]
    """What has to be installed for it; it is also the folder of its files within the run folder."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """
        Args:
            folder: the run folder.
            settings: the configuration of the run, in JSON's values.
        """


class TensorBoardLogger(Logger):
    """Event files in the run folder, in tensorboard/: TensorBoard reads the folder that holds the runs."""

    package = "tensorboard"

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder / self.package

    def on_start(self, progress: Progress) -> None:
        writer: Any = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        make_own_folder(self.folder)
        # What a run that was killed wrote after its last checkpoint is written again.
        self.writer = writer(str(self.folder), purge_step=progress.step + 1 if progress.step else None)

    def on_metrics(self, row: Mapping[str, Any]) -> None:
        for name, value in scalars(row):
            self.writer.add_scalar(name, value, row["step"])

    def on_evaluation(self, progress: Progress, result: Nelbo, sample: Sample) -> None:
        self.writer.add_text("sample", sample.text, progress.step)

    def on_save(self, progress: Progress, folder: Path) -> None:
        self.writer.flush()

    def on_end(self) -> None:
        self.writer.close()


class WandbLogger(Logger):
    """A run of Weights & Biases, whose own environment variables say where to; WANDB_MODE=offline sends nothing.

    Its files, and the id by which a resumed run goes on with it, are in the run folder, in wandb/.
    """

    package = "wandb"

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.settings = folder, dict(settings)

    def on_start(self, progress: Progress) -> None:
        wandb: Any = importlib.import_module("wandb")
        self.run = wandb.init(
            project="llada", name=self.folder.resolve().name, dir=str(self.folder), config=self.settings,
            id=self._run_id(), resume="allow",
        )  # fmt: skip
        self.run.define_metric("*", step_metric="step")  # which may go back, as W&B's own counter may not

    def _run_id(self) -> str:
        path = self.folder / self.package / "run-id.txt"
        make_own_folder(path.parent)
        if not path.is_file():
            write_text_whole(path, uuid.uuid4().hex)
        return path.read_text(encoding="utf-8")

    def on_metrics(self, row: Mapping[str, Any]) -> None:
        self.run.log({"step": row["step"], **dict(scalars(row))})

    def on_end(self) -> None:
        self.run.finish()


LOGGERS: dict[str, Any] = {"tensorboard": TensorBoardLogger, "wandb": WandbLogger}
"""The class for each name, which is constructed as `Logger` is."""
LOGGER_FOLDERS = frozenset({"tensorboard", "wandb"})


def scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a line of metrics.jsonl by name, but its step; those by t under the middle of their bin."""
    for name, value in row.items():
        if name == "step" or value is None or isinstance(value, bool):
            continue
        if isinstance(value, int | float):
            yield name, value
        elif isinstance(value, list):
            for i, part in enumerate(value):
                if isinstance(part, int | float):
                    yield f"{name}/{(i + 0.5) / len(value):.2f}", part


def check_loggers(names: Sequence[str]) -> None:
    """Refuse a logger that is unknown or whose package is not installed.

    Raises:
        UserError: one is.
    """
    for name in names:
        if name not in LOGGERS:
            raise UserError(f"`log` can be {', '.join(LOGGERS)}, not {name}: choose one of them, or leave it out.")
        if importlib.util.find_spec(LOGGERS[name].package) is None:
            package = LOGGERS[name].package
            raise UserError(
                f"`log={name}` needs the {package} package: pip install 'llada-trainer[{name}]', or leave it out."
            )


def make_loggers(
    names: Sequence[str], folder: Path, settings: Mapping[str, Any], say: Callable[[str], None]
) -> list[Callback]:
    """The loggers of a run, none of which can end it.

    Raises:
        UserError: see `check_loggers`.
    """
    check_loggers(names)
    return [Harmless(name, LOGGERS[name](folder, settings), say) for name in dict.fromkeys(names)]


class Harmless(Callback):
    """A logger that is left out for the rest of the run once it fails, which is said."""

    def __init__(self, name: str, logger: Callback, say: Callable[[str], None]) -> None:
        self.name, self.logger, self._say = name, logger, say
        self.has_failed = False

    def on_start(self, progress: Progress) -> None:
        self._try(lambda: self.logger.on_start(progress))

    def on_step(self, progress: Progress, done: StepResult) -> None:
        self._try(lambda: self.logger.on_step(progress, done))

    def on_metrics(self, row: Mapping[str, Any]) -> None:
        self._try(lambda: self.logger.on_metrics(row))

    def on_evaluation(self, progress: Progress, result: Nelbo, sample: Sample) -> None:
        self._try(lambda: self.logger.on_evaluation(progress, result, sample))

    def on_save(self, progress: Progress, folder: Path) -> None:
        self._try(lambda: self.logger.on_save(progress, folder))

    def on_end(self) -> None:
        self._try(self.logger.on_end)

    def _try(self, call: Callable[[], None]) -> None:
        if self.has_failed:
            return
        try:
            call()
        except Exception as error:  # whatever another program's library raises
            self.has_failed = True
            self._say(
                f"The run goes on without {self.name}, which failed ({first_line(error)}); metrics.jsonl has all lines."
            )
