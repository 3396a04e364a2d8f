"""Nearest neighbours in memory: sign bits to find the few, eight-bit codes to order them; no graph, no build.

A vector is kept as d sign bits (after a fixed random rotation, so that every bit tells as much) and as d
eight-bit codes: 1.1 bytes a dimension and 22 more, 450 bytes at d = 384, and 800 bytes a partition. A search counts in
the first 192 bits how many differ, over the whole partition (.17 ms for 100,000 on a core). Of the nearest fortieth by
that count the other bits are counted too; the nearest by all of them are ordered by their codes, and a few more than
asked for are handed on; the store scores these with its own float32 vectors. Where the least count says that a vector
reaches the floor of a search, those that may reach it come first, mostly far fewer than a fortieth; if one does, they
are all. In a partition of up to `SPAN` * `POOL` vectors all bits are counted at once; up to `EXACT` numbers the bits
are skipped and all codes are compared.

Signs of angles: two vectors at angle θ differ in a share θ/π of the bits (Charikar 2002, SimHash). At
cosine .8 that is 79 ± 8 of 384 bits (39 ± 6 of 192), at cosine .3 it is 155 ± 10 (77 ± 7): what is close enough to
be served is found; the order among distant vectors is not promised, and a cache does not ask for it.

Additions and removals cost what they touch, a restart costs reading the vectors once, and every result is
the same on every run: the reasons why there is no graph (HNSW) here.
Not safe for threads: the store holds a lock.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedsmith.encoder import Embeddings

EXACT = 1 << 18  # a partition with n * d below this is searched exhaustively: 682 vectors at d = 384
POOL = 128  # vectors, at least, that pass from the bits to the codes
PREFIX = 3  # words whose bits are counted for every vector; three of 64 bits are what a byte can count
SPAN, PART = 8, 40  # the first words let max(SPAN * pool, n / PART) candidates pass to the others
CERTAIN = 6  # standard deviations of a count of bits
SURE, LIKELY = 4.5, 0.5  # the same, of the first words: above it none reaches a floor; the least count where one does
SPARSE = 0.25  # share of removed vectors at which a block is packed again
SMALL = 16  # vectors up to which the room of a block doubles; most blocks hold one
SAMPLE = 2048  # vectors, at least, that say where to cut
GONE = 255  # bits by which a removed vector differs: more than the first words have
STRETCH = 1 << 16  # vectors that are counted at once: what lies between the steps stays in the cache of a core
ROUNDING = 1e-5  # of float32 in a cosine


class VectorIndex:
    """Numbers by nearness of their vectors, within partitions. Numbers must be added in rising order."""

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self._blocks: dict[str, _Block] = {}
        self._living = 0  # in all blocks, of which there may be one for each entry: conversations have their own
        self._scratch = _Scratch()

    def add(self, partition: str, numbers: Sequence[int], vectors: Embeddings) -> None:
        """Add vectors (n, d) under `numbers`, each higher than any before."""
        block = self._blocks.get(partition)
        if block is None:
            block = self._blocks[partition] = _Block(self.dimension)
        block.add(np.asarray(numbers, dtype=np.int64), np.asarray(vectors, dtype=np.float32))
        self._living += len(numbers)

    def remove(self, partition: str, numbers: Sequence[int]) -> None:
        """Forget numbers; unknown ones are nothing."""
        block = self._blocks.get(partition)
        if block is not None:
            self._living -= block.remove(np.asarray(numbers, dtype=np.int64))
            if not block.living:
                del self._blocks[partition]

    def keep(self, numbers: Sequence[int]) -> None:
        """Forget all numbers but these, whatever their partition."""
        kept = np.asarray(numbers, dtype=np.int64)
        for partition, block in list(self._blocks.items()):
            known = block.numbers
            self.remove(partition, known[~np.isin(known, kept)].tolist())

    def __len__(self) -> int:
        """Return how many numbers there are."""
        return self._living

    def nearest(self, partition: str, vector: Embeddings, count: int, *, floor: float = -1.0) -> list[int]:
        """Return up to `count` numbers, closest first.

        Args:
            floor: numbers whose cosine is surely below it are left out, but for those that may be the closest.
        """
        block = self._blocks.get(partition)
        return block.nearest(vector, count, floor, self._scratch) if block is not None else []


class _Scratch:
    """Memory that searches use again and again: fresh pages would cost more than the counting."""

    def __init__(self) -> None:
        self.differing = np.empty(STRETCH, dtype=np.uint64)
        self.count = np.empty(STRETCH, dtype=np.uint8)
        self._sums = np.empty(0, dtype=np.uint8)
        self._near = np.empty(0, dtype=np.bool_)

    def hold(self, size: int, capacity: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return room for a count and a mark of each of `size` vectors."""
        if len(self._sums) < size:
            self._sums, self._near = np.empty(capacity, dtype=np.uint8), np.empty(capacity, dtype=np.bool_)
        return self._sums[:size], self._near[:size]


class _Block:
    """The vectors of one partition, in the order of their numbers; removed ones are marked."""

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.size = self.living = 0
        words = -(-dimension // 64)
        self._numbers = np.empty(0, dtype=np.int64)
        self._bits = np.empty((words, 0), dtype=np.uint64)  # a row for each word: whole rows are scanned
        self._codes = np.empty((0, dimension), dtype=np.int8)
        self._scales = np.empty(0, dtype=np.float32)  # a step of the codes, for a vector of length 1
        self._step = 0.0  # the largest of the scales so far
        self._gone = np.empty(0, dtype=np.uint8)  # 0, or GONE

    @property
    def numbers(self) -> NDArray[np.int64]:
        """All that were not removed."""
        return self._numbers.compress(self._gone[: self.size] == 0)

    def add(self, numbers: NDArray[np.int64], vectors: Embeddings) -> None:
        self._make_room(len(numbers))
        at = slice(self.size, self.size + len(numbers))
        steps = np.abs(vectors).max(axis=1) / 127
        lengths = np.linalg.norm(vectors, axis=1)
        self._numbers[at] = numbers
        self._bits[:, at] = sign_bits(vectors).T
        self._codes[at] = np.rint(vectors / np.where(steps == 0, 1, steps)[:, None])
        self._scales[at] = steps / np.where(lengths == 0, 1, lengths)
        self._step = max(self._step, float(self._scales[at].max(initial=0)))
        self._gone[at] = 0
        self.size += len(numbers)
        self.living += len(numbers)

    def _make_room(self, count: int) -> None:
        if self.size + count > len(self._numbers):
            self._resize(np.arange(self.size), self.size + max(count, self.size // 4, min(self.size, SMALL)))

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

    def remove(self, numbers: NDArray[np.int64]) -> int:
        """Mark numbers as removed; return how many were there."""
        known = self._numbers[: self.size]
        places = np.searchsorted(known, numbers)
        places = places[places < self.size]
        places = places[np.isin(known[places], numbers)]
        fresh = np.unique(places[self._gone[places] == 0])
        self._gone[fresh] = GONE
        self.living -= len(fresh)
        if self.size - self.living > SPARSE * self.size:
            kept = np.flatnonzero(self._gone[: self.size] == 0)
            self._resize(kept, len(kept))
        return len(fresh)

    def nearest(self, vector: Embeddings, count: int, floor: float, scratch: _Scratch) -> list[int]:
        few = self.size * self.dimension <= EXACT
        length = math.sqrt(float(vector.dot(vector)))
        # A code is at most half a step away from its number; so a score is at most half a step times √d times the
        # query's length away from the product it stands for: .012 where a step is .0012, d = 384 and the length 1.
        error = length * (self._step * math.sqrt(self.dimension) / 2 + ROUNDING)
        bar = length * floor
        for pool in (self._places(),) if few else self._pools(vector, count, floor, scratch):
            scores = self._score(pool, vector)
            closest = float(scores.max(initial=-np.inf))
            if closest >= bar + error:  # all that reach the floor are in this pool, the closest among them
                break
        if floor > -1 and len(pool):
            near = (scores >= min(bar - error, closest - 2 * error)).nonzero()[0]
            pool, scores = pool.take(near), scores.take(near)
        if len(pool) > 1:
            pool = pool.take((-scores).argsort(kind="stable")[:count])
        numbers: list[int] = self._numbers.take(pool[:count]).tolist()
        return numbers

    def _places(self) -> NDArray[np.intp]:
        """Return the places of all that were not removed."""
        return np.arange(self.size) if self.living == self.size else np.flatnonzero(self._gone[: self.size] == 0)

    def _score(self, pool: NDArray[np.intp], vector: Embeddings) -> Embeddings:
        """Return the products of the query with the codes at these places, which are in rising order."""
        if len(pool) == self.size:  # all of them: nothing need be copied
            codes, scales = self._codes[: self.size], self._scales[: self.size]
        else:
            codes, scales = self._codes.take(pool, axis=0), self._scales.take(pool)
        products: Embeddings = codes.astype(np.float32).dot(vector) * scales
        return products

    def _pools(self, vector: Embeddings, count: int, floor: float, scratch: _Scratch) -> Iterator[NDArray[np.intp]]:
        """Yield the places of the vectors that may reach `floor`, where one seems to; then of `POOL` or more.

        The latter (four times `count` at least) are those whose bits differ least; fewer where the bits of all others
        say that they neither reach `floor` nor are the closest.
        """
        words = sign_bits(vector[None])[0]
        wanted = min(max(POOL, 4 * count), self.living)
        if self.living <= SPAN * wanted:  # all pass the first words
            yield self._closest_by_all(words, wanted, floor)
            return
        sums, near = scratch.hold(self.size, len(self._numbers))
        self._scan(words, sums, scratch)
        if len(words) <= PREFIX:
            yield self._closest(sums, near, wanted)
            return
        passing = min(max(SPAN * wanted, self.size // PART), self.living)
        if floor > -1 and int(sums.min()) <= _reach(PREFIX * 64, floor, LIKELY):
            np.less_equal(sums, np.uint8(_reach(PREFIX * 64, floor, SURE)), out=near)
            if np.count_nonzero(near) <= passing:
                yield self._refine(near.nonzero()[0], sums, words, wanted, floor)
        yield self._refine(self._closest(sums, near, passing), sums, words, wanted, floor)

    def _refine(
        self,
        places: NDArray[np.intp],
        sums: NDArray[np.uint8],
        words: NDArray[np.uint64],
        wanted: int,
        floor: float,
    ) -> NDArray[np.intp]:
        """Return those of the places that `_select` keeps by all of their bits."""
        differing = sums.take(places).astype(np.uint16)
        for place in range(PREFIX, len(words)):
            differing += np.bitwise_count(self._bits[place].take(places) ^ words[place])
        return places.take(self._select(differing, wanted, floor)) if len(places) else places

    def _closest_by_all(self, words: NDArray[np.uint64], wanted: int, floor: float) -> NDArray[np.intp]:
        """Return the places of the vectors with the least counts of all bits, as `_select` does."""
        counts = np.bitwise_count(self._bits[:, : self.size] ^ words[:, None])
        differing: NDArray[np.uint16] = counts.sum(axis=0, dtype=np.uint16)
        if self.living < self.size:
            differing[self._gone[: self.size] != 0] = self._bits.shape[0] * 64 + 1
        return self._select(differing, wanted, floor)

    def _select(self, differing: NDArray[np.uint16], wanted: int, floor: float) -> NDArray[np.intp]:
        """Return where the counts of all bits are least: `wanted` or more, or all that could matter if they are fewer.

        The bits of a vector at angle θ are d draws of chance θ/π. Six standard deviations above what that makes of
        `floor`, and as many above the least count, nothing is left that a search with this floor would hand on.
        """
        if floor > -1:
            reach = _reach(self.dimension, floor)
            spread = CERTAIN * math.sqrt(self.dimension / 2)  # of a difference of two counts, at most
            near = (differing <= max(reach, int(differing.min()) + spread)).nonzero()[0]
            if len(near) <= wanted:
                return near
        return (differing <= _limit(differing, wanted - 1)).nonzero()[0]

    def _scan(self, words: NDArray[np.uint64], sums: NDArray[np.uint8], scratch: _Scratch) -> None:
        """Count how many of the first bits of each vector differ from `words`: `GONE` for a removed one.

        Bytes are added several times faster than mixed types.
        """
        for start in range(0, self.size, STRETCH):
            stop = min(start + STRETCH, self.size)
            differing, part, total = scratch.differing[: stop - start], scratch.count[: stop - start], sums[start:stop]
            for place, word in enumerate(words[:PREFIX]):
                np.bitwise_xor(self._bits[place, start:stop], word, out=differing)
                np.bitwise_count(differing, out=part if place else total)
                if place:
                    np.add(total, part, out=total)
        if self.living < self.size:
            np.bitwise_or(sums, self._gone[: self.size], out=sums)

    def _closest(self, sums: NDArray[np.uint8], near: NDArray[np.bool_], wanted: int) -> NDArray[np.intp]:
        """Return the places of about `wanted` vectors with the least counts; a sample says where to cut."""
        sample = sums[:: max(self.size // SAMPLE, 1)]
        limit = _limit(sample, wanted * len(sample) // self.size) if wanted < self.living else GONE
        np.less_equal(sums, np.uint8(min(limit, GONE - 1)), out=near)
        pool = near.nonzero()[0]
        if not wanted / 2 <= len(pool) <= 8 * wanted:  # the sample misled: look at all
            pool = np.flatnonzero(sums <= np.uint8(min(_limit(sums, wanted - 1), GONE - 1)))
        return pool


def _reach(bits: int, floor: float, deviations: float = CERTAIN) -> float:
    """Return how many of so many bits differ at most where a cosine is `floor` or more.

    At angle θ they are draws of chance θ/π, and so many standard deviations above their mean is certain enough: 72.9 of
    192 at cosine .8 and 6 of them.
    """
    share = math.acos(min(floor, 1.0)) / math.pi
    return bits * share + deviations * math.sqrt(bits * share * (1 - share))


def _limit(counts: NDArray[np.unsignedinteger], place: int) -> int:
    """Return the count that `place` + 1 of the vectors have at most.

    Counting how often each count occurs takes a third of the time that a partial sort takes on data it has not seen.
    """
    return int(np.bincount(counts).cumsum().searchsorted(place, side="right"))


def sign_bits(vectors: Embeddings) -> NDArray[np.uint64]:
    """Return the signs of the rotated vectors (n, d) as words (n, ⌈d/64⌉)."""
    packed = np.packbits(rotate(vectors) > 0, axis=1)
    spare = -packed.shape[1] % 8
    return (np.pad(packed, ((0, 0), (0, spare))) if spare else packed).view(np.uint64)


def rotate(vectors: Embeddings) -> Embeddings:
    """Return the vectors (n, d) after a fixed rotation that spreads each number over all others.

    A vector is read as a table of about √d rows, whose columns and rows are turned by two small random rotations; then
    as a table of as many columns, once more, so that vectors of few numbers are spread, too. At d = 384 that is 3 kB of
    rotations where one of all numbers has 590 kB, which every search would fetch anew from beyond a core's own caches;
    what is found is the same (docs/log.md).
    """
    few, many = _rotations(vectors.shape[1])
    turned: Any
    if len(vectors) == 1:  # a query: `dot` of two tables takes half the time of `@`, which is made for stacks of them
        turned = few.dot(vectors.reshape(len(few), len(many))).dot(many)
        turned = many.dot(turned.reshape(len(many), len(few))).dot(few)
    else:
        turned = few @ vectors.reshape(-1, len(few), len(many)) @ many
        turned = many @ turned.reshape(-1, len(many), len(few)) @ few
    return np.asarray(turned.reshape(vectors.shape))


@lru_cache(maxsize=4)
def _rotations(dimension: int) -> tuple[Embeddings, Embeddings]:
    """Return two random orthogonal matrices whose sizes multiply to d, the same in every process."""
    few = max(number for number in range(1, math.isqrt(dimension) + 1) if dimension % number == 0)
    draw = np.random.default_rng(dimension)
    return _turn(draw, few), _turn(draw, dimension // few)


def _turn(draw: np.random.Generator, size: int) -> Embeddings:
    """Return a random orthogonal matrix (size, size)."""
    return np.asarray(np.linalg.qr(draw.normal(size=(size, size)))[0], dtype=np.float32)
