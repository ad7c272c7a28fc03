"""Letters: B rows of a step, R rows of a process."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from llada.data.batches import Numbered, answers
from llada.data.prepared import PreparedText
from llada.data.sft import Pair
from llada.evaluation.distributed import Shard
from llada.system.errors import UserError
from llada.training.build import build_model
from llada.training.config import NetworkOptions, NoiseOptions, TrainConfig
from llada.training.data_source import make_source
from llada.training.plan import RunPlan
from llada.training.share import Share
from llada.training.state import Progress
from llada.training.step import Steps
from tests.support.runs import assert_parts_are_those_of_the_whole
from tests.support.toys import chi_square_p


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


NOISE = {
    "complementary pairs": {"noise": NoiseOptions(complementary=True)},
    "bernoulli, cut to a random length": {"noise": NoiseOptions("bernoulli", random_length=0.5)},
    "cosine in a bell": {"noise": NoiseOptions(mask_schedule="cosine", time_sampling="bell")},
    "stored sequences": {"windows": "stored"},
    "drawn by step": {"draws": "by_step", "noise": NoiseOptions(complementary=True)},
    "causal": {"network": NetworkOptions("causal", d_model=16, n_heads=2, n_layers=1)},
}


def steps_of(config: TrainConfig, data: PreparedText, rank: int, processes: int) -> Steps:
    plan = RunPlan.of(config, data, shard=Shard(rank, processes))
    return Steps(plan, build_model(plan, None), make_source(plan, 0), Progress(step=0, samples=96))


@pytest.mark.parametrize("changes", NOISE.values(), ids=NOISE)
def test_parts_of_a_step_are_those_of_the_whole(
    changes: dict[str, Any], small_run: TrainConfig, data: PreparedText
) -> None:
    """Bit for bit: ids, masks, probabilities and weights of the rows, at steps in the middle of an epoch."""
    others = {name: value for name, value in changes.items() if name != "windows"}
    options = replace(small_run.data, windows=changes.get("windows", "random"))
    noise = {"noise": NoiseOptions(), **others}
    config = replace(small_run, batch_size=6, accumulate=2, data=options, **noise)
    assert_parts_are_those_of_the_whole(
        lambda rank, processes: steps_of(config, data, rank, processes), at=(0, 1, 2, 5)
    )


def test_counts_are_spread_evenly_over_the_step(small_run: TrainConfig, data: PreparedText) -> None:
    """Of 24 tokens, row b of 8 masks 3b + 1 to 3b + 3, each equally often, at positions that are equally likely."""
    steps = steps_of(replace(small_run, batch_size=8, noise=NoiseOptions(random_length=0.0)), data, 0, 1)
    offsets, positions = torch.zeros(3, dtype=torch.long), torch.zeros(24, dtype=torch.long)
    for step in range(300):
        is_masked = steps.make_batch(step)[1].is_masked
        offset = is_masked.sum(1) - 3 * torch.arange(8) - 1
        assert len(offset.unique()) == 1
        offsets[offset[0]] += 1
        positions[is_masked[0].nonzero()[0]] += 1
    assert chi_square_p(offsets, torch.full((3,), 1 / 3)) > 1e-4
    first = [math.comb(23 - i, count - 1) / math.comb(24, count) for count in (1, 2, 3) for i in range(24)]
    assert chi_square_p(positions, torch.tensor(first).view(3, 24).mean(0)) > 1e-4
