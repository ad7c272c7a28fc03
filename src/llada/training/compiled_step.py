"""The gradients of a step by compiled code, and without it where it is at fault.

Compiled code was checked before it is used (compilation.py). What it makes non-finite all the same is computed again
without it, and if that is finite, the run goes on without. On a CPU that is seen at once; on a GPU, where the host
learns of it when a step is logged, `is_at_fault` looks then.

Processes that share a step compute with code of the same toolchain, or all without: process 0 compiles first, and the
others then find in the cache what it compiled.
"""

from collections.abc import Callable

from torch import Tensor

from llada.system.toolchains import ToolchainName, has_compiler
from llada.training.compilation import CompiledFeatures
from llada.training.metrics import LossByTime
from llada.training.nan_guard import Guard
from llada.training.plan import RunPlan
from llada.training.state import Meter
from llada.training.step import Gradients, StepLeftError, Steps


class CompiledSteps:
    """Steps of a network that may be compiled."""

    def __init__(
        self,
        steps: Steps,
        is_compiled: bool,
        say: Callable[[str], None],
        record: Callable[[ToolchainName], None],
    ) -> None:
        """
        Args:
            is_compiled: whether the run compiles its network; it is done by `compile`.
            record: keeps with the run how the network is compiled, "none" if it is not.
        """
        self.steps, self.is_compiled, self._say, self._record = steps, is_compiled, say, record
        by_row = steps.config.draws == "by_row"
        self.compiled = CompiledFeatures(steps.model.network, steps.device, steps.precision, by_row)

    def compile(self, preferred: ToolchainName | None) -> None:
        """Compile the network and check its code; the run goes on without, if none is right. No weight changes."""
        group, model, device = self.steps.group, self.steps.model, self.steps.device
        # Code is checked with the rows of process 0, so that the others find its verdict as well.
        x_t, documents = group.all_of(self.steps.usual_batch())[0]
        like = model.rows(x_t).to(device), None if documents is None else documents.to(device)
        chosen = self._compile(*like, preferred) if group.is_main else None
        chosen = group.all_of(chosen)[0]
        own = chosen if group.is_main or chosen is None else self._compile(*like, chosen)
        others = group.all_of(own)
        self.is_compiled = chosen is not None and all(name == chosen for name in others)
        if not self.is_compiled:
            self.compiled.stop_using()
        if chosen is not None and not self.is_compiled:
            rank = next(rank for rank, name in enumerate(others) if name != chosen)
            self._say(
                f"Process {rank} cannot compute with {chosen}'s code, so all go on without compiling (`llada doctor` "
                "says more, on its machine)."
            )
        self._record(chosen if chosen and self.is_compiled else "none")

    def _compile(self, rows: Tensor, documents: Tensor | None, preferred: ToolchainName | None) -> ToolchainName | None:
        """Compile in this process; returns the toolchain whose code is used, None if none is right."""
        is_right = self.compiled.compile(rows, documents, preferred, self._say)
        return self.compiled.toolchain.name if is_right and self.compiled.toolchain else None

    def gradients(self, step: int, by_time: LossByTime) -> Gradients:
        """Put the gradients of a step into the weights, by compiled code unless that makes them non-finite.

        Raises:
            StepLeftError: the run was asked to stop between the pieces of the step; the weights have no gradients then,
                and nothing was measured.
        """
        steps = self.steps
        # Layers that are shared out are brought together in every piece, which nobody may leave alone.
        has_pieces = steps.share.accumulate > 1 and not steps.plan.is_sharded
        must_look = self.is_compiled and steps.device.type == "cpu"
        meters: list[Meter] = [by_time, *([steps.eos_share] if steps.eos_share else [])]
        measure_anew = _mark(meters if must_look or has_pieces else [])
        try:
            done = steps.gradients(step, by_time, may_leave=has_pieces and step > 0)
        except StepLeftError:
            measure_anew()
            steps.clear_gradients()
            raise
        if not must_look or done.are_finite:
            return done
        measure_anew()
        steps.clear_gradients()
        with self.compiled.left_out():
            done = steps.gradients(step, by_time)
        if done.are_finite:
            self._stop_compiling(step)
        return done

    def is_at_fault(self, guard: Guard) -> bool:
        """Whether the last step was left out and is finite without compiling; the run then goes on without."""
        if not self.is_compiled or not guard.in_a_row or not self.is_finite_without(guard.last_step):
            return False
        self._stop_compiling(guard.last_step)
        guard.reset()
        return True

    def is_finite_without(self, step: int) -> bool:
        """Whether a step is finite without compiled code; leaves no gradients."""
        with self.compiled.left_out():
            done = self.steps.gradients(step, LossByTime(self.steps.device))
        self.steps.clear_gradients()
        return done.are_finite

    def is_finite_in_fp32(self, step: int) -> bool:
        """Whether a step is finite in fp32, not compiled; leaves no gradients."""
        self.steps.clear_gradients()
        with self.steps.in_fp32():
            return self.is_finite_without(step)

    def _stop_compiling(self, step: int) -> None:
        self._say(
            f"Step {step} is non-finite by {self.compiled.toolchain}'s code and finite without it: the run goes on "
            "without compiling."
        )
        self.compiled.stop_using()
        self.is_compiled = False
        self._record("none")


def should_compile(plan: RunPlan, was_compiled: bool | None) -> bool:
    """Whether a run compiles its network. What it began with decides, not how long it has become: compiled matmuls are
    rounded otherwise.

    Args:
        was_compiled: whether a resumed run was compiled; None if that is not known, or for a new run.
    """
    if plan.config.toolchain == "none":
        return False
    if plan.config.compile is None and was_compiled is not None:
        return was_compiled and has_compiler(plan.device)
    return plan.should_compile


def _mark(meters: list[Meter]) -> Callable[[], None]:
    """A function that puts the sums of meters back to what they are now."""
    before = [{name: value.clone() for name, value in meter.sums.items()} for meter in meters]

    def measure_anew() -> None:
        for meter, sums in zip(meters, before, strict=True):
            for name, value in meter.sums.items():
                value.copy_(sums[name])

    return measure_anew
