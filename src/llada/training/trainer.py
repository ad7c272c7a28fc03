"""The training loop.

A step draws its sequences and its noise from a generator that is seeded by (seed, step) alone. So a run can stop at any
step and go on as if nothing had happened, and a step cut into several batches is the same step.

Shape letters: B batch, L length, N masked positions.
"""

import math
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor

from llada.errors import UserError
from llada.evaluation.nelbo import Nelbo, nll_by_model
from llada.forward_process import NoisyBatch, mask_bernoulli, mask_exact_count, score_all, truncate_randomly
from llada.hardware import send
from llada.models import flat_positions
from llada.objective import loss_weights, nll_of_features, weighted_loss
from llada.optim import ExponentialAverage, learning_rate_factor, trained_weights
from llada.text.answers import Answers
from llada.text.batches import TokenBatch
from llada.training.answer_check import EosShare
from llada.training.build import build_model
from llada.training.compilation import cache_folder, compile_features
from llada.training.metrics import LossByTime, MetricsFile, draw_curves
from llada.training.monitor import Display, Stopwatch
from llada.training.optimizers import make_optimizers
from llada.training.plan import RunPlan
from llada.training.run_folder import Progress, RunFolder, put_weights
from llada.training.source import make_source
from llada.training.watch import ConvergenceWatch, likely_setting

PURPOSES = {"batch": 0, "dropout": 1}


class Trainer:
    """A run, fresh or resumed: built from its plan, then `run`."""

    def __init__(self, plan: RunPlan, folder: RunFolder, resume: bool = False, start: Path | None = None) -> None:
        """
        Args:
            folder: where the run is kept.
            resume: go on from the last checkpoint of that folder.
            start: checkpoint folder with the weights to start from; random ones if None.
        """
        config = plan.config
        self.plan, self.config, self.folder = plan, config, folder
        self.device, self.precision = plan.device, plan.precision
        torch.manual_seed(config.seed)
        self.model = build_model(plan, start, folder.last if resume else None)
        self.optimizers = make_optimizers(self.model.network, config.optimizer, self.precision.dtype)
        self.average = ExponentialAverage(self.model.network, config.optimizer.ema) if config.optimizer.ema else None
        self.progress = folder.load(plan, self.model, self.average, self.optimizers) if resume else Progress()
        is_chat = isinstance(plan.data, Answers)
        self.is_compiled = plan.should_compile
        if self.is_compiled:
            compile_features(self.model.network, (config.batch_size, plan.length))
        self.source = make_source(plan)
        self.watch = ConvergenceWatch(plan)
        self.eos_share = EosShare(plan.data.tokenizer.eos_id, self.device) if is_chat else None
        self.stop_requested = False

    # -- a step ---------------------------------------------------------------------------------------------------

    def make_batch(self, step: int) -> tuple[TokenBatch, NoisyBatch]:
        """The clean ids of a step and their noisy form; the same whenever asked for."""
        noise, mask_id = self.config.noise, self.plan.data.tokenizer.mask_id
        generator = Generator().manual_seed(seed_of(self.config.seed, step, "batch"))
        batch = self.source.draw(step, generator)
        length = truncate_randomly(batch.x_0, generator, self.source.random_length).shape[1]
        batch = batch.columns(length)
        if self.model.is_causal:
            return batch, score_all(batch.x_0, batch.maskable)
        if noise.complementary:
            batch = batch.twice()
        if noise.masking == "bernoulli":
            return batch, mask_bernoulli(batch.x_0, mask_id, generator, batch.maskable)
        return batch, mask_exact_count(batch.x_0, mask_id, generator, batch.maskable, noise.complementary)

    def train_step(self, by_time: LossByTime) -> "StepResult":
        """One update of the weights."""
        config, step = self.config, self.progress.step
        torch.manual_seed(seed_of(config.seed, step, "dropout"))
        batch, noisy = self.make_batch(step)
        weights = loss_weights(noisy, config.noise.weight_power, self.source.average)
        loss, tokens = torch.zeros((), device=self.device), 0
        for first in range(0, len(batch.x_0), config.batch_size):
            rows = slice(first, first + config.batch_size)
            length = batch.rows(rows).needed_columns  # rows of one step that are padded apart differ in length
            piece, noise_of_piece = batch.rows(rows).columns(length), noisy.rows(rows).columns(length)
            tokens += piece.x_0.numel()
            part = self._loss(piece, noise_of_piece, weights[rows], by_time)
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.detach()
        norm = torch.nn.utils.clip_grad_norm_(trained_weights(self.model).values(), config.optimizer.clip)
        factor = self.learning_rate_factor()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(self.model.network)
        self.progress.step += 1
        self.progress.tokens += tokens
        return StepResult(loss, norm, factor, tokens)

    def _loss(self, batch: TokenBatch, noisy: NoisyBatch, weights: Tensor, by_time: LossByTime) -> Tensor:
        # Whatever depends on which tokens are masked, and how many, is worked out on the CPU: a GPU is told the places,
        # and not waited for.
        targets = send(batch.x_0[noisy.is_masked], self.device)
        positions = send(flat_positions(noisy.is_masked), self.device)
        x_t = send(noisy.x_t, self.device)
        attended = None if batch.attended is None else send(batch.attended, self.device)
        with self.precision.autocast(self.device):
            features = self.model.features(x_t, attended, positions)
            vocab_size = self.plan.network_config.vocab_size
            nll, likeliest = nll_of_features(self.model.network.head, features, targets, vocab_size)
        by_time.add(nll, noisy)
        if self.eos_share:
            self.eos_share.add(likeliest, targets)
        return weighted_loss(nll, noisy, weights)

    def compile(self) -> float:
        """Compile now what the first step would, and return the seconds that it took; no weight changes."""
        start = time.perf_counter()
        shape = (self.config.batch_size, self.plan.length)
        x_t = torch.full(shape, self.plan.data.tokenizer.mask_id, device=self.device)
        with self.precision.autocast(self.device):
            self.model.features(x_t).sum().backward()  # type: ignore[no-untyped-call]
        for parameter in self.model.parameters():
            parameter.grad = None
        return time.perf_counter() - start

    # -- the run --------------------------------------------------------------------------------------------------

    def share_done(self) -> float:
        """The part of the run that is done, by steps or by time, whichever is further."""
        shares = [0.0]
        if self.plan.total_steps is not None:
            shares.append(self.progress.step / self.plan.total_steps)
        if self.config.minutes is not None:
            shares.append(self.progress.seconds / (60 * self.config.minutes))
        return min(1.0, max(shares))

    def learning_rate_factor(self) -> float:
        options = self.config.optimizer
        return learning_rate_factor(
            options.schedule,
            progress=self.share_done(),
            step=self.progress.step,
            warmup_steps=options.warmup_steps,
            decay=options.decay,
            final=options.final_rate,
        )

    def run(self, display: Display) -> Progress:
        """Train to the end, or until told to stop; the last state is saved in either case.

        Raises:
            UserError: the loss is no finite number any more. Nothing is saved then; the last checkpoint stays.
        """
        config, progress = self.config, self.progress
        metrics = MetricsFile(self.folder.path / "metrics.jsonl", progress.step)
        by_time = LossByTime(self.device)
        if self.is_compiled:
            display.say("Compiling the network, once for this shape (--compile False goes without) ...")
            display.say(f"... done in {self.compile():.0f} s, and kept for the next run in {cache_folder()}.")
        timer = Stopwatch(progress, self.plan.total_steps, config.minutes)
        with self._stopping_on_signals(), display:
            is_last = self.share_done() >= 1
            while not is_last:
                done = self.train_step(by_time)
                timer.lap(done.tokens)
                # Asked once, so that a signal in the middle of what follows leads to one more step, not to a lost save.
                stop, is_complete = self.stop_requested, self.share_done() >= 1
                is_last = stop or is_complete
                if progress.step % config.log_every == 0 or is_last:
                    self._log(metrics, display, by_time, timer, done)
                if progress.step % config.evaluate_every == 0 or is_last:
                    self._evaluate_and_save(metrics, display, evaluate=is_complete or not stop)
                    timer.skip()
        return progress

    def _log(
        self, metrics: MetricsFile, display: Display, by_time: LossByTime, timer: Stopwatch, done: "StepResult"
    ) -> None:
        step, loss, grad_norm = self.progress.step, float(done.loss), float(done.grad_norm)
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            goes_on = f"go on from the last checkpoint with --resume {self.folder.path}"
            raise UserError(
                f"The loss became {loss} and its gradient {grad_norm} by step {step}; "
                f"{likely_setting(self.plan, is_too_fast=True)}, and "
                f"{goes_on if self.folder.has_checkpoint() else 'start again'}."
            )
        nll, nll_by_t = by_time.take()
        rate = timer.tokens_per_second
        metrics.write(
            {
                "step": step,
                "tokens": self.progress.tokens,
                "seconds": round(self.progress.seconds, 2),
                "loss": loss,
                "nll": nll,
                "nll_by_t": nll_by_t,
                "grad_norm": grad_norm,
                "learning_rate_factor": done.learning_rate_factor,
                "tokens_per_second": rate and round(rate),
                **(self.eos_share.take() if self.eos_share else {}),
            }
        )
        status = f"loss {loss:.3f}"
        if self.progress.best_step:
            status += f" · NELBO {self.progress.best_nelbo:.3f}"
        if rate:
            status += f" · {rate / 1000:.1f}k tokens/s"
        display.update(step, self.share_done(), status, timer.seconds_left)
        warning = self.watch.add(step, self.share_done(), nll)
        if warning:
            display.say(warning)

    def _evaluate_and_save(self, metrics: MetricsFile, display: Display, evaluate: bool) -> None:
        """Measure and show the model that would be saved, then save it; a run told to stop only saves."""
        progress = self.progress
        with self._average_in_place() as own_weights:
            if evaluate:
                self._evaluate(metrics, display)
            self.folder.save(progress, self.plan, self.model, own_weights, self.average, self.optimizers)
        draw_curves(metrics.path, self.folder.path / "curves.png")

    def _evaluate(self, metrics: MetricsFile, display: Display) -> None:
        progress, result = self.progress, self.estimate_nelbo()
        sample = self.source.sample(self.model)
        metrics.write(
            {
                "step": progress.step,
                "nelbo": result.nelbo_nats_per_token,
                "nelbo_stderr": result.nelbo_stderr,
                **sample.metrics,
            }
        )
        if result.nelbo_nats_per_token < progress.best_nelbo:
            progress.best_nelbo, progress.best_step = result.nelbo_nats_per_token, progress.step
        folder = self.folder.path / "samples"
        folder.mkdir(exist_ok=True)
        (folder / f"step-{progress.step:08d}.txt").write_text(sample.text + "\n", encoding="utf-8")
        display.say(
            f"step {progress.step}: NELBO {result.with_error(3)} nats per token, on {result.windows} "
            f"validation {self.source.noun}; {self.source.shows}:\n{_indented(sample.text)}"
        )
        if sample.warning:
            display.say(sample.warning)

    def estimate_nelbo(self) -> Nelbo:
        """The bound on some of the validation data, with the same masks at every step."""
        return self.source.estimate_nelbo(nll_by_model(self.model, self.precision))

    @contextmanager
    def _average_in_place(self) -> Iterator[Mapping[str, Tensor] | None]:
        """Lend the model its averaged weights, in evaluation mode; yields its own, if they are others."""
        own = None
        if self.average:
            own = {name: weight.detach().clone() for name, weight in trained_weights(self.model.network).items()}
            put_weights(self.model, self.average.weights)
        self.model.eval()
        try:
            yield own
        finally:
            if own is not None:
                put_weights(self.model, own)
            self.model.train()

    @contextmanager
    def _stopping_on_signals(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM ends the run after its step; the second one is not caught."""

        def request_stop(number: int, _frame: object) -> None:
            self.stop_requested = True
            signal.signal(number, previous[signal.Signals(number)])

        previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in previous:
            signal.signal(number, request_stop)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


@dataclass(frozen=True)
class StepResult:
    """What a step tells: the loss and the norm of the gradient (scalars on the device), its learning rate, its size."""

    loss: Tensor
    grad_norm: Tensor
    learning_rate_factor: float
    tokens: int


def seed_of(seed: int, step: int, purpose: Literal["batch", "dropout"]) -> int:
    """Seed of the randomness that a step needs for a purpose; two purposes share nothing."""
    return int(np.random.SeedSequence((seed, step, PURPOSES[purpose])).generate_state(1, np.uint64)[0])


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
