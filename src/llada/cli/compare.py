"""`llada compare`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import Positional

from llada.checkpoint import Checkpoint
from llada.cli import Program
from llada.cli.options import parse
from llada.cli.scoring import Scored, ScoringOptions, device_of, nll_of, showing, what_to_score
from llada.errors import UserError
from llada.evaluation.compare import Difference, compare
from llada.evaluation.errors import in_words
from llada.evaluation.nelbo import Bounds, draw_bounds
from llada.evaluation.sharing import Share, joined
from llada.hardware import choose_precision
from llada.opening import find_adapter, open_model

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
    with joined() as share:
        return _compare(options, share)


def _compare(options: CompareOptions, share: Share) -> int:
    scoring = options.scoring
    device = device_of(scoring.device, share)
    precision = choose_precision(scoring.precision, device)
    names = (options.first, options.second)
    adapters = [find_adapter(Path(name)) is not None for name in names]
    if scoring.base is not None and not any(adapters):
        raise UserError("Neither model is an adapter that has a base: leave out --base.")
    bases = [scoring.base if is_adapter else None for is_adapter in adapters]
    checkpoints = [
        open_model(name, device, scoring.weights_dtype, base) for name, base in zip(names, bases, strict=True)
    ]
    first, second = checkpoints
    if first.tokenizer != second.tokenizer:
        raise UserError(
            "The two have different vocabularies, so a token is not the same to both: compare bits per byte of "
            "`llada evaluate`."
        )
    scored = what_to_score(scoring, first)
    second.check_length(scored.x_0.shape[1])

    def bounds_of(checkpoint: Checkpoint) -> Bounds:
        with showing(f"evaluating {checkpoint.folder.name}", "NELBO", share) as show:
            return draw_bounds(
                nll_of(checkpoint, precision), scored.x_0, checkpoint.tokenizer.mask_id,
                maskable=scored.maskable, attended=scored.attended, masks_per_window=scoring.masks_per_window,
                is_causal=checkpoint.model.is_causal, batch_size=scoring.batch_size, seed=scoring.seed, device=device,
                share=share, on_progress=show,
            )  # fmt: skip

    result = compare(bounds_of(first), bounds_of(second))
    if share.rank == 0:
        print(json.dumps(result.to_json()) if scoring.json else _in_words(result, scored, checkpoints))
    return 0


def _in_words(result: Difference, scored: Scored, checkpoints: list[Checkpoint]) -> str:
    unit = checkpoints[0].tokenizer.unit
    lines = []
    for letter, estimate, checkpoint in zip("AB", (result.first, result.second), checkpoints, strict=True):
        kind = "NLL" if checkpoint.model.is_causal else "NELBO"
        lines.append(
            f"{letter}      {in_words(estimate.mean, estimate.stderr)} nats per {unit}  {kind} of {checkpoint.folder}"
        )
    sign = "+" if result.difference >= 0 else ""
    difference = sign + in_words(result.difference, result.stderr)
    lines.append(f"A - B {difference} nats per {unit}, {_verdict(result)}")
    if result.mask_stderr is not None:
        lines.append(f"      ± {result.mask_stderr:.4f} of this very text, from the masks alone")
    if len({checkpoint.model.is_causal for checkpoint in checkpoints}) == 2:
        lines.append("      one is a likelihood, the other a bound on one, whose model may be better than it says")
    masks = "" if any(checkpoint.model.is_causal for checkpoint in checkpoints) else ", both under the same masks"
    lines.append(f"over {scored.words}{masks} (± standard errors over windows)")
    return "\n".join(lines)


def _verdict(result: Difference) -> str:
    if result.p_value is None:
        return "from too few windows to say which is better"
    better = "A" if result.difference < 0 else "B"
    p = f"p = {result.p_value:.2g}" if result.p_value >= 1e-12 else "p < 1e-12"
    return f"{p}: {better} is better" if result.p_value < 0.05 else f"{p}: no difference to speak of"
