"""Every random number of a run, from the seed and where the run is: nothing of it needs to be saved."""

from typing import Literal

import numpy as np

Purpose = Literal["batch", "dropout", "rounding"]
PURPOSES: dict[Purpose, int] = {"batch": 0, "dropout": 1, "rounding": 2}
KeyPurpose = Literal["data", "times", "masks"]
KEY_PURPOSES: dict[KeyPurpose, int] = {"data": 10, "times": 11, "masks": 12}


def seed_of(seed: int, step: int, purpose: Purpose, data_order: int = 0, rank: int = 0) -> int:
    """Seed of the randomness that a step needs for a purpose; two purposes share nothing.

    Args:
        data_order: how often the run went back to go on with its data in another order.
        rank: number of the process, where each needs randomness of its own.
    """
    return _first_of((seed, step, PURPOSES[purpose], *(_order(data_order) if not rank else (data_order, rank))))


def key_of(seed: int, purpose: KeyPurpose, data_order: int = 0, folder: int = 0) -> int:
    """Key of what is drawn for a purpose by the numbers of a run's sequences (`data.order`).

    Args:
        folder: number of the folder in a mixture, from 0, where each needs an order of its own.
    """
    return _first_of((seed, data_order, KEY_PURPOSES[purpose], *((folder,) if folder else ())))


def order_seed(seed: int, data_order: int) -> int:
    """Seed of the order in which stored sequences and dialogues come: the run's own, until it goes back."""
    return _first_of((seed, *_order(data_order))) if data_order else seed


def _order(data_order: int) -> tuple[int, ...]:
    return (data_order,) if data_order else ()


def _first_of(entropy: tuple[int, ...]) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
