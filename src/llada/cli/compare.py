"""The command `llada compare`: two models, or two groups of runs, on the same data and masks."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tyro.conf import Positional

from llada.checkpoints.folder import Checkpoint, check_length
from llada.checkpoints.load import find_adapter, open_to_measure, read_vocabulary
from llada.cli import Program
from llada.cli.options import parse
from llada.cli.scoring import Scored, ScoringOptions, device_of, nll_of, showing, what_to_score
from llada.evaluation.compare import Difference, compare
from llada.evaluation.distributed import Shard, joined
from llada.evaluation.nelbo import Bounds, draw_bounds
from llada.evaluation.seeds import SeedDifference, over_seeds
from llada.evaluation.standard_errors import in_words
from llada.system.device import choose_precision
from llada.system.errors import UserError
from llada.system.terminal import tell
from llada.tokenizers.base import Tokenizer

DESCRIPTION = """Compare two checkpoints on the same windows under the same masks.

The result is the difference of their bounds, which is far more precise than either, with its standard error and a
p-value. The data is that of the first one. `llada compare A B` compares two models. To compare several runs a side,
which differ by their seeds, write --checkpoint A1 A2 A3 --against B1 B2 B3: the error is then over seeds."""


@dataclass(frozen=True)
class CompareOptions:
    models: Positional[tuple[str, ...]] = ()
    """Two models to compare: run, checkpoint or adapter folders, or names on the Hugging Face hub."""
    checkpoint: tuple[str, ...] = ()
    """Runs of the first side, one for each seed, instead of two models."""
    against: tuple[str, ...] = ()
    """Runs of the second side, as many as of the first and in the same order."""
    scoring: ScoringOptions = field(default_factory=ScoringOptions)

    def pairs(self) -> list[tuple[str, str]]:
        """Return the pairs of models to compare.

        Raises:
            UserError: the pairs are not clear, or one side has more runs than the other.
        """
        by_flags = bool(self.checkpoint or self.against)
        if by_flags == bool(self.models) or (self.models and len(self.models) != 2):
            raise UserError("Name two models, or the runs of each side by --checkpoint and --against.")
        if len(self.checkpoint) != len(self.against):
            raise UserError(
                f"--checkpoint has {len(self.checkpoint)} and --against {len(self.against)}: name as many runs a side."
            )
        return list(zip(self.checkpoint, self.against, strict=True)) if by_flags else [(self.models[0], self.models[1])]


def run(arguments: Sequence[str], program: Program) -> int:
    options = parse(CompareOptions, program.name, arguments, DESCRIPTION)
    scoring = options.scoring
    scoring.check()
    if scoring.target_stderr is not None:
        raise UserError("Both are masked alike, as often as --masks_per_window says: leave out --target_stderr.")
    with joined() as shard:
        return _compare(options, shard)


@dataclass(frozen=True)
class Measured:
    """The results of a model that are kept when the next one is opened."""

    bounds: Bounds
    folder: Path
    is_causal: bool
    within_documents: bool

    @property
    def in_words(self) -> str:
        return f"{self.folder}{', attention within documents' if self.within_documents else ''}"


def _compare(options: CompareOptions, shard: Shard) -> int:
    """Measure one model after the other, so that there is never more than one in memory."""
    scoring, pairs = options.scoring, options.pairs()
    device, names = device_of(scoring.device, shard), [name for pair in pairs for name in pair]
    are_adapters = [find_adapter(Path(name)) is not None for name in names]
    if scoring.base is not None and not any(are_adapters):
        raise UserError("None of the models is an adapter that has a base: leave out --base.")
    bases = [scoring.base if is_adapter else None for is_adapter in are_adapters]
    others = [read_vocabulary(name, base) for name, base in zip(names[1:], bases[1:], strict=True)]
    scored: Scored | None = None
    measured = []
    for name, base in zip(names, bases, strict=True):
        model = open_to_measure(name, device, scoring.dtype, scoring.precision, base)
        if scored is None:
            unit = model.tokenizer.unit
            _check_vocabularies(model.tokenizer, [tokenizer for tokenizer, _ in others])
            scored = what_to_score(scoring, model)
            for _, longest in others:
                check_length(scored.batch.x_0.shape[1], longest)
        measured.append(_measure(model, scored, scoring, device, shard))
        del model
    assert scored is not None  # there are two models or more
    results = [compare(a.bounds, b.bounds) for a, b in zip(measured[::2], measured[1::2], strict=True)]
    if shard.rank == 0:
        if len(results) == 1:
            content, words = results[0].to_json(), _in_words(results[0], scored, measured, unit)
        else:
            total = over_seeds(results)
            content, words = total.to_json(), _seeds_in_words(total, scored, measured, unit)
        tell(json.dumps(content) if scoring.json else words)
    return 0


def _check_vocabularies(tokenizer: Tokenizer, others: Sequence[Tokenizer]) -> None:
    if any(other != tokenizer for other in others):
        raise UserError(
            f"The {'models' if len(others) > 1 else 'two'} have different vocabularies, so a token is not the same to "
            f"{'all' if len(others) > 1 else 'both'}: compare bits per byte of `llada evaluate`."
        )


def _measure(
    checkpoint: Checkpoint, scored: Scored, scoring: ScoringOptions, device: torch.device, shard: Shard
) -> Measured:
    nll, batch = nll_of(checkpoint, choose_precision(scoring.precision, device)), scored.batch_for(checkpoint, scoring)
    with showing(f"evaluating {checkpoint.folder.name}", "NELBO", shard) as show:
        bounds = draw_bounds(nll, batch, scoring.bound_options(device, shard), show)
    return Measured(bounds, checkpoint.folder, nll.is_causal, batch.is_within_documents)


def _in_words(result: Difference, scored: Scored, models: Sequence[Measured], unit: str) -> str:
    lines = []
    for letter, estimate, model in zip("AB", (result.first, result.second), models, strict=True):
        kind = "NLL" if model.is_causal else "NELBO"
        lines.append(
            f"{letter}      {in_words(estimate.mean, estimate.stderr)} nats per {unit}  {kind} of {model.in_words}"
        )
    sign = "+" if result.difference >= 0 else ""
    difference = sign + in_words(result.difference, result.stderr)
    lines.append(f"A - B {difference} nats per {unit}, {_verdict(result)}")
    if result.mask_stderr is not None:
        lines.append(f"      ± {result.mask_stderr:.4f} of this very text, from the masks alone")
    if len({model.is_causal for model in models}) == 2:
        lines.append("      one is a likelihood, the other a bound on one, whose model may be better than it says")
    masks = "" if any(model.is_causal for model in models) else ", both under the same masks"
    lines.append(f"over {scored.words}{masks} (± standard errors over windows)")
    return "\n".join(lines)


def _seeds_in_words(result: SeedDifference, scored: Scored, models: Sequence[Measured], unit: str) -> str:
    lines = []
    for number, (one, a, b) in enumerate(zip(result.seeds, models[::2], models[1::2], strict=True), 1):
        difference = f"{one.difference:+.4f}" + ("" if one.stderr is None else f" ± {one.stderr:.4f}")
        means = f"A {one.first.mean:.4f} of {a.in_words}, B {one.second.mean:.4f} of {b.in_words}"
        lines.append(f"{number}     {difference}  {means}")
    lines += [
        f"A - B {result.difference:+.4f} ± {result.stderr:.4f} nats per {unit} over {len(result.seeds)} seeds, "
        f"{_verdict(result)}",
        f"over {scored.words} (± standard errors: of a pair over windows, of their mean over seeds, on this text)",
    ]
    return "\n".join(lines)


def _verdict(result: Difference | SeedDifference) -> str:
    if result.p_value is None:
        return "from too few windows to say which is better"
    better = "A" if result.difference < 0 else "B"
    p = f"p = {result.p_value:.2g}" if result.p_value >= 1e-12 else "p < 1e-12"
    return f"{p}: {better} is better" if result.p_value < 0.05 else f"{p}: no significant difference"
