"""The evaluations within a run: the bound on some of the validation data, and something that the model writes."""

import math

from llada.evaluation.nelbo import Nelbo, nll_by_model
from llada.system.errors import UserError
from llada.training.callbacks import Callback
from llada.training.log import RunLog
from llada.training.state import Progress
from llada.training.step import Steps


class Evaluations:
    """Measures the model of a run and shows what it writes; all processes do so together."""

    def __init__(self, steps: Steps, progress: Progress, callbacks: Callback) -> None:
        """
        Args:
            steps: those of the run, whose source is measured on.
            progress: the run's; the best bound so far is noted in it.
        """
        self.steps, self.progress, self.callbacks = steps, progress, callbacks

    def measure(self, log: RunLog) -> bool:
        """Measure and show; False if the bound is non-finite, which is not shown."""
        progress, result = self.progress, self._show(log)
        if not math.isfinite(result.nelbo_nats_per_token):
            return False
        if result.nelbo_nats_per_token < progress.best_nelbo:
            progress.best_nelbo, progress.best_step = result.nelbo_nats_per_token, progress.step
        return True

    def measure_base(self, log: RunLog) -> None:
        """Measure what is fine-tuned, before it is, so that it can be seen whether that helped.

        Raises:
            UserError: its bound is non-finite.
        """
        model = self.steps.model.eval()
        try:
            result = self._show(log)
        finally:
            model.train()
        if not math.isfinite(result.nelbo_nats_per_token):
            raise UserError(
                f"{self.steps.config.base} predicts non-finite numbers on the validation data: start from another one, "
                'or add `precision="fp32"`.'
            )

    def _show(self, log: RunLog) -> Nelbo:
        """Measure, and show what can be shown; a bound that is not finite cannot."""
        steps, progress, result = self.steps, self.progress, self.estimate_nelbo()
        if math.isfinite(result.nelbo_nats_per_token) and (steps.group.is_main or steps.plan.is_sharded):
            sample = steps.source.sample(steps.model)
            log.write_evaluation(progress.step, result, sample, steps.source)
            self.callbacks.on_evaluation(progress, result, sample)
        return result

    def estimate_nelbo(self) -> Nelbo:
        """The bound on some of the validation data, with the same masks at every step."""
        return self.steps.source.estimate_nelbo(nll_by_model(self.steps.model, self.steps.precision))
