"""`llada compare`."""

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
from llada.evaluation.standard_errors import in_words
from llada.system.device import choose_precision
from llada.system.errors import UserError
from llada.system.terminal import tell

DESCRIPTION = """Compare two checkpoints on the same windows under the same masks: the difference of their bounds, which
is known far better than either, with its standard error and a p-value. The data is that of the first one."""


@dataclass(frozen=True)
class CompareOptions:
    first: Positional[str]
    """A run folder, a checkpoint or adapter folder, or a name on the hub."""
    second: Positional[str]
    """Another one."""
    scoring: ScoringOptions = field(default_factory=ScoringOptions)


def run(arguments: Sequence[str], program: Program) -> int:
    options = parse(CompareOptions, program.name, arguments, DESCRIPTION)
    scoring = options.scoring
    scoring.check()
    if scoring.target_stderr is not None:
        raise UserError("Both are masked alike, so often as --masks_per_window says: leave out --target_stderr.")
    with joined() as shard:
        return _compare(options, shard)


@dataclass(frozen=True)
class Measured:
    """What is kept of a model when the other one is opened."""

    bounds: Bounds
    folder: Path
    is_causal: bool


def _compare(options: CompareOptions, shard: Shard) -> int:
    """One model after the other, so that there is never more than one in memory."""
    scoring = options.scoring
    device = device_of(scoring.device, shard)
    are_adapters = [find_adapter(Path(name)) is not None for name in (options.first, options.second)]
    if scoring.base is not None and not any(are_adapters):
        raise UserError("Neither model is an adapter that has a base: leave out --base.")
    first_base, second_base = (scoring.base if is_adapter else None for is_adapter in are_adapters)
    tokenizer, longest = read_vocabulary(options.second, second_base)
    first = open_to_measure(options.first, device, scoring.dtype, scoring.precision, first_base)
    if first.tokenizer != tokenizer:
        raise UserError(
            "The two have different vocabularies, so a token is not the same to both: compare bits per byte of "
            "`llada evaluate`."
        )
    scored = what_to_score(scoring, first)
    check_length(scored.batch.x_0.shape[1], longest)
    measured = [_measure(first, scored, scoring, device, shard)]
    del first
    second = open_to_measure(options.second, device, scoring.dtype, scoring.precision, second_base)
    measured.append(_measure(second, scored, scoring, device, shard))
    result = compare(*(model.bounds for model in measured))
    if shard.rank == 0:
        tell(json.dumps(result.to_json()) if scoring.json else _in_words(result, scored, measured, tokenizer.unit))
    return 0


def _measure(
    checkpoint: Checkpoint, scored: Scored, scoring: ScoringOptions, device: torch.device, shard: Shard
) -> Measured:
    nll = nll_of(checkpoint, choose_precision(scoring.precision, device))
    with showing(f"evaluating {checkpoint.folder.name}", "NELBO", shard) as show:
        bounds = draw_bounds(nll, scored.batch, scoring.bound_options(device, shard), show)
    return Measured(bounds, checkpoint.folder, nll.is_causal)


def _in_words(result: Difference, scored: Scored, models: Sequence[Measured], unit: str) -> str:
    lines = []
    for letter, estimate, model in zip("AB", (result.first, result.second), models, strict=True):
        kind = "NLL" if model.is_causal else "NELBO"
        lines.append(
            f"{letter}      {in_words(estimate.mean, estimate.stderr)} nats per {unit}  {kind} of {model.folder}"
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


def _verdict(result: Difference) -> str:
    if result.p_value is None:
        return "from too few windows to say which is better"
    better = "A" if result.difference < 0 else "B"
    p = f"p = {result.p_value:.2g}" if result.p_value >= 1e-12 else "p < 1e-12"
    return f"{p}: {better} is better" if result.p_value < 0.05 else f"{p}: no difference to speak of"
