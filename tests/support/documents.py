"""Reading commands out of documents."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def code_blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands_of(path: Path) -> list[str]:
    """The command lines of a document's bash blocks, continued lines joined, comments left out."""
    lines = []
    for block in code_blocks(path, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip() and not line.strip().startswith("#"):
                lines.append(" ".join(re.split(r"\s+#", line.strip())[0].split()))
    return lines
