"""The command `llada watch`: a live page of runs on this machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from llada.cli import Program
from llada.cli.options import parse
from llada.serving.listening import Address, listen, serve_app
from llada.serving.runs.api import HOST, make_app
from llada.system.errors import UserError
from llada.system.terminal import tell

DESCRIPTION = """Show runs on a live page in a browser: bound and loss, loss by t, samples, speed, and trouble.

The page is at an address of this machine alone. It shows runs next to each other, while they train and afterwards, and
reads their folders without writing to them. Name run folders, or folders that hold runs."""

DEFAULT_PORT = 8020
LARGEST_PORT = 65535


@dataclass(frozen=True)
class WatchOptions:
    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN [RUN ...]")] = (Path("runs"),)
    """Run folders, or folders that hold runs."""
    port: int = DEFAULT_PORT
    """Port of the page; 0 takes a free one."""
    check: bool = False
    """Stop as soon as the page could be opened: whether the runs and the port are good."""


def run(arguments: Sequence[str], program: Program) -> int:
    options = parse(WatchOptions, program.name, arguments, DESCRIPTION)
    if not 0 <= options.port <= LARGEST_PORT:
        raise UserError(f"`port` must be from 0 to {LARGEST_PORT}, not {options.port}: choose another.")
    app, address = make_app(options.runs or WatchOptions.runs), Address(HOST, options.port)
    with listen(address) as socket:

        def ready() -> None:
            tell(f"Watching at {address.url(socket.getsockname()[1])}/. Ctrl-C ends it; the runs go on.")

        if options.check:
            ready()
        else:
            serve_app(app, socket, ready)
    return 0
