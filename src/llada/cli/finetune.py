"""`llada finetune`: `llada train` that starts from a checkpoint."""

from collections.abc import Sequence

from llada.cli import Program, train

DESCRIPTION = """Train a LLaDA checkpoint further on a text of your own: continued pre-training of all weights.

The text of a prepared folder is put into the checkpoint's own tokens. Adapters (LoRA, QLoRA) and chat data are not
there yet; `llada size --checkpoint NAME` counts what a checkpoint takes."""


def run(arguments: Sequence[str], program: Program) -> int:
    return train.run(arguments, program, DESCRIPTION, default_preset="finetune")
