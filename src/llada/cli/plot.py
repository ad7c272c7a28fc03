"""The command `llada plot`: the curves of runs in one picture."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from llada.cli import Program
from llada.cli.options import parse
from llada.evaluation.curve import check_picture
from llada.system.errors import UserError
from llada.system.files import check_writable, resolved
from llada.system.terminal import say
from llada.training.run_pictures import Over, draw_runs

DESCRIPTION = """Draw the curves of one or more runs into a picture, to compare them.

It shows the bound on the validation data with its standard error, the cross-entropy in training, and the cross-entropy
by t. Runs that are still going on can be drawn too."""


@dataclass(frozen=True)
class PlotOptions:
    runs: Positional[tuple[Path, ...]] = ()
    """Folders of the runs to draw."""
    output: Path = Path("runs.png")
    """File for the picture, whose name ends in .png or .svg."""
    over: Annotated[Over, arg(metavar="NAME")] = "step"  # its choices would make the line of usage too long
    """What the curves are drawn over: "step", "seconds" of training, or "tokens" that went through the network."""


def run(arguments: Sequence[str], program: Program) -> int:
    options = parse(PlotOptions, program.name, arguments, DESCRIPTION)
    if not options.runs:
        raise UserError(f"Name the runs to draw: {program.name} runs/demo runs/mine.")
    check_picture(options.output)
    check_writable(options.output.parent)
    draw_runs(_named(options.runs), options.over, options.output)
    say(f"The picture is {options.output}.")
    return 0


def _named(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the folders by their names, or by their paths where two have the same name."""
    names = [resolved(folder).name for folder in folders]
    counts = Counter(names)
    return {name if counts[name] == 1 else str(folder): folder for name, folder in zip(names, folders, strict=True)}
