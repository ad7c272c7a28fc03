"""The sweeps of `frontier` and `sample_frontier` as pictures: curves with their names at them."""

from collections.abc import Iterable, Sequence
from itertools import cycle, groupby
from pathlib import Path
from typing import Any

from llada.evaluation.curve import drawing
from llada.evaluation.frontier import PER, Frontier, Point
from llada.evaluation.sample_frontier import Richness, SamplePoint
from llada.evaluation.samples import Mean

# Colours that colour-blind people can distinguish: those of Okabe and Ito, and further ones, each with its own marker.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5C00", "#5E3C99", "#888888", "#222222")
MARKERS = "osD^vP<>Xh"


def draw_frontier(frontier: Frontier, recommended: Point, unit: str, picture: Path) -> None:
    """Nats against evaluations and against seconds, one curve for each policy.

    Raises:
        UserError: no picture of this kind can be made.
    """
    points = sorted(frontier.points, key=lambda point: point.setting.curve)
    curves = [(name, list(group)) for name, group in groupby(points, key=lambda point: point.setting.curve)]
    with drawing(picture, 13, 6, n_axes=2) as both:
        for axes, what in zip(both, ("evaluations", "seconds"), strict=True):
            axes.set_xscale("log", base=2)
            axes.margins(x=0.3, y=0.15)
            ends = []
            for (name, group), colour, marker in zip(curves, cycle(COLOURS), cycle(MARKERS), strict=False):
                group.sort(key=lambda point: getattr(point, what))
                x, y = [getattr(point, what) for point in group], [point.nats for point in group]
                axes.plot(x, y, marker=marker, ms=5, lw=1.4, color=colour)
                ends.append((x[0], y[0], name, colour))
            _label(axes, ends)
            axes.axhline(frontier.reference.nats, color="0.5", lw=0.8, ls="--")
            x = getattr(recommended, what)
            axes.plot(x, recommended.nats, "o", ms=14, mfc="none", mec="black")
            axes.annotate(
                recommended.setting.name, (x, recommended.nats), (0, -12), textcoords="offset points", ha="center",
                va="top", weight="bold", fontsize=9,
            )  # fmt: skip
            axes.xaxis.set_major_formatter(lambda value, place: f"{value:g}" if value >= 0.01 else f"{value:.1e}")
            axes.set_xlabel(f"{'evaluations of the network' if what == 'evaluations' else what} per {PER} tokens")
            axes.grid(color="0.92")
        both[0].set_ylabel(f"exact negative log-likelihood, nats per {unit}")
        both[0].set_title("Better is below and to the left; dashed: the best one at a time", fontsize=10, loc="left")


def draw_samples(points: Sequence[SamplePoint], of_people: Richness, picture: Path) -> None:
    """The judge's nats, or the share of different n-grams, against entropy: one curve over temperatures a way.

    Raises:
        UserError: no picture of this kind can be made.
    """
    is_judged = of_people.judge_nats_per_character is not None
    with drawing(picture, 8, 6) as axes:
        axes.margins(x=0.3, y=0.15)
        ends = []
        by_name = {name: [p for p in points if p.name == name] for name in dict.fromkeys(p.name for p in points)}
        for (name, group), colour, marker in zip(by_name.items(), cycle(COLOURS), cycle(MARKERS), strict=False):
            drawn = [(point, place) for point in group if (place := _place(point.richness, is_judged))]
            if not drawn:
                continue
            x, y, dx, dy = zip(*(place for _, place in drawn), strict=True)
            axes.errorbar(x, y, dy, dx, fmt=f"-{marker}", ms=5, lw=1.4, elinewidth=0.5, color=colour)
            for point, place in drawn:
                axes.annotate(
                    f"{point.temperature:g}", place[:2], (-3, 6), textcoords="offset points", fontsize=7, color=colour
                )
            ends.append((x[-1], y[-1], name, colour))
        _label(axes, ends, side=1)
        if place := _place(of_people, is_judged):
            axes.plot(*place[:2], "*", ms=14, color="black")
            axes.annotate("held-out text", place[:2], (-10, -4), textcoords="offset points", fontsize=9, ha="right")
        axes.set_xlabel("entropy of the characters of a text, nats")
        axes.set_ylabel("nats a character, under the judge" if is_judged else "share of different 6-grams")
        axes.set_title("Samples; small numbers are temperatures, bars standard errors", fontsize=10, loc="left")
        axes.grid(color="0.92")


def _place(richness: Richness, is_judged: bool) -> tuple[float, float, float, float] | None:
    """Return x and y and their errors."""
    x: Mean | None = richness.entropy_nats
    y: Mean | None = richness.judge_nats_per_character if is_judged else richness.distinct
    return None if x is None or y is None else (x.mean, y.mean, x.stderr or 0.0, y.stderr or 0.0)


def _label(axes: Any, ends: Iterable[tuple[float, float, str, str]], side: int = -1) -> None:
    """Names at the ends of curves, pushed apart where they would cover each other."""
    low, high = axes.get_ylim()
    step, above = (high - low) * 0.034, -float("inf")
    for x, y, name, colour in sorted(ends, key=lambda end: end[1]):
        above = max(y, above + step)
        axes.annotate(
            name, (x, above), (side * 9, 0), textcoords="offset points", color=colour, fontsize=9,
            ha="right" if side < 0 else "left", va="center", annotation_clip=False,
        )  # fmt: skip
