"""Random order and random numbers without any state: functions of a key and a number.

Whoever asks for an item of a run, in whatever order, in one process or in many, is given the same one. Nothing has to
be kept for it: neither a shuffled list, nor the state of a generator.

Letters: N items in an epoch, I numbers that are asked for, C columns, R rounds.
"""

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]

GAMMA = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio, made odd
ROUNDS = 6  # four suffice for a wide domain (Luby and Rackoff, 1988); more make up for a narrow one
NARROWEST_HALF = 3  # bits: of domains below 64, too few permutations could be reached


def mix(words: Words) -> Words:
    """Scramble 64-bit words one to one: the output function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def words_at(key: Words | int, numbers: npt.NDArray[np.integer]) -> Words:
    """Return the words at these places of the SplitMix64 sequence that starts from a key; both are broadcast."""
    return mix(np.asarray(key, np.uint64) + GAMMA * (numbers.astype(np.uint64) + np.uint64(1)))


def uniforms(key: int, numbers: Numbers, n_columns: int) -> npt.NDArray[np.float32]:
    """Return fp32 numbers (I, C), uniform on [0, 1): a row for each number, whose columns do not depend on C."""
    words = words_at(words_at(key, numbers)[:, None], np.arange(n_columns))
    return (words >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def integers(key: int, numbers: Numbers, below: int) -> Numbers:
    """Return an integer (I,) for each number, uniform on 0..below - 1."""
    share = (words_at(key, numbers) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.minimum((share * below).astype(np.int64), below - 1)


def shuffled(key: int, samples: Numbers, n: int) -> Numbers:
    """Return the items (I,) that the samples of a run take: each of n once an epoch, in another order in every epoch.

    Args:
        samples: numbers of samples (I,), counted from the start of the run.
        n: items in an epoch, N.
    """
    return permuted(words_at(key, samples // n), samples % n, n)


def permuted(key: Words | int, index: Numbers, n: int) -> Numbers:
    """Return where a random permutation of 0..n - 1 takes each index (I,).

    A Feistel network permutes the smallest domain of 4^h >= n numbers; what it takes out of 0..n - 1 goes through it
    again until it is inside, which makes a permutation of 0..n - 1 ("cycle walking": Black and Rogaway, CT-RSA 2002).
    The domain is less than four times as large as n, unless n is tiny, so that it takes four passes or fewer on
    average, and memory for the indices that are asked for alone.

    Args:
        key: of the permutation; one for each index (I,) if they are of several permutations.
        n: the number of items, N.
    """
    half = max(NARROWEST_HALF, -(-(n - 1).bit_length() // 2))
    keys = words_at(np.broadcast_to(np.asarray(key, np.uint64), index.shape), np.arange(ROUNDS)[:, None])  # (R, I)
    place = index.astype(np.uint64)
    outside = np.arange(len(place))
    while len(outside):
        place[outside] = _feistel(place[outside], keys[:, outside], half)
        outside = outside[place[outside] >= np.uint64(n)]
    return place.astype(np.int64)


def _feistel(place: Words, keys: Words, half: int) -> Words:
    """Permute 0..4^half - 1: in each round one half of the bits is changed by a function of the other."""
    bits, shift = np.uint64(half), np.uint64(64 - half)
    left, right = place >> bits, place & np.uint64((1 << half) - 1)
    for key in keys:
        left, right = right, left ^ (mix(key + GAMMA * right) >> shift)
    return (left << bits) | right
