"""Trains on a small disk of its own that becomes full and then read-only, and prepares a text on it.

    unshare --user --map-root-user --mount python tests/faults/full_disk.py FOLDER

The disk is a tmpfs that only this process and its children see, and that is gone with them (Linux). Prints a JSON
object: the exit code and the last line of each command, and whether the run, once there was room again, ended with the
weights of one that nothing disturbed.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # this is a script

from tests.faults.kills import OPTIONS
from tests.support.commands import PATIENCE

DISK, STEPS, EVERY = "24m", 600, 20
TEXT = "to be or not to be that is the question " * 40


def llada(*arguments: object) -> dict[str, Any]:
    result = subprocess.run(
        [sys.executable, "-m", "llada", *map(str, arguments)],
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    return {"code": result.returncode, "said": last_line(result.stderr if result.returncode else result.stdout)}


def last_line(text: str) -> str:
    return next(iter(text.strip().splitlines()[::-1]), "")


def fill(disk: Path) -> Path:
    """Leave not a byte."""
    junk = disk / "junk"
    with junk.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return junk


def fill_after_first_checkpoint(disk: Path, run: Path, arguments: list[str]) -> dict[str, Any]:
    """Start a run, and take all space away as soon as it has saved."""
    command = [sys.executable, "-m", "llada", "train", *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + PATIENCE
        while not (run / "checkpoints" / "last").exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        fill(disk)
        try:
            _, said = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    return {"code": process.returncode, "said": last_line(said)}


def weights_of(run: Path) -> bytes:
    return (run / "checkpoints" / "last" / "model.safetensors").read_bytes()


def main() -> None:
    folder = Path(sys.argv[1])
    disk, text, data, whole = folder / "disk", folder / "text.txt", folder / "data", folder / "whole"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(disk)], check=True)
    text.write_text(TEXT)
    options = [*OPTIONS, "--steps", str(STEPS), "--evaluate_every", str(EVERY), "--data_dir", str(data)]
    prepare = ["prepare", "--source", "file", "--input", text, "--sequence_length", 24, "--output_dir"]
    run, found = disk / "run", {"prepare": llada(*prepare, data)}
    found["whole"] = llada("train", *options, "--output_dir", whole)

    found["fills"] = fill_after_first_checkpoint(disk, run, [*options, "--output_dir", str(run)])
    found["full"] = llada("train", "--resume", run)
    found["prepare on a full disk"] = llada(*prepare, disk / "data")
    (disk / "junk").unlink()
    found["room again"] = llada("train", "--resume", run)
    same = weights_of(run) == weights_of(whole)

    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    found["read-only"] = llada("train", "--resume", run, "--steps", 2 * STEPS)
    found["prepare read-only"] = llada(*prepare, disk / "data")
    print(json.dumps({"same": same, "found": found}))


if __name__ == "__main__":
    main()
