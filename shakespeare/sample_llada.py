"""Write text with a trained model: `llada sample`, for the runs of the scripts in this folder."""

import sys

import clone
from llada.cli import run_command

if __name__ == "__main__":
    run_command("sample", sys.argv[1:], clone.program("sample_llada.py"))
