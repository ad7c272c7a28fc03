"""Which folder of a mixture each row of a run comes from: a function of the row's number alone.

The order repeats after a period, within which the rows of each folder are spread evenly, so that after any number of
rows each folder has had its share of them, to within one row.

Letters: F folders, W rows of a period, I rows that are asked for.
"""

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from llada.data.order import Numbers

LONGEST_PERIOD = 2**16
"""Rows of a period at most: weights are rounded to whole parts of so many where no shorter one has their proportion."""


class Interleaving:
    """A fixed order in which rows are taken from several folders, in proportion to weights."""

    def __init__(self, weights: Sequence[float]) -> None:
        """
        Args:
            weights: of the F folders, above 0, in any unit.
        """
        self.parts = whole_parts(weights)
        """Rows (F,) that each folder has in a period."""
        self._folder, self._number = _one_period(self.parts)

    @property
    def shares(self) -> tuple[float, ...]:
        """The share (F,) of all rows that each folder has."""
        return tuple(part / sum(self.parts) for part in self.parts)

    def at(self, rows: Numbers) -> tuple[Numbers, Numbers]:
        """Return the folder (I,) of each row (I,), and how many rows of that folder come before it (I,)."""
        period, place = np.divmod(rows, sum(self.parts))
        folder = self._folder[place].astype(np.int64)
        return folder, period * np.array(self.parts)[folder] + self._number[place]


def whole_parts(weights: Sequence[float]) -> tuple[int, ...]:
    """Return the smallest whole numbers (F,) in the proportion of these weights, taken as they are written in decimals.

    If their sum would be above `LONGEST_PERIOD`, they are rounded to parts of so many, each to 1 or more.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    unit = math.lcm(*(weight.denominator for weight in exact))
    parts = [int(weight * unit) for weight in exact]
    total = sum(parts)
    if total // math.gcd(*parts) > LONGEST_PERIOD:
        parts = [max(1, round(Fraction(part * LONGEST_PERIOD, total))) for part in parts]
    divisor = math.gcd(*parts)
    return tuple(part // divisor for part in parts)


def _one_period(parts: Sequence[int]) -> tuple[Numbers, Numbers]:
    """Return the folder (W,) of each row of a period, and the row's number (W,) within its folder.

    Row j of a folder that has w of the W rows is released at place floor(j W / w), and its deadline is
    ceil((j + 1) W / w): a row within these bounds keeps the folder's count less than 1 away from its share. Of the rows
    that are released, the one with the earliest deadline comes next. For rows of equal length this meets all deadlines
    if they can be met at all (Horn, "Some simple scheduling algorithms", 1974), as they can: a folder that had w / W of
    each place would meet all of its own.
    """
    n_rows, n_done = sum(parts), [0] * len(parts)
    folder, number = np.empty(n_rows, np.int64), np.empty(n_rows, np.int64)
    waiting = [(0, i) for i in range(len(parts))]  # the release of each folder's next row
    released: list[tuple[int, int]] = []  # and its deadline
    for place in range(n_rows):
        while waiting and waiting[0][0] <= place:
            i = heapq.heappop(waiting)[1]
            heapq.heappush(released, (-(-(n_done[i] + 1) * n_rows // parts[i]), i))
        i = heapq.heappop(released)[1]
        folder[place], number[place] = i, n_done[i]
        n_done[i] += 1
        heapq.heappush(waiting, (n_done[i] * n_rows // parts[i], i))
    return folder, number
