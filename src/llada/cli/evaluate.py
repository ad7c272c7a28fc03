"""`llada evaluate`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from llada.checkpoint import CONFIG_FILE, Checkpoint
from llada.cli import Program
from llada.cli.options import parse
from llada.errors import UserError
from llada.evaluation.nelbo import cut_windows, estimate_nelbo, nll_by_model
from llada.hardware import DeviceName, PrecisionName, choose_device, choose_precision
from llada.opening import open_model
from llada.text.answers import Answers, read_pairs
from llada.text.batches import pad_answers
from llada.text.dataset import PreparedText, Split, text_for
from llada.training.config import DataOptions
from llada.training.run_folder import RunFolder

DESCRIPTION = """Measure a checkpoint: the NELBO, an upper bound on the negative log-likelihood, over all windows of a
text, with its standard error."""


@dataclass(frozen=True)
class EvaluateOptions:
    checkpoint: str
    """A run folder (its best checkpoint is meant), a checkpoint or adapter folder, or a name on the hub."""
    data_dir: Path | None = None
    """Folder that `llada prepare` wrote; if left out, what the run was trained on, be it a text or dialogues."""
    chat: Path | None = None
    """JSONL file of dialogues, whose answers are scored, instead of a text."""
    split: Split = "val"
    """Which part of the text."""
    sequence_length: int | None = None
    """Length of the windows; the checkpoint's training length if left out."""
    masks_per_window: int = 8
    """How often each window is masked; an even number, more is more exact."""
    batch_size: int = 32
    """Windows that go through the network together; the result does not depend on it."""
    seed: int = 0
    """Fixes the masks."""
    device: DeviceName = "auto"
    """"auto" is the GPU where there is one."""
    precision: PrecisionName = "auto"
    """Of matrix products; "auto" is bf16 where the hardware has it."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Scored:
    """What is scored: W rows of ids, and in words."""

    x_0: Tensor
    words: str
    maskable: Tensor | None = None
    attended: Tensor | None = None


def run(arguments: Sequence[str], program: Program) -> int:
    options = parse(EvaluateOptions, program.name, arguments, DESCRIPTION)
    if options.masks_per_window < 2 or options.masks_per_window % 2:
        raise UserError(
            f"--masks_per_window {options.masks_per_window} is not an even number from 2: masks come in pairs."
        )
    if options.batch_size < 1 or (options.sequence_length is not None and options.sequence_length < 1):
        raise UserError("--batch_size and --sequence_length must be at least 1: correct them.")
    device = choose_device(options.device)
    precision = choose_precision(options.precision, device)
    checkpoint = open_model(options.checkpoint, device)
    scored = _what_to_score(options, checkpoint)

    console = Console(stderr=True)
    columns = (TextColumn("evaluating"), BarColumn(), TextColumn("{task.fields[status]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=1.0, status="")

        def show(share: float, mean: float) -> None:
            progress.update(task, completed=share, status=f"NELBO so far {mean:.3f}")

        result = estimate_nelbo(
            nll_by_model(checkpoint.model, precision), scored.x_0, checkpoint.tokenizer.mask_id,
            maskable=scored.maskable, attended=scored.attended, masks_per_window=options.masks_per_window,
            batch_size=options.batch_size, seed=options.seed, device=device, on_progress=show,
        )  # fmt: skip
    if options.json:
        print(json.dumps(result.to_json()))
        return 0
    unit = checkpoint.tokenizer.unit
    print(f"NELBO {result.with_error(4)} nats per {unit} (± standard error)")
    print(f"      {result.bits_per_token:.4f} bits per {unit}, an upper bound on the negative log-likelihood")
    print(
        f"over {scored.words}, {result.tokens_scored:,} {unit}s, with {result.masks_per_window} masks each, in "
        f"{result.seconds:.0f} s; {checkpoint.folder}"
    )
    return 0


def _what_to_score(options: EvaluateOptions, checkpoint: Checkpoint) -> Scored:
    """What the options say; if they say nothing, what the run measured itself on."""
    trained_on = _data_options_of(checkpoint.folder)
    if options.chat is None and options.data_dir is None and trained_on.chat is not None:
        return _answers(checkpoint, trained_on.chat, trained_on)
    if options.chat is not None:
        return _answers(checkpoint, options.chat)
    data = text_for(checkpoint.tokenizer, PreparedText.open(options.data_dir or trained_on.data_dir))
    trained_length = checkpoint.config.max_sequence_length
    length = trained_length if options.sequence_length is None else options.sequence_length
    checkpoint.check_length(length)
    windows = cut_windows(data.tokens(options.split), length)
    return Scored(windows, f"{len(windows)} windows of {length} of the {options.split} split")


def _answers(checkpoint: Checkpoint, path: Path, trained_on: DataOptions | None = None) -> Scored:
    """The answers of a file of dialogues; of a run's own, those that it keeps for validation."""
    tokenizer, longest = checkpoint.tokenizer, checkpoint.config.max_sequence_length
    left_out = ""
    if trained_on is None:
        pairs, _, n_left_out = read_pairs(path, tokenizer, longest)
        left_out = f" ({n_left_out} left out as too long)" if n_left_out else ""
    else:  # the run has told what it leaves out
        longest = min(longest, trained_on.chat_length or longest)
        pairs = Answers.load(path, tokenizer, longest, trained_on.chat_val, trained_on.chat_val_share).pairs["val"]
    x_0, maskable, attended = pad_answers(pairs, tokenizer.eos_id)
    return Scored(x_0, f"{len(pairs)} answers of {path}{left_out}", maskable, attended)


def _data_options_of(checkpoint: Path) -> DataOptions:
    """The data of the run that a checkpoint folder belongs to; the default if it belongs to none."""
    run = checkpoint.resolve().parent.parent
    return RunFolder.read_config(run).data if (run / CONFIG_FILE).is_file() else DataOptions()
