"""Nearest neighbours in memory: sign bits to find the few, eight-bit codes to order them; no graph, no build.

A vector is kept as d sign bits (after a fixed random rotation, so that every bit tells as much) and as d
eight-bit codes: 1.1 bytes a dimension and 20 more, 450 bytes at d = 384. A search counts differing bits over
the whole partition (0.4 ms for 100,000 on one core), takes the nearest by that count, orders those by their
codes and hands on a few more than asked for; the store scores these with its own float32 vectors. Up to
`EXACT` vectors the bits are skipped and all codes are compared.

Signs of angles: two vectors at angle θ differ in a share θ/π of the bits (Charikar 2002, SimHash). At
cosine .8 that is 79 ± 8 of 384 bits, at cosine .3 it is 155 ± 10: what is close enough to be served is
found; the order among distant vectors is not promised, and a cache does not ask for it.

Additions and removals cost what they touch, a restart costs reading the vectors once, and every result is
the same on every run: the reasons why there is no graph (HNSW) here.
Not safe for threads: the store holds a lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from embedsmith.encoder import Embeddings

EXACT = 2048  # vectors of a partition that are all compared by their codes
POOL = 128  # vectors, at least, that pass from the bits to the codes
SPARSE = 0.25  # share of removed vectors at which a block is packed again
SAMPLE = 8  # every eighth vector says where to cut
FAR = 1 << 15  # more bits than any vector has


class VectorIndex:
    """Numbers by nearness of their vectors, within partitions. Numbers must be added in rising order."""

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self._blocks: dict[str, _Block] = {}

    def add(self, partition: str, numbers: Sequence[int], vectors: Embeddings) -> None:
        """Add vectors (n, d) under `numbers`, each higher than any before."""
        block = self._blocks.get(partition)
        if block is None:
            block = self._blocks[partition] = _Block(self.dimension)
        block.add(np.asarray(numbers, dtype=np.int64), np.asarray(vectors, dtype=np.float32))

    def remove(self, partition: str, numbers: Sequence[int]) -> None:
        """Forget numbers; unknown ones are nothing."""
        block = self._blocks.get(partition)
        if block is not None:
            block.remove(np.asarray(numbers, dtype=np.int64))
            if not block.living:
                del self._blocks[partition]

    def nearest(self, partition: str, vector: Embeddings, count: int) -> list[int]:
        """Return up to `count` numbers, closest first."""
        block = self._blocks.get(partition)
        return block.nearest(vector, count) if block is not None else []


class _Block:
    """The vectors of one partition, in the order of their numbers; removed ones are marked."""

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.size = self.living = 0
        words = -(-dimension // 64)
        self._numbers = np.empty(0, dtype=np.int64)
        self._bits = np.empty((words, 0), dtype=np.uint64)  # a row for each word: whole rows are scanned
        self._codes = np.empty((0, dimension), dtype=np.int8)
        self._scales = np.empty(0, dtype=np.float32)
        self._gone = np.empty(0, dtype=np.uint16)  # 0, or FAR

    def add(self, numbers: NDArray[np.int64], vectors: Embeddings) -> None:
        self._make_room(len(numbers))
        at = slice(self.size, self.size + len(numbers))
        scales = np.abs(vectors).max(axis=1) / 127
        self._numbers[at] = numbers
        self._bits[:, at] = sign_bits(vectors).T
        self._codes[at] = np.rint(vectors / np.where(scales == 0, 1, scales)[:, None])
        self._scales[at] = scales
        self._gone[at] = 0
        self.size += len(numbers)
        self.living += len(numbers)

    def _make_room(self, count: int) -> None:
        if self.size + count > len(self._numbers):
            self._resize(np.arange(self.size), max(self.size + count, self.size + self.size // 4, 16))

    def _resize(self, kept: NDArray[np.intp], capacity: int) -> None:
        def move(array: NDArray[np.generic], axis: int = 0) -> NDArray[np.generic]:
            shape = list(array.shape)
            shape[axis] = capacity
            fresh = np.empty(shape, dtype=array.dtype)
            target = fresh[:, : len(kept)] if axis else fresh[: len(kept)]
            np.take(array, kept, axis=axis, out=target) if len(kept) else None
            return fresh

        self._numbers = move(self._numbers)  # type: ignore[assignment]
        self._bits = move(self._bits, 1)  # type: ignore[assignment]
        self._codes = move(self._codes)  # type: ignore[assignment]
        self._scales = move(self._scales)  # type: ignore[assignment]
        self._gone = move(self._gone)  # type: ignore[assignment]
        self.size = len(kept)

    def remove(self, numbers: NDArray[np.int64]) -> None:
        known = self._numbers[: self.size]
        places = np.searchsorted(known, numbers)
        places = places[places < self.size]
        places = places[np.isin(known[places], numbers)]
        fresh = np.unique(places[self._gone[places] == 0])
        self._gone[fresh] = FAR
        self.living -= len(fresh)
        if self.size - self.living > SPARSE * self.size:
            kept = np.flatnonzero(self._gone[: self.size] == 0)
            self._resize(kept, max(len(kept), 16))

    def nearest(self, vector: Embeddings, count: int) -> list[int]:
        pool = self._pool(vector, count) if self.size > EXACT else np.flatnonzero(self._gone[: self.size] == 0)
        scores = self._codes[pool].astype(np.float32) @ vector * self._scales[pool]
        best = np.argsort(-scores, kind="stable")[:count]
        return [int(number) for number in self._numbers[pool[best]]]

    def _pool(self, vector: Embeddings, count: int) -> NDArray[np.intp]:
        """Return the places of at least `POOL` vectors (and four times `count`) whose bits differ least."""
        differing = self._count(sign_bits(vector[None])[0])
        wanted = min(max(POOL, 4 * count), self.living)
        limit = self._limit(differing[::SAMPLE], wanted // SAMPLE)
        pool = np.flatnonzero(differing <= limit)
        if not wanted / 2 <= len(pool) <= 8 * wanted:  # the sample misled: count all
            pool = np.flatnonzero(differing <= self._limit(differing, wanted - 1))
        return pool

    def _count(self, words: NDArray[np.uint64]) -> NDArray[np.uint16]:
        """Return how many bits of each vector differ from `words`, and at least `FAR` for a removed one.

        Three words are at most 192 bits, which a byte holds; bytes are added several times faster than mixed types.
        """
        differing = self._gone[: self.size].copy()
        xor = np.empty(self.size, dtype=np.uint64)
        part, sums = np.empty(self.size, dtype=np.uint8), np.empty(self.size, dtype=np.uint8)
        for start in range(0, len(words), 3):
            for place in range(start, min(start + 3, len(words))):
                np.bitwise_xor(self._bits[place, : self.size], words[place], out=xor)
                np.bitwise_count(xor, out=sums if place == start else part)
                if place > start:
                    np.add(sums, part, out=sums)
            np.add(differing, sums, out=differing)
        return differing

    def _limit(self, differing: NDArray[np.uint16], place: int) -> int:
        """Return the number of bits that `place` + 1 of the vectors differ by at most."""
        return min(int(np.partition(differing, place)[place]), self.dimension)


def sign_bits(vectors: Embeddings) -> NDArray[np.uint64]:
    """Return the signs of the rotated vectors (n, d) as words (n, ⌈d/64⌉)."""
    signs = vectors @ _rotation(vectors.shape[1]) > 0
    packed = np.packbits(signs, axis=1)
    words = np.zeros((len(packed), 8 * -(-vectors.shape[1] // 64)), dtype=np.uint8)
    words[:, : packed.shape[1]] = packed
    return words.view(np.uint64)


@lru_cache(maxsize=4)
def _rotation(dimension: int) -> Embeddings:
    """Return a random orthogonal matrix (d, d), the same in every process."""
    gaussian = np.random.default_rng(dimension).normal(size=(dimension, dimension))
    return np.asarray(np.linalg.qr(gaussian)[0], dtype=np.float32)
