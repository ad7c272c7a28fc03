"""The training loop: step, log, evaluate, save.

A step is made in step.py and compiled_step.py; what is done after it is decided in policy.py. Since a step depends on
its number and the weights alone, a run can stop at any step and go on as if nothing had happened, with as many
processes as there are then. All processes of a run do the same, but for what process 0 alone writes and says
(group.py).
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import llada
from llada.checkpoints.run_layout import step_folder
from llada.data.sft import Answers
from llada.evaluation.nelbo import Nelbo, nll_by_model
from llada.optim.ema import ExponentialAverage, trained_weights
from llada.optim.optimizers import make_optimizers
from llada.optim.parts import rows_of
from llada.optim.schedule import learning_rate_factor
from llada.system.errors import UserError
from llada.system.toolchains import ToolchainName, has_compiler
from llada.training.agenda import Action, Agenda
from llada.training.answer_check import EosShare
from llada.training.build import build_model
from llada.training.callbacks import Callback, CallbackList
from llada.training.checkpoint_writer import Saver, SilentSaver, ending
from llada.training.compiled_step import CompiledSteps
from llada.training.data_source import make_source
from llada.training.gathering import Gathering
from llada.training.group import ALONE, Group, OtherFailedError
from llada.training.log import RunLog, SilentLog, StepResult
from llada.training.loggers import make_loggers
from llada.training.metrics import LossByTime
from llada.training.nan_guard import Guard, first_non_finite, norms_by_layer, write_trouble
from llada.training.plan import RunPlan
from llada.training.policy import AfterStep, Policy
from llada.training.progress_bar import Display, Stopwatch
from llada.training.run_folder import RunFolder
from llada.training.seeds import seed_of
from llada.training.signals import StopRequest
from llada.training.state import Meter, Progress, Resumed, RunState
from llada.training.step import StepLeftError, Steps
from llada.training.trouble import describe_end, first_step_cause


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
        group: Group = ALONE,
    ) -> None:
        """
        Args:
            folder: where the run is kept; a `RunReader` in all processes but the first.
            resume: go on from the last checkpoint of that folder.
            start: checkpoint folder with the weights to start from; random ones if None.
            allow_changed_data: resume even if the data are others by now.
            callbacks: called at each step, line of metrics, evaluation and checkpoint (callbacks.py); by process 0.
            group: the processes that share each step; the plan is that of this one.
        """
        config = plan.config
        self.config, self.folder, self.group = config, folder, group
        self.device, self.precision = plan.device, plan.precision
        torch.manual_seed(config.seed)
        self.model = build_model(plan, start, folder.last if resume else None, group)
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
            self._keep_measured_in_main()
        self.progress = self.resumed.progress
        self.plan = plan.after(self.progress.step, self.progress.samples)
        self.saver, self.stop = (Saver if group.is_main else SilentSaver)(folder), StopRequest()
        self.say: Callable[[str], None] = lambda sentence: None
        source = make_source(self.plan, self.progress.data_order)
        self.steps = Steps(self.plan, self.model, source, self.progress, self.eos_share, self._must_leave_step, group)
        self.compiled_steps = CompiledSteps(
            self.steps,
            self._should_compile(self.resumed.was_compiled),
            lambda sentence: self.say(sentence),
            self._record_toolchain,
        )
        clock = time.monotonic if group.processes == 1 else lambda: self.progress.seconds
        self.policy = Policy(Agenda(self.plan.evaluate_every, config.save_minutes, clock), self.plan.log_every)
        self.callbacks = CallbackList([])
        if group.is_main:
            loggers = make_loggers(config.log, folder.path, config.to_json(), lambda sentence: self.say(sentence))
            self.callbacks = CallbackList([*loggers, *callbacks])
        self._first_step = self.progress.step

    def _should_compile(self, was_compiled: bool | None) -> bool:
        """What the run began with decides, not how long it has become: compiled matmuls are rounded otherwise."""
        if self.config.toolchain == "none":
            return False
        if self.config.compile is None and was_compiled is not None:
            return was_compiled and has_compiler(self.device)
        return self.plan.should_compile

    # -- a step ---------------------------------------------------------------------------------------------------

    @property
    def is_compiled(self) -> bool:
        """Whether steps are computed by compiled code, or will be once `compile` is called."""
        return self.compiled_steps.is_compiled

    def compile(self) -> None:
        """Compile the network and check its code; the run goes on without, if none is right. No weight changes."""
        self.compiled_steps.compile(self.config.toolchain)

    def _record_toolchain(self, name: ToolchainName) -> None:
        """In the run's configuration, so that a resumed run computes with the same code."""
        self.config = replace(self.config, toolchain=name)
        self.plan = replace(self.plan, config=self.config)
        self.folder.start(self.config)

    def _must_leave_step(self) -> bool:
        """Whether to stop between the pieces of a step; not among steps that are left out, where nothing is saved."""
        return self.stop.is_made and not self.guard.ask_in_a_row()

    # -- a step ---------------------------------------------------------------------------------------------------

    def train_step(self, by_time: LossByTime) -> StepResult:
        """One update of the weights, or none if its loss or gradient is non-finite (nan_guard.py).

        Raises:
            StepLeftError: the run was asked to stop between the pieces of the step.
        """
        step = self.progress.step
        done = self.compiled_steps.gradients(step, by_time)
        skip = self.guard.judge(done.loss, done.norm, step)
        factor = self.learning_rate_factor()
        if self.config.draws == "by_row" or self.group.processes > 1:  # all processes round weights in bf16 alike
            torch.manual_seed(seed_of(self.config.seed, step, "rounding", self.progress.data_order))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            optimizer.found_inf = skip  # type: ignore[attr-defined]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(self.model.network, skip)
        self.progress.step += 1
        self.progress.samples += self.config.distinct_sequences
        self.progress.tokens += done.tokens
        return StepResult(done.loss, done.norm, factor, done.tokens)

    def fraction_done(self) -> float:
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
            progress=self.fraction_done(),
            step=self.progress.step,
            warmup_steps=options.warmup_steps,
            decay=options.decay,
            final=options.final_rate,
        )

    # -- the run --------------------------------------------------------------------------------------------------

    def run(self, display: Display) -> Progress:
        """Train to the end, or until asked to stop; the last state is saved in either case.

        Raises:
            UserError: the loss is non-finite, also after going back; or the disk is full. Nothing is saved then; the
                last checkpoint stays.
        """
        progress = self.progress
        with self._ready(display):
            is_over = self.fraction_done() >= 1
            while not is_over:
                try:
                    done = self._timed_step()
                except StepLeftError:
                    self._save_where_it_left()
                    break
                after = self.policy.after_step(
                    progress.step, self.fraction_done() >= 1, self._is_asked_to_stop(), self.guard.ask_in_a_row
                )
                is_over = after.is_last
                if after.log:
                    self._log(done)
                    if self._must_go_back():
                        self._go_back(done)
                        is_over = after.is_stopped
                        continue
                if after.action is not Action.NOTHING:
                    self._evaluate_and_save(done, after)
        self._say_what_was_left_out()
        return progress

    @contextmanager
    def _ready(self, display: Display) -> Iterator[None]:
        """Whatever goes on around the steps: files, signals, the display, loggers, the thread that saves."""
        self.group.check_same(self._facts)
        self.say = display.say
        self.folder.check_space(self.state.expected_bytes(), self.progress.step)
        if self.is_compiled:
            display.advise("Compiling the network, once for this shape (`compile=False` goes without) ...")
            self.compile()
        self.log = self._make_log(display)
        self.policy.agenda.note_saved()
        self.timer = Stopwatch(self.progress, self.plan.total_steps, self.config.minutes)
        self.callbacks.on_start(self.progress)
        try:
            with self.stop.on_signals(), display, ending(self.saver):
                if self.config.base is not None and self.progress.step == 0 and self.fraction_done() < 1:
                    self._measure_base()
                    self.timer.skip()
                yield
        finally:
            self.callbacks.on_end()

    def _make_log(self, display: Display) -> RunLog:
        if self.group.is_main:
            return RunLog(self.plan, self.folder.path, display, self.progress, self.callbacks.on_metrics)
        return SilentLog()

    def _timed_step(self) -> StepResult:
        done = self.train_step(self.by_time)
        self.timer.lap(done.tokens)
        self.progress.seconds = self.group.of_main(self.progress.seconds)
        self.callbacks.on_step(self.progress, done)
        return done

    def _is_asked_to_stop(self) -> bool:
        """Whether any process is: one signal may reach one of them, or all, one after the other."""
        return self.group.is_any(self.stop.is_made)

    def _leave_measured_to_main(self) -> None:
        """Bring to process 0 what all processes have measured; what they count alike stays."""
        self.group.gather(self._measured())

    def _keep_measured_in_main(self) -> None:
        """Forget, in all processes but the first, what was measured before the checkpoint that all have read."""
        if not self.group.is_main:
            for values in self._measured():
                values.zero_()

    def _measured(self) -> list[Tensor]:
        meters: list[Meter] = [self.by_time, *([self.eos_share] if self.eos_share else [])]
        return [values for meter in meters for values in meter.sums.values()]

    def _facts(self) -> dict[str, str]:
        """What must be the same in all processes, by its name."""
        settings = json.dumps({**self.config.to_json(), "output_dir": ""}, sort_keys=True)
        return {
            "llada-trainer": llada.__version__,
            "torch": str(torch.__version__),
            **self._weights_in_short(),
            "settings": hashlib.sha256(settings.encode()).hexdigest()[:12],
            **{name: digest[:12] for name, digest in self.data.items()},
        }

    def _weights_in_short(self) -> dict[str, str]:
        """The step, and the sum of the weights, in which any difference between processes would soon show."""
        weights = [w for w in trained_weights(self.model.network).values() if rows_of(w) is None]
        total = sum(float(weight.detach().sum(dtype=torch.float64)) for weight in weights)
        return {"step": str(self.progress.step), "sum of the weights": float(total).hex()}

    def _log(self, done: StepResult) -> None:
        self._leave_measured_to_main()
        self.log.write_step(
            self.progress, self.fraction_done(), done, self.by_time, self.guard, self.eos_share, self.timer
        )
        self.saver.check()

    def _must_go_back(self) -> bool:
        """Whether so many steps were left out that the run goes back; not if compiled code was at fault."""
        if self.compiled_steps.is_at_fault(self.guard):
            self.timer.skip()
            return False
        return self.guard.has_few

    def _say_what_was_left_out(self) -> None:
        self.guard.take()
        if self.guard.total:
            self.say(
                f"{self.guard.total:,} of the steps since it was started were left out, since their loss or gradient "
                "was non-finite (skipped_steps in metrics.jsonl)."
            )

    # -- going back ---------------------------------------------------------------------------------------------------

    def _go_back(self, done: StepResult, cause: str | None = None) -> None:
        """To the last checkpoint, and on with the data in another order.

        Raises:
            UserError: there is none, or the run went back to it already.
        """
        self.saver.wait()
        self.group.barrier()
        last_step, progress = self.folder.last_step, self.progress
        if last_step is None or not self.policy.may_go_back(last_step, progress.step):
            raise self._trouble(done, cause)
        left_at, order = progress.step, progress.data_order + 1
        resumed = self.group.together(
            lambda: self.folder.load(self.state, self.data, self.config.to_json(), allow_changed_data=True)
        )
        loaded = resumed.progress
        vars(progress).update({**vars(loaded), "seconds": progress.seconds, "data_order": order})
        self.policy.note_return(last_step)
        self.guard.reset()
        self.steps.source = make_source(self.plan, order)
        self._keep_measured_in_main()
        self.log.write_return(progress, left_at)
        self.timer.skip()

    def _trouble(self, done: StepResult, cause: str | None = None) -> Exception:
        """The end of a run whose loss is non-finite: what it saw goes into a file, and what to try into a sentence.

        Of the rows of the step, the file has those of process 0.
        """
        step, network = self.guard.last_step, self.model.network
        loss, _ = self.steps.backward(step, LossByTime(self.device))  # once more, of weights that have not changed
        self.group.sum_gradients(trained_weights(network), loss)
        gradients = {name: weight.grad for name, weight in trained_weights(network).items()}
        has_changed = self.guard.ask_in_a_row() < self.progress.step - self._first_step
        if cause is None and not has_changed:
            bad = self.group.first_of(first_non_finite(trained_weights(network)))
            cause = first_step_cause(bad, self.plan, lambda: self._is_finite_in_fp32(step))
        if not self.group.is_main:
            return OtherFailedError()
        batch, noisy = self.steps.make_batch(step)
        path = write_trouble(self.folder.path, step, float(done.loss), batch, noisy, norms_by_layer(gradients))
        back = self.policy.went_back_to
        again = "" if back is None else f", also after going back to step {back}"
        return describe_end(self.plan, done, self.progress.step, again, cause, path, self.folder.has_checkpoint())

    def _is_finite_in_fp32(self, step: int) -> bool:
        """Whether a step is finite in fp32, not compiled."""
        self.steps.clear_gradients()
        with self.steps.in_fp32():
            return self.compiled_steps.is_finite_without(step)

    # -- evaluating and saving ----------------------------------------------------------------------------------------

    def _evaluate_and_save(self, done: StepResult, after: AfterStep) -> None:
        """Measure and show the model that would be saved, if that is due, then save it.

        A state that is useless to go back to is not saved: one whose bound, weights or moments are non-finite, or one
        amid steps that are left out, after which the save is made up for.

        Raises:
            UserError: the run ends here and cannot be saved, or most of its steps were left out.
        """
        step = self.progress.step
        self.group.check_same(self._weights_in_short)
        if after.is_complete and self.guard.is_mostly_bad(step - self._first_step):
            raise self._trouble(done)
        if self.guard.ask_in_a_row() and not after.is_complete:
            if self.policy.agenda.postpone(after.action):
                self.say(f"Step {step} was left out: the checkpoint due is made after the next step that is not.")
        else:
            self._save_what_is_good(done, after)
        self.timer.skip()

    def _save_what_is_good(self, done: StepResult, after: AfterStep) -> None:
        with self.state.averaged() as own_weights:
            bad = self.group.first_of(self.state.first_non_finite(own_weights))
            if bad is None:
                if after.action is Action.SAVE or self._evaluate():
                    self._write(own_weights, in_background=not after.is_last)
                elif after.is_last:  # which would else say that it saved
                    raise self._trouble(done)
                else:
                    self.say(f"The bound of step {self.progress.step} is non-finite: no checkpoint is made of it.")
                    self.policy.agenda.note_saved()
                return
        cause = f"{bad} is non-finite, which no text need show"
        if after.is_last:
            raise self._trouble(done, cause)
        self._go_back(done, cause)

    def _save_where_it_left(self) -> None:
        """Between the pieces of a step, which is not counted: the state after the step before."""
        self.saver.wait()
        if self.group.is_any(self.group.is_main and self.folder.last_step != self.progress.step):
            with self.state.averaged() as own_weights:
                self._write(own_weights, in_background=False)

    def _write(self, own_weights: Mapping[str, Tensor] | None, in_background: bool) -> None:
        """A checkpoint of the model with its averaged weights in place."""
        progress = self.progress
        self._leave_measured_to_main()
        self.log.close_up()
        self.saver.wait()  # what is being written would be taken for space that is gone
        self.folder.check_space(self.state.expected_bytes(), progress.step)
        gathering = Gathering(self.group)
        packed = self.state.pack(progress, own_weights, self.data, self.is_compiled, self.config.to_json(), gathering)
        self.saver.save(progress, self.plan, self.model, packed, in_background, gathering)
        self.policy.agenda.note_saved()
        self.callbacks.on_save(progress, step_folder(self.folder.checkpoints, progress.step))

    def _measure_base(self) -> None:
        """What is fine-tuned, before it is, so that it can be seen whether that helped.

        Raises:
            UserError: its bound is non-finite.
        """
        self.say("Before the first step, the checkpoint that the run starts from:")
        self.model.eval()
        try:
            result = self._show()
        finally:
            self.model.train()
        if not math.isfinite(result.nelbo_nats_per_token):
            raise UserError(
                f"{self.config.base} predicts non-finite numbers on the validation data: start from another one, "
                'or add `precision="fp32"`.'
            )

    def _evaluate(self) -> bool:
        """Measure and show; False if the bound is non-finite, which is not shown."""
        progress, result = self.progress, self._show()
        if not math.isfinite(result.nelbo_nats_per_token):
            return False
        if result.nelbo_nats_per_token < progress.best_nelbo:
            progress.best_nelbo, progress.best_step = result.nelbo_nats_per_token, progress.step
        return True

    def _show(self) -> Nelbo:
        """Measure, and show what can be shown; a bound that is not finite cannot."""
        progress, result = self.progress, self.estimate_nelbo()
        if math.isfinite(result.nelbo_nats_per_token) and (self.group.is_main or self.plan.is_sharded):
            sample = self.steps.source.sample(self.model)
            self.log.write_evaluation(progress.step, result, sample, self.steps.source)
            self.callbacks.on_evaluation(progress, result, sample)
        return result

    def estimate_nelbo(self) -> Nelbo:
        """The bound on some of the validation data, with the same masks at every step."""
        return self.steps.source.estimate_nelbo(nll_by_model(self.model, self.precision))
