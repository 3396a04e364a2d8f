"""The index in memory: what is near is found, whatever was added, removed and searched before."""

from __future__ import annotations

import tracemalloc
from timeit import repeat

import numpy as np
import pytest

from embedsmith.cache.stores import index
from embedsmith.cache.stores.index import VectorIndex, sign_bits
from embedsmith.encoder import Embeddings, normalize


def draw(count: int, dimension: int, seed: int = 0) -> Embeddings:
    return normalize(np.random.default_rng(seed).normal(size=(count, dimension)))


def near(vectors: Embeddings, cosine: float, seed: int = 1) -> Embeddings:
    """Return a unit vector at about `cosine` from each."""
    noise = draw(len(vectors), vectors.shape[1], seed)
    return normalize(cosine * vectors + np.sqrt(1 - cosine**2) * noise)


@pytest.mark.parametrize("dimension", [64, 100, 192, 384, 768])  # one word, a broken one, all in the first, more
@pytest.mark.parametrize("count", [50, 1000, 5000])
def test_what_is_near_is_the_first(dimension: int, count: int) -> None:
    known, vectors = VectorIndex(dimension), draw(count, dimension)
    known.add("p", range(count), vectors)
    for place, query in enumerate(near(vectors[:50], 0.8)):
        assert known.nearest("p", query, 9)[0] == place


def test_removed_numbers_are_gone_and_the_others_stay() -> None:
    known, vectors, gone = VectorIndex(384), draw(4000, 384), range(0, 4000, 7)
    known.add("p", range(2000), vectors[:2000])
    known.remove("p", [*gone[: len(gone) // 2], 10**6])
    known.add("p", range(2000, 4000), vectors[2000:])
    known.remove("p", gone[len(gone) // 2 :])
    for place in range(60):
        found = known.nearest("p", vectors[place], 9)
        assert (found[0] == place) is (place not in gone)
        assert not {*found} & {*gone}


@pytest.mark.parametrize("count", [700, 1000, 1100])
def test_what_passes_from_the_bits_to_the_codes_differs_in_the_fewest_bits(count: int) -> None:
    known, vectors, gone = VectorIndex(384), draw(count, 384), 100
    known.add("p", range(count), vectors)
    known.remove("p", range(gone))
    assert count - gone <= index.SPAN * index.POOL
    for query in near(vectors[gone : gone + 5], 0.7):
        differing = np.bitwise_count(sign_bits(vectors) ^ sign_bits(query[None])).sum(axis=1)
        limit = np.sort(differing[gone:])[index.POOL - 1]
        expected = gone + np.flatnonzero(differing[gone:] <= limit)
        assert [*known._blocks["p"]._pools(query, 9, -1.0, known._scratch)][-1].tolist() == expected.tolist()


@pytest.mark.parametrize("count", [1000, 5000])
@pytest.mark.parametrize("floor", [0.6, 0.8, 0.95])
def test_with_a_floor_only_what_the_bits_leave_in_doubt_passes_and_nothing_is_lost(count: int, floor: float) -> None:
    known, vectors = VectorIndex(384), draw(count, 384)
    vectors[1::2] = near(vectors[::2], 0.9)  # pairs
    known.add("p", range(count), vectors)
    block = known._blocks["p"]
    for query in near(vectors[:60], 0.97):
        cosines = vectors @ query
        for passed in block._pools(query, 9, floor, known._scratch):
            assert {*np.flatnonzero(cosines >= floor), cosines.argmax()} <= {*passed}
            assert floor < 0.8 or len(passed) < index.POOL // 4
    sparse = np.eye(384, dtype=np.float32)  # of one number each
    known.add("sparse", range(count, count + 1152), np.concatenate([sparse, -sparse, sparse]))
    for place in range(0, 384, 20):
        assert known.nearest("sparse", sparse[place], 9, floor=floor) == [count + place, count + 768 + place]


def test_partitions_of_any_size_share_one_scratch() -> None:
    known, vectors = VectorIndex(384), draw(3600, 384)
    for name, start, stop in (("small", 0, 20), ("middle", 20, 1000), ("large", 1000, 3600)):
        known.add(name, range(start, stop), vectors[start:stop])
    for place in (1500, 3, 500, 3599, 999):
        name = "small" if place < 20 else "middle" if place < 1000 else "large"
        assert known.nearest(name, vectors[place], 3)[0] == place
    assert known.nearest("unknown", vectors[0], 3) == []


def test_a_partition_of_one_vector_takes_the_room_of_one() -> None:
    """Conversations that differ in their earlier turns have a partition each."""
    vectors = draw(1, 384)
    known = VectorIndex(384)
    known.add("p", [0], vectors)
    tracemalloc.start()
    for number in range(1, 301):
        known.add(f"p{number}", [number], vectors)
    taken = tracemalloc.get_traced_memory()[0] / 300
    tracemalloc.stop()
    assert taken < 2000, "16 places at once were 8,000 bytes"


def test_how_many_there_are_is_known_without_asking_each_partition() -> None:
    known, vectors = VectorIndex(64), draw(1, 64)
    for number in range(5000):
        known.add(f"p{number}", [number], vectors)
    assert min(repeat(lambda: len(known), number=1, repeat=20)) < 2e-5  # seconds; every search after a write asks
    known.remove("p7", [7, 7, 8])
    known.add("p7", [5000, 5001], np.repeat(vectors, 2, axis=0))
    known.keep(range(4000, 5001))
    assert len(known) == 1001


def test_long_partitions_are_counted_in_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "STRETCH", 1000)
    known, vectors = VectorIndex(384), draw(3333, 384)
    known.add("p", range(3333), vectors)
    assert [known.nearest("p", vectors[place], 1) for place in (0, 999, 1000, 3332)] == [[0], [999], [1000], [3332]]


@pytest.mark.parametrize("count", [50, 5000])
@pytest.mark.parametrize("length", [1.0, 3.0])  # of the query: a cosine does not care
def test_a_floor_cuts_only_what_is_surely_below_it(count: int, length: float) -> None:
    known, vectors = VectorIndex(384), draw(count, 384)
    family = near(np.repeat(vectors[:1], 12, axis=0), 0.9)  # cosines around .9 to the first
    known.add("p", range(count), vectors)
    known.add("p", range(count, count + 12), family)
    cosines = np.concatenate([vectors, family]) @ vectors[0]
    for floor in np.sort(cosines[-12:]):
        cut, whole = (known.nearest("p", length * vectors[0], 20, floor=bound) for bound in (float(floor), -1.0))
        assert cut == whole[: len(cut)]
        assert {int(number) for number in np.flatnonzero(cosines >= floor)} <= {*cut}
        assert all(cosines[number] > floor - 0.05 for number in cut)
    away = known.nearest("p", -vectors[0], 5)
    assert known.nearest("p", -vectors[0], 5, floor=0.99)[0] == away[0]  # the closest, however far


def test_a_floor_above_all_leaves_out_nobody_who_may_be_the_closest() -> None:
    """Codes are rounded, so of two that are nearly alike the farther one may seem the closer."""
    for seed in range(30):
        noise = np.random.default_rng(seed).normal(scale=1e-4, size=(2, 384))
        alike, known = normalize(draw(1, 384, seed) + noise), VectorIndex(384)
        known.add("p", range(2), alike)
        query = near(alike[:1], 0.5, seed + 100)[0]
        assert int((alike @ query).argmax()) in known.nearest("p", query, 9, floor=0.99)


def test_equal_vectors_in_great_number_are_all_candidates() -> None:
    known = VectorIndex(384)
    known.add("p", range(3000), np.repeat(draw(1, 384), 3000, axis=0))
    assert len({*known.nearest("p", draw(1, 384)[0], 2048)}) == 2048


def test_vectors_of_length_0_disturb_nobody() -> None:
    known, vectors = VectorIndex(384), draw(3000, 384)
    vectors[::3] = 0
    known.add("p", range(3000), vectors)
    assert known.nearest("p", vectors[1], 2)[0] == 1
    assert len(known.nearest("p", vectors[0], 5)) == 5
