"""A picture of the cross-entropy over the ratio of masked tokens."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llada.evaluation.nelbo import Nelbo
from llada.system.errors import UserError


def check_picture(picture: Path) -> None:
    """Refuse a file name that does not fit a picture.

    Raises:
        UserError: the name ends neither in .png nor in .svg.
    """
    if picture.suffix.lower() not in (".png", ".svg"):
        raise UserError(f"No picture can be written as {picture.name}: let its name end in .png or .svg.")


@contextmanager
def drawing(picture: Path, width: float, height: float, n_axes: int = 1) -> Iterator[Any]:
    """Axes to draw on, side by side (a list if there are several), which are written as a picture at the end.

    Raises:
        UserError: no picture of this kind can be made.
    """
    from matplotlib.figure import Figure

    check_picture(picture)
    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure.subplots(1, n_axes)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)


def draw_curve(result: Nelbo, picture: Path) -> None:
    """Draw the curve whose area is the bound.

    Raises:
        UserError: there is none, or no picture of this kind can be made.
    """
    rows = [row for row in result.by_t if row.nats is not None]
    if not rows:
        raise UserError("An exact likelihood has no curve over t: leave out `curve`.")
    edges = [row.t_from for row in rows] + [rows[-1].t_to]
    heights = [row.nats for row in rows]
    centres = [(row.t_from + row.t_to) / 2 for row in rows]
    with drawing(picture, 6, 4) as axes:
        axes.stairs(heights, edges, fill=True, color="tab:blue", alpha=0.2)
        axes.errorbar(centres, heights, [row.stderr or 0 for row in rows], fmt="o", ms=3, capsize=2, color="tab:blue")
        axes.axhline(result.nelbo_nats_per_token, color="0.4", lw=0.8, ls="--")
        axes.set(
            xlabel="t, share of masked tokens", ylabel="cross-entropy, nats per masked token", xlim=(0, 1),
            ylim=(0, None), title=f"The area is the NELBO, {result.with_error(3)} nats per token",
        )  # fmt: skip
