"""Fine-tune a LLaDA checkpoint on Shakespeare: `llada finetune` with the founding document's defaults."""

import sys

import clone
from llada.cli import run_command

if __name__ == "__main__":
    runs = clone.CHECKPOINTS / "pretrained"
    run_command("finetune", sys.argv[1:], clone.program("train_llada_pretrained.py", numbered_runs=runs))
