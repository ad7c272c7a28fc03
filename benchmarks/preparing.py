"""The speed and memory of `llada prepare` on a large source, and of training's start from a large folder.

    python benchmarks/preparing.py make /tmp/large.jsonl --megabytes 1000
    python benchmarks/preparing.py prepare /tmp/large.jsonl [--tokenizer bpe] [--processes 2]
    python benchmarks/preparing.py library /tmp/large.jsonl --checkpoint FOLDER     # the tokenizers library alone
    python benchmarks/preparing.py ratio /tmp/large.jsonl --rounds 3               # a preparation against the library
    python benchmarks/preparing.py start --gigabytes 10                            # of sparse files

`prepare` writes next to the source and removes what it wrote, unless --keep is given. Memory is the sum of the resident
memory of the command and all its processes, looked at ten times a second. `ratio` counts seconds of processor time, in
one process and one thread, so that other work on the machine counts little: those of the library for texts that are in
memory, their lists of ids included, and those of a whole preparation with the same tokenizer, from JSONL to the
manifest, less those of the same command for 100 lines, which is its start. The two take turns.
"""

import argparse
import itertools
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from llada.checkpoints.run_layout import METRICS_FILE
from llada.system.terminal import tell

WORDS, LETTERS = 30_000, "etaoinshrdlucmfwypvbgkjqxz"
TEXTS = 10_000  # distinct texts of a source; what follows has them again behind other numbers
ALONE = """
import itertools, json, sys, time
from tokenizers import Tokenizer
model, seconds = Tokenizer.from_file(sys.argv[2]), 0.0
with open(sys.argv[1], encoding="utf-8") as lines:
    while batch := [json.loads(line)["text"] for line in itertools.islice(lines, 1000)]:
        begin = time.process_time()
        ids = [encoding.ids for encoding in model.encode_batch_fast(batch, add_special_tokens=False)]
        seconds += time.process_time() - begin
print(seconds)
"""
STEPS, LOOKED_AT, TURNS = 400, (1, 100, 200, 400), 3
START = """
import sys, time, psutil, torch
from pathlib import Path
from llada.data.batches import random_windows
from llada.data.prepared import PreparedText
memory = lambda: psutil.Process().memory_info().rss / 1e6
begin, before = time.perf_counter(), memory()
data = PreparedText.open(Path(sys.argv[1]))
draw = random_windows(data, 64, 1024)
draw(0, torch.Generator())
print(f"opened, and the first batch read, in {time.perf_counter() - begin:.3f} s")
for step in range(400):
    draw(step, torch.Generator().manual_seed(step))
    if step % 100 == 99:
        print(f"after {step + 1} batches of 64 x 1024 tokens: {memory() - before:+.1f} MB")
"""


def texts() -> list[str]:
    """Texts of 50 to 600 words, whose frequencies follow Zipf's law."""
    rng = random.Random(0)
    weights = range(len(LETTERS), 0, -1)
    words = ["".join(rng.choices(LETTERS, weights=weights, k=rng.randint(2, 9))) for _ in range(WORDS)]
    shares = list(itertools.accumulate(1 / (i + 1) for i in range(WORDS)))
    return [" ".join(rng.choices(words, cum_weights=shares, k=rng.randint(50, 600))) for _ in range(TEXTS)]


def make(path: Path, megabytes: float) -> None:
    """Write a source of JSONL."""
    n_bytes = number = 0
    with open(path, "w", encoding="utf-8") as file:
        for text in itertools.cycle(texts()):
            n_bytes += file.write(json.dumps({"id": number, "text": f"{number} {text}"}) + "\n")
            number += 1
            if n_bytes >= 1e6 * megabytes:
                break
    tell(f"{path}: {n_bytes / 1e6:.0f} MB, {number:,} documents")


def prepare(path: Path, arguments: argparse.Namespace) -> None:
    """Time `llada prepare`, and look at its memory."""
    folder = path.with_suffix(".corpus")
    command = [sys.executable, "-m", "llada", "prepare", "--input", str(path), "--output_dir", str(folder)]
    command += ["--processes", str(arguments.processes), "--tokenizer", arguments.tokenizer, "--overwrite"]
    begin, most = time.perf_counter(), 0.0
    stages: dict[str, float] = {}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        os.set_blocking(process.stderr.fileno(), False)
        while process.poll() is None:
            for line in iter(process.stderr.readline, ""):
                stages[line.strip()] = time.perf_counter() - begin
            most = max(most, resident(process.pid))
            time.sleep(0.1)
    seconds = time.perf_counter() - begin
    megabytes = path.stat().st_size / 1e6
    for stage, since in stages.items():
        tell(f"  {since:6.1f} s: {stage}")
    tell(f"{megabytes:.0f} MB in {seconds:.1f} s: {megabytes / seconds:.1f} MB/s, {most:.0f} MB of memory at most")
    if "Writing ..." in stages:
        writing = seconds - stages["Writing ..."]
        tell(f"  the last stage alone: {megabytes / writing:.1f} MB/s")
    if not arguments.keep:
        shutil.rmtree(folder)


def resident(pid: int) -> float:
    """Resident memory of a process and its descendants, in MB; what they share counts several times."""
    total = 0
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return 0.0
    for process in family:
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue
    return total / 1e6


def library(path: Path, arguments: argparse.Namespace) -> None:
    """Time the tokenizers library alone, on texts that are in memory, with as many threads as there are cores."""
    from tokenizers import Tokenizer

    model = Tokenizer.from_file(str(arguments.checkpoint / "tokenizer.json"))

    def batches() -> Iterator[list[str]]:
        with open(path, encoding="utf-8") as lines:
            while batch := [json.loads(line)["text"] for line in itertools.islice(lines, 1000)]:
                yield batch

    seconds, n_bytes, n_ids = 0.0, 0, 0
    for batch in batches():
        n_bytes += sum(map(len, batch))
        begin = time.perf_counter()
        n_ids += sum(len(encoding.ids) for encoding in model.encode_batch_fast(batch, add_special_tokens=False))
        seconds += time.perf_counter() - begin
    rate = n_bytes / 1e6 / seconds
    tell(f"the library alone: {n_bytes / 1e6:.0f} MB in {seconds:.1f} s: {rate:.1f} MB/s, {n_ids:,} ids")


def ratio(path: Path, rounds: int) -> None:
    """Compare the processor time of a preparation with that of the tokenizers library alone, by turns."""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory(prefix="llada-", dir=path.parent) as name:
        folder = Path(name)
        with open(path, "rb") as lines:
            (folder / "begin.jsonl").write_bytes(b"".join(lines.readlines(5_000_000)))
            lines.seek(0)
            (folder / "few.jsonl").write_bytes(b"".join(itertools.islice(lines, 100)))

        def prepare_alone(source: Path, tokenizer: str, output: str) -> float:
            command = [sys.executable, "-m", "llada", "prepare", "--input", str(source), "--processes", "1"]
            command += ["--tokenizer", tokenizer, "--output_dir", str(folder / output), "--val_share", "0.1"]
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([*command, "--overwrite"], check=True, capture_output=True, env=environment)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

        def encode_alone() -> float:
            command = [sys.executable, "-c", ALONE, str(path), str(folder / "first" / "tokenizer.json")]
            return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout)

        prepare_alone(folder / "begin.jsonl", "bpe", "first")
        first, megabytes, seconds = str(folder / "first"), path.stat().st_size / 1e6, []
        for number in range(rounds):
            begin = prepare_alone(folder / "few.jsonl", first, "few")
            seconds.append((encode_alone(), prepare_alone(path, first, "all"), begin))
            tell(f"  round {number + 1}: library {seconds[-1][0]:.2f} s, preparation {seconds[-1][1]:.2f} s")
    alone, whole, begin = (statistics.median(column) for column in zip(*seconds, strict=True))
    work = whole - begin
    tell(f"medians: library {megabytes / alone:.2f} MB/s, preparation {megabytes / work:.2f} MB/s, start {begin:.2f} s")
    tell(f"ratio of the rates: {alone / work:.3f}; with the start: {alone / whole:.3f}")


def start(gigabytes: float) -> None:
    """Time the start of training from a folder of this size, of sparse files, and look at its memory: of the reading
    alone, and of the whole command."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.support.corpora import make_sparse, prepare_files, some_documents, write_as

    with tempfile.TemporaryDirectory(prefix="llada-") as name:
        folder = Path(name)
        data = prepare_files(folder / "small", write_as(folder, "jsonl", some_documents(80)))
        make_sparse(folder / "large", data, round(1000 * gigabytes / 64), 64_000_000)
        subprocess.run([sys.executable, "-c", START, folder / "large"], check=True)
        seconds, memory = zip(*(_train(folder / "large", folder / f"run{turn}") for turn in range(TURNS)), strict=True)
        tell(f"`llada train`, to the end of its first step: {', '.join(f'{each:.1f}' for each in seconds)} s")
        tell(f"memory of the process, at steps {LOOKED_AT}: {'; '.join(map(str, memory))} MB")


def _train(data_dir: Path, run: Path) -> tuple[float, list[int]]:
    """Train `STEPS` steps: the seconds until the first one is done, and the memory in MB at the steps `LOOKED_AT`."""
    options = ["--data_dir", data_dir, "--output_dir", run, "--steps", STEPS, "--warmup_steps", 0, "--log_every", 1]
    begin, first = time.perf_counter(), 0.0
    command = [sys.executable, "-m", "llada", "train", *map(str, options)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            if not first and (run / METRICS_FILE).is_file() and (run / METRICS_FILE).stat().st_size:
                first = time.perf_counter() - begin
            time.sleep(0.01)
        assert process.stderr is not None
        if process.returncode:
            sys.exit(process.stderr.read())
    rows = [json.loads(line) for line in (run / METRICS_FILE).read_text().splitlines()]
    memory = {row["step"]: row["memory_bytes"] for row in rows if "memory_bytes" in row}
    return first, [round(memory[step] / 1e6) for step in LOOKED_AT]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "prepare", "library", "ratio", "start"])
    parser.add_argument("path", type=Path, nargs="?")
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--tokenizer", default="characters")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", action="store_true")
    arguments = parser.parse_args()
    if arguments.what == "make":
        make(arguments.path, arguments.megabytes)
    elif arguments.what == "prepare":
        prepare(arguments.path, arguments)
    elif arguments.what == "library":
        library(arguments.path, arguments)
    elif arguments.what == "ratio":
        ratio(arguments.path, arguments.rounds)
    else:
        start(arguments.gigabytes)


if __name__ == "__main__":
    main()
