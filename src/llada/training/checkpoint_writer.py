"""Write checkpoints in the background if there is memory for a copy of what they hold, in the foreground if not."""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from llada.checkpoints.lora import is_adapted
from llada.checkpoints.pieces import InParts, whole_on_host
from llada.models import MaskPredictor
from llada.system.device import free_memory_bytes
from llada.system.errors import UserError
from llada.system.mapped_files import check_mapped
from llada.training.gathering import Gathering
from llada.training.group import ALONE
from llada.training.plan import RunPlan
from llada.training.run_folder import RunFolder
from llada.training.state import Progress, bytes_in

SHARE_OF_FREE_MEMORY = 0.5  # that a copy may take


class Saver:
    """Saves one checkpoint at a time; the next call reports what went wrong."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(
        self,
        progress: Progress,
        plan: RunPlan,
        model: MaskPredictor,
        packed: Mapping[str, Any],
        in_background: bool,
        gathering: Gathering | None = None,
    ) -> None:
        """Save this state of a run, the one before having been saved, if all is as it was when the run began.

        Args:
            in_background: return before it is on the disk, if there is memory for a copy, which is made first.
            gathering: with which the state was packed.

        Raises:
            UserError: this checkpoint, or the one before, could not be written; or see `check`.
        """
        with gathering or Gathering(ALONE) as gathering:
            self.wait()
            self._check_surroundings()
            weights = None if is_adapted(model.network) else gathering.weights(model.network)
            if weights is None or not in_background or not _has_room({"model": weights, "state": packed}):
                self.folder.save(progress, plan, model, packed, weights)
                return
            copies = _copy(weights), _copy(packed), replace(progress)

        def save() -> None:
            copied_weights, copied_state, at = copies
            try:
                self.folder.save(at, plan, model, copied_state, copied_weights)
            except BaseException as error:
                self._error = error

        # A daemon, so that a second signal need not wait for it: what it has half written is not under its name yet.
        thread = threading.Thread(target=save, name="checkpoint", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no thread to give
            save()
        else:
            self._thread = thread

    def check(self) -> None:
        """Raise the error of a save that has failed, without waiting for one that goes on.

        Raises:
            UserError: the last checkpoint could not be written; the run folder is another one by now; or a file was
                changed that is mapped into memory.
        """
        self._check_surroundings()
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def _check_surroundings(self) -> None:
        self.folder.check_there()
        check_mapped()

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            UserError: the last checkpoint could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error


class SilentSaver(Saver):
    """What a process has that does not write checkpoints."""

    def save(
        self,
        progress: Progress,
        plan: RunPlan,
        model: MaskPredictor,
        packed: Mapping[str, Any],
        in_background: bool,
        gathering: Gathering | None = None,
    ) -> None:
        """Process 0 does it; the others send it their parts.

        Raises:
            OtherFailedError: process 0 could not write it.
        """
        if gathering is not None:
            if not is_adapted(model.network):
                gathering.weights(model.network)
            gathering.send_parts()

    def check(self) -> None:
        """Nothing can have failed."""


@contextlib.contextmanager
def ending(saver: Saver) -> Iterator[None]:
    """A block after which nothing is being written; if something else goes wrong in it, that is reported.

    Raises:
        UserError: the last checkpoint could not be written.
    """
    try:
        yield
    except Exception:
        with contextlib.suppress(UserError):
            saver.wait()
        raise
    saver.wait()


def _has_room(content: Mapping[str, Any]) -> bool:
    free = free_memory_bytes()
    return free is not None and bytes_in(content) < SHARE_OF_FREE_MEMORY * free


def _copy(value: Any) -> Any:
    """Return a value with every tensor copied into the host's memory, whole."""
    if isinstance(value, (Tensor, InParts)):
        return whole_on_host(value)
    if isinstance(value, Mapping):
        return {key: _copy(part) for key, part in value.items()}
    return [_copy(part) for part in value] if isinstance(value, list) else value
