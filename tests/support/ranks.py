"""Commands that several processes carry out together, as `torchrun` would start them.

As a program, this is one of these processes, or, given their number, the one that they are forked from. It reads the
commands from standard input, a JSON list of lists of words, and carries them out one after the other, so that what
takes long to import is imported once. Then it writes the exit code of each.
"""

import contextlib
import importlib
import io
import json
import math
import os
import random
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.commands import PATIENCE

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
PRETENDED = "version="
BROKEN = "loss=nan"
ONE_GPU = "one GPU"
REWRITE = "rewrite"


@dataclass(frozen=True)
class Ended:
    """What a command came to in one of the processes."""

    code: int
    out: str
    err: str


def free_port() -> int:
    """A port that nobody has, and that the system gives to nobody who connects."""
    while True:
        port = random.SystemRandom().randrange(15_000, 30_000)
        with contextlib.closing(socket.socket()) as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def environment(**further: str) -> dict[str, str]:
    """Variables of a process with one thread that imports the package and the tests from here."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("TORCHELASTIC", "RANK"))}
    return {
        **inherited,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(SOURCE), str(ROOT), os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        **further,
    }


def _variables(rank: int, processes: int) -> dict[str, str]:
    """What `torchrun` sets in a process of a group on one machine."""
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    return {**ranks, "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}


def _in_json(commands: Sequence[Sequence[object]]) -> str:
    """Write commands for the processes, each with a port of its own."""
    return json.dumps([[str(free_port()), *map(str, command)] for command in commands])


def start(
    processes: int,
    commands: Sequence[Sequence[object]],
) -> list[subprocess.Popen[str]]:
    """Start the processes.

    Args:
        commands: words, in which "{rank}" stands for the number of the process; the first may be `PRETENDED` and a
            version of the package, or `BROKEN`, which makes every loss of a training non-finite, or `ONE_GPU`, which
            lets all of them have the first GPU, connected by gloo; or they are those of `rewriting.rewrite` after
            `REWRITE`.
    """
    words, started = _in_json(commands), []
    for rank in range(processes):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.ranks"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, cwd=ROOT, env=environment(**_variables(rank, processes)),
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


def get_ready(processes: int, *modules: str) -> Callable[[Sequence[Sequence[object]]], list[list[Ended]]]:
    """Start a process that imports what takes long; returns a function that carries out commands, once.

    That returns what each came to, by process and command. On Linux the processes are forked from the one that is ready
    by then.

    Args:
        modules: what it imports in addition to what every training needs.
    """
    if sys.platform != "linux":
        return lambda commands: finish(start(processes, commands))
    ready = subprocess.Popen(
        [sys.executable, "-m", "tests.support.ranks", str(processes), *modules],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, cwd=ROOT, env=environment(**_variables(0, processes)),
    )  # fmt: skip

    def carry_out_together(commands: Sequence[Sequence[object]]) -> list[list[Ended]]:
        out, err = ready.communicate(_in_json(commands), timeout=PATIENCE)
        assert ready.returncode == 0, err
        return [[Ended(**result) for result in json.loads(line)] for line in out.splitlines()]

    return carry_out_together


def carry_out(commands: list[list[str]]) -> str:
    """Carry out commands in this process; returns what each came to, in JSON."""
    import llada
    from llada.cli import run_command
    from llada.objective import weighted_loss
    from llada.training import step
    from tests.support.rewriting import rewrite

    results = []
    version = llada.__version__
    for words in commands:
        port, name, *arguments = (word.replace("{rank}", os.environ["RANK"]) for word in words)
        llada.__version__, vars(step)["weighted_loss"] = version, weighted_loss
        if name.startswith(PRETENDED):
            llada.__version__, (name, *arguments) = name.removeprefix(PRETENDED), arguments
        if name == BROKEN:
            vars(step)["weighted_loss"] = lambda nll, weights: math.nan * weighted_loss(nll, weights)
            name, *arguments = arguments
        if name == ONE_GPU:
            share_one_gpu()
            name, *arguments = arguments
        os.environ["MASTER_PORT"] = port
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                if name == REWRITE:
                    rewrite(*arguments)
                run_command(name, arguments)
            except SystemExit as end:
                code = end.code
        results.append({"code": code, "out": out.getvalue(), "err": err.getvalue()})
    return json.dumps(results)


def share_one_gpu() -> None:
    """Let this process have the first GPU, whichever it would take; NCCL refuses several processes on one."""
    from llada.training import group

    join = group._join
    os.environ["LOCAL_RANK"] = "0"
    vars(group)["_join"] = lambda timeout, _: join(timeout, "gloo")


def fork_all(processes: int, modules: Sequence[str]) -> None:
    """Carry out commands in as many processes as are forked from this one; prints a line of JSON for each."""
    for module in ("llada.cli.train", "torch.distributed.fsdp", "torch.distributed.tensor", *modules):
        importlib.import_module(module)
    commands = json.loads(sys.stdin.read())
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for rank in range(processes):
            child = os.fork()
            if child == 0:
                try:
                    os.environ.update(_variables(rank, processes))
                    Path(folder, str(rank)).write_text(carry_out(commands), encoding="utf-8")
                    os._exit(0)
                finally:  # whatever went wrong: the rest is for the one that was forked
                    traceback.print_exc()
                    os._exit(1)
            children.append(child)
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * processes
        for rank in range(processes):
            print(Path(folder, str(rank)).read_text(encoding="utf-8"))


def main() -> None:
    if len(sys.argv) > 1:
        fork_all(int(sys.argv[1]), sys.argv[2:])
    else:
        sys.stdout.write(carry_out(json.loads(sys.stdin.read())))


if __name__ == "__main__":
    main()
