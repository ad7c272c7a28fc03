"""How long a command may take, what it did, and what it says of bad input."""

from typing import Protocol

# Seconds that any command of a test may take before it counts as hung. No measure of speed: ten times what the slowest
# takes alone, since other work on the machine may leave it a tenth of a core.
PATIENCE = 1800


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


class RunCommand(Protocol):
    """Run a command in this process: what the fixture `llada` gives."""

    def __call__(self, *arguments: object) -> Result: ...


def assert_one_sentence(result: Result, *words: str) -> None:
    """Exit code 2, nothing on standard output, and one sentence that says what is wrong and what to do."""
    assert result.code == 2
    assert result.out == ""
    lines = [line for line in result.err.splitlines() if line.startswith("llada: ")]
    assert len(lines) == 1, result.err
    assert lines[0].endswith(".")
    assert "Traceback" not in result.err
    for word in words:
        assert word in lines[0]
