"""What in a folder is of a run, and what is somebody else's, which a new run must not be mixed with."""

import re
from pathlib import Path

from llada.checkpoints.folder import CONFIG_FILE
from llada.checkpoints.run_layout import CHECKPOINTS_FOLDER, CURVES_FILE, METRICS_FILE, SAMPLES_FOLDER, TROUBLE_FILE
from llada.checkpoints.sampling_default import SAMPLING_FILE
from llada.system.errors import UserError
from llada.system.files import read_json
from llada.system.locks import LOCK_FILE
from llada.system.temporary_names import is_aside
from llada.training.config import TrainConfig
from llada.training.loggers import LOGGER_FOLDERS

OWN_NAMES = LOGGER_FOLDERS | {
    CONFIG_FILE, METRICS_FILE, CURVES_FILE, TROUBLE_FILE, SAMPLING_FILE, SAMPLES_FOLDER, CHECKPOINTS_FOLDER,
}  # fmt: skip
CONFIG_KEYS = frozenset({"network", "data", "optimizer", "output_dir"})  # which a person's own would hardly all have
LOCK_FILES = (LOCK_FILE, ".lock")  # now and in older versions
# What killed processes of older versions left; it is left lying, since other names are alike.
OLD_ASIDE = re.compile(r"\.(rehearsal|config\.json|metrics\.jsonl|curves\.png|trouble\.json)\..+", re.DOTALL)


def foreign_names(folder: Path) -> list[str]:
    """List what is in a folder and not of a run. A run writes its configuration first, which identifies it."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    names = {name for name in names if not (is_aside(name) or name in LOCK_FILES or OLD_ASIDE.fullmatch(name))}
    return sorted(names - OWN_NAMES if _has_config(folder) else names)


def _has_config(folder: Path) -> bool:
    try:
        content = read_json(folder / CONFIG_FILE)
        TrainConfig.from_json(content)
    except (UserError, OSError):
        return False
    return content.keys() >= CONFIG_KEYS
