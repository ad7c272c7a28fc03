"""The run folder: its configuration, its checkpoints, and how a run goes on from them.

config.json                     the resolved configuration
metrics.jsonl                   one object a logged step
curves.png, samples/
checkpoints/step-NNNNNNNN/      a model (checkpoint.py) or an adapter (adapters.py), training_state.pt, and checksums
checkpoints/last, best          which stand for two of these (run_layout.py)

A checkpoint is written aside, is on the disk as a whole, and is then renamed; names are replaced in one step. So a kill
at any moment leaves whole checkpoints, and leftovers that `recover` removes. It also finds a checkpoint that
was damaged later, by its checksums.
"""

import dataclasses
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from llada.checkpoints.folder import CONFIG_FILE, save_weights
from llada.checkpoints.lora import save_adapter
from llada.checkpoints.lora_files import ADAPTER_CONFIG_FILE
from llada.checkpoints.pieces import Stored
from llada.checkpoints.run_layout import (
    BEST,
    CHECKPOINTS_FOLDER,
    LAST,
    SAMPLES_FOLDER,
    followed,
    newest_first,
    point,
    step_folder,
    step_of,
)
from llada.models import MaskPredictor
from llada.system.checksums import find_damage, write_checksums
from llada.system.errors import UserError, first_line
from llada.system.files import folder_written_whole, resolved, write_json
from llada.system.format import bytes_in_words
from llada.system.locks import Lock
from llada.system.regular_files import check_no_link, check_regular, make_own_folder
from llada.system.temporary_names import remove_asides
from llada.training.config import TrainConfig
from llada.training.copies import DAMAGED, free_name, take_in_copies
from llada.training.own_names import foreign_names
from llada.training.plan import RunPlan
from llada.training.pruning import prune
from llada.training.state import (
    STATE_FILE,
    Progress,
    Resumed,
    RunState,
    changed_data,
    changed_settings,
    damaged_state,
    read_state,
)
from llada.training.state_file import write_state_file

SPARE_BYTES = 2_000_000  # in addition to a checkpoint: its small files, samples, curves, metrics


class RunFolder:
    """A folder that holds one run."""

    def __init__(self, path: Path, lock: Lock | None = None) -> None:
        """
        Args:
            lock: of the folder, to be looked at before it is written.
        """
        self.path, self.lock = path, lock
        self.checkpoints = path / CHECKPOINTS_FOLDER

    @property
    def last(self) -> Path:
        """The checkpoint that a run would go on from."""
        return followed(self.checkpoints / LAST)

    def has_checkpoint(self) -> bool:
        return self.last.is_dir() or bool(newest_first(self.checkpoints))

    @property
    def last_step(self) -> int | None:
        """Step of the checkpoint that a run would go on from; None if there is none."""
        return step_of(resolved(self.last)) if self.last.is_dir() else None

    def check_there(self) -> None:
        """Refuse to write to another folder than the one that was locked.

        Raises:
            UserError: it was renamed, removed, or replaced.
        """
        if self.lock is not None:
            self.lock.check()

    def check_resumable(self) -> None:
        """Refuse to resume a run that ended before its first checkpoint.

        Raises:
            UserError: it did.
        """
        if not self.has_checkpoint():
            raise UserError(f"{self.path} has no checkpoint yet: start the run again without `resume`.")

    def check_free(self) -> None:
        """Refuse a folder for a new run that holds anything but what a run left that never came to a checkpoint.

        Raises:
            UserError: it holds a run, or something else, which a new run would overwrite or be mixed with.
        """
        if self.has_checkpoint():
            raise UserError(
                f'{self.path} holds a run already: go on with `resume="{self.path}"`, or choose another `output_dir`.'
            )
        foreign = foreign_names(self.path)
        if foreign:
            raise UserError(
                f"{self.path} holds {foreign[0]}, which is not of a run: choose a new folder, or an empty one, as "
                "`output_dir`."
            )

    def check_continues(self, config: TrainConfig) -> None:
        """Refuse to resume with settings that need different weights or optimizer state.

        Raises:
            UserError: a setting that cannot change differs.
        """
        before = self.read_config(self.path)
        pairs = {name: (getattr(before, name), getattr(config, name)) for name in ("method", "weights", "draws")}
        if config.method == "full":  # an adapter's base may have moved: it is known by its fingerprint
            pairs["base"] = (before.base, config.base)
        for name in ("optimizer", "optimizer_state"):
            pairs[name] = (getattr(before.optimizer, name), getattr(config.optimizer, name))
        if (before.optimizer.ema == 0) != (config.optimizer.ema == 0):  # one has an average that the other lacks
            pairs["ema"] = (before.optimizer.ema, config.optimizer.ema)
        for field in dataclasses.fields(config.lora):
            pairs[field.name] = (getattr(before.lora, field.name), getattr(config.lora, field.name))
        for name, (was, asked) in pairs.items():
            if was != asked:
                raise UserError(
                    f"A run goes on with what it was started with, and `{name}` was {was}, not {asked}: leave it out, "
                    "or start a new run."
                )

    def start(self, config: TrainConfig) -> None:
        """Write the resolved configuration, that of a resumed run with what has been changed."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / CONFIG_FILE, config.to_json())
        for name in (CHECKPOINTS_FOLDER, SAMPLES_FOLDER):
            make_own_folder(self.path / name)  # before the first step is spent on what is written there

    @staticmethod
    def read_config(path: Path) -> TrainConfig:
        """The configuration of the run in this folder.

        Raises:
            UserError: the folder lacks a run, or its configuration cannot be used.
        """
        if not (path / CONFIG_FILE).is_file():
            raise UserError(f"{path} holds no run to resume: check the path, or start one without `resume`.")
        return TrainConfig.read(path / CONFIG_FILE)

    def recover(self) -> list[str]:
        """Put in order what a kill or a disk has left: to be called by the holder of the folder's lock.

        What was half written goes. Folders in the place of `last` and `best` become names again (copies.py). `last` is
        pointed to the newest checkpoint that is whole; newer ones that are not are kept as damaged-step-NNNNNNNN.

        Returns:
            What was found, in sentences for people.

        Raises:
            UserError: there are checkpoints, and all are damaged, or they are elsewhere, by a link; nothing is changed
                then.
        """
        self._remove_leftovers()
        sentences = take_in_copies(self.checkpoints)
        damaged: dict[Path, str] = {}
        for folder in newest_first(self.checkpoints):
            damage = find_damage(folder, [STATE_FILE, CONFIG_FILE] if not _holds_adapter(folder) else [STATE_FILE])
            if damage is None:
                break
            damaged[folder] = damage
        else:
            if damaged:
                what = "; ".join(f"{folder.name}: {damage}" for folder, damage in damaged.items())
                raise UserError(
                    f"No checkpoint of {self.path} is whole ({what}): restore one of them from a copy, or start again "
                    "with another `output_dir`."
                )
            return sentences
        for bad, damage in damaged.items():
            kept_as = free_name(bad.with_name(f"{DAMAGED}{bad.name}"))
            os.rename(bad, kept_as)
            sentences.append(
                f"The checkpoint {bad} is damaged ({damage}): it is kept as {kept_as.name}, and {folder.name} is used."
            )
        point(self.checkpoints / LAST, folder)
        return sentences

    def _remove_leftovers(self) -> None:
        """Whatever was on its way in or out when its process was killed, and nothing else (temporary_names.py)."""
        for place in (self.checkpoints, self.path / SAMPLES_FOLDER):
            check_no_link(place)
            remove_asides(place)
        remove_asides(self.path)

    def check_space(self, n_bytes: int, step: int) -> None:
        """Refuse to begin a checkpoint that would not fit.

        Raises:
            UserError: it would not.
        """
        place = next(path for path in (self.checkpoints, *self.checkpoints.parents) if path.exists())
        free, needed = shutil.disk_usage(place).free, n_bytes + SPARE_BYTES
        if needed > free:
            goes_on = f'go on with `resume="{self.path}"`' if self.has_checkpoint() else "start again"
            raise UserError(
                f"The disk of {self.path} has {bytes_in_words(free)} left and a checkpoint (step {step}) needs "
                f"{bytes_in_words(needed)}: free some space and {goes_on}; the checkpoints there are unharmed."
            )

    def save(
        self,
        progress: Progress,
        plan: RunPlan,
        model: MaskPredictor,
        packed: Mapping[str, Any],
        weights: Mapping[str, Stored] | None,
    ) -> None:
        """Write the checkpoint of this step, point `last` (and `best`, if it is the best one) to it, prune the others.

        Args:
            packed: of `RunState.pack`.
            weights: of the model; None to store the adapter that is in `model`.

        Raises:
            UserError: it could not be written; the checkpoints that were there are unharmed.
        """
        folder = step_folder(self.checkpoints, progress.step)
        try:
            if folder.is_symlink():  # which would be followed; what it leads to is not ours to replace
                os.rename(folder, free_name(folder.with_name(f"copy-of-{folder.name}")))
            with folder_written_whole(folder) as aside:
                if weights is None:
                    save_adapter(aside, model.network, str(plan.config.base))
                else:
                    save_weights(aside, plan.network_config, plan.data.tokenizer, weights)
                write_state_file(aside / STATE_FILE, packed)
                write_checksums(aside)
            point(self.checkpoints / LAST, folder)
            self.point_best(progress)
        except (OSError, SafetensorError, RuntimeError) as error:  # torch and safetensors wrap what the disk says
            raise UserError(
                f"The checkpoint of step {progress.step} could not be written to {self.checkpoints} "
                f"({first_line(error)}): the earlier ones are unharmed, see to the disk and go on with "
                f'`resume="{self.path}"`.'
            ) from error
        self.prune(plan.config.keep)

    def load(
        self,
        state: RunState,
        data: Mapping[str, str],
        settings: Mapping[str, Any],
        allow_changed_data: bool = False,
    ) -> Resumed:
        """Put the last checkpoint into these objects.

        Args:
            settings: the configuration now, in JSON's values.
            data: checksums of what the run learns from now, by name.
            allow_changed_data: go on all the same if they are others.

        Raises:
            UserError: the checkpoint is missing, broken, of another network, or of another text.
        """
        folder = self.last
        self.check_resumable()
        check_regular(folder / STATE_FILE)
        saved = read_state(folder, is_mapped=state.is_shared_out)
        changed = changed_data(saved, data)
        if changed and not allow_changed_data:
            raise UserError(
                f"The data are not what {self.path} was trained on any more (changed: {', '.join(changed)}): restore "
                "them (a text, by `llada prepare`), start a new run, or add `changed_data` to go on all the same."
            )
        try:
            progress = state.unpack(saved, folder, _samples_per_step({**settings, **saved.get("settings", {})}))
        except UserError:
            raise
        except Exception as error:  # what a stranger's state holds can make torch raise almost anything
            raise damaged_state(folder, error) from error
        self.point_best(progress)
        changes = changed_settings(saved.get("settings", {}), settings)
        return Resumed(progress, saved.get("is_compiled"), changes)

    def point_best(self, progress: Progress) -> None:
        """Make `best` stand for the best checkpoint, if that is there; a name of nothing goes."""
        folder, name = step_folder(self.checkpoints, progress.best_step), self.checkpoints / BEST
        now = followed(name)
        if folder.is_dir():
            if resolved(now) != resolved(folder):
                point(name, folder)
        elif not now.is_dir():
            name.unlink(missing_ok=True)

    def prune(self, n_newest: int) -> None:
        """Remove the checkpoints that need not be kept (pruning.py)."""
        prune(self.checkpoints, n_newest)


class RunReader(RunFolder):
    """The run folder of a process that only reads it, since another one writes it."""

    def start(self, config: TrainConfig) -> None:
        """Process 0 does it."""

    def check_space(self, n_bytes: int, step: int) -> None:
        """Process 0 does it."""

    def point_best(self, progress: Progress) -> None:
        """Process 0 does it."""

    def prune(self, n_newest: int) -> None:
        """Process 0 does it."""


def _samples_per_step(settings: Mapping[str, Any]) -> int:
    """Compute the samples of a step from a stored configuration, for states from before samples were counted."""
    sequences = settings.get("batch_size", 1) * settings.get("accumulate", 1)
    return int(sequences // (2 if settings.get("noise", {}).get("complementary") else 1))


def _holds_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG_FILE).exists()
