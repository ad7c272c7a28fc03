"""List the packages that are needed on a GPU and cannot be imported here, and why; prints nothing if all can.

    python benchmarks/gpu_packages.py pyproject.toml

prints one line.
"""

import importlib
import re
import sys
import tomllib
from pathlib import Path

MISSING = "Missing here:"
IMPORTED_AS = {"pillow": "PIL"}
OF_THE_SERVER = {"fastapi", "h11", "prometheus_client", "pydantic", "starlette", "uvicorn"}
"""Packages that nothing uses which is checked on a GPU."""


def missing_packages(project: Path) -> list[str]:
    """Return the names of packages that fail to import, with the reason; those of the server are not looked for."""
    required = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    missing = []
    for requirement in required:
        name = re.match(r"[A-Za-z0-9_.-]+", requirement)[0]  # type: ignore[index]
        if name in OF_THE_SERVER:
            continue
        try:
            importlib.import_module(IMPORTED_AS.get(name, name.replace("-", "_")))
        except ImportError as error:
            lacks = error.name if isinstance(error, ModuleNotFoundError) else str(error)
            missing.append(name if lacks == name else f"{name} (lacks {lacks})")
    return missing


if __name__ == "__main__":
    if found := missing_packages(Path(sys.argv[1])):
        print(f"{MISSING} {', '.join(found)}")
