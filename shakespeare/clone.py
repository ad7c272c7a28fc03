"""Importing this makes the package of this clone importable, wherever a script is called from."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

DATA_DIR = Path("shakespeare_dataset")
CHECKPOINTS = Path("checkpoints")
DOWNLOAD = "python download_shakespeare_dataset.py"
