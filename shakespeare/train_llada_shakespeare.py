"""Train LLaDA on Shakespeare from scratch: `llada train` with the founding document's network and defaults."""

import sys

import clone
from llada.cli import run_command

if __name__ == "__main__":
    runs = clone.CHECKPOINTS / "shakespeare"
    program = clone.program("train_llada_shakespeare.py", preset="founding", numbered_runs=runs)
    run_command("train", sys.argv[1:], program)
