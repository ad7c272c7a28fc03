"""Lets each call that writes or reads a checkpoint or a prepared folder fail in turn, and looks at what is left.

Run under LD_PRELOAD with faulty_calls.c (test_faults.py does it): python inject.py LIBRARY FOLDER STRIDE. Prints a JSON
object: how many faults were injected, of which kind, how many were told in one sentence, and what went wrong, which
must be nothing.
"""

import ctypes
import errno
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from llada.checkpoints.folder import read_checkpoint
from llada.data.corpus import Corpus
from llada.data.prepared import PreparedText, prepare
from llada.system.checksums import find_damage
from llada.system.errors import UserError
from llada.training.config import DataOptions, NetworkOptions, OptimizerOptions, TrainConfig
from llada.training.plan import RunPlan
from llada.training.progress_bar import Display
from llada.training.run_folder import RunFolder
from llada.training.state import read_state
from llada.training.trainer import Trainer

KINDS = {"open": 1, "read": 2, "write": 3, "short write": 4, "fsync": 5, "rename": 6}
ERRORS = {
    "open": [errno.EACCES, errno.EIO, errno.ENOSPC],
    "read": [errno.EIO],
    "write": [errno.ENOSPC, errno.EIO, errno.EDQUOT],
    "short write": [0],
    "fsync": [errno.EIO, errno.ENOSPC],
    "rename": [errno.EIO, errno.EACCES, errno.ENOSPC],
}
MOST_CALLS = 400  # of a kind in one operation; far more than there are
WRITING, READING = ("open", "write", "short write", "fsync", "rename"), ("open", "read")


class Injector:
    """Runs operations with one call of theirs failing, and counts."""

    def __init__(self, library: str, folder: Path, stride: int) -> None:
        self.calls = ctypes.CDLL(library)
        self.folder, self.stride = folder, stride
        self.injected: Counter[str] = Counter()
        self.told = 0
        self.wrong: list[str] = []

    def sweep(
        self, what: str, kinds: tuple[str, ...], before: Callable[[], None], do: Callable[[], object],
        check: Callable[[bool], str | None],
    ) -> None:  # fmt: skip
        """Every `stride`-th call of `do` fails, with each error in turn; `check` says what is wrong then, or None.

        Args:
            check: told whether `do` reported a failure.
        """
        for kind in kinds:
            for error in ERRORS[kind]:
                for nth in range(0, MOST_CALLS, self.stride):
                    before()
                    self.calls.arm(KINDS[kind], error, nth, os.fsencode(self.folder))
                    failed = False
                    try:
                        do()
                    except UserError as failure:
                        failed = True
                        self.told += 1
                        if "\n" in str(failure) or not str(failure).endswith("."):
                            self.wrong.append(f"{what}: no sentence: {failure}")
                    except OSError:  # the command line makes a sentence of it
                        failed = True
                    except Exception as failure:
                        failed = True
                        self.wrong.append(f"{what}, {kind} {nth}: {type(failure).__name__}: {failure}")
                    if not self.calls.disarm():
                        break  # there are no more calls
                    self.injected[f"{what}: {kind} {errno.errorcode.get(error, '')}".strip()] += 1
                    if trouble := check(failed):
                        self.wrong.append(f"{what}, {kind} {nth} with {errno.errorcode.get(error, 'half')}: {trouble}")


def main() -> None:
    library, folder, stride = sys.argv[1], Path(sys.argv[2]).resolve(), int(sys.argv[3])
    torch.set_num_threads(1)
    injector = Injector(library, folder, stride)
    text = "to be or not to be that is the question " * 40
    data = prepare(Corpus(text, "file", "made up"), folder / "data", 50)
    for sweep in (sweep_saving, sweep_preparing, sweep_reading):
        sweep(injector, folder, data)
    print(
        json.dumps(
            {
                "injected": sum(injector.injected.values()),
                "by_kind": injector.injected,
                "told": injector.told,
                "wrong": injector.wrong,
            }
        )
    )


def make_trainer(folder: Path, data: PreparedText) -> Trainer:
    """A run that has checkpoints of the steps 2 and 4, and is at 5."""
    config = TrainConfig(
        network=NetworkOptions(d_model=8, n_heads=1, n_layers=1),
        data=DataOptions((data.folder,), sequence_length=16),
        optimizer=OptimizerOptions(warmup_steps=2),
        output_dir=folder / "run",
        batch_size=2, steps=4, log_every=1, evaluate_every=2, evaluation_windows=2, device="cpu", precision="fp32",
    )  # fmt: skip
    run = RunFolder(config.output_dir)
    run.start(config)
    trainer = Trainer(RunPlan.of(config, data), run)
    trainer.run(Display(Console(quiet=True), None))
    trainer.progress.step = 5
    return trainer


def sweep_saving(injector: Injector, folder: Path, data: PreparedText) -> None:
    """Saving step 5, in a folder that has 2 and 4: both stay whole, `last` is 4 or a whole 5."""
    trainer = make_trainer(folder, data)
    run, untouched = trainer.folder, folder.with_name("untouched")
    shutil.copytree(run.path, untouched, symlinks=True)

    def before() -> None:
        shutil.rmtree(run.path)
        shutil.copytree(untouched, run.path, symlinks=True)

    def save() -> None:
        packed = trainer.state.pack(trainer.progress, None, trainer.data, False, trainer.config.to_json())
        run.save(trainer.progress, trainer.plan, trainer.model, packed, trainer.model.network.state_dict())

    def check(failed: bool) -> str | None:
        steps = [run.checkpoints / f"step-{step:08d}" for step in (2, 4)]
        if failed and not all(step.is_dir() for step in steps):
            return "an earlier checkpoint is lost"
        for step in (*run.checkpoints.glob("step-*"), run.last):
            if damage := find_damage(step, ["checksums.json"]):
                return f"{step.name} is broken: {damage}"
            read_state(step)
            read_checkpoint(step)
        if not failed and run.last_step != 5:
            return "nobody was told that nothing was saved"
        leftovers = list(run.checkpoints.glob(".*"))
        run.recover()
        if list(run.checkpoints.glob(".*")):
            return f"{leftovers} stay"
        return None

    injector.sweep("save", WRITING, before, save, check)


def sweep_preparing(injector: Injector, folder: Path, data: PreparedText) -> None:
    """Preparing another text in the place of one: the old or the new, whole."""
    place = folder / "prepared"
    texts = [Corpus("old text " * 20, "file", "old"), Corpus("a new one " * 30, "file", "new")]

    def before() -> None:
        prepare(texts[0], place, 10)

    def check(failed: bool) -> str | None:
        there = PreparedText.open(place).metadata["origin"]
        if there != ("old" if failed else "new") and not (failed and there == "new"):
            return f"the {there} text is there"
        return None

    injector.sweep("prepare", WRITING, before, lambda: prepare(texts[1], place, 10), check)


def sweep_reading(injector: Injector, folder: Path, data: PreparedText) -> None:
    """Opening what is whole, with a disk that cannot be read: told, and never half of it used."""
    run = RunFolder(folder / "run")
    expected = torch.cat([weight.flatten() for weight in read_checkpoint(run.last).model.parameters()])
    opened: list[object] = []

    def open_checkpoint() -> None:
        opened[:] = [torch.cat([weight.flatten() for weight in read_checkpoint(run.last).model.parameters()])]
        read_state(run.last)

    def open_data() -> None:
        opened[:] = [PreparedText.open(data.folder).fingerprints]

    def check_checkpoint(failed: bool) -> str | None:
        return None if failed or torch.equal(opened[0], expected) else "other weights were read"  # type: ignore[arg-type]

    def check_data(failed: bool) -> str | None:
        return None if failed or opened[0] == data.fingerprints else "other data were read"

    injector.sweep("load", READING, opened.clear, open_checkpoint, check_checkpoint)
    injector.sweep("open data", READING, opened.clear, open_data, check_data)


if __name__ == "__main__":
    main()
