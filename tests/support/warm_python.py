"""Python processes that have torch and this package imported as they begin.

Importing them takes seconds, and most commands of a test less than one. `python warm_python.py SOCKET` imports them
once, and each process that it is asked for by `warm_client.py` is a fork, with streams, a folder, an environment and an
exit code of its own. It has more modules in memory than a new process would have; that each command imports what it
needs is therefore tested by new ones.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

CLIENT = Path(__file__).with_name("warm_client.py")
CAN_FORK = sys.platform == "linux"  # elsewhere a fork may not use the libraries that its parent has loaded
IMPORTED = ("torch._dynamo", "matplotlib.backends.backend_agg", "matplotlib.figure")


@contextlib.contextmanager
def fork_server() -> Iterator[list[str]]:
    """The words that begin a command line in place of `python`, while the server runs."""
    if not CAN_FORK:
        yield [sys.executable]
        return
    with tempfile.TemporaryDirectory(prefix="warm-") as folder:
        address = f"{folder}/socket"  # a short one, as the system asks for
        command = [sys.executable, "-P", __file__, address]
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            while not os.path.exists(address):
                assert server.poll() is None
                time.sleep(0.01)
            yield [sys.executable, "-IS", str(CLIENT), address]
        finally:
            server.terminate()
            server.wait()


def write_command(path: Path, *words: str) -> None:
    """Write an executable that runs these words, followed by its own arguments."""
    path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', encoding="utf-8")
    path.chmod(0o755)


def serve(address: str) -> list[str]:
    """Fork a process for each request, one after the other; in it, return its arguments.

    Ends a minute after the process that started the server has.
    """
    parent = os.getppid()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{address}.new")
        listener.listen()
        listener.settimeout(60)
        os.rename(f"{address}.new", address)  # whoever sees it can connect
        while os.getppid() == parent:
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                head, descriptors, _, _ = socket.recv_fds(connection, 8, 3)
                content = connection.recv(int.from_bytes(head, "little"), socket.MSG_WAITALL)
                child = os.fork()
                if child:
                    for descriptor in descriptors:
                        os.close(descriptor)
                    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                    connection.sendall(code.to_bytes(8, "little", signed=True))
                    continue
            request = json.loads(content)
            _take_streams(descriptors)
            os.chdir(request["folder"])
            os.environ.clear()
            os.environ.update(request["environment"])
            arguments: list[str] = request["arguments"]
            return arguments
        sys.exit()


def _take_streams(descriptors: Sequence[int]) -> None:
    """Make these the standard streams, which are opened anew: they may be pipes where the server's are files."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115


def run(arguments: Sequence[str]) -> None:
    """Do what `python ARGUMENTS...` does."""
    what, *rest = arguments
    if what == "-m":
        sys.argv, sys.path[:0] = rest, [os.getcwd()]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif what == "-c":
        sys.argv, sys.path[:0] = ["-c", *rest[1:]], [""]
        sys.modules["__main__"] = program = ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), program.__dict__)
    else:
        sys.argv, sys.path[:0] = [what, *rest], [str(Path(what).resolve().parent)]
        runpy.run_path(what, run_name="__main__")


if __name__ == "__main__":
    from llada.cli import COMMANDS

    for module in (*IMPORTED, *(f"llada.cli.{name}" for name in COMMANDS)):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    gc.freeze()  # a collection in a fork would write to, and so copy, all memory that it shares
    run(serve(sys.argv[1]))
