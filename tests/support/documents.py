"""Reading commands out of documents."""

import re
import subprocess
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


def inline_code(path: Path) -> list[str]:
    """The pieces of code within sentences and tables, each on one line."""
    prose = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def words_of(line: str) -> list[str]:
    """The words of a command line as bash splits them, `$'\\n'` and quotes included."""
    words = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True).stdout
    return words.split("\0")[:-1]


def anchors_of(path: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
