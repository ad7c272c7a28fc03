"""Fine-tune a LLaDA checkpoint on Shakespeare: `llada finetune` with the founding document's defaults."""

import sys

import clone
from llada.cli import Program, run_command

if __name__ == "__main__":
    program = Program(
        "train_llada_pretrained.py",
        data_dir=clone.DATA_DIR,
        numbered_runs=clone.CHECKPOINTS / "pretrained",
        prepare_program=clone.DOWNLOAD,
    )
    run_command("finetune", sys.argv[1:], program)
