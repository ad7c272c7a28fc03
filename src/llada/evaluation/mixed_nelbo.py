"""The bound on a mixture of texts: the mean of the bounds on each, weighted by their shares."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from llada.evaluation.nelbo import Nelbo
from llada.evaluation.standard_errors import over_windows


@dataclass(frozen=True)
class MixedNelbo(Nelbo):
    """An estimate of the bound on a mixture of texts."""

    parts: Mapping[str, Nelbo] = field(default_factory=dict)
    """The bound on each text, by its name."""

    @property
    def metrics(self) -> dict[str, float | None]:
        """Numbers for metrics.jsonl: also the bound on each text, as nelbo/NAME."""
        return {**super().metrics, **{f"nelbo/{name}": part.nelbo_nats_per_token for name, part in self.parts.items()}}

    def with_error(self, digits: int) -> str:
        """Write the bound and its standard error for people, and the bound on each text."""
        parts = (f"{name} {part.nelbo_nats_per_token:.{digits}f}" for name, part in self.parts.items())
        return f"{over_windows(self.nelbo_nats_per_token, self.nelbo_stderr, digits)} ({', '.join(parts)})"


def mixed_nelbo(parts: Mapping[str, Nelbo], shares: Sequence[float]) -> MixedNelbo:
    """Return the bound on a mixture from those on its texts, which were estimated independently.

    Args:
        parts: the bound on each text, by its name, on windows of the same length.
        shares: of the tokens of the mixture that each text has; their sum is 1.
    """
    of_each = list(parts.values())
    mean = sum(share * part.nelbo_nats_per_token for share, part in zip(shares, of_each, strict=True))

    def error(of: Callable[[Nelbo], float | None]) -> float | None:
        errors = [of(part) for part in of_each]
        known = [share * each for share, each in zip(shares, errors, strict=True) if each is not None]
        return math.hypot(*known) if len(known) == len(errors) else None

    return MixedNelbo(
        nelbo_nats_per_token=mean,
        nelbo_stderr=error(lambda part: part.nelbo_stderr),
        mask_stderr=error(lambda part: part.mask_stderr),
        bits_per_token=mean / math.log(2),
        windows=sum(part.windows for part in of_each),
        masks_per_window=of_each[0].masks_per_window,
        sequence_length=of_each[0].sequence_length,
        tokens_scored=sum(part.tokens_scored for part in of_each),
        seconds=sum(part.seconds for part in of_each),
        is_exact=of_each[0].is_exact,
        within_documents=of_each[0].within_documents,
        parts=dict(parts),
    )
