"""How a checkpoint is sampled when nothing else is said: sampling.json, which `llada frontier` writes.

It is in the folder of a run, for all of its checkpoints, or in that of a checkpoint by itself.
"""

from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from llada.checkpoints.run_layout import CHECKPOINTS_FOLDER
from llada.sampling.config import FREE_TEXT, SamplerConfig
from llada.system.errors import UserError, first_line
from llada.system.files import read_json, write_json
from llada.system.ranges import check_ranges

SAMPLING_FILE = "sampling.json"
CHOOSES_ANEW = frozenset({"policy", "remasking"})
"""Options that say how positions are chosen, which leaves nothing of the file to obey."""


def default_file(checkpoint: Path) -> Path:
    """Where the default of a checkpoint folder is written: in its run, or in itself if it belongs to none."""
    checkpoint = checkpoint.resolve()
    folder = checkpoint.parent.parent if checkpoint.parent.name == CHECKPOINTS_FOLDER else checkpoint
    return folder / SAMPLING_FILE


def find_default(checkpoint: Path) -> Path | None:
    """The file of a checkpoint folder, its own before its run's; None if it has none."""
    return next((path for path in (checkpoint / SAMPLING_FILE, default_file(checkpoint)) if path.is_file()), None)


def read_default(checkpoint: Path) -> SamplerConfig | None:
    """The default of a checkpoint folder; None if it has none.

    Raises:
        UserError: its file is not one of sampling options.
    """
    path = find_default(checkpoint)
    return None if path is None else read_default_file(path)


def default_unless(given: Collection[str], checkpoint: Path) -> SamplerConfig | None:
    """The default of a checkpoint folder, unless the options that are given choose positions anew; None without one.

    This is the rule for whatever writes without a prompt or from one: commands, samples that are measured, Python.

    Raises:
        UserError: its file is not one of sampling options.
    """
    return None if CHOOSES_ANEW & set(given) else read_default(checkpoint)


def read_default_file(path: Path) -> SamplerConfig:
    """The options in a file; those that it leaves out are `FREE_TEXT`'s.

    Raises:
        UserError: it is not one of sampling options.
    """
    given = read_json(path).get("sampler")
    try:
        if not isinstance(given, dict):
            raise ValueError('it has no object "sampler"')
        _check_kinds(given)
        config = replace(FREE_TEXT, **given)
        check_ranges(config)
    except (ValueError, TypeError, OverflowError, UserError) as error:
        reason = first_line(error).replace("`", "")
        raise UserError(f"{path} is not a default for sampling ({reason}): correct or remove it.") from error
    return config


def write_default(checkpoint: Path, sampler: Mapping[str, Any], measured: str) -> Path:
    """Make options the default of a checkpoint folder, with the sentence that says why; returns the file."""
    path = default_file(checkpoint)
    write_json(path, {"sampler": dict(sampler), "measured": measured})
    return path


def _check_kinds(given: dict[str, Any]) -> None:
    """Refuse options that there are not, or of another type than theirs."""
    names, hints = {field.name for field in fields(SamplerConfig)}, get_type_hints(SamplerConfig)
    for name, value in given.items():
        if name not in names:
            raise ValueError(f"{first_line(name)!r} is not an option")
        kinds = get_args(hints[name]) or (hints[name],)
        if get_origin(hints[name]) is Literal or any(get_origin(kind) is Literal for kind in kinds):
            continue  # the options check these themselves
        if float in kinds:
            kinds = (*kinds, int)
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise ValueError(f"{name} cannot be {value!r}")
