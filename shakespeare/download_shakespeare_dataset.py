"""Download Tiny Shakespeare and prepare it for training: `llada prepare` with the founding document's folder."""

import sys

import clone
from llada.cli import run_command

if __name__ == "__main__":
    run_command("prepare", sys.argv[1:], clone.program("download_shakespeare_dataset.py"))
