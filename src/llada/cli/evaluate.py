"""The command `llada evaluate`: a bound, an exact likelihood, or the quality of samples."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
from tyro.conf import arg

from llada.checkpoints.folder import Checkpoint
from llada.checkpoints.load import open_to_measure
from llada.checkpoints.sampling_default import SAMPLING_FILE, default_unless
from llada.cli import Program
from llada.cli.options import check_positive, given_values, parse
from llada.cli.quality import QualityOptions, measure_samples
from llada.cli.scoring import Scored, ScoringOptions, device_of, mixture_of, nll_of, showing, what_to_score
from llada.data.mixture import Mixture
from llada.evaluation.answer_likelihood import predict_by_model
from llada.evaluation.curve import check_picture, draw_curve
from llada.evaluation.distributed import Shard, joined
from llada.evaluation.exact_likelihood import ExactNll, measure_exact_nll
from llada.evaluation.mixed_nelbo import mixed_nelbo
from llada.evaluation.nelbo import Nelbo, estimate_nelbo
from llada.sampling.policies import PolicyName, make_policy
from llada.system.device import Precision, choose_precision
from llada.system.errors import UserError
from llada.system.terminal import say, tell

DESCRIPTION = """Measure a checkpoint on all windows of a text, or of each text of a mixture.

The default is the NELBO, an upper bound on the negative log-likelihood, with its standard error. --policy or --order
measure the exact likelihood under that sampling policy, and --samples the quality of samples.

`torchrun --nproc_per_node N -m llada evaluate ...` shares the windows among N processes."""


@dataclass(frozen=True)
class EvaluateOptions:
    checkpoint: str
    """A run folder (its best checkpoint is used), a checkpoint or adapter folder, or a name on the Hugging Face hub."""
    scoring: ScoringOptions = field(default_factory=ScoringOptions)
    by_t: bool = False
    """Also print the cross-entropy by t, the fraction of masked tokens."""
    curve: Path | None = None
    """Draw the cross-entropy by t into this picture."""
    positions_per_step: int = 1
    """Least number of positions that a step reveals, with --policy or --order. The exact likelihood needs a forward
    pass for each step and window; --windows limits the cost."""
    quality: Annotated[QualityOptions, arg(name="sampling")] = field(default_factory=QualityOptions)

    @property
    def policy(self) -> PolicyName | None:
        """The policy whose exact likelihood is asked for, if any; an order by itself is a policy."""
        sampler = self.quality.sampler
        return None if self.quality.samples is not None else sampler.policy or sampler.order

    @property
    def is_of_the_bound_alone(self) -> bool:
        """Whether neither samples, nor an exact likelihood, nor a picture is asked for."""
        return self.quality.samples is None and self.policy is None and self.curve is None


def run(arguments: Sequence[str], program: Program) -> int:
    options = _parse(arguments, program)
    options.scoring.check()
    options.quality.check()
    check_positive(options, "positions_per_step")
    if options.policy is None and options.positions_per_step != 1:
        raise UserError("--positions_per_step is for a policy: add --policy, or leave it out.")
    if options.scoring.target_stderr is not None and (options.policy or options.quality.samples is not None):
        raise UserError("--target_stderr is for a bound: leave it out with --policy and --samples.")
    if options.quality.samples is not None and (options.by_t or options.curve):
        raise UserError("--samples measures no bound: leave out --by_t and --curve, or --samples.")
    if options.curve is not None:
        check_picture(options.curve)
    if options.policy and (options.by_t or options.curve):
        raise UserError("An exact likelihood has no t: leave out --by_t and --curve, or --policy.")
    with joined() as shard:
        return _measure(options, shard, arguments, program)


def _parse(arguments: Sequence[str], program: Program, default: EvaluateOptions | None = None) -> EvaluateOptions:
    return parse(EvaluateOptions, program.name, arguments, DESCRIPTION, default, renamed={"sample_steps": "steps"})


def _with_default(
    options: EvaluateOptions, checkpoint: Checkpoint, arguments: Sequence[str], program: Program
) -> QualityOptions:
    """The options of samples with the checkpoint's own default for sampling below what the command line says."""
    default = default_unless({flag.removeprefix("--") for flag in given_values(arguments)}, checkpoint.folder)
    if default is None:
        return options.quality
    say(f"sampling as {SAMPLING_FILE} of the checkpoint says, by the policy {default.policy or default.remasking}")
    unguided = replace(default, cfg_scale=0.0)  # nothing is given that could guide
    quality = replace(options.quality, sampler=unguided)
    return _parse(arguments, program, replace(options, quality=quality)).quality


def _measure(options: EvaluateOptions, shard: Shard, arguments: Sequence[str], program: Program) -> int:
    device = device_of(options.scoring.device, shard)
    precision = choose_precision(options.scoring.precision, device)
    scoring = options.scoring
    checkpoint = open_to_measure(options.checkpoint, device, scoring.dtype, scoring.precision, scoring.base)
    mixture = mixture_of(scoring, checkpoint) if options.is_of_the_bound_alone else None
    if mixture is not None:
        return _measure_mixture(options, mixture, checkpoint, device, precision, shard)
    scored = what_to_score(options.scoring, checkpoint)
    if options.quality.samples is not None:
        if shard.processes > 1:
            raise UserError("Samples are written by one process: start it without torchrun.")
        quality = _with_default(options, checkpoint, arguments, program)
        return measure_samples(quality, options.scoring, checkpoint, scored, device, precision)
    if options.curve is not None and checkpoint.model.is_causal:
        raise UserError("An exact likelihood has no curve over t: leave out --curve.")
    if options.policy is not None:
        if checkpoint.model.is_causal and (options.policy, options.positions_per_step) != ("left_to_right", 1):
            raise UserError("A causal model writes from left to right, one by one: take --policy left_to_right.")
        exact = _exact(options, checkpoint, scored, device, precision, shard)
        return _tell(options, exact.to_json(), _exact_in_words(exact, scored, checkpoint), shard)
    result = _bound(options, checkpoint, scored, device, precision, shard)
    if options.curve is not None and shard.rank == 0:
        draw_curve(result, options.curve)
    return _tell(options, _content_of(result, scored), _bound_in_words(result, options, scored, checkpoint), shard)


def _content_of(result: Nelbo, scored: Scored) -> dict[str, object]:
    return {**result.to_json(), **(result.bits_per(scored.size) if scored.size else {})}


def _measure_mixture(
    options: EvaluateOptions,
    mixture: Mixture,
    checkpoint: Checkpoint,
    device: torch.device,
    precision: Precision,
    shard: Shard,
) -> int:
    """Measure each text of a mixture, under masks of its own, and their mean as the run has learned them."""
    shares = mixture.interleaving.shares
    parts, contents, words = {}, {}, []
    for number, (name, text) in enumerate(zip(mixture.names, mixture.texts, strict=True)):
        of_text = replace(options, scoring=replace(options.scoring, seed=options.scoring.seed + number))
        scored = what_to_score(of_text.scoring, checkpoint, text)
        parts[name] = _bound(of_text, checkpoint, scored, device, precision, shard)
        contents[name] = _content_of(parts[name], scored)
        heading = f"{mixture.folders[number]}, {shares[number]:.1%} of the sequences"
        words += [heading, _bound_in_words(parts[name], options, scored, checkpoint), ""]
    total = mixed_nelbo(parts, shares)
    summary = Scored(scored.batch, f"{total.windows:,} windows of {total.sequence_length} of these texts")
    words += ["The mixture, each text by its share", _bound_in_words(total, options, summary, checkpoint)]
    return _tell(options, {**total.to_json(), "parts": contents}, "\n".join(words), shard)


def _tell(options: EvaluateOptions, content: dict[str, object], words: str, shard: Shard) -> int:
    if shard.rank == 0:
        tell(json.dumps(content) if options.scoring.json else words)
    return 0


def _bound(
    options: EvaluateOptions,
    checkpoint: Checkpoint,
    scored: Scored,
    device: torch.device,
    precision: Precision,
    shard: Shard,
) -> Nelbo:
    nll, bound_options = nll_of(checkpoint, precision), options.scoring.bound_options(device, shard)
    with showing("evaluating", "NELBO", shard) as show:
        return estimate_nelbo(nll, scored.batch, bound_options, show)


def _exact(
    options: EvaluateOptions,
    checkpoint: Checkpoint,
    scored: Scored,
    device: torch.device,
    precision: Precision,
    shard: Shard,
) -> ExactNll:
    assert options.policy is not None
    predict_at = predict_by_model(checkpoint.model, precision)
    with showing("evaluating", "NLL", shard) as show:
        return measure_exact_nll(
            predict_at, scored.batch, checkpoint.tokenizer.mask_id, policy=options.policy,
            options=options.quality.sampler,
            positions_per_step=options.positions_per_step, batch_size=options.scoring.batch_size, device=device,
            shard=shard, on_progress=show,
        )  # fmt: skip


def _bound_in_words(result: Nelbo, options: EvaluateOptions, scored: Scored, checkpoint: Checkpoint) -> str:
    unit, indent = checkpoint.tokenizer.unit, " " * len(result.name)
    is_what = "the negative log-likelihood itself: the model is autoregressive"
    if not result.is_exact:
        is_what = "an upper bound on the negative log-likelihood"
    lines = [
        f"{result.name} {result.with_error(4)} nats per {unit} (± standard error over windows)",
        f"{indent} {result.bits_per_token:.4f} bits per {unit}, {is_what}",
    ]
    if result.mask_stderr:
        error = f"± {result.mask_stderr:.4f}"
        lines.insert(1, f"{indent} {error:>15} of this very text, from the masks alone")
    if scored.size:
        bits = result.bits_per(scored.size)
        by = {"character": "bits_per_character", "byte": "bits_per_byte", "word": "bits_per_word"}
        parts = [f"{bits[key]:.4f} a {name}" for name, key in by.items() if name != unit]
        lines.append(f"{indent} in bits: {', '.join(parts)}")
    masks = "in one pass" if result.is_exact else f"with {result.masks_per_window} masks each"
    lines.append(
        f"over {scored.in_words}, {result.tokens_scored:,} {unit}s, {masks}, in {result.seconds:.0f} s; "
        f"{checkpoint.folder}"
    )
    target = options.scoring.target_stderr
    if target is not None and (result.mask_stderr or 0.0) > target:
        lines.append(f"--target_stderr {target:g} was not reached with {result.masks_per_window} masks a window")
    if options.by_t and result.by_t:
        lines += ["", "     t        nats   ± s.e.    draws"]
        for row in result.by_t:
            nats = "-" if row.nats is None else f"{row.nats:.4f}"
            error = "-" if row.stderr is None else f"{row.stderr:.4f}"
            lines.append(f"{row.t_from:.1f} - {row.t_to:.1f}  {nats:>7}  {error:>7}  {row.draws:>7,}")
    return "\n".join(lines)


def _exact_in_words(result: ExactNll, scored: Scored, checkpoint: Checkpoint) -> str:
    unit = checkpoint.tokenizer.unit
    at_once = f"{result.positions_per_step} at a time" if result.positions_per_step > 1 else "one at a time"
    if not make_policy(result.policy).has_budget:
        at_once = f"{result.tokens_scored / result.windows / result.nfe_per_window:.1f} at a time on average"
    return "\n".join(
        [
            f"NLL {result.with_error(4)} nats per {unit} (± standard error over windows)",
            f"    {result.bits_per_token:.4f} bits per {unit}",
            f"    exact for drawing each token where the policy {result.policy} says, {at_once}; not a bound, and not "
            "to be compared with one",
            f"over {scored.in_words}, {result.tokens_scored:,} {unit}s, {result.nfe_per_window:.1f} evaluations each, "
            f"in {result.seconds:.0f} s; {checkpoint.folder}",
        ]
    )
