"""What a run learns from and is measured on: windows of a text or of several, or answers to prompts.

Shape letters: B batch, L length, N masked positions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Generator

from llada.data.batches import (
    DrawBatch,
    Numbered,
    TokenBatch,
    answers,
    drawn_within_documents,
    pad_answers,
    random_windows,
    stored_sequences,
)
from llada.data.mixture import Mixture, mixed_rows
from llada.data.order import Numbers
from llada.data.prepared import PreparedText
from llada.data.sft import Answers
from llada.evaluation.distributed import Shard
from llada.evaluation.mixed_nelbo import mixed_nelbo
from llada.evaluation.nelbo import BoundOptions, Nelbo, TokenNll, estimate_nelbo
from llada.evaluation.windows import evenly_spread, scored_windows
from llada.models import MaskPredictor, block_length_of
from llada.objective import Average
from llada.sampling.guidance import suppress
from llada.sampling.unmask import infill
from llada.training.answer_check import check_answers
from llada.training.plan import RunPlan
from llada.training.presets import sampling_of
from llada.training.seeds import key_of, order_seed

EVALUATION_MASKS = 2  # a window; evaluations within a run are for the curve and for choosing the best checkpoint
SAMPLE_LENGTH = 200


@dataclass(frozen=True)
class Sample:
    """What a model writes, to be read by people, and what can be counted of it."""

    text: str
    metrics: dict[str, Any] = field(default_factory=dict)
    warning: str | None = None


class Source(Protocol):
    """What a run learns from."""

    draw: DrawBatch
    average: Average
    """What the loss is averaged over (`objective.loss_weights`)."""
    random_length: float
    """Share of batches that are cut to a random length."""
    is_periodic: bool
    """Whether what kind of sequence a row is depends on its place in the step."""
    noun: str
    """What the bound is measured on, in the plural."""
    shows: str
    """What a sample is."""

    def estimate_nelbo(self, nll: TokenNll) -> Nelbo:
        """The bound on some of the validation data, with the same masks at every step."""

    def sample(self, model: MaskPredictor) -> Sample:
        """Something written by the model, the same masks and draws at every step."""


def make_source(plan: RunPlan, data_order: int) -> Source:
    """The source of a run.

    Args:
        data_order: how often the run went back to go on with its data in another order.
    """
    config, share = plan.config, plan.share
    batch: int | Numbered = config.distinct_sequences
    places = share.rows.numpy() % config.distinct_sequences
    if isinstance(plan.data, Mixture):
        return MixtureSource(plan, plan.data, places, data_order)
    if config.draws == "by_row":
        batch = Numbered(places, key_of(config.seed, "data", data_order))
    seed = order_seed(config.seed, data_order)
    if isinstance(plan.data, Answers):
        return AnswerSource(plan, plan.data, batch, seed)
    return TextSource(plan, plan.data, batch, seed)


def _bound_options(plan: RunPlan) -> BoundOptions:
    shard = Shard(plan.rank, plan.processes, in_step=plan.is_sharded)
    return BoundOptions(EVALUATION_MASKS, batch_size=plan.share.batch_size, device=plan.device, shard=shard)


def _sequences_of(plan: RunPlan, data: PreparedText, batch: int | Numbered, order_seed: int = 0) -> DrawBatch:
    """Make a source of the sequences of a text, as the run's options say."""
    options = plan.config.data
    if options.windows == "random":
        draw = random_windows(data, batch, plan.length)
    else:
        draw = stored_sequences(data, batch, order_seed)
    return drawn_within_documents(draw, data.tokenizer.eos_id) if options.within_documents else draw


def _windows_to_measure(plan: RunPlan, data: PreparedText, at_most: int) -> TokenBatch:
    eos_id = data.tokenizer.eos_id
    windows = TokenBatch(*scored_windows(data.tokens("val"), plan.length, eos_id, at_most))
    return windows.within_documents(eos_id) if plan.config.data.within_documents else windows


class TextSource:
    """A prepared text."""

    average: Average = "tokens"
    is_periodic = False
    noun, shows = "windows", "a sample"

    def __init__(self, plan: RunPlan, data: PreparedText, batch: int | Numbered, order_seed: int) -> None:
        self.plan = plan
        self.random_length = plan.config.noise.random_length
        self.draw = _sequences_of(plan, data, batch, order_seed)
        self.windows = _windows_to_measure(plan, data, plan.config.evaluation_windows)

    def estimate_nelbo(self, nll: TokenNll) -> Nelbo:
        return estimate_nelbo(nll, self.windows, _bound_options(self.plan))

    def sample(self, model: MaskPredictor) -> Sample:
        """A text out of nothing."""
        return _sample_text(self.plan, model)


class MixtureSource:
    """Several prepared texts, each in the order of its own epochs."""

    average: Average = "tokens"
    is_periodic = True
    noun, shows = "windows", "a sample"

    def __init__(self, plan: RunPlan, data: Mixture, places: Numbers, data_order: int) -> None:
        config = plan.config
        self.plan, self.data = plan, data
        self.random_length = config.noise.random_length

        def draw_of(number: int, text: PreparedText) -> Callable[[Numbers], TokenBatch]:
            key = key_of(config.seed, "data", data_order, number)
            return lambda rows: _sequences_of(plan, text, Numbered(rows, key))(0, Generator())

        self.draw = mixed_rows(data.interleaving, places, [draw_of(i, text) for i, text in enumerate(data.texts)])
        at_most = math.ceil(config.evaluation_windows / len(data.texts))
        self.windows = [_windows_to_measure(plan, text, at_most) for text in data.texts]

    def estimate_nelbo(self, nll: TokenNll) -> Nelbo:
        """The bounds of the folders, and that of the mixture, which is their mean weighted as the run learns them."""
        options = _bound_options(self.plan)
        bounds = [
            estimate_nelbo(nll, windows, replace(options, seed=number)) for number, windows in enumerate(self.windows)
        ]
        return mixed_nelbo(dict(zip(self.data.names, bounds, strict=True)), self.data.interleaving.shares)

    def sample(self, model: MaskPredictor) -> Sample:
        """A text out of nothing."""
        return _sample_text(self.plan, model)


def _sample_text(plan: RunPlan, model: MaskPredictor) -> Sample:
    tokenizer = plan.data.tokenizer
    canvas = infill(
        suppress(model, tokenizer.forbidden_rows),
        torch.full((1, min(SAMPLE_LENGTH, plan.length)), tokenizer.mask_id, device=plan.device),
        tokenizer.mask_id,
        replace(sampling_of(plan.config), block_length=block_length_of(model, None)),
        Generator().manual_seed(plan.config.seed),
    )
    return Sample(tokenizer.decode(canvas.x_t[0].tolist()))


class AnswerSource:
    """Prompts and answers."""

    average: Average = "sequences"
    is_periodic = False
    random_length = 0.0  # answers are never cut
    noun, shows = "answers", "some prompts, and what the model answers"

    def __init__(self, plan: RunPlan, data: Answers, batch: int | Numbered, order_seed: int) -> None:
        config = plan.config
        self.plan, self.data = plan, data
        # Padding decides what is learned, so a batch that goes through the network together is padded together.
        padded_together = config.distinct_sequences if config.noise.complementary else config.batch_size
        self.draw = answers(data.pairs["train"], batch, padded_together, data.tokenizer.eos_id, order_seed)
        self.pairs = evenly_spread(data.pairs["val"], config.evaluation_windows)

    def estimate_nelbo(self, nll: TokenNll) -> Nelbo:
        return estimate_nelbo(nll, pad_answers(self.pairs, self.data.tokenizer.eos_id), _bound_options(self.plan))

    def sample(self, model: MaskPredictor) -> Sample:
        """Answers to prompts of the validation dialogues."""
        config, longest = self.plan.config, self.plan.network_config.max_sequence_length
        check = check_answers(model, self.data, self.pairs, self.plan.device, longest, config.batch_size)
        warning = check.warning(config.batch_size, config.sequences_per_step)
        return Sample(check.show(), check.to_json(), warning)
