"""`llada finetune`: `llada train` that starts from a checkpoint."""

from collections.abc import Sequence

from llada.cli import Program, train

DESCRIPTION = """Train a checkpoint further, LLaDA's or one of your own.

On a text, put into the checkpoint's own tokens (--data_dir), or on the answers of dialogues (--chat FILE.jsonl). All
weights are trained, or a small adapter beside them (--method lora), or beside weights in 4 bits (--method qlora).
`llada size --checkpoint NAME` counts what each takes; `--preset sft` has the settings of LLaDA-8B-Instruct."""


def run(arguments: Sequence[str], program: Program) -> int:
    return train.run(arguments, program, DESCRIPTION, default_preset="finetune")
