"""Commands that several processes carry out together, as `torchrun` would start them.

As a program, this is one of these processes. It reads the commands from standard input, a JSON list of lists of words,
and carries them out one after the other, so that what takes long to import is imported once. Then it writes the exit
code of each.
"""

import contextlib
import io
import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.commands import PATIENCE

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
PRETENDED = "version="
BROKEN = "loss=nan"


@dataclass(frozen=True)
class Ended:
    """What a command came to in one of the processes."""

    code: int
    out: str
    err: str


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(**further: str) -> dict[str, str]:
    """Variables of a process with one thread that imports the package and the tests from here."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("TORCHELASTIC", "RANK"))}
    return {
        **inherited,
        "PYTHONPATH": os.pathsep.join([str(SOURCE), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        **further,
    }


def start(
    processes: int,
    commands: Sequence[Sequence[object]],
) -> list[subprocess.Popen[str]]:
    """Start the processes.

    Args:
        commands: words, in which "{rank}" stands for the number of the process; the first may be `PRETENDED` and a
            version of the package, or `BROKEN`, which makes every loss of a training non-finite.
    """
    ports = [free_port() for _ in commands]
    words = json.dumps([[str(port), *map(str, command)] for port, command in zip(ports, commands, strict=True)])
    started = []
    for rank in range(processes):
        variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        variables |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.ranks"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, cwd=ROOT, env=environment(**variables),
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(words)
        process.stdin.close()
        process.stdin = None
        started.append(process)
    return started


def finish(started: Sequence[subprocess.Popen[str]]) -> list[list[Ended]]:
    """Wait for the processes; what each command came to in each of them."""
    found = []
    for process in started:
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
        found.append([Ended(**result) for result in json.loads(out)])
    return found


def run_together(processes: int, commands: Sequence[Sequence[object]]) -> list[list[Ended]]:
    """Carry out commands in so many processes; what each came to, by process and command."""
    return finish(start(processes, commands))


def main() -> None:
    import llada
    from llada.cli import run_command
    from llada.training import step

    results = []
    version, weighted_loss = llada.__version__, step.weighted_loss
    for words in json.loads(sys.stdin.read()):
        port, name, *arguments = (word.replace("{rank}", os.environ["RANK"]) for word in words)
        llada.__version__, step.weighted_loss = version, weighted_loss
        if name.startswith(PRETENDED):
            llada.__version__, (name, *arguments) = name.removeprefix(PRETENDED), arguments
        if name == BROKEN:
            step.weighted_loss = lambda nll, weights: math.nan * weighted_loss(nll, weights)
            name, *arguments = arguments
        os.environ["MASTER_PORT"] = port
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                run_command(name, arguments)
            except SystemExit as end:
                code = end.code
        results.append({"code": code, "out": out.getvalue(), "err": err.getvalue()})
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main()
