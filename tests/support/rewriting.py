"""Checkpoints that several processes read and write in parts, in small pieces, and what they read of the files."""

import errno
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from llada.checkpoints import pieces, safetensors
from llada.data.prepared import PreparedText
from llada.optim.parts import kept_of
from llada.system.errors import UserError
from llada.training import gathering, nan_guard
from llada.training.group import OtherFailedError, joined
from llada.training.plan import RunPlan
from llada.training.run_folder import RunFolder, RunReader
from llada.training.state import read_state
from llada.training.trainer import Trainer

FEW = 50  # numbers of a piece
WRITTEN, REFUSED, LEFT = 0, 2, 3  # exit codes; the last is of a process that leaves it to another to say what is wrong


def rewrite(run: str, to: str, way: str) -> NoReturn:
    """Read the last checkpoint of a run in parts and write it, as it is, into the folder of another; exits.

    Prints the bytes that were read of the weights, and those of this process's parts.

    Args:
        way: "background", "foreground", or "fails", as if the disk were full in the middle of the weights.
    """
    with pytest.MonkeyPatch.context() as patch:
        for module in (pieces, gathering, nan_guard):
            patch.setattr(module, "PIECE", FEW)
        try:
            _rewrite(Path(run), Path(to), way, patch)
        except UserError as error:
            sys.stderr.write(f"{error}")
            sys.exit(REFUSED)
        except OtherFailedError:
            sys.exit(LEFT)
    sys.exit(WRITTEN)


def _rewrite(run: Path, to: Path, way: str, patch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    map_entry = safetensors._map

    def map_and_count(entry: Any) -> Any:
        read.append(entry.n_bytes)
        return map_entry(entry)

    patch.setattr(safetensors, "_map", map_and_count)
    folder, config = RunReader(run), replace(RunFolder.read_config(run), parallel="fsdp")
    with joined(1) as group:
        plan = RunPlan.of(config, PreparedText.open(*config.data.data_dir), shard=group.shard)
        trainer = Trainer(plan, folder, resume=True, group=group)
        kept = [kept_of(weight)[0].nbytes for weight in trainer.model.network.state_dict().values()]
        print(sum(read), sum(kept))
        settings = read_state(folder.last, is_mapped=True)["settings"]
        exchange = gathering.Gathering(group)
        if way == "fails":
            patch.setattr(safetensors, "raw", _fail_after(20))
        with trainer.state.averaged() as own:
            packed = trainer.state.pack(trainer.progress, own, trainer.data, trainer.is_compiled, settings, exchange)
            trainer.saver.folder = RunFolder(to)
            trainer.saver.save(trainer.progress, plan, trainer.model, packed, way == "background", exchange)
        trainer.saver.wait()


def _fail_after(n: int) -> Any:
    written: list[Any] = []

    def raw(piece: Any) -> Any:
        written.append(piece)
        if len(written) > n:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pieces.raw(piece)

    return raw
