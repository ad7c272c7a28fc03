"""What `llada evaluate` and `llada compare` measure on: windows of a text, or answers of dialogues."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from llada.checkpoints.folder import CONFIG_FILE, Checkpoint, DtypeName
from llada.cli.options import check_positive
from llada.data.batches import TokenBatch, pad_answers
from llada.data.prepared import PreparedText, Split, text_for
from llada.data.sft import Answers, read_pairs
from llada.evaluation.distributed import Shard
from llada.evaluation.nelbo import BoundOptions, TokenNll, nll_by_model
from llada.evaluation.windows import TextSize, scored_windows
from llada.system.console import StderrConsole
from llada.system.device import DeviceName, Precision, PrecisionName, choose_device
from llada.system.errors import UserError
from llada.system.files import resolved
from llada.system.terminal import say
from llada.training.config import DataOptions
from llada.training.run_folder import RunFolder


@dataclass(frozen=True)
class ScoringOptions:
    data_dir: Path | None = None
    """Folder that `llada prepare` wrote; if left out, what the run was trained on, be it a text or dialogues."""
    chat: Path | None = None
    """JSONL file of dialogues, whose answers are scored, instead of a text."""
    skip_bad: bool = False
    """Leave out, and count, what of --chat cannot be read or scored, instead of stopping there."""
    split: Split = "val"
    """Which part of the text."""
    sequence_length: int | None = None
    """Length of the windows; the checkpoint's training length if left out."""
    prefix: int = 0
    """Tokens at the start of each window that are given and not scored; windows overlap by them. 1 is how
    autoregressive models are measured."""
    windows: int | None = None
    """Only so many windows, spread evenly over the text, or so many answers of dialogues; all if left out."""
    masks_per_window: int = 8
    """How often each window is masked; an even number, more is more exact."""
    target_stderr: float | None = None
    """Go on masking until the standard error that is due to the masks is this small, in nats per token."""
    batch_size: int = 32
    """Windows that go through the network together; the result does not depend on it."""
    seed: int = 0
    """Fixes the masks."""
    device: DeviceName = "auto"
    """"auto" is the GPU where there is one."""
    precision: PrecisionName = "auto"
    """Of matmuls; "auto" is bf16 where the hardware has it, or where the weights are in bf16."""
    dtype: DtypeName = "auto"
    """Of the weights in memory; "auto" is the one that they are stored in, with bf16 for fp16, or fp32 with --precision
    fp32."""
    base: str | None = None
    """Where an adapter's base is, if not where the adapter says: a checkpoint folder, or a name on the hub."""
    json: bool = False
    """Print one JSON object."""

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            UserError: an option is out of range, or two do not go together.
        """
        if self.masks_per_window < 2 or self.masks_per_window % 2:
            raise UserError(
                f"--masks_per_window {self.masks_per_window} is not an even number from 2: masks come in pairs."
            )
        check_positive(self, "batch_size", "sequence_length", "windows", "target_stderr")
        if self.prefix < 0:
            raise UserError(f"--prefix must be at least 0, not {self.prefix}: correct it.")
        if self.skip_bad and self.chat is None:
            raise UserError("--skip_bad is for dialogues: add --chat FILE, or leave it out.")
        if self.chat is not None:
            self.check_for_dialogues(": leave it out with --chat")

    def bound_options(self, device: torch.device, shard: Shard) -> BoundOptions:
        """How a bound is estimated, in this process."""
        return BoundOptions(self.masks_per_window, self.target_stderr, self.batch_size, self.seed, device, shard)

    def check_for_dialogues(self, remedy: str) -> None:
        """Refuse what says something of a text only."""
        defaults = ScoringOptions()
        for name in ("prefix", "sequence_length", "split"):
            if getattr(self, name) != getattr(defaults, name):
                raise UserError(f"--{name} is for a text{remedy}.")


@dataclass(frozen=True)
class Scored:
    """What is scored: W rows of ids, and in words."""

    batch: TokenBatch
    words: str
    size: TextSize | None = None
    """Of a text."""
    data: PreparedText | None = None


def what_to_score(options: ScoringOptions, checkpoint: Checkpoint) -> Scored:
    """What the options say; if they say nothing, what the run measured itself on."""
    trained_on = _data_options_of(checkpoint.folder)
    if options.chat is None and options.data_dir is None and trained_on.chat is not None:
        options.check_for_dialogues(", and the model was trained on dialogues: leave it out, or name a --data_dir")
        return _answers(checkpoint, trained_on.chat, options.windows, trained_on)
    if options.chat is not None:
        return _answers(checkpoint, options.chat, options.windows, skip_bad=options.skip_bad)
    data = text_for(checkpoint.tokenizer, PreparedText.open(options.data_dir or trained_on.data_dir))
    trained_length = checkpoint.config.max_sequence_length
    length = trained_length if options.sequence_length is None else options.sequence_length
    checkpoint.check_length(length)
    eos_id = data.tokenizer.eos_id
    windows, places = scored_windows(data.tokens(options.split), length, eos_id, options.windows, options.prefix)
    given = f", the first {options.prefix} given" if options.prefix else ""
    return Scored(
        TokenBatch(windows, places),
        f"{len(windows)} windows of {length}{given}, of the {options.split} split",
        size=_size_of(windows[:, options.prefix :], checkpoint, in_one=options.windows is None),
        data=data,
    )


def _size_of(scored: Tensor, checkpoint: Checkpoint, in_one: bool) -> TextSize:
    """The text of the scored tokens (W, L), which is one text, or is in places apart: then words end at their edges."""
    decode = checkpoint.tokenizer.decode
    if in_one:
        return TextSize.of(decode(scored.flatten().tolist()))
    return TextSize.sum(TextSize.of(decode(row.tolist())) for row in scored)


def _answers(
    checkpoint: Checkpoint,
    path: Path,
    most: int | None,
    trained_on: DataOptions | None = None,
    skip_bad: bool = False,
) -> Scored:
    """The answers of a file of dialogues, `most` of them at most, spread evenly over it; of a run's own, those that it
    keeps for validation."""
    tokenizer, longest = checkpoint.tokenizer, checkpoint.config.max_sequence_length
    left_out = ""
    if trained_on is None:
        read = read_pairs(path, tokenizer, longest, skip_bad)
        pairs = read.pairs
        left_out = f" ({read.n_left_out} left out as too long)" if read.n_left_out else ""
        for note in read.notes:
            say(note)
    else:  # the run has told what it leaves out
        longest = min(longest, trained_on.chat_length or longest)
        pairs = Answers.of(trained_on.read_dialogues(), tokenizer, longest).pairs["val"]
    n_all, n = len(pairs), min(len(pairs), most or len(pairs))
    pairs = [pairs[i * n_all // n] for i in range(n)]
    of_all = f" of {n_all}" if n < n_all else ""
    return Scored(pad_answers(pairs, tokenizer.eos_id), f"{n}{of_all} answers of {path}{left_out}")


def _data_options_of(checkpoint: Path) -> DataOptions:
    """The data of the run that a checkpoint folder belongs to; the default if it belongs to none."""
    run = resolved(checkpoint).parent.parent
    return RunFolder.read_config(run).data if (run / CONFIG_FILE).is_file() else DataOptions()


def nll_of(checkpoint: Checkpoint, precision: Precision) -> TokenNll:
    """The checkpoint's cross-entropies."""
    return nll_by_model(checkpoint.model, precision)


def device_of(name: DeviceName, shard: Shard) -> torch.device:
    """The device of this process; of several, each has a GPU of its own where there are as many."""
    return shard.device(choose_device(name))


@contextmanager
def showing(verb: str, what: str, shard: Shard) -> Iterator[Callable[[float, float], None]]:
    """A bar in the terminal, and the function that moves it: the fraction done, the mean so far."""
    console = StderrConsole()
    columns = (TextColumn(verb), BarColumn(), TextColumn("{task.fields[status]}"), TimeRemainingColumn())
    hidden = not console.is_terminal or shard.rank > 0
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task("", total=1.0, status="")

        def show(fraction_done: float, mean: float) -> None:
            progress.update(
                task, completed=fraction_done, status="" if math.isnan(mean) else f"{what} so far {mean:.3f}"
            )

        yield show
