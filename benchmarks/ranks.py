"""Training speed of two processes with one thread each, as a share of that of one process with two threads.

    python benchmarks/ranks.py [--data-dir data/shakespeare] [--steps 100] [--repeats 2]

Both train the laptop preset, not compiled, with the same eight sequences a step; on a machine with two cores they have
the same hardware. The runs take turns, so that a drift of the machine hits both alike.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from llada.training.metrics import read_metrics

LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def tokens_per_second(processes: int, data_dir: Path, steps: int) -> float:
    """Train in so many processes, and return the speed that the run logged last."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(LAUNCHER if processes == 2 else []), "-m", "llada", "train", "--preset", "laptop",
            "--data_dir", str(data_dir), "--output_dir", f"{folder}/run", "--steps", str(steps), "--compile", "False",
            "--evaluate_every", "1000000", "--evaluation_windows", "4", "--log_every", "20",
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": str(2 // processes)}
        nowhere = subprocess.DEVNULL
        subprocess.run([sys.executable, *command], env=environment, check=True, stdout=nowhere, stderr=nowhere)
        rows = read_metrics(Path(folder, "run", "metrics.jsonl"))
    return float([row["tokens_per_second"] for row in rows if row.get("tokens_per_second")][-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data/shakespeare"))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    speeds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(options.repeats):
        for processes, found in speeds.items():
            found.append(tokens_per_second(processes, options.data_dir, options.steps))
    for processes, found in speeds.items():
        print(f"{processes} process{'es' if processes > 1 else ''}: {', '.join(f'{speed:,.0f}' for speed in found)}")
    print(f"ratio of the means: {statistics.mean(speeds[2]) / statistics.mean(speeds[1]):.2f}")


if __name__ == "__main__":
    main()
