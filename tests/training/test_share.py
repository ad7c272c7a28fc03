"""Letters: B rows of a step, R rows of a process."""

import numpy as np
import pytest
import torch

from llada.data.batches import Numbered, answers
from llada.data.sft import Pair
from llada.system.errors import UserError
from llada.training.share import Share


@pytest.mark.parametrize("accumulate", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 12])
@pytest.mark.parametrize("processes", [1, 2, 3, 4, 8])
def test_every_row_is_computed_once_or_the_sharing_is_refused(batch_size: int, accumulate: int, processes: int) -> None:
    n_rows = batch_size * accumulate
    if n_rows % processes:
        with pytest.raises(
            UserError, match=f"{processes} processes cannot share {batch_size} x {accumulate} sequences"
        ):
            Share.of(batch_size, accumulate, 0, processes)
        return
    try:
        shares = [Share.of(batch_size, accumulate, rank, processes) for rank in range(processes)]
    except UserError:
        # The rows of a batch go through the network together in as many processes as batches leave over.
        assert batch_size % (processes // np.gcd(accumulate, processes))
        return
    assert torch.cat([share.rows for share in shares]).sort().values.tolist() == list(range(n_rows))
    for share in shares:
        assert share.batch_size * share.accumulate == len(share.rows) == n_rows // processes
        for piece in share.rows.split(share.batch_size):  # consecutive rows of one batch, which are padded together
            assert piece.tolist() == list(range(int(piece[0]), int(piece[0]) + share.batch_size))
            assert int(piece[0]) // batch_size == int(piece[-1]) // batch_size


def test_accumulated_batches_are_shared_before_a_batch_is_cut() -> None:
    assert Share.of(8, 4, rank=1, processes=4).in_words == "8 at a time x 4 processes"
    assert Share.of(8, 4, rank=1, processes=2).in_words == "8 at a time x 2 accumulated x 2 processes"
    assert Share.of(8, 1, rank=1, processes=2).rows.tolist() == [4, 5, 6, 7]
    assert Share.of(8, 2, rank=1, processes=2).rows.tolist() == list(range(8, 16))
    assert Share.of(4, 2, rank=3, processes=4).rows.tolist() == [6, 7]
    assert Share.of(8, 1).rows.tolist() == list(range(8))


def test_parts_of_a_batch_of_answers_are_padded_like_the_whole() -> None:
    pairs = [Pair(tuple(range(100, 101 + n)), 1, ()) for n in (3, 1, 7, 2, 5, 4, 8, 6)]
    generator = torch.Generator()

    def draw(*places: int) -> list[tuple[list[int], list[bool]]]:
        batch = answers(pairs, Numbered(np.array(places), 17), padded_together=4, end_id=2, seed=0)(5, generator)
        assert batch.maskable is not None
        ends = [int(row.nonzero().max()) + 1 for row in batch.maskable]
        rows = zip(batch.x_0.tolist(), batch.maskable.tolist(), ends, strict=True)
        return [(row[:end], maskable[:end]) for row, maskable, end in rows]

    whole = draw(*range(8))
    assert len({len(row) for row, _ in whole[:4]}) == 1
    assert draw(2, 3) + draw(7) == [*whole[2:4], whole[7]]
    assert sorted(row[0] for row, _ in whole) == [100] * 8
