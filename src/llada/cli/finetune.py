"""The command `llada finetune`: `llada train` that starts from a checkpoint."""

from collections.abc import Sequence

from llada.cli import Program, train

DESCRIPTION = """Train a checkpoint further, LLaDA's or one of your own.

The data is a text in the checkpoint's own tokens (--data_dir), or the answers of dialogues (--chat FILE.jsonl). All
weights are trained, or a small adapter added to them (--method lora), or one added to weights in 4 bits (--method
qlora). `llada size --checkpoint NAME` shows the memory of each; --preset sft has the settings of LLaDA-8B-Instruct."""


def run(arguments: Sequence[str], program: Program) -> int:
    return train.run(arguments, program, DESCRIPTION, default_preset="finetune")
