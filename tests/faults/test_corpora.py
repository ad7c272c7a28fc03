"""Preparations of a corpus that are killed, by SIGKILL, at random moments: the result is that of one left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from llada.data.corpus_inspection import find_faults
from tests.support.corpora import files_in_folder, some_documents, write_as

pytestmark = pytest.mark.faults
KILLS = 20
OPTIONS = {
    "characters": ["--processes", "2"],
    "bpe": ["--processes", "2", "--tokenizer", "bpe", "--vocab_size", "500", "--dedup", "exact"],
    "one process": ["--processes", "1", "--packing", "documents"],
}


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_kills_at_random_moments_change_nothing(tmp_path: Path, kind: str, options: list[str]) -> None:
    source = write_as(tmp_path, kind, some_documents(20_000))
    command = [sys.executable, "-m", "llada", "prepare", "--input", str(source), "--shard_mb", "0.03", *options]

    def start(folder: str) -> "subprocess.Popen[bytes]":
        arguments = [*command, "--output_dir", str(tmp_path / folder)]
        return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    with start("whole") as process:
        begin = time.monotonic()
        assert process.wait() == 0
        seconds = time.monotonic() - begin
    rng, n_killed, n_compared = random.Random(0), 0, 0
    expected = files_in_folder(tmp_path / "whole")
    while n_killed < KILLS or n_compared == 0:
        folder = f"killed-{n_compared}"
        with start(folder) as process:
            family: list[psutil.Process] = []
            until = time.monotonic() + (rng.uniform(0.1, 0.8 * seconds) if n_killed < KILLS else 3600)
            while process.poll() is None and time.monotonic() < until:
                family = psutil.Process(process.pid).children(recursive=True) or family
                time.sleep(0.01)
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                n_killed += 1
                process.wait()
                _, alive = psutil.wait_procs(family, timeout=30)
                assert alive == []
                continue
        assert process.returncode == 0
        assert files_in_folder(tmp_path / folder) == expected
        assert list(find_faults(tmp_path / folder)) == []
        n_compared += 1
