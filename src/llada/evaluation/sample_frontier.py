"""How likely and how rich samples are over temperatures, for any way to sample.

A low temperature makes samples likelier to a judge and poorer in what they say, so that either measure alone can be
made as good as one likes: they are shown together, and next to those of text that people wrote. This is the one measure
of ways to sample that have no likelihood, such as LLaDA's, which keeps the tokens that it is most confident of.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from llada.evaluation.samples import Judge, Mean, entropy, judge_all
from llada.sampling.config import SamplerConfig

NGRAM = 6
"""Characters of an n-gram that should be different from the others of its text."""


@dataclass(frozen=True)
class Written:
    """Samples, and what they cost."""

    texts: Sequence[str]
    evaluations: float
    """Number of evaluations of the network for 256 tokens."""
    seconds: float
    """For 256 tokens, in batches."""


@dataclass(frozen=True)
class Richness:
    """What texts are like; None stands for a measure that is not available."""

    judge_nats_per_character: Mean | None
    entropy_nats: Mean | None
    """Entropy of the characters of each text."""
    distinct: Mean | None
    """Share of the 6-grams of characters of a text that are different ones; repetition makes it small."""

    @classmethod
    def of(cls, texts: Sequence[str], judge: Judge | None) -> "Richness":
        return cls(
            None if judge is None else Mean.of(judge_all(judge, texts)),
            Mean.of([entropy(text) for text in texts if text]),
            Mean.of([share for text in texts if (share := distinct_share(text)) is not None]),
        )


@dataclass(frozen=True)
class SamplePoint:
    """One way to sample at one temperature."""

    name: str
    temperature: float
    evaluations: float
    seconds: float
    richness: Richness

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "temperature": self.temperature,
            "evaluations_per_256": self.evaluations,
            "seconds_per_256": self.seconds,
            **asdict(self.richness),
        }


def distinct_share(text: str, n: int = NGRAM) -> float | None:
    """How many of the n-grams of a text are different ones, as a share of all; None if it has none."""
    grams = [text[i : i + n] for i in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def sweep_temperatures(
    write: Callable[[SamplerConfig], Written],
    ways: Mapping[str, SamplerConfig],
    temperatures: Sequence[float],
    judge: Judge | None,
    is_late: Callable[[], bool] = lambda: False,
) -> list[SamplePoint]:
    """Samples of each way at each temperature, as many as there is time for."""
    points: list[SamplePoint] = []
    for temperature in temperatures:
        for name, config in ways.items():
            if is_late():
                return points
            written = write(replace(config, temperature=temperature))
            richness = Richness.of(written.texts, judge)
            points.append(SamplePoint(name, temperature, written.evaluations, written.seconds, richness))
    return points
