"""Which checkpoints of a run stay: the newest ones, the best, and those that an adapter of another run stands on."""

import contextlib
import errno
import os
from pathlib import Path

from llada.checkpoints.run_layout import BEST, CHECKPOINTS_FOLDER, LAST, followed, newest_first, step_of
from llada.system.errors import UserError
from llada.system.files import resolved
from llada.system.regular_files import append_own
from llada.system.temporary_names import aside_of, remove_asides

KEPT_FILE = "adapters.txt"  # names the runs whose adapters were trained on this checkpoint


def prune(checkpoints: Path, n_newest: int) -> None:
    """Remove the checkpoints that the rule above does not keep.

    Names go first, so that a kill leaves no half of a checkpoint under its name. What a disk
    refuses to remove stays, and is tried again after the next checkpoint.
    """
    folders = newest_first(checkpoints)
    kept = {resolved(followed(checkpoints / name)) for name in (LAST, BEST)}
    kept |= {resolved(folder) for folder in folders[:n_newest]}
    for folder in folders:
        if resolved(folder) not in kept and not (folder / KEPT_FILE).exists():
            with contextlib.suppress(OSError):
                os.rename(folder, aside_of(folder, "leaving"))
    remove_asides(checkpoints, kind="leaving")


def keep_for(run: Path, checkpoint: Path) -> None:
    """Keep a run's checkpoint from being pruned, because the adapter of another run stands on it.

    Nobody prunes other folders, so nothing is written into them.

    Raises:
        UserError: the checkpoint is gone.
    """
    if step_of(checkpoint) is None or checkpoint.parent.name != CHECKPOINTS_FOLDER:
        return
    try:
        append_own(checkpoint / KEPT_FILE, f"{resolved(run)}\n")
    except FileNotFoundError as error:
        raise UserError(f"{checkpoint} is gone, removed by the run that it is of: repeat the command.") from error
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):  # nobody prunes what nobody may write
            raise
