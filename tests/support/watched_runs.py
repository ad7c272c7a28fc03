"""Run folders made by hand, as `llada watch` finds them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

CONFIG = {
    "output_dir": "runs/made",
    "steps": 100,
    "epochs": None,
    "minutes": None,
    "batch_size": 8,
    "data": {"data_dir": "/home/somebody/secret/shakespeare"},
    "network": {"network": "llada", "d_model": 64},
    "optimizer": {"learning_rate": 0.003},
}


def row(step: int, **more: Any) -> dict[str, Any]:
    """A row of training: a loss that falls, ten bins of t."""
    loss = 1 + 2 / (1 + step / 10)
    return {
        "step": step,
        "tokens": 512 * step,
        "seconds": step / 10,
        "loss": loss,
        "nll": loss + 0.1,
        "nll_by_t": [loss * (0.5 + i / 10) for i in range(10)],
        "grad_norm": 1.0,
        "learning_rate_factor": 1.0,
        "tokens_per_second": 5120,
        **more,
    }


def bound(step: int, nelbo: float = 1.5, stderr: float = 0.02) -> dict[str, Any]:
    """A row of an evaluation."""
    return {"step": step, "nelbo": nelbo, "nelbo_stderr": stderr}


def lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(each) + "\n" for each in rows)


def append(run: Path, *rows: Mapping[str, Any]) -> None:
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(lines(rows))


def make_run(
    folder: Path,
    rows: Iterable[Mapping[str, Any]] = (),
    samples: Mapping[int, str] | None = None,
    **settings: Any,
) -> Path:
    """A run folder with these rows, samples by step, and settings other than `CONFIG`."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "samples").mkdir()
    (folder / "config.json").write_text(json.dumps({**CONFIG, **settings}), encoding="utf-8")
    (folder / "metrics.jsonl").write_text(lines(rows), encoding="utf-8")
    for step, text in (samples or {}).items():
        (folder / "samples" / f"step-{step:08d}.txt").write_text(text, encoding="utf-8")
    return folder


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Each path in a folder with its size and time of change, to show that nobody wrote there."""
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}
