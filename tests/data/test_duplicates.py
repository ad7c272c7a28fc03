"""Which documents are kept, against a set in memory."""

import math
import os
from pathlib import Path

import numpy as np
import pytest

from llada.data.corpus_work import file_of, record_of_scan, row_starts, signature_of
from llada.data.duplicates import drop_near, first_of_equal, mark_duplicates


@pytest.mark.parametrize("at_once", [1, 3, 50, 10**6])
def test_the_first_of_equal_documents_is_kept(at_once: int) -> None:
    digests = np.random.default_rng(0).integers(0, 6, (100, 2)).astype(np.uint64)
    seen: set[tuple[int, ...]] = set()
    expected = []
    for digest in map(tuple, digests.tolist()):
        expected.append(digest not in seen)
        seen.add(digest)
    blocks = [digests[:1], digests[1:40], digests[40:40], digests[40:]]
    assert first_of_equal(blocks, at_once).tolist() == expected


def test_there_may_be_more_blocks_than_a_process_may_open_files(tmp_path: Path) -> None:
    """As of a corpus of 100 GB, and a usual limit of 1,024."""
    resource = pytest.importorskip("resource")
    n = 500  # other tests may have left files open, which count as well
    for number in range(n):
        record = record_of_scan(tmp_path, number)
        np.save(file_of(record, ".digests.npy"), np.array([[number // 2, 7]], dtype="<u8"))
        np.save(file_of(record, ".signatures.npy"), np.full((1, 128), number // 4, dtype="<u4"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull, "rb") as lowest_free:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free.fileno() + n - 20, limits[1]))
        try:
            assert mark_duplicates(tmp_path, n, 0.8) == (n // 2, n // 4)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_signatures_estimate_the_similarity_of_five_word_runs() -> None:
    """Two texts of 400 words that share a half: 196 of 596 runs are in both."""
    words = [f"w{i}" for i in range(600)]
    one, other = " ".join(words[:400]), " ".join(words[200:])
    equal = (signature_of(one) == signature_of(other)).mean()
    assert equal == pytest.approx(196 / 596, abs=3 * (0.33 * 0.67 / 128) ** 0.5)
    assert (signature_of(one.upper()) == signature_of(one)).all()
    assert (signature_of("a b") == signature_of("a b")).all()


@pytest.mark.parametrize("alphabet", [range(0x4E00, 0x9FFF), range(0x3041, 0x3096), range(0x0E01, 0x0E2E)])
def test_where_no_spaces_separate_words_each_character_is_one(alphabet: range) -> None:
    rng = np.random.default_rng(0)
    text = "".join(map(chr, rng.choice(alphabet, 400)))
    other = text[:200] + "".join(map(chr, rng.choice(alphabet, 200)))
    one, two = ({each[i : i + 5] for i in range(396)} for each in (text, other))
    similarity = len(one & two) / len(one | two)
    assert similarity == pytest.approx(1 / 3, abs=0.01)
    equal = (signature_of(text) == signature_of(other)).mean()
    assert equal == pytest.approx(similarity, abs=3 * (similarity * (1 - similarity) / 128) ** 0.5)
    assert (signature_of(text) == signature_of(" ".join(text))).all()


def test_words_of_both_kinds_stand_next_to_each_other() -> None:
    mixed, spaced = "用PyTorch训练 3B模型。한국어 띄어쓰기", "用 PyTorch 训 练 3B 模 型 。한국어 띄어쓰기"
    assert (signature_of(mixed) == signature_of(spaced)).all()


def test_a_document_near_to_one_that_is_dropped_stays() -> None:
    """A chain: each is near to the next only, so the first and the third are kept."""
    words = [f"w{i}" for i in range(1000)]
    texts = [" ".join(words[60 * i : 60 * i + 400]) for i in range(3)]  # neighbours: 336 of 456, others: 276 of 516
    keep = np.ones(3, dtype=bool)
    signatures = [np.array([signature_of(text)]) for text in texts]
    assert drop_near(signatures, keep, 0.64) == 1
    assert keep.tolist() == [True, False, True]


def test_rows_begin_with_each_document() -> None:
    starts, ends = np.array([0, 3, 13]), np.array([3, 13, 14])
    assert row_starts(starts, ends, 4).tolist() == [0, 3, 7, 11, 13]


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9, 0.99])
def test_nearly_all_pairs_at_the_threshold_are_found(threshold: float) -> None:
    """Of pairs that agree in the least share of places that counts, and in one place fewer."""
    generator = np.random.default_rng(1)
    least = math.ceil(threshold * 128)
    for n_equal, least_dropped, most_dropped in ((least, 195, 200), (least - 1, 0, 0)):
        signatures = generator.integers(0, 2**32, (400, 128), dtype=np.uint32)
        for pair in range(200):
            equal = generator.permutation(128)[:n_equal]
            signatures[2 * pair + 1, equal] = signatures[2 * pair, equal]
        keep = np.ones(400, dtype=bool)
        assert least_dropped <= drop_near([signatures], keep, threshold) <= most_dropped
        assert bool(keep[::2].all())  # the first of each
