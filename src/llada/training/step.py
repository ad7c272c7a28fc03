"""A step up to its gradients: a batch of clean ids, its noise, the loss, the backward pass.

A step is a function of (seed, step, number of samples before it) and of the weights. It can be computed again whenever
it is asked for, and a step that is cut into several batches, or shared among several processes, is the same step.

Shape letters: B batch, L length, N masked positions.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from llada.data.batches import TokenBatch
from llada.data.order import uniforms, words_at
from llada.forward_process import (
    NoisyBatch,
    Uniforms,
    mask_bernoulli,
    mask_bernoulli_by,
    mask_exact_count,
    mask_exact_count_by,
    score_all,
    stratified,
    truncate_randomly,
)
from llada.models import MaskPredictor, flat_positions
from llada.models.dropout import rows_of
from llada.models.head import nll_of_features
from llada.objective import loss_weights, weighted_loss
from llada.optim.ema import trained_weights
from llada.system.device import Precision, send
from llada.training.answer_check import EosShare
from llada.training.data_source import Source
from llada.training.group import ALONE, Group
from llada.training.metrics import LossByTime
from llada.training.plan import RunPlan
from llada.training.seeds import key_of, seed_of
from llada.training.sharding import exchange_gradients, take_gradients
from llada.training.state import Progress

LONGEST_SEARCH = 100  # steps among which one of the usual shape is looked for


class StepLeftError(Exception):
    """The run was asked to stop between the pieces of a step, which is not counted."""


@dataclass(frozen=True)
class Gradients:
    """What is known of the gradients of a step, which are in the weights."""

    loss: Tensor
    norm: Tensor
    """Norm of the gradients before clipping."""
    tokens: int
    """Number of tokens that went through the network."""

    @property
    def are_finite(self) -> bool:
        """Whether all gradients are finite; waits for the device."""
        return bool(torch.isfinite(self.loss)) and bool(torch.isfinite(self.norm))


class Steps:
    """The steps of a run, by their numbers."""

    def __init__(
        self,
        plan: RunPlan,
        model: MaskPredictor,
        source: Source,
        progress: Progress,
        eos_share: EosShare | None = None,
        must_leave: Callable[[], bool] = lambda: False,
        group: Group = ALONE,
    ) -> None:
        """
        Args:
            progress: the run's, which is read only.
            eos_share: counts what the model predicts at masked positions of answers.
            must_leave: asked between the pieces of a step whether to leave it.
            group: the processes that share each step.
        """
        self.plan, self.config, self.share, self.group = plan, plan.config, plan.share, group
        self.model, self.source, self.progress = model, source, progress
        self.device, self.precision = plan.device, plan.precision
        self.eos_share, self.must_leave = eos_share, must_leave
        self._dropout_rows = rows_of(model.network)

    def make_batch(self, step: int) -> tuple[TokenBatch, NoisyBatch]:
        """The clean ids of this process's rows of a step and their noisy form; the same whenever asked for."""
        generator = Generator().manual_seed(seed_of(self.config.seed, step, "batch", self.progress.data_order))
        if self.config.draws == "by_row":
            return self._draw_rows(step, generator)
        batch, noisy = self._draw_step(step, generator)
        return (batch, noisy) if self.share.is_whole else (batch.rows(self.share.rows), noisy.take(self.share.rows))

    def _draw_rows(self, step: int, generator: Generator) -> tuple[TokenBatch, NoisyBatch]:
        """Draw this process's rows, each by its number in the run; the generator is for what all rows share."""
        noise, seed, order = self.config.noise, self.config.seed, self.progress.data_order
        n_before, n_distinct = self._samples_before(step), self.config.distinct_sequences
        batch = self.source.draw(n_before, generator)
        batch = batch.columns(truncate_randomly(batch.x_0, generator, self.source.random_length).shape[1])
        if self.model.is_causal:
            return batch, score_all(batch.x_0, batch.maskable)
        place = self.share.rows % n_distinct
        samples = (n_before + place).numpy()
        mask_id, length = self.plan.data.tokenizer.mask_id, batch.x_0.shape[1]
        of_tokens = torch.from_numpy(uniforms(key_of(seed, "masks", order), samples, length))
        if noise.masking == "bernoulli":
            of_rows = torch.from_numpy(uniforms(key_of(seed, "times", order), samples, 1))[:, 0]
            drawn = Uniforms(of_rows, of_tokens)
            return batch, mask_bernoulli_by(batch.x_0, mask_id, drawn, batch.maskable, noise.schedule, noise.times)
        offset, stratum = torch.rand((), generator=generator), place
        if self.source.is_periodic:  # else the rows of a folder would often have the same places, and so the same t
            stratum = torch.randperm(n_distinct, generator=generator)[place]
        drawn = Uniforms(stratified(stratum, n_distinct, offset), of_tokens)
        is_complement = self.share.rows >= n_distinct if noise.complementary else None
        return batch, mask_exact_count_by(
            batch.x_0, mask_id, drawn, batch.maskable, is_complement, noise.schedule, noise.times
        )

    def _draw_step(self, step: int, generator: Generator) -> tuple[TokenBatch, NoisyBatch]:
        """Draw all rows of a step, one after the other, as runs with `draws="by_step"` do."""
        noise, mask_id = self.config.noise, self.plan.data.tokenizer.mask_id
        batch = self.source.draw(self._samples_before(step), generator)
        length = truncate_randomly(batch.x_0, generator, self.source.random_length).shape[1]
        batch = batch.columns(length)
        if self.model.is_causal:
            return batch, score_all(batch.x_0, batch.maskable)
        if noise.complementary:
            batch = batch.twice()
        if noise.masking == "bernoulli":
            return batch, mask_bernoulli(batch.x_0, mask_id, generator, batch.maskable, noise.schedule, noise.times)
        return batch, mask_exact_count(
            batch.x_0, mask_id, generator, batch.maskable, noise.complementary, noise.schedule, noise.times
        )

    def _samples_before(self, step: int) -> int:
        """How many samples the run had drawn before a step, which may be one that is done already."""
        return max(0, self.progress.samples + (step - self.progress.step) * self.config.distinct_sequences)

    def usual_batch(self) -> tuple[Tensor, Tensor | None]:
        """Noisy ids (B, L) of the first step that is not cut to a random length, and the numbers of their documents if
        attention stays within them."""
        shape, is_within = (self.share.batch_size, self.plan.length), self.config.data.within_documents
        for step in range(LONGEST_SEARCH):
            batch, noisy = self.make_batch(step)
            batch, noisy = batch.rows(slice(shape[0])), noisy.rows(slice(shape[0]))
            if noisy.x_t.shape == shape:
                return noisy.x_t, batch.attention_mask if is_within else None
        # Nearly every step is cut.
        x_t = torch.full(shape, self.plan.data.tokenizer.mask_id)
        return x_t, torch.ones(shape, dtype=torch.int32) if is_within else None

    def gradients(self, step: int, by_time: LossByTime, may_leave: bool = False) -> Gradients:
        """Put the gradients of a step, clipped, into the weights. Nothing else of the run changes.

        Raises:
            StepLeftError: a process `may_leave` between the pieces of its part of the step, and `must_leave` says so.
        """
        loss, tokens = self.backward(step, by_time, may_leave)
        # Whoever was asked to stop comes here at once, and all learn of it where they would have to wait anyway.
        tokens, n_left = self.group.sum_of_numbers(tokens or 0, int(tokens is None))
        if n_left:
            raise StepLeftError
        weights = trained_weights(self.model.network)
        loss = self.group.sum_gradients(weights, loss)
        norm = self.group.clip_gradients(weights, self.config.optimizer.clip)
        return Gradients(loss, norm, tokens)

    def backward(self, step: int, by_time: LossByTime, may_leave: bool = False) -> tuple[Tensor, int | None]:
        """Add the gradients of this process's part of a step to those of the weights.

        Returns:
            The part's share of the loss, and how many tokens it has; None if it was left between its pieces, which it
            is if it `may_leave` and `must_leave` says so.
        """
        config = self.config
        dropping = self._dropout(step)
        batch, noisy = self.make_batch(step)
        weights = loss_weights(noisy, config.noise.weight_power, self.source.average, self.group.sum)
        loss, tokens = torch.zeros((), device=self.device), 0
        for first in range(0, len(batch.x_0), self.share.batch_size):
            if may_leave and first and self.must_leave():
                return loss, None
            rows = slice(first, first + self.share.batch_size)
            length = batch.rows(rows).needed_columns  # rows of one step that are padded apart differ in length
            piece, noise_of_piece = batch.rows(rows).columns(length), noisy.rows(rows).columns(length)
            tokens += piece.x_0.numel()
            with dropping(rows):
                part = self.loss(piece, noise_of_piece, weights[rows], by_time)
                is_last = rows.stop >= len(batch.x_0)
                exchange_gradients(self.model.network, is_last or not self.plan.keeps_gradients_whole)
                part.backward()
            loss += part.detach()
        take_gradients(self.model.network)
        return loss, tokens

    def _dropout(self, step: int) -> Callable[[slice], AbstractContextManager[None]]:
        """Make ready what a step drops; returns a context in which some of this process's rows are computed."""
        config, order, dropout_rows = self.config, self.progress.data_order, self._dropout_rows
        if config.draws == "by_step":
            torch.manual_seed(seed_of(config.seed, step, "dropout", order, self.group.rank))
        if config.draws == "by_step" or dropout_rows is None:
            return lambda rows: nullcontext()
        words = words_at(seed_of(config.seed, step, "dropout", order), self.share.rows.numpy())
        keys = torch.from_numpy(words.view(np.int64))
        return lambda rows: dropout_rows.known_by(send(keys[rows], self.device), keys[rows].tolist())

    def loss(self, batch: TokenBatch, noisy: NoisyBatch, weights: Tensor, by_time: LossByTime) -> Tensor:
        """The weighted loss of rows that go through the network together."""
        # Whatever depends on which tokens are masked, and how many, is worked out on the CPU: a GPU is sent the places,
        # and not waited for.
        targets = send(batch.x_0[noisy.is_masked], self.device)
        positions = send(flat_positions(noisy.is_masked), self.device)
        x_t = send(noisy.x_t, self.device)
        attention_mask = None if batch.attention_mask is None else send(batch.attention_mask, self.device)
        with self.precision.autocast(self.device):
            features = self.model.features(x_t, attention_mask, positions)
            vocab_size = self.plan.network_config.vocab_size
            nll, likeliest = nll_of_features(self.model.network.head, features, targets, vocab_size)
        by_time.add(nll, noisy)
        if self.eos_share:
            self.eos_share.add(likeliest, targets)
        return weighted_loss(nll, send(noisy.at_masked(weights), self.device))

    def clear_gradients(self) -> None:
        for weight in trained_weights(self.model.network).values():
            weight.grad = None

    @contextmanager
    def in_fp32(self) -> Iterator[None]:
        """Compute in fp32 for a while."""
        own, self.precision = self.precision, Precision(torch.float32, "to find out")
        try:
            yield
        finally:
            self.precision = own
