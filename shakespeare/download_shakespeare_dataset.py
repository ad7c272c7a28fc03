"""Download Tiny Shakespeare and prepare it for training: `llada prepare` with the founding document's folder."""

import sys

import clone
from llada.cli import Program, run_command

if __name__ == "__main__":
    program = Program(
        "download_shakespeare_dataset.py",
        data_dir=clone.DATA_DIR,
        next_program="python train_llada_shakespeare.py",
    )
    run_command("prepare", sys.argv[1:], program)
