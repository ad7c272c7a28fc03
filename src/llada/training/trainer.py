"""The training loop.

A step draws its sequences and its noise from a generator that is seeded by (seed, step) alone. So a run can stop at any
step and go on as if nothing had happened, and a step cut into several batches is the same step.

Shape letters: B batch, L length, N masked positions.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Generator, Tensor

from llada.checkpoints.run_layout import step_folder
from llada.data.batches import TokenBatch
from llada.data.sft import Answers
from llada.evaluation.nelbo import Nelbo, nll_by_model
from llada.forward_process import NoisyBatch, mask_bernoulli, mask_exact_count, score_all, truncate_randomly
from llada.models import flat_positions
from llada.models.head import nll_of_features
from llada.objective import loss_weights, weighted_loss
from llada.optim.muon import ExponentialAverage, learning_rate_factor, trained_weights
from llada.system.device import Precision, send
from llada.system.errors import UserError
from llada.system.toolchains import ToolchainName, has_compiler
from llada.training.agenda import Action, Agenda
from llada.training.answer_check import EosShare
from llada.training.build import build_model
from llada.training.callbacks import Callback
from llada.training.checkpoint_writer import Saver, ending
from llada.training.compilation import CompiledFeatures
from llada.training.data_source import make_source
from llada.training.log import RunLog, StepResult
from llada.training.metrics import LossByTime
from llada.training.nan_guard import FEW, LATELY, Guard, first_non_finite, norms_by_layer, write_trouble
from llada.training.optimizers import make_optimizers
from llada.training.plan import RunPlan
from llada.training.progress_bar import Display, Stopwatch
from llada.training.run_folder import RunFolder
from llada.training.seeds import order_seed, seed_of
from llada.training.signals import StopRequest
from llada.training.state import Meter, Progress, Resumed, RunState, put_weights
from llada.training.trouble import describe_end, first_step_cause

AGAIN = 2 * LATELY  # steps after a return within which the same trouble is not another one
LONGEST_SEARCH = 100  # steps among which one of the usual shape is looked for


class StepLeftError(Exception):
    """The run was told to stop between the pieces of a step, which is not counted."""


class Trainer:
    """A run, fresh or resumed: built from its plan, then `run`."""

    def __init__(
        self,
        plan: RunPlan,
        folder: RunFolder,
        resume: bool = False,
        start: Path | None = None,
        allow_changed_data: bool = False,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """
        Args:
            folder: where the run is kept.
            resume: go on from the last checkpoint of that folder.
            start: checkpoint folder with the weights to start from; random ones if None.
            allow_changed_data: resume even if the data are others by now.
            callbacks: told of each step, evaluation and checkpoint.
        """
        config = plan.config
        self.plan, self.config, self.folder = plan, config, folder
        self.device, self.precision = plan.device, plan.precision
        torch.manual_seed(config.seed)
        self.model = build_model(plan, start, folder.last if resume else None)
        self.optimizers = make_optimizers(self.model.network, config.optimizer, self.precision.dtype)
        self.average = ExponentialAverage(self.model.network, config.optimizer.ema) if config.optimizer.ema else None
        is_chat = isinstance(plan.data, Answers)
        self.by_time, self.guard = LossByTime(self.device), Guard(self.device)
        self.eos_share = EosShare(plan.data.tokenizer.eos_id, self.device) if is_chat else None
        meters: dict[str, Meter] = {"by_time": self.by_time, "guard": self.guard}
        if self.eos_share:
            meters["eos_share"] = self.eos_share
        self.state = RunState(self.model, self.optimizers, self.average, meters)
        self.data = plan.data.fingerprints
        self.resumed = Resumed(Progress(), None, [])
        if resume:
            self.resumed = folder.load(self.state, self.data, config.to_json(), allow_changed_data)
        self.progress = self.resumed.progress
        self.is_compiled = self._should_compile(self.resumed.was_compiled)
        self.compiled = CompiledFeatures(self.model.network, self.device, self.precision)
        self.source = make_source(plan, order_seed(config.seed, self.progress.data_order))
        self.saver, self.stop = Saver(folder), StopRequest()
        self.say: Callable[[str], None] = lambda sentence: None
        self.callbacks = list(callbacks)
        self._went_back_to: int | None = None
        self._first_step = self.progress.step

    def _should_compile(self, was_compiled: bool | None) -> bool:
        """What the run began with decides, not how long it has become: compiled matmuls are rounded otherwise."""
        if self.config.toolchain == "none":
            return False
        if self.config.compile is None and was_compiled is not None:
            return was_compiled and has_compiler(self.device)
        return self.plan.should_compile

    # -- a step ---------------------------------------------------------------------------------------------------

    def make_batch(self, step: int) -> tuple[TokenBatch, NoisyBatch]:
        """The clean ids of a step and their noisy form; the same whenever asked for."""
        noise, mask_id = self.config.noise, self.plan.data.tokenizer.mask_id
        generator = Generator().manual_seed(seed_of(self.config.seed, step, "batch", self.progress.data_order))
        batch = self.source.draw(step, generator)
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

    def train_step(self, by_time: LossByTime) -> StepResult:
        """One update of the weights, or none if its loss or gradient is non-finite (guard.py)."""
        step = self.progress.step
        try:
            loss, norm, tokens = self._clipped_gradients(step, by_time)
        except StepLeftError:
            self._clear_gradients()
            raise
        skip = self.guard.judge(loss, norm, step)
        factor = self.learning_rate_factor()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            optimizer.found_inf = skip  # type: ignore[attr-defined]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(self.model.network, skip)
        self.progress.step += 1
        self.progress.tokens += tokens
        return StepResult(loss, norm, factor, tokens)

    def _clipped_gradients(self, step: int, by_time: LossByTime) -> tuple[Tensor, Tensor, int]:
        """Loss, norm of the gradients before they were clipped, and tokens of a step.

        What compiled code makes non-finite is computed again without it. On a GPU, where the host learns of it when a
        step is logged, `_is_compiler_at_fault` does that.
        """
        asks = self.is_compiled and self.device.type == "cpu"
        has_pieces = self.config.accumulate > 1
        meters: list[Meter] = [by_time, *([self.eos_share] if self.eos_share else [])] if asks or has_pieces else []
        measured = [{name: value.clone() for name, value in meter.sums.items()} for meter in meters]

        def measure_anew() -> None:
            for meter, before in zip(meters, measured, strict=True):
                for name, value in meter.sums.items():
                    value.copy_(before[name])

        try:
            loss, norm, tokens = self._gradients_once(step, by_time, may_stop=has_pieces and step > 0)
        except StepLeftError:
            measure_anew()
            raise
        if not asks or _is_finite(loss, norm):
            return loss, norm, tokens
        measure_anew()
        self._clear_gradients()
        with self.compiled.left_out():
            loss, norm, tokens = self._gradients_once(step, by_time)
        if _is_finite(loss, norm):
            self._stop_compiling(step)
        return loss, norm, tokens

    def _gradients_once(self, step: int, by_time: LossByTime, may_stop: bool = False) -> tuple[Tensor, Tensor, int]:
        loss, tokens = self._gradients(step, by_time, may_stop)
        norm = torch.nn.utils.clip_grad_norm_(trained_weights(self.model).values(), self.config.optimizer.clip)
        return loss, norm, tokens

    def _clear_gradients(self) -> None:
        for weight in trained_weights(self.model).values():
            weight.grad = None

    def _is_compiler_at_fault(self) -> bool:
        """Whether the last step was left out and is finite without compiling; the run then goes on without."""
        if not self.is_compiled or not self.guard.in_a_row:
            return False
        with self.compiled.left_out():
            loss, norm, _ = self._gradients_once(self.guard.last_step, LossByTime(self.device))
        self._clear_gradients()
        if not _is_finite(loss, norm):
            return False
        self._stop_compiling(self.guard.last_step)
        self.guard.reset()
        return True

    def _stop_compiling(self, step: int) -> None:
        self.say(
            f"Step {step} is non-finite by {self.compiled.toolchain}'s code and finite without it: the run goes on "
            "without compiling."
        )
        self.compiled.stop_using()
        self.is_compiled = False
        self._record_toolchain("none")

    def _gradients(self, step: int, by_time: LossByTime, may_stop: bool = False) -> tuple[Tensor, int]:
        """Add the gradients of a step to those of the weights; returns its loss and how many tokens it has.

        Raises:
            StepLeftError: it `may_stop` between its pieces, and was told to; not among steps that are left out.
        """
        config = self.config
        torch.manual_seed(seed_of(config.seed, step, "dropout", self.progress.data_order))
        batch, noisy = self.make_batch(step)
        weights = loss_weights(noisy, config.noise.weight_power, self.source.average)
        loss, tokens = torch.zeros((), device=self.device), 0
        for first in range(0, len(batch.x_0), config.batch_size):
            if may_stop and first and self.stop.is_made and not self.guard.ask_in_a_row():
                raise StepLeftError
            rows = slice(first, first + config.batch_size)
            length = batch.rows(rows).needed_columns  # rows of one step that are padded apart differ in length
            piece, noise_of_piece = batch.rows(rows).columns(length), noisy.rows(rows).columns(length)
            tokens += piece.x_0.numel()
            part = self._loss(piece, noise_of_piece, weights[rows], by_time)
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.detach()
        return loss, tokens

    def _loss(self, batch: TokenBatch, noisy: NoisyBatch, weights: Tensor, by_time: LossByTime) -> Tensor:
        # Whatever depends on which tokens are masked, and how many, is worked out on the CPU: a GPU is told the places,
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

    def compile(self) -> None:
        """Compile the network and check its code; the run goes on without, if none is right. No weight changes."""
        rows = self.model.rows(self._usual_batch()).to(self.device)
        self.is_compiled = self.compiled.compile(rows, self.config.toolchain, self.say)
        toolchain = self.compiled.toolchain
        self._record_toolchain(toolchain.name if toolchain else "none")

    def _usual_batch(self) -> Tensor:
        """Noisy ids (B, L) of the first step that is not cut to a random length."""
        shape = (self.config.batch_size, self.plan.length)
        for step in range(LONGEST_SEARCH):
            x_t = self.make_batch(step)[1].x_t[: shape[0]]
            if x_t.shape == shape:
                return x_t
        return torch.full(shape, self.plan.data.tokenizer.mask_id)  # nearly every step is cut

    def _record_toolchain(self, name: ToolchainName) -> None:
        """In the run's configuration, so that a resumed run computes with the same code."""
        self.config = replace(self.config, toolchain=name)
        self.plan = replace(self.plan, config=self.config)
        self.folder.start(self.config)

    # -- the run --------------------------------------------------------------------------------------------------

    def fraction_done(self) -> float:
        """The part of the run that is done, by steps or by time, whichever is further."""
        fractions = [0.0]
        if self.plan.total_steps is not None:
            fractions.append(self.progress.step / self.plan.total_steps)
        if self.config.minutes is not None:
            fractions.append(self.progress.seconds / (60 * self.config.minutes))
        return min(1.0, max(fractions))

    def learning_rate_factor(self) -> float:
        options = self.config.optimizer
        return learning_rate_factor(
            options.schedule,
            progress=self.fraction_done(),
            step=self.progress.step,
            warmup_steps=options.warmup_steps,
            decay=options.decay,
            final=options.final_rate,
        )

    def run(self, display: Display) -> Progress:
        """Train to the end, or until told to stop; the last state is saved in either case.

        Raises:
            UserError: the loss is no finite number any more, also after going back; or the disk is full. Nothing is
                saved then; the last checkpoint stays.
        """
        progress, self.say = self.progress, display.say
        self.folder.check_space(self.state.expected_bytes(), progress.step)
        if self.is_compiled:
            display.advise("Compiling the network, once for this shape (`compile=False` goes without) ...")
            self.compile()
        config = self.config
        log = RunLog(self.plan, self.folder.path, display, progress)
        timer = Stopwatch(progress, self.plan.total_steps, config.minutes)
        self.agenda = Agenda(self.plan.evaluate_every, config.save_minutes)
        with self.stop.on_signals(), display, ending(self.saver):
            is_last = self.fraction_done() >= 1
            if config.base is not None and progress.step == 0 and not is_last:
                self._measure_base(log)
                timer.skip()
            while not is_last:
                try:
                    done = self.train_step(self.by_time)
                except StepLeftError:
                    self.saver.wait()
                    if self.folder.last_step != progress.step:
                        self._save(log, beside=False)
                    break
                timer.lap(done.tokens)
                for callback in self.callbacks:
                    callback.on_step(progress, done)
                # Asked once, so that a signal in the middle of what follows leads to one more step, not to a lost save.
                told, is_complete = self.stop.is_made, self.fraction_done() >= 1
                # Not in the middle of steps that are left out, where nothing is saved: first the run goes back.
                in_a_row = self.guard.ask_in_a_row() if told else 0
                stop = told and not in_a_row
                is_last = stop or is_complete
                if progress.step % self.plan.log_every == 0 or is_complete or in_a_row >= FEW:
                    self._log(log, timer, done)
                    self.saver.check()
                    if self._is_compiler_at_fault():
                        timer.skip()
                    elif self.guard.has_few:
                        self._go_back(log, done)
                        timer.skip()
                        is_last = stop
                        continue
                action = self.agenda.decide(progress.step, is_complete, stop)
                if action is not Action.NOTHING:
                    self._evaluate_and_save(log, done, action, is_complete, stop)
                    timer.skip()
        self.guard.take()
        if self.guard.total:
            self.say(
                f"{self.guard.total:,} of the steps since it was started were left out, since their loss or gradient "
                "was non-finite (skipped_steps in metrics.jsonl)."
            )
        return progress

    def _log(self, log: RunLog, timer: Stopwatch, done: StepResult) -> None:
        log.write_step(self.progress, self.fraction_done(), done, self.by_time, self.guard, self.eos_share, timer)

    def _has_just_returned(self, last_step: int) -> bool:
        """Whether the run went back already, to this checkpoint or a few steps ago."""
        before = self._went_back_to
        return before is not None and (last_step == before or self.progress.step - before <= AGAIN)

    def _go_back(self, log: RunLog, done: StepResult, cause: str | None = None) -> None:
        """To the last checkpoint, and on with the data in another order.

        Raises:
            UserError: there is none, or the run went back to it already.
        """
        self.saver.wait()
        last_step, progress = self.folder.last_step, self.progress
        if last_step is None or self._has_just_returned(last_step):
            raise self._trouble(done, cause)
        left_at, order = progress.step, progress.data_order + 1
        loaded = self.folder.load(self.state, self.data, {}, allow_changed_data=True).progress
        vars(progress).update({**vars(loaded), "seconds": progress.seconds, "data_order": order})
        self._went_back_to = last_step
        self.guard.reset()
        self.agenda.note_saved()  # what was due was due at steps that are taken anew
        self.source = make_source(self.plan, order_seed(self.config.seed, order))
        log.write_return(progress, left_at)

    def _trouble(self, done: StepResult, cause: str | None = None) -> UserError:
        """The end of a run whose loss is non-finite: what it saw goes into a file, and what to try into a sentence."""
        step, network = self.guard.last_step, self.model.network
        self._gradients(step, LossByTime(self.device))  # once more, of weights that have not changed since
        gradients = {name: weight.grad for name, weight in trained_weights(network).items()}
        batch, noisy = self.make_batch(step)
        path = write_trouble(self.folder.path, step, float(done.loss), batch, noisy, norms_by_layer(gradients))
        if (
            cause is None and self.guard.ask_in_a_row() >= self.progress.step - self._first_step
        ):  # no weight has changed
            cause = first_step_cause(network.state_dict(), self.plan, lambda: self._is_finite_in_fp32(step))
        again = "" if self._went_back_to is None else f", also after going back to step {self._went_back_to}"
        return describe_end(self.plan, done, self.progress.step, again, cause, path, self.folder.has_checkpoint())

    def _is_finite_in_fp32(self, step: int) -> bool:
        """Whether a step is finite in fp32, not compiled."""
        own, self.precision = self.precision, Precision(torch.float32, "to find out")
        try:
            self._clear_gradients()
            with self.compiled.left_out():
                loss, norm, _ = self._gradients_once(step, LossByTime(self.device))
        finally:
            self.precision = own
        return _is_finite(loss, norm)

    def _evaluate_and_save(self, log: RunLog, done: StepResult, action: Action, is_complete: bool, stop: bool) -> None:
        """Measure and show the model that would be saved, if that is due, then save it.

        What is no good to go back to is not saved: a model whose bound or weights are non-finite, or in the middle of
        steps that are left out, after which it is made up for.

        Raises:
            UserError: the run ends here and cannot be saved, or most of its steps were left out.
        """
        step = self.progress.step
        if is_complete and self.guard.is_mostly_bad(step - self._first_step):
            raise self._trouble(done)
        if self.guard.ask_in_a_row() and not is_complete:
            if self.agenda.postpone(action):
                self.say(f"Step {step} was left out: the checkpoint due is made after the next step that is not.")
            return
        is_last = is_complete or stop
        with self._average_in_place() as own_weights:
            bad = first_non_finite(trained_weights(self.model.network)) or first_non_finite(own_weights or {})
            if bad is None:
                if action is Action.EVALUATE_AND_SAVE and not self._evaluate(log):
                    if is_last:  # which would else say that it saved
                        raise self._trouble(done)
                    self.say(f"The bound of step {step} is non-finite: no checkpoint is made of it.")
                    self.agenda.note_saved()
                    return
                self._write(log, own_weights, beside=not is_last)
                return
        cause = f"{bad} is non-finite, which no text need show"
        if is_last:
            raise self._trouble(done, cause)
        self._go_back(log, done, cause)

    def _save(self, log: RunLog, beside: bool) -> None:
        """As the weights are."""
        with self._average_in_place() as own_weights:
            self._write(log, own_weights, beside)

    def _write(self, log: RunLog, own_weights: Mapping[str, Tensor] | None, beside: bool) -> None:
        """A checkpoint of the model with its averaged weights in place."""
        progress = self.progress
        log.close_up()
        self.saver.wait()  # what is being written would be taken for space that is gone
        self.folder.check_space(self.state.expected_bytes(), progress.step)
        packed = self.state.pack(progress, own_weights, self.data, self.is_compiled, self.config.to_json())
        self.saver.save(progress, self.plan, self.model, packed, beside=beside)
        self.agenda.note_saved()
        for callback in self.callbacks:
            callback.on_save(progress, step_folder(self.folder.checkpoints, progress.step))

    def _measure_base(self, log: RunLog) -> None:
        """What is fine-tuned, before it is, so that it can be seen whether that helped.

        Raises:
            UserError: its bound is non-finite.
        """
        self.say("Before the first step, the checkpoint that the run starts from:")
        self.model.eval()
        try:
            result = self._show(log)
        finally:
            self.model.train()
        if not math.isfinite(result.nelbo_nats_per_token):
            raise UserError(
                f"{self.config.base} predicts no finite numbers on the validation data: start from another checkpoint, "
                'or add `precision="fp32"`.'
            )

    def _evaluate(self, log: RunLog) -> bool:
        """Measure and show; False if the bound is no finite number, which is not shown."""
        progress, result = self.progress, self._show(log)
        if not math.isfinite(result.nelbo_nats_per_token):
            return False
        if result.nelbo_nats_per_token < progress.best_nelbo:
            progress.best_nelbo, progress.best_step = result.nelbo_nats_per_token, progress.step
        return True

    def _show(self, log: RunLog) -> Nelbo:
        """Measure, and show what can be shown; a bound that is not finite cannot."""
        progress, result = self.progress, self.estimate_nelbo()
        if math.isfinite(result.nelbo_nats_per_token):
            sample = self.source.sample(self.model)
            log.write_evaluation(progress.step, result, sample, self.source)
            for callback in self.callbacks:
                callback.on_evaluation(progress, result, sample)
        return result

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


def _is_finite(loss: Tensor, norm: Tensor) -> bool:
    return bool(torch.isfinite(loss)) and bool(torch.isfinite(norm))
