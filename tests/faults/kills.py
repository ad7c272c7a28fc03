"""Kills a small run, and the preparation of its text, at random moments, over and over, and compares how they end.

    python tests/faults/kills.py FOLDER --kills 200 --preparations 50 --seed 0

Each process is a fork of this one, which has the libraries loaded, and runs the command line. It ends by a SIGKILL:
from outside after a random time, or by its own hand at a random call that writes, flushes, renames or removes a file,
in the middle of a write included. Then the command that continues is run, and killed again, until a run comes to its
end. Prints a JSON object with what was counted, and with what went wrong, which must be nothing.
"""

import argparse
import builtins
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.figure  # noqa: F401  # loaded once, here
import torch

from llada import cli
from llada.checkpoints import safetensors as weights
from llada.cli import prepare as _prepare  # noqa: F401
from llada.cli import train as _train  # noqa: F401
from llada.data.prepared import PreparedText
from llada.system import files
from llada.system.checksums import find_damage
from llada.training import run_folder
from llada.training.metrics import read_metrics
from llada.training.run_folder import RunFolder

sys.path.insert(0, str(Path(__file__).parents[2]))  # this is a script, too

from tests.support.commands import PATIENCE
from tests.support.runs import CLOCK

STEPS, EVERY = 12, 3
NETWORK = ["--d_model", "16", "--n_heads", "2", "--n_layers", "1", "--sequence_length", "24", "--batch_size", "4"]
LENGTH = ["--steps", str(STEPS), "--evaluate_every", str(EVERY), "--log_every", "2", "--evaluation_windows", "4"]
OPTIONS = ["--preset", "tiny", *NETWORK, *LENGTH, "--device", "cpu", "--precision", "fp32", "--compile", "False"]

OF_OTHERS = [".prepared.local", ".prepared.old", ".prepared.lock"]  # next to the prepared text, and to stay there
# Calls at which a process may end, as (module, name).
CALLS: list[tuple[Any, str]] = [
    (os, "fsync"), (os, "replace"), (os, "rename"), (os, "unlink"), (os, "rmdir"), (os, "symlink"), (os, "mkdir"),
    (files, "_swap"), (weights, "write_safetensors"), (run_folder, "write_state_file"), (shutil, "rmtree"),
    (builtins, "open"),
]  # fmt: skip


class Suicide:
    """Ends this process at the n-th of those calls: before it, after it, or in the middle where it writes a file."""

    def __init__(self, nth: int, rng: random.Random) -> None:
        self.left, self.rng = nth, rng
        for module, name in CALLS:
            setattr(module, name, self._wrapped(name, getattr(module, name)))

    def _wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                after = self.rng.random() < 0.5
                if after:
                    with contextlib.suppress(Exception):
                        call(*arguments, **options)
                    if name.startswith("write_") and self.rng.random() < 0.7:
                        _cut(Path(arguments[0]), self.rng)
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return counted


def _cut(path: Path, rng: random.Random) -> None:
    """As if the process had died in the middle of writing it."""
    with contextlib.suppress(OSError):
        os.truncate(path, rng.randrange(path.stat().st_size))


def run_in_fork(
    arguments: list[str], log: Path, death: Callable[[], object], patience: float
) -> tuple[int | None, float]:
    """Exit code of the command line in a new process (None if it was killed), and the seconds that it took.

    Args:
        death: called in the new process before the command.
        patience: seconds after which it is killed from here.
    """
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        with log.open("ab") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        code = 99
        try:
            death()
            cli.main(arguments)
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        spent = time.monotonic() - start
        if done:
            return (None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)), spent
        if spent > patience:
            os.kill(child, signal.SIGKILL)
            patience = float("inf")
        time.sleep(0.002)


class Killer:
    """Counts kills, and what went wrong."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng = folder, random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.calls, self.seconds = 1, 1.0
        """Of an undisturbed process."""

    def undisturbed(self, arguments: list[str]) -> None:
        """Run to the end, and note how many calls and how much time that takes."""
        tally = self.folder / "calls"

        def count() -> None:
            # Never reaches nought; the process writes down how far it came.
            suicide = Suicide(10**9, random.Random(0))
            leave = os._exit

            def leaving(code: int) -> None:
                tally.write_text(str(10**9 - suicide.left))
                leave(code)

            os._exit = leaving  # type: ignore[assignment]

        code, self.seconds = run_in_fork(arguments, self.folder / "log", count, PATIENCE)
        if code != 0:
            raise SystemExit(f"the undisturbed run failed: {(self.folder / 'log').read_text()[-2000:]}")
        self.calls = int(tally.read_text())

    def strike(self, what: str, arguments: list[str], share: float = 1.0) -> int | None:
        """Run a command that is killed at a random moment; the exit code if it came to its end before."""
        by_call = self.rng.random() < 0.6
        nth = self.rng.randint(1, max(1, int(share * self.calls)))
        inner = random.Random(self.rng.getrandbits(32))
        patience = PATIENCE if by_call else self.rng.uniform(0, share * self.seconds)
        death: Callable[[], object] = partial(Suicide, nth, inner) if by_call else _live_on
        code, spent = run_in_fork(arguments, self.folder / "log", death, patience)
        if code is None:
            self.counts[f"{what}, {'at a call' if by_call else 'at a time'}"] += 1
            if spent >= PATIENCE:
                self.wrong.append(f"{what} hung")
        elif code != 0:
            self.wrong.append(f"{what} ended with {code}: {(self.folder / 'log').read_text()[-1500:]}")
        return code


def _live_on() -> None:
    """Death comes from outside."""


def snapshot(run: Path) -> dict[str, Any]:
    """What a run has at its end, without what depends on the clock."""
    compared = [*run.glob("checkpoints/step-*/*"), *run.glob("samples/*")]
    files = {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in compared
        if path.name not in ("training_state.pt", "checksums.json")  # they have times; what else they have, see below
    }
    states = {}
    for folder in sorted((run / "checkpoints").glob("step-*")):
        state = torch.load(folder / "training_state.pt", weights_only=True)
        del state["settings"]["output_dir"], state["progress"]["seconds"]
        states[folder.name] = hashlib.sha256(repr(_plain(state)).encode()).hexdigest()
    rows = [{k: v for k, v in row.items() if k not in CLOCK} for row in read_metrics(run / "metrics.jsonl")]
    links = {name: (run / "checkpoints" / name).resolve().name for name in ("last", "best")}
    names = sorted(str(path.relative_to(run)) for path in run.rglob("*"))
    return {"files": files, "states": states, "metrics": rows, "links": links, "names": names}


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def kill_training(killer: Killer, data: Path, n_kills: int) -> int:
    """Kill runs until there were so many kills; returns how many runs came to their end."""
    command = ["train", *OPTIONS, "--data_dir", str(data)]
    whole = killer.folder / "whole"
    killer.undisturbed([*command, "--output_dir", str(whole)])
    expected, n_runs, killed = snapshot(whole), 0, 0
    while killed < n_kills and not killer.wrong:
        path = killer.folder / f"run-{n_runs}"
        run, last_step, code = RunFolder(path), -1, None
        while code is None:
            start = ["train", "--resume", str(path)] if run.has_checkpoint() else [*command, "--output_dir", str(path)]
            code = killer.strike("training", start, 1.0 if killed < n_kills else 2.0)
            killed += code is None
            steps = [folder for folder in run.checkpoints.glob("step-*") if find_damage(folder) is None]
            newest = max((int(folder.name[5:]) for folder in steps), default=-1)
            if newest < last_step:
                killer.wrong.append(f"{path.name}: after step {last_step} was saved, only {newest} is whole")
            last_step = newest
            if run.last.is_symlink() and (damage := find_damage(run.last, ["checksums.json"])):
                killer.wrong.append(f"{path.name}: last is broken: {damage}")
            if killer.wrong:
                return n_runs
        got = snapshot(path)
        for key in expected:
            if got[key] != expected[key]:
                killer.wrong.append(f"{path.name}: other {key}: {got[key]} instead of {expected[key]}")
        n_runs += 1
        if not killer.wrong:
            shutil.rmtree(path)
    return n_runs


def kill_preparation(killer: Killer, n_kills: int) -> None:
    """Kill the preparation of two texts in turn in one folder: there is always the one or the other, whole."""
    place, texts = killer.folder / "prepared", []
    for other in OF_OTHERS:
        (killer.folder / other).mkdir()
    for name in ("first", "second"):
        text = killer.folder / f"{name}.txt"
        text.write_text(f"{name} to be or not to be, that is the question\n" * 300)
        texts.append(["prepare", "--input", str(text), "--output_dir", str(place), "--sequence_length", "50"])
    killer.undisturbed(texts[0])
    wanted = [PreparedText.open(place).fingerprints]
    killer.undisturbed(texts[1])
    wanted.append(PreparedText.open(place).fingerprints)
    for number in range(n_kills):
        code: int | None = None
        while code is None and not killer.wrong:
            code = killer.strike("preparing", texts[number % 2], 1.2)
            if PreparedText.open(place).fingerprints not in wanted:
                killer.wrong.append("the prepared text is neither of the two")
            if code is None and killer.rng.random() < 0.3:
                break
        if code == 0 and PreparedText.open(place).fingerprints != wanted[number % 2]:
            killer.wrong.append("the prepared text is the one before")
    killer.undisturbed(texts[0])
    left = sorted(path.name for path in killer.folder.iterdir() if path.name.startswith(".prepared"))
    if left != sorted(OF_OTHERS):
        killer.wrong.append(f"left behind: {left}, and nothing but {OF_OTHERS} should be")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=200, help="of training")
    parser.add_argument("--preparations", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.monotonic()
    options.folder.mkdir(parents=True, exist_ok=True)
    killer = Killer(options.folder.resolve(), options.seed)
    kill_preparation(killer, options.preparations)
    n_runs = kill_training(killer, killer.folder / "prepared", options.kills) if not killer.wrong else 0
    print(
        json.dumps(
            {
                "kills": sum(killer.counts.values()),
                "by_kind": killer.counts,
                "runs_completed": n_runs,
                "seconds": round(time.monotonic() - start, 1),
                "wrong": killer.wrong,
            }
        )
    )


if __name__ == "__main__":
    main()
