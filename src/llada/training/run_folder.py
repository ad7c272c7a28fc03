"""The run folder: its configuration, its checkpoints, and how a run goes on from them.

config.json                     the resolved configuration
metrics.jsonl                   one object a logged step
curves.png, samples/
checkpoints/step-NNNNNNNN/      a model (checkpoint.py) or an adapter (adapters.py), and training_state.pt
checkpoints/last, best          links to two of these
"""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from llada.adapters import is_adapted, save_adapter
from llada.checkpoint import CHECKPOINTS_FOLDER, CONFIG_FILE, load_weights, save_weights
from llada.errors import UserError
from llada.files import folder_written_whole, read_json, write_json
from llada.models import MaskPredictor
from llada.optim import ExponentialAverage, trained_weights
from llada.training.config import TrainConfig
from llada.training.plan import RunPlan

STATE_FILE = "training_state.pt"
KEPT_FILE = "adapters.txt"  # names the runs whose adapters were trained beside this checkpoint


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0
    """Steps done."""
    seconds: float = 0.0
    """Time spent, evaluation included."""
    tokens: int = 0
    """That went through the network, padding included."""
    best_nelbo: float = float("inf")
    best_step: int = 0


class RunFolder:
    """A folder that holds one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / CHECKPOINTS_FOLDER
        self.last = self.checkpoints / "last"

    def has_checkpoint(self) -> bool:
        return self.last.is_dir()

    def check_resumable(self) -> None:
        """Refuse to resume a run that ended before its first checkpoint.

        Raises:
            UserError: it did.
        """
        if not self.has_checkpoint():
            raise UserError(f"{self.path} has no checkpoint yet: start the run again without --resume.")

    def check_free(self) -> None:
        """Refuse a folder that holds a run already, which a new one would spoil.

        Raises:
            UserError: there is one.
        """
        if self.has_checkpoint():
            raise UserError(
                f"{self.path} holds a run already: go on with --resume {self.path}, or choose another --output_dir."
            )

    def check_continues(self, config: TrainConfig) -> None:
        """Refuse to resume a run with other trained weights or moments than it has.

        Raises:
            UserError: a setting that cannot change differs.
        """
        before = self.read_config(self.path)
        pairs = {name: (getattr(before, name), getattr(config, name)) for name in ("method", "weights", "base")}
        for name in ("optimizer", "optimizer_state"):
            pairs[name] = (getattr(before.optimizer, name), getattr(config.optimizer, name))
        for field in dataclasses.fields(config.lora):
            pairs[field.name] = (getattr(before.lora, field.name), getattr(config.lora, field.name))
        for name, (was, asked) in pairs.items():
            if was != asked:
                raise UserError(
                    f"A run goes on with what it was started with, and --{name} was {was}, not {asked}: leave it out, "
                    "or start a new run."
                )

    def start(self, config: TrainConfig) -> None:
        """Write the resolved configuration, that of a resumed run with what has been changed."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / CONFIG_FILE, config.to_json())

    @staticmethod
    def read_config(path: Path) -> TrainConfig:
        """The configuration of the run in this folder.

        Raises:
            UserError: there is no run, or its configuration is of another version.
        """
        if not (path / CONFIG_FILE).is_file():
            raise UserError(f"{path} holds no run to resume: check the path, or start one without --resume.")
        return TrainConfig.from_json(read_json(path / CONFIG_FILE))

    def save(
        self,
        progress: Progress,
        plan: RunPlan,
        model: MaskPredictor,
        own_weights: Mapping[str, Tensor] | None,
        average: ExponentialAverage | None,
        optimizers: list[torch.optim.Optimizer],
    ) -> None:
        """Write the checkpoint of this step, point `last` (and `best`, if it is the best one) to it, prune the others.

        Args:
            model: what is stored as the model or the adapter.
            own_weights: those that are trained, where the model was lent their moving average.

        Raises:
            UserError: it could not be written; the checkpoints that were there are unharmed.
        """
        folder = self.checkpoints / f"step-{progress.step:08d}"
        state: dict[str, Any] = {
            "progress": vars(progress),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "weights": None if own_weights is None else dict(own_weights),
            "n_averaged": average.n_updates if average else 0,
            "text_sha256": plan.data.text_sha256,
        }
        try:
            with folder_written_whole(folder) as aside:
                if is_adapted(model.network):
                    save_adapter(aside, model.network, str(plan.config.base))
                else:
                    save_weights(aside, plan.network_config, plan.data.tokenizer, model.network.state_dict())
                torch.save(state, aside / STATE_FILE)
        except (OSError, SafetensorError, RuntimeError) as error:  # torch and safetensors wrap what the disk says
            raise UserError(
                f"The checkpoint of step {progress.step} could not be written to {self.checkpoints} "
                f"({_first_line(error)}): the earlier ones are unharmed, see to the disk and go on with "
                f"--resume {self.path}."
            ) from error
        self._point("last", folder)
        if progress.best_step == progress.step:
            self._point("best", folder)
        self._prune()

    def load(
        self,
        plan: RunPlan,
        model: MaskPredictor,
        average: ExponentialAverage | None,
        optimizers: list[torch.optim.Optimizer],
    ) -> Progress:
        """Put the state of the last checkpoint into these objects; an adapter is in the model already.

        Raises:
            UserError: the checkpoint is missing, broken, of another network, or of another text.
        """
        folder = self.last
        self.check_resumable()
        try:
            state = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
            if state["text_sha256"] != plan.data.text_sha256:
                raise UserError(
                    f"{plan.data.folder} is not what {self.path} was trained on any more: restore it (a text, by "
                    "`llada prepare`), or start a new run."
                )
            if not is_adapted(model.network):
                load_weights(model, folder)
            weights = trained_weights(model.network)
            if average is not None:
                average.n_updates = state["n_averaged"]
                for name, weight in weights.items():
                    average.weights[name].copy_(weight.detach())
                put_weights(model, state["weights"])
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                # Rates and decay come from the configuration, which may have been changed for the rest of the run.
                groups = optimizer.state_dict()["param_groups"]
                optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
            return Progress(**state["progress"])
        except UserError:
            raise
        except Exception as error:  # a damaged file makes torch raise almost anything
            raise UserError(
                f"{folder / STATE_FILE} cannot be resumed from ({_first_line(error)}): it is damaged or of another run."
            ) from error

    def _point(self, name: str, folder: Path) -> None:
        """Make `name` a link to a checkpoint, in one step, so that it never points nowhere."""
        aside = self.checkpoints / f".{name}.{os.getpid()}"
        aside.unlink(missing_ok=True)
        aside.symlink_to(folder.name)
        os.replace(aside, self.checkpoints / name)

    def _prune(self) -> None:
        """Keep the checkpoints that `last` and `best` point to, and those that an adapter stands on."""
        kept = {(self.checkpoints / name).resolve() for name in ("last", "best")}
        for folder in self.checkpoints.glob("step-*"):
            if folder.resolve() not in kept and not (folder / KEPT_FILE).exists():
                shutil.rmtree(folder)


def keep_for(run: Path, checkpoint: Path) -> None:
    """Keep a run's checkpoint from being pruned, because the adapter of another run stands on it."""
    with contextlib.suppress(OSError), (checkpoint / KEPT_FILE).open("a", encoding="utf-8") as file:
        file.write(f"{run.resolve()}\n")


@torch.no_grad()
def put_weights(model: MaskPredictor, weights: Mapping[str, Tensor]) -> None:
    """Copy these values into all weights that are trained."""
    for name, weight in trained_weights(model.network).items():
        weight.copy_(weights[name])


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0].rstrip(".:") if str(error) else type(error).__name__
