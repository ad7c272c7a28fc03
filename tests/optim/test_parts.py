"""Letters: R rows of a weight."""

from typing import Any

import torch
from torch import nn

from llada.optim.parts import Rows, own_part, rows_of, to_own, to_whole, whole_shape


def test_a_process_has_its_rows_of_a_matrix_and_of_what_is_as_large() -> None:
    no_mesh: Any = None
    whole = torch.arange(35.0).view(7, 5)
    thirds = [Rows(whole.shape, first, last, no_mesh) for first, last in ((0, 3), (3, 6), (6, 7))]
    assert [rows.own(whole)[:, 0].tolist() for rows in thirds] == [[0, 5, 10], [15, 20, 25], [30]]
    assert [rows.own(whole.flatten()).tolist() for rows in thirds][2] == [30, 31, 32, 33, 34]
    assert [tuple(rows.own_shape) for rows in thirds] == [(3, 5), (3, 5), (1, 5)]


def test_a_parameter_that_is_not_shared_out_is_its_own_part() -> None:
    parameter, values = nn.Parameter(torch.zeros(3, 2)), torch.ones(3, 2)
    assert own_part(parameter) is parameter
    assert rows_of(parameter) is None
    assert whole_shape(parameter) == (3, 2)
    assert to_own(parameter, values) is values
    assert to_whole(parameter, values) is values
