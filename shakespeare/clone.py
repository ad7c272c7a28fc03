"""Make the package of this clone importable, wherever a script is called from; importing this is enough."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

if TYPE_CHECKING:
    from llada.cli import Program

DATA_DIR = Path("shakespeare_dataset")
CHECKPOINTS = Path("checkpoints")


def command(script: str) -> str:
    """Return the command that calls a script of this folder from where the running one was called."""
    return f"python {shlex.quote(str(Path(sys.argv[0]).with_name(script)))}"


def program(script: str, **differences: Any) -> "Program":
    """Describe a script as a program, whose messages name the scripts of this folder; `differences` are further
    fields."""
    from llada.cli import Program

    return Program(
        script,
        command=command(script),
        data_dir=DATA_DIR,
        prepare_program=command("download_shakespeare_dataset.py"),
        next_program=command("train_llada_shakespeare.py"),
        after_training=command("sample_llada.py"),
        **differences,
    )
