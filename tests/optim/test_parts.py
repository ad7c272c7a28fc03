"""Letters: R rows of a weight."""

from typing import Any

import torch
from torch import nn

from llada.optim.parts import Rows, bounds, kept_of, own_part, rows_of, to_own, to_whole, whole_shape


def test_a_process_has_its_rows_of_a_matrix_and_of_what_is_as_large() -> None:
    no_mesh: Any = None
    whole = torch.arange(35.0).view(7, 5)
    thirds = [Rows(whole.shape, first, last, no_mesh) for first, last in ((0, 3), (3, 6), (6, 7))]
    assert [rows.own(whole)[:, 0].tolist() for rows in thirds] == [[0, 5, 10], [15, 20, 25], [30]]
    assert [rows.own(whole.flatten()).tolist() for rows in thirds][2] == [30, 31, 32, 33, 34]
    assert [tuple(rows.own_shape) for rows in thirds] == [(3, 5), (3, 5), (1, 5)]


def test_processes_keep_rows_as_torch_cuts_tensors_into_chunks() -> None:
    for n_rows in range(12):
        for processes in range(1, 6):
            parts = [bounds(n_rows, rank, processes) for rank in range(processes)]
            chunks = [len(chunk) for chunk in torch.empty(n_rows).chunk(processes)] if n_rows else []
            assert [last - first for first, last in parts if last > first] == chunks
            assert [first for first, _ in parts[1:]] == [last for _, last in parts[:-1]]
            assert (parts[0][0], parts[-1][1]) == (0, n_rows)


def test_a_parameter_that_is_not_shared_out_is_its_own_part() -> None:
    parameter, values = nn.Parameter(torch.zeros(3, 2)), torch.ones(3, 2)
    assert own_part(parameter) is parameter
    assert kept_of(parameter) == (parameter, None)
    assert rows_of(parameter) is None
    assert whole_shape(parameter) == (3, 2)
    assert to_own(parameter, values) is values
    assert to_whole(parameter, values) is values
