"""Train LLaDA on Shakespeare from scratch: `llada train` with the founding document's network and defaults."""

import sys

import clone
from llada.cli import Program, run_command

if __name__ == "__main__":
    program = Program(
        "train_llada_shakespeare.py",
        preset="founding",
        data_dir=clone.DATA_DIR,
        numbered_runs=clone.CHECKPOINTS / "shakespeare",
        prepare_program=clone.DOWNLOAD,
    )
    run_command("train", sys.argv[1:], program)
