"""Parameters, memory, computation and time of a network: `llada size` for the founding document's network."""

import sys

import clone  # noqa: F401  for its side effect
from llada.cli import Program, run_command

if __name__ == "__main__":
    run_command("size", sys.argv[1:], Program("model_size_calculator.py", preset="founding"))
