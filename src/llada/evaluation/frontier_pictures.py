"""The sweeps of `frontier` and `sample_frontier` as pictures: curves, and which is which."""

from collections.abc import Sequence
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
FINE = 0.01
"""Nats below which the scale of a price is even, and above which it is logarithmic."""


def draw_frontier(frontier: Frontier, recommended: Point, unit: str, picture: Path) -> None:
    """Nats above the best one at a time, against evaluations and against seconds: one curve for each policy.

    Raises:
        UserError: no picture of this kind can be made.
    """
    points = sorted(frontier.points, key=lambda point: point.setting.curve)
    curves = [(name, list(group)) for name, group in groupby(points, key=lambda point: point.setting.curve)]
    with drawing(picture, 13.5, 5.5, n_axes=2) as both:
        for axes, what in zip(both, ("evaluations", "seconds"), strict=True):
            axes.set_xscale("log", base=2)
            axes.set_yscale("symlog", linthresh=FINE)
            for (name, group), colour, marker in zip(curves, cycle(COLOURS), cycle(MARKERS), strict=False):
                group.sort(key=lambda point: getattr(point, what))
                x, y = [getattr(point, what) for point in group], [point.difference for point in group]
                errors = [point.difference_stderr or 0.0 for point in group]
                axes.errorbar(x, y, errors, fmt=f"-{marker}", ms=5, lw=1.4, elinewidth=0.6, color=colour, label=name)
            axes.plot(
                getattr(recommended, what), recommended.difference, "o", ms=15, mfc="none", mec="black", ls="",
                label=f"recommended:\n{recommended.setting.name}",
            )  # fmt: skip
            axes.axhline(0, color="0.5", lw=0.8, ls="--")
            for along in (axes.xaxis, axes.yaxis):
                along.set_major_formatter(lambda value, place: f"{value:.2g}" if abs(value) < 100 else f"{value:g}")
            axes.set_xlabel(f"{'evaluations of the network' if what == 'evaluations' else what} per {PER} tokens")
            axes.grid(color="0.92")
        best = frontier.reference
        both[0].set_ylabel(f"nats per {unit} above {best.setting.name}")
        both[0].figure.suptitle(
            f"Exact likelihood of held-out text: dashed, {best.setting.name}, {best.nats:.3f} nats per {unit}. "
            "Better is below and to the left; bars are standard errors of the differences.",
            fontsize=10, x=0.01, ha="left",
        )  # fmt: skip
        _name_curves(both[1])


def draw_samples(points: Sequence[SamplePoint], of_people: Richness, picture: Path) -> None:
    """The judge's nats, or the share of different n-grams, against entropy: one curve over temperatures a way.

    Raises:
        UserError: no picture of this kind can be made.
    """
    is_judged = of_people.judge_nats_per_character is not None
    with drawing(picture, 10, 5.5) as axes:
        axes.margins(0.15)
        by_name = {name: [p for p in points if p.name == name] for name in dict.fromkeys(p.name for p in points)}
        for (name, group), colour, marker in zip(by_name.items(), cycle(COLOURS), cycle(MARKERS), strict=False):
            drawn = [(point, place) for point in group if (place := _place(point.richness, is_judged))]
            if not drawn:
                continue
            x, y, dx, dy = zip(*(place for _, place in drawn), strict=True)
            axes.errorbar(x, y, dy, dx, fmt=f"-{marker}", ms=5, lw=0.8, elinewidth=0.5, color=colour, label=name)
            for point, place in drawn:
                axes.annotate(
                    f"{point.temperature:g}", place[:2], (-3, 6), textcoords="offset points", fontsize=7, color=colour
                )
        if place := _place(of_people, is_judged):
            axes.plot(*place[:2], "*", ms=14, color="black")
            axes.annotate("held-out text", place[:2], (-10, -4), textcoords="offset points", fontsize=9, ha="right")
        axes.set_xlabel("entropy of the characters of a text, nats")
        axes.set_ylabel("nats a character, under the judge" if is_judged else "share of different 6-grams")
        axes.set_title("Samples; small numbers are temperatures, bars standard errors", fontsize=10, loc="left")
        axes.grid(color="0.92")
        _name_curves(axes)


def _place(richness: Richness, is_judged: bool) -> tuple[float, float, float, float] | None:
    """Return x and y and their errors."""
    x: Mean | None = richness.entropy_nats
    y: Mean | None = richness.judge_nats_per_character if is_judged else richness.distinct
    return None if x is None or y is None else (x.mean, y.mean, x.stderr or 0.0, y.stderr or 0.0)


def _name_curves(axes: Any) -> None:
    """Names of the curves to the right of a picture: where they meet, names at their ends would cover each other."""
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=9)
