"""The data that `llada evaluate` and `llada compare` measure on: windows of a text, or answers of dialogues."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from llada.checkpoints.folder import CONFIG_FILE, Checkpoint, DtypeName
from llada.cli.options import check_positive
from llada.data.batches import TokenBatch, pad_answers
from llada.data.mixture import Mixture
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
    """Folder with the prepared text, written by `llada prepare`; if left out, the run's own text, texts or
    dialogues."""
    chat: Path | None = None
    """File of dialogues whose answers are scored, instead of a text."""
    skip_bad: bool = False
    """Leave out, and count, dialogues that cannot be read or scored, instead of stopping at the first."""
    split: Split = "val"
    """Which part of the text is scored."""
    sequence_length: int | None = None
    """Number of tokens in a window; the checkpoint's training length if left out."""
    prefix: int = 0
    """Number of tokens at the start of each window that are given and not scored; windows overlap by as many.
    Autoregressive models are measured with 1."""
    within_documents: bool | None = None
    """Keep attention within each document of a window; if left out, as the run was trained."""
    windows: int | None = None
    """Number of windows, spread evenly over the text, or of answers to score; all if left out."""
    masks_per_window: int = 8
    """Number of masks drawn for each window, an even number; more gives a smaller error."""
    target_stderr: float | None = None
    """Draw masks until the standard error due to the masks is this small, in nats per token."""
    batch_size: int = 32
    """Number of windows that go through the network together; the result does not depend on it."""
    seed: int = 0
    """Seed of the masks and samples."""
    device: DeviceName = "auto"
    """Device that computes; "auto" is the GPU if there is one, and the CPU if not."""
    precision: PrecisionName = "auto"
    """Type that matmuls run in; "auto" is bf16 if the hardware has it or the weights are in bf16, and fp32 if not."""
    dtype: DtypeName = "auto"
    """Type of the weights in memory; "auto" is the one that they are stored in, with bf16 for fp16, or fp32 with
    --precision fp32."""
    base: str | None = None
    """Base of an adapter, if it is not where the adapter says: a checkpoint folder, or a name on the Hugging Face
    hub."""
    json: bool = False
    """Print one JSON object instead of text."""

    def check(self) -> None:
        """Refuse options that are out of range or exclude each other.

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
        """Return how this process estimates a bound."""
        return BoundOptions(self.masks_per_window, self.target_stderr, self.batch_size, self.seed, device, shard)

    def check_for_dialogues(self, remedy: str) -> None:
        """Refuse options that only apply to a text."""
        defaults = ScoringOptions()
        for name in ("prefix", "sequence_length", "split", "within_documents"):
            if getattr(self, name) != getattr(defaults, name):
                raise UserError(f"--{name} is for a text{remedy}.")


@dataclass(frozen=True)
class Scored:
    """The data to score: ids (W, L), their length as a text, and a description."""

    batch: TokenBatch
    words: str
    size: TextSize | None = None
    """Bytes and words of the scored text; None for dialogues."""
    data: PreparedText | None = None

    @property
    def in_words(self) -> str:
        """Describe the data, and how attention is kept within it."""
        return f"{self.words}{', attention within documents' if self.batch.is_within_documents else ''}"

    def batch_for(self, checkpoint: Checkpoint, options: ScoringOptions) -> TokenBatch:
        """Return the same tokens for another model, with attention as it was trained, or as the options say."""
        if self.data is None:
            return self.batch
        return _attending(replace(self.batch, attention_mask=None), self.data, checkpoint, options)


def mixture_of(options: ScoringOptions, checkpoint: Checkpoint) -> Mixture | None:
    """Open the mixture that a run was trained on, if it was and the options name no other data."""
    trained_on = _data_options_of(checkpoint.folder)
    if options.chat is not None or options.data_dir is not None or trained_on.chat is not None:
        return None
    texts = trained_on.open_texts(checkpoint.tokenizer) if len(trained_on.data_dir) > 1 else None
    return texts if isinstance(texts, Mixture) else None


def what_to_score(options: ScoringOptions, checkpoint: Checkpoint, data: PreparedText | None = None) -> Scored:
    """Read the data that the options name, or, if they name none, the run's own validation data.

    Args:
        data: the text to score, in the checkpoint's tokens, if it is open already.
    """
    trained_on = _data_options_of(checkpoint.folder)
    if options.chat is None and options.data_dir is None and trained_on.chat is not None:
        options.check_for_dialogues(", and the model was trained on dialogues: leave it out, or name a --data_dir")
        return _answers(checkpoint, trained_on.chat, options.windows, trained_on)
    if options.chat is not None:
        return _answers(checkpoint, options.chat, options.windows, skip_bad=options.skip_bad)
    if data is None:
        data = text_for(checkpoint.tokenizer, PreparedText.open(options.data_dir or _folder_of(trained_on)))
    trained_length = checkpoint.config.max_sequence_length
    length = trained_length if options.sequence_length is None else options.sequence_length
    checkpoint.check_length(length)
    eos_id = data.tokenizer.eos_id
    windows, places = scored_windows(data.tokens(options.split), length, eos_id, options.windows, options.prefix)
    given = f", the first {options.prefix} given" if options.prefix else ""
    return Scored(
        _attending(TokenBatch(windows, places), data, checkpoint, options),
        f"{len(windows)} windows of {length}{given}, of the {options.split} split",
        size=_size_of(windows[:, options.prefix :], checkpoint, in_one=options.windows is None),
        data=data,
    )


def _attending(windows: TokenBatch, data: PreparedText, checkpoint: Checkpoint, options: ScoringOptions) -> TokenBatch:
    is_within = options.within_documents
    if is_within is None:
        is_within = _data_options_of(checkpoint.folder).within_documents
    return windows.within_documents(data.tokenizer.eos_id) if is_within else windows


def _folder_of(trained_on: DataOptions) -> Path:
    """Return the folder of the text that a run was trained on.

    Raises:
        UserError: it was trained on a mixture.
    """
    if len(trained_on.data_dir) > 1:
        folders = " and ".join(map(str, trained_on.data_dir))
        raise UserError(f"The model was trained on a mixture of {folders}: name one of them by --data_dir.")
    return trained_on.data_dir[0]


def _size_of(scored: Tensor, checkpoint: Checkpoint, in_one: bool) -> TextSize:
    """Count the text of the scored tokens (W, L).

    If the windows are not contiguous (`in_one` False), words end at their edges.
    """
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
    """Read the answers of a file of dialogues, at most `most`, spread evenly over it.

    Of the dialogues that a run was trained on, only those kept for validation are read.
    """
    tokenizer, longest = checkpoint.tokenizer, checkpoint.config.max_sequence_length
    left_out = ""
    if trained_on is None:
        read = read_pairs(path, tokenizer, longest, skip_bad)
        pairs = read.pairs
        left_out = f" ({read.n_left_out} left out as too long)" if read.n_left_out else ""
        for note in read.notes:
            say(note)
    else:  # the run has reported what it leaves out
        longest = min(longest, trained_on.chat_length or longest)
        pairs = Answers.of(trained_on.read_dialogues(), tokenizer, longest).pairs["val"]
    n_all, n = len(pairs), min(len(pairs), most or len(pairs))
    pairs = [pairs[i * n_all // n] for i in range(n)]
    of_all = f" of {n_all}" if n < n_all else ""
    return Scored(pad_answers(pairs, tokenizer.eos_id), f"{n}{of_all} answers of {path}{left_out}")


def _data_options_of(checkpoint: Path) -> DataOptions:
    """Return the data options of the run that a checkpoint folder belongs to, or the defaults if there is none."""
    run = resolved(checkpoint).parent.parent
    return RunFolder.read_config(run).data if (run / CONFIG_FILE).is_file() else DataOptions()


def nll_of(checkpoint: Checkpoint, precision: Precision) -> TokenNll:
    """Return the function that computes the checkpoint's cross-entropies."""
    return nll_by_model(checkpoint.model, precision)


def device_of(name: DeviceName, shard: Shard) -> torch.device:
    """Return the device of this process; of several, each has its own GPU if there are as many."""
    return shard.device(choose_device(name))


@contextmanager
def showing(verb: str, what: str, shard: Shard) -> Iterator[Callable[[float, float], None]]:
    """Show a bar in the terminal; yields the function that moves it, given the fraction done and the mean so far."""
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
