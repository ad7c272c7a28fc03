"""The training loop: step, log, evaluate, save.

A step is made in step.py and compiled_step.py; what is done after it is decided in policy.py. Since a step depends on
its number and the weights alone, a run can stop at any step and go on as if nothing had happened, with as many
processes as there are then. All processes of a run do the same, but for what process 0 alone writes and says
(group.py).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from llada.checkpoints.run_layout import step_folder
from llada.optim.ema import ExponentialAverage
from llada.optim.optimizers import make_optimizers
from llada.system.toolchains import ToolchainName
from llada.training.agenda import Action, Agenda
from llada.training.agreement import state_in_short
from llada.training.build import build_model
from llada.training.callbacks import Callback, CallbackList
from llada.training.checkpoint_writer import Saver, SilentSaver, ending
from llada.training.compiled_step import CompiledSteps, should_compile
from llada.training.data_source import make_source
from llada.training.evaluations import Evaluations
from llada.training.gathering import Gathering
from llada.training.group import ALONE, Group, OtherFailedError
from llada.training.log import RunLog, SilentLog, StepResult
from llada.training.loggers import make_loggers
from llada.training.meters import Meters
from llada.training.metrics import LossByTime
from llada.training.nan_guard import first_non_finite
from llada.training.plan import RunPlan
from llada.training.policy import AfterStep, Policy
from llada.training.progress_bar import Display, Stopwatch
from llada.training.run_folder import RunFolder
from llada.training.seeds import seed_of
from llada.training.sharding import own_weights
from llada.training.signals import StopRequest
from llada.training.state import Progress, Resumed, RunState
from llada.training.step import StepLeftError, Steps
from llada.training.trouble import describe_end, first_step_cause, record_step


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
        self.meters = Meters.of(plan)
        self.by_time, self.guard, self.eos_share = self.meters.by_time, self.meters.guard, self.meters.eos_share
        self.state = RunState(self.model, self.optimizers, self.average, self.meters.by_name())
        self.data = plan.data.fingerprints
        self.resumed = Resumed(Progress(), None, [])
        if resume:
            self.resumed = folder.load(self.state, self.data, config.to_json(), allow_changed_data)
            self.meters.keep_in_main(group)
        self.progress = self.resumed.progress
        self.plan = plan.after(self.progress.step, self.progress.samples)
        self.saver, self.stop = (Saver if group.is_main else SilentSaver)(folder), StopRequest()
        self.say: Callable[[str], None] = lambda sentence: None
        source = make_source(self.plan, self.progress.data_order)
        self.steps = Steps(self.plan, self.model, source, self.progress, self.eos_share, self._must_leave_step, group)
        self.compiled_steps = CompiledSteps(
            self.steps,
            should_compile(self.plan, self.resumed.was_compiled),
            lambda sentence: self.say(sentence),
            self._record_toolchain,
        )
        clock = time.monotonic if group.processes == 1 else lambda: self.progress.seconds
        self.policy = Policy(Agenda(self.plan.evaluate_every, config.save_minutes, clock), self.plan.log_every)
        self.callbacks = CallbackList([])
        if group.is_main:
            loggers = make_loggers(config.log, folder.path, config.to_json(), lambda sentence: self.say(sentence))
            self.callbacks = CallbackList([*loggers, *callbacks])
        self.evaluations = Evaluations(self.steps, self.progress, self.callbacks)
        self._first_step = self.progress.step

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
        factor = self.plan.learning_rate_factor(step, self.progress.seconds)
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
        return self.plan.fraction_done(self.progress.step, self.progress.seconds)

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
                    self.stop.is_made = True  # in some process
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
        self.group.check_same(self._state_in_short)
        self.say = display.say
        self.folder.check_space(self.state.expected_bytes(), self.progress.step)
        if self.group.is_any(self.is_compiled):  # a machine without a compiler has all go without
            display.advise("Compiling the network, once for this shape (`compile=False` goes without) ...")
            self.compile()
        self.log = self._make_log(display)
        self.policy.agenda.note_saved()
        self.timer = Stopwatch(self.progress, self.plan.total_steps, self.config.minutes, self.group.of_main)
        self.callbacks.on_start(self.progress)
        try:
            with self.stop.on_signals(), display, ending(self.saver):
                if self.config.base is not None and self.progress.step == 0 and self.fraction_done() < 1:
                    self.say("Before the first step, the checkpoint that the run starts from:")
                    self.evaluations.measure_base(self.log)
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
        self.callbacks.on_step(self.progress, done)
        return done

    def _is_asked_to_stop(self) -> bool:
        """Whether any process is: one signal may reach one of them, or all, one after the other."""
        self.stop.is_made = self.group.is_any(self.stop.is_made)
        return self.stop.is_made

    def _state_in_short(self) -> dict[str, str]:
        return state_in_short(self.model.network, self.progress)

    def _log(self, done: StepResult) -> None:
        self.meters.bring_to_main(self.group)
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
        self.meters.keep_in_main(self.group)
        self.log.write_return(progress, left_at)
        self.timer.skip()

    def _trouble(self, done: StepResult, cause: str | None = None) -> Exception:
        """The end of a run whose loss is non-finite: what it saw goes into a file, and what to try into a sentence."""
        step = self.guard.last_step
        path = record_step(self.steps, step, float(done.loss), self.folder.path)
        has_changed = self.guard.ask_in_a_row() < self.progress.step - self._first_step
        if cause is None and not has_changed:
            bad = self.group.first_of(first_non_finite(own_weights(self.model.network)))
            cause = first_step_cause(bad, self.plan, lambda: self.compiled_steps.is_finite_in_fp32(step))
        if not self.group.is_main:
            return OtherFailedError()
        back = self.policy.went_back_to
        again = "" if back is None else f", also after going back to step {back}"
        return describe_end(self.plan, done, self.progress.step, again, cause, path, self.folder.has_checkpoint())

    # -- evaluating and saving ----------------------------------------------------------------------------------------

    def _evaluate_and_save(self, done: StepResult, after: AfterStep) -> None:
        """Measure and show the model that would be saved, if that is due, then save it.

        A state that is useless to go back to is not saved: one whose bound, weights or moments are non-finite, or one
        amid steps that are left out, after which the save is made up for.

        Raises:
            UserError: the run ends here and cannot be saved, or most of its steps were left out.
        """
        step = self.progress.step
        self.group.check_same(self._state_in_short)
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
                if after.action is Action.SAVE or self.evaluations.measure(self.log):
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
        self.meters.bring_to_main(self.group)
        self.log.close_up(is_last=not in_background)
        self.saver.wait()  # what is being written would be taken for space that is gone
        self.folder.check_space(self.state.expected_bytes(), progress.step)
        gathering = Gathering(self.group)
        packed = self.state.pack(progress, own_weights, self.data, self.is_compiled, self.config.to_json(), gathering)
        self.saver.save(progress, self.plan, self.model, packed, in_background, gathering)
        self.policy.agenda.note_saved()
        self.callbacks.on_save(progress, step_folder(self.folder.checkpoints, progress.step))
