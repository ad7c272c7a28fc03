"""What a disk will be asked to do with each checkpoint, done once with a small one, before the first step."""

from pathlib import Path

import torch
from safetensors import SafetensorError

from llada.checkpoints.folder import SHARD_BYTES
from llada.checkpoints.run_layout import LAST, followed, point, step_folder
from llada.checkpoints.safetensors import StoredWeights, save_tensors
from llada.system.checksums import write_checksums
from llada.system.errors import UserError, first_line
from llada.system.files import folder_written_whole
from llada.system.temporary_names import folder_aside

REHEARSAL = "rehearsal"


def rehearse(run: Path) -> None:
    """Write a checkpoint of one number, replace it, name it `last`, read it by that name, and leave nothing of it.

    Raises:
        UserError: the disk cannot do that.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        with folder_aside(run / REHEARSAL) as place:
            folder, name = step_folder(place, 0), place / LAST
            for number in (1.0, 2.0):
                with folder_written_whole(folder) as aside:
                    save_tensors(aside, {"number": torch.tensor([number])}, SHARD_BYTES)
                    write_checksums(aside)
                point(name, folder)
            read = StoredWeights.of(followed(name)).tensor("number", torch.device("cpu"), None).tolist()
            if read != [2.0]:
                raise OSError(f"{read} was read where 2.0 was written")
    except (OSError, UserError, SafetensorError) as error:
        raise UserError(
            f"{run} is on a disk that cannot keep checkpoints ({first_line(error)}): choose another `output_dir`, or "
            "see to the disk."
        ) from error
