"""What a run measures between two lines of metrics.jsonl, in all of its processes."""

from dataclasses import dataclass

from torch import Tensor

from llada.data.sft import Answers
from llada.training.answer_check import EosShare
from llada.training.group import Group
from llada.training.metrics import LossByTime
from llada.training.nan_guard import Guard
from llada.training.plan import RunPlan
from llada.training.state import Meter


@dataclass(frozen=True)
class Meters:
    """The meters of a run. Each process measures its own rows; steps that are left out, all count alike."""

    by_time: LossByTime
    guard: Guard
    eos_share: EosShare | None
    """There is one for dialogues only."""

    @classmethod
    def of(cls, plan: RunPlan) -> "Meters":
        """Return the meters of a run, which have measured nothing yet."""
        is_chat = isinstance(plan.data, Answers)
        eos_share = EosShare(plan.data.tokenizer.eos_id, plan.device) if is_chat else None
        return cls(LossByTime(plan.device), Guard(plan.device), eos_share)

    def by_name(self) -> dict[str, Meter]:
        """Return the meters by the names that checkpoints have for them."""
        meters: dict[str, Meter] = {"by_time": self.by_time, "guard": self.guard}
        return {**meters, "eos_share": self.eos_share} if self.eos_share else meters

    def bring_to_main(self, group: Group) -> None:
        """Add up in process 0 what all processes have measured; the others begin anew."""
        group.gather(self._of_rows())

    def keep_in_main(self, group: Group) -> None:
        """Forget, in all processes but the first, what was measured before the checkpoint that all have read."""
        if not group.is_main:
            for values in self._of_rows():
                values.zero_()

    def _of_rows(self) -> list[Tensor]:
        meters: list[Meter] = [self.by_time, *([self.eos_share] if self.eos_share else [])]
        return [values for meter in meters for values in meter.sums.values()]
