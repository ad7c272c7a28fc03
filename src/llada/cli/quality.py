"""The quality of what a model writes: `llada evaluate --samples N`."""

import json
import time
from dataclasses import dataclass, fields, replace
from typing import Annotated

import torch
from tyro.conf import arg

from llada.checkpoints.folder import Checkpoint
from llada.checkpoints.load import open_model
from llada.cli.options import check_positive, sampler_for
from llada.cli.scoring import Scored, ScoringOptions, showing
from llada.evaluation.distributed import ALONE
from llada.evaluation.samples import (
    Judge,
    Mean,
    Quality,
    judge_by_checkpoint,
    judge_by_transformers,
    measure_quality,
)
from llada.evaluation.standard_errors import in_words
from llada.evaluation.windows import cut_windows
from llada.sampling.batches import seeds_from
from llada.sampling.config import FREE_TEXT, SamplerConfig
from llada.sampling.policies import DEFAULTS
from llada.sampling.unmask import infill
from llada.system.device import Precision
from llada.system.errors import UserError
from llada.system.terminal import say, tell

HELD_OUT = 200  # greatest number of windows from which the reference values are computed
NAMES = {
    "judge_nats_per_character": "nats a character, under the judge",
    "entropy_nats": "entropy of the characters, nats",
    "valid_words": "share of words that the training text has",
    "copied": "share of {n}-grams copied from it",
}


POLICY_NUMBERS = {field.name: getattr(DEFAULTS, field.name) for field in fields(DEFAULTS)}


@dataclass(frozen=True)
class QualityOptions:
    samples: int | None = None
    """Measure the quality of this many samples, compared with held-out text, instead of a bound."""
    judge: str | None = None
    """Autoregressive model that measures how likely the samples are: a run of --preset autoregressive, or
    "hf:NAME", where NAME is the folder or hub name of a causal model for Hugging Face transformers."""
    sample_length: int | None = None
    """Number of tokens in each sample; the length of the windows if left out."""
    ngram: int = 30
    """Number of characters in an n-gram of a sample that counts as copied."""
    sampler: Annotated[SamplerConfig, arg(name="")] = FREE_TEXT

    def check(self) -> None:
        """Refuse options that are out of range or are missing --samples.

        Raises:
            UserError: an option is refused.
        """
        check_positive(self, "samples", "sample_length", "ngram")
        if self.sampler.cfg_scale:
            raise UserError("Samples have no prompt that could guide them: leave out --cfg_scale.")
        sampler = replace(self.sampler, policy=None, **POLICY_NUMBERS)  # a policy has an exact likelihood, too
        if self.samples is None and replace(self, sampler=sampler) != QualityOptions():
            raise UserError("--judge, --sample_length and the like are for samples: add --samples N.")


def measure_samples(
    options: QualityOptions,
    scoring: ScoringOptions,
    checkpoint: Checkpoint,
    scored: Scored,
    device: torch.device,
    precision: Precision,
) -> int:
    """Write samples, measure them and held-out text, print both, and return the exit code."""
    if scored.data is None:
        raise UserError("Samples are measured against a text: leave out --chat and name it by --data_dir.")
    judge = open_judge(options.judge, checkpoint, device, precision)
    length = options.sample_length or scored.batch.x_0.shape[1]
    checkpoint.check_length(length)
    held_out = cut_windows(scored.data.tokens(scoring.split), length, HELD_OUT)
    start = time.perf_counter()
    texts = write_samples(options, scoring, checkpoint, length, device)
    of_samples, of_people = (
        measure_quality(measured, scored.data.text("train"), options.ngram, judge)
        for measured in (texts, [checkpoint.tokenizer.decode(row) for row in held_out.tolist()])
    )
    if scoring.json:
        tell(json.dumps({"samples": of_samples.to_json(), "held_out": of_people.to_json(), "texts": texts}))
        return 0
    tell(f"{len(texts)} samples of {length} {checkpoint.tokenizer.unit}s of {checkpoint.folder}, compared with")
    tell(f"{len(held_out)} windows of the {scoring.split} split (± standard errors over texts):")
    tell(_in_words(of_samples, of_people, options.ngram))
    say(f"{time.perf_counter() - start:.0f} s")
    return 0


def write_samples(
    options: QualityOptions, scoring: ScoringOptions, checkpoint: Checkpoint, length: int, device: torch.device
) -> list[str]:
    """Write texts without a prompt."""
    tokenizer, n_samples = checkpoint.tokenizer, options.samples or 0
    config = sampler_for(checkpoint.model, options.sampler)
    seeds, texts = seeds_from(scoring.seed, n_samples), list[str]()  # text i is that of `llada sample --seed`, plus i
    with showing("sampling", "samples", ALONE) as show:
        while len(texts) < n_samples:
            rows = min(scoring.batch_size, n_samples - len(texts))
            template = torch.full((rows, length), tokenizer.mask_id, device=device)
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[len(texts) : len(texts) + rows]]
            canvas = infill(checkpoint.predict, template, tokenizer.mask_id, config, generators)
            texts += [tokenizer.decode(row) for row in canvas.x_t.tolist()]
            show(len(texts) / n_samples, len(texts))
    return texts


def open_judge(name: str | None, checkpoint: Checkpoint, device: torch.device, precision: Precision) -> Judge | None:
    """The judge of that name; None if none is named.

    Raises:
        UserError: there is none, or it knows other tokens than the model.
    """
    if name is None:
        return None
    if name.startswith("hf:"):
        return judge_by_transformers(name.removeprefix("hf:"), device)
    judge = open_model(name, device)
    if judge.tokenizer != checkpoint.tokenizer:
        raise UserError(f"The judge in {judge.folder} knows other characters than the model: train both on one text.")
    return judge_by_checkpoint(judge, precision, device)


def _in_words(of_samples: Quality, of_people: Quality, ngram: int) -> str:
    lines = [f"  {'':42}  {'samples':>16}  {'held-out text':>16}"]
    for key, name in NAMES.items():
        pair: list[Mean | None] = [getattr(of_samples, key), getattr(of_people, key)]
        if any(pair):
            cells = ["-" if mean is None else in_words(mean.mean, mean.stderr, 3) for mean in pair]
            lines.append(f"  {name.format(n=ngram):42}  {cells[0]:>16}  {cells[1]:>16}")
    return "\n".join(lines)
