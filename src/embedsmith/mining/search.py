"""The nearest vectors of a corpus, exactly, in blocks: memory follows from block sizes and depth, not from the corpus.

A score is the dot product of the stored numbers in float64, rounded to float32; equal scores are ordered by place.
What a matrix product in float32 says differs from that in the last bits, and differently for each shape of a block. So
it only proposes: an error of at most ε cannot hide a row among the best k if everything within 2ε of the k-th best
proposal is kept and scored again. The result is the same for any block size, number of threads and BLAS.

ε = d·2⁻²⁴·|query|·|row|, the bound of a float32 dot product of d terms (Higham 2002, §3.1): 384 unit numbers, 2.3e-5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedsmith.encoder import Embeddings
from embedsmith.mining.store import Places, Vectors

QUERIES = 4096  # of a block: 134 MB of scores with CORPUS
CORPUS = 8192
CHUNK = 8192  # pairs scored again at once: two arrays of float64
ROUNDING = 2.0**-24
Counts = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The nearest rows of each query, nearest first.

    Attributes:
        places: (queries, depth) int64, -1 where an approximate search found fewer. scores: (queries, depth)
            float32, -inf there.
    """

    places: Places
    scores: Embeddings


def search(
    queries: Embeddings, corpus: Vectors, *, depth: int, block: int = CORPUS, query_block: int = QUERIES
) -> Neighbours:
    """Return the `depth` nearest rows of `corpus` (fewer if it has fewer) for each query, (queries, depth).

    Args:
        block: rows of the corpus in memory at once. query_block: queries compared with them at once. Neither
            changes the result.
    """
    parts = [
        _search_block(queries[start : start + query_block], corpus, min(depth, len(corpus)), block)
        for start in range(0, len(queries), query_block)
    ]
    if not parts:
        parts = [Neighbours(np.zeros((0, depth), dtype=np.int64), np.zeros((0, depth), dtype=np.float32))]
    return Neighbours(np.concatenate([part.places for part in parts]), np.concatenate([part.scores for part in parts]))


def _search_block(queries: Embeddings, corpus: Vectors, depth: int, block: int) -> Neighbours:
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    candidates = _Candidates(queries, corpus, depth)
    products = np.empty((len(queries), min(block, len(corpus))), dtype=np.float32)
    for start in range(0, len(corpus), block):
        rows = corpus.read(start, min(start + block, len(corpus)))
        candidates.allow(rows)
        own = products[:, : len(rows)] if len(rows) == products.shape[1] else np.empty((len(queries), len(rows)), "f4")
        candidates.absorb(np.matmul(queries, rows.T, out=own), start)
    return candidates.finish(block)


class _Candidates:
    """What may still be among the best of each query: scores within ε, places, and the floor below which nothing is."""

    def __init__(self, queries: Embeddings, corpus: Vectors, depth: int) -> None:
        self.queries, self.corpus, self.depth = queries, corpus, depth
        self.capacity = 4 * depth + 64
        self.room = self.capacity // 2  # free after tightening, in every row
        self.lengths = np.linalg.norm(queries, axis=1)
        self.error = np.zeros(len(queries), dtype=np.float32)
        self.scores = np.full((len(queries), self.capacity), -np.inf, dtype=np.float32)
        self.places = np.zeros((len(queries), self.capacity), dtype=np.int64)
        self.filled = np.zeros(len(queries), dtype=np.intp)
        self.floor = np.full(len(queries), -np.inf, dtype=np.float32)
        self._since = 0

    def allow(self, rows: Embeddings) -> None:
        """Raise the error bound to that of these rows; 1.1 and the eight terms more cover the rounding to float32."""
        longest = float(np.sqrt(np.einsum("nd,nd->n", rows, rows).max(initial=0)))
        bound = 1.1 * (rows.shape[1] + 8) * ROUNDING * longest * self.lengths
        self.error = np.maximum(self.error, bound.astype(np.float32))

    def absorb(self, scores: Embeddings, first: int) -> None:
        """Take what reaches the floor; scores (queries, width) are those of places first, first + 1, …"""
        hits = scores >= self.floor[:, None]
        counts = np.count_nonzero(hits, axis=1)
        if (self.filled + counts).max() <= self.capacity:
            self._append(scores, hits, counts, first)
            return
        width = scores.shape[1]
        self.tighten()
        if width > self.room:  # else it fits now, whatever the floor
            self.absorb(scores[:, : width // 2], first)
            self.absorb(scores[:, width // 2 :], first + width // 2)
        else:
            hits = scores >= self.floor[:, None]
            self._append(scores, hits, np.count_nonzero(hits, axis=1), first)

    def _append(self, scores: Embeddings, hits: NDArray[np.bool_], counts: Counts, first: int) -> None:
        rows, columns = np.divmod(np.flatnonzero(hits), scores.shape[1])
        at = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts - self.filled, counts)
        self.scores[rows, at] = scores[rows, columns]
        self.places[rows, at] = first + columns
        self.filled += counts
        self._since += len(rows)
        if self._since > len(self.queries) * self.depth // 4:
            self.tighten()

    def tighten(self) -> None:
        """Raise the floors to 2ε below the k-th best, and drop what is below."""
        self._since = 0
        top = int(self.filled.max(initial=0))
        if top <= self.depth:
            return
        held = self.scores[:, :top]
        self.floor = np.maximum(self.floor, np.partition(held, top - self.depth, axis=1)[:, top - self.depth])
        self.floor = np.where(self.filled >= self.depth, self.floor, -np.inf).astype(np.float32)
        self._lower_floor()
        keep = (held >= self.floor[:, None]) & (np.arange(top) < self.filled[:, None])
        self._compact(keep)
        for row in np.flatnonzero(self.filled > self.capacity - self.room).tolist():
            self._settle(row)

    def _lower_floor(self) -> None:
        """Set the floor 2ε (and a rounding) under the k-th best that it is now."""
        self.floor = np.nextafter(self.floor - 2 * self.error, np.float32(-np.inf))

    def _compact(self, keep: NDArray[np.bool_]) -> None:
        rows, columns = np.nonzero(keep)
        counts = np.count_nonzero(keep, axis=1)
        at = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        scores, places = self.scores[rows, columns], self.places[rows, columns]
        self.scores[:, : keep.shape[1]] = -np.inf
        self.scores[rows, at], self.places[rows, at], self.filled = scores, places, counts

    def _settle(self, row: int) -> None:
        """Keep the best k of a query exactly: so many are within 2ε of each other that they would not fit."""
        places = np.sort(self.places[row, : self.filled[row]])
        scores = _score(np.broadcast_to(self.queries[row], (len(places), self.queries.shape[1])), self.corpus, places)
        best = np.argsort(-scores, kind="stable")[: self.depth]
        self.scores[row] = -np.inf
        self.scores[row, : len(best)], self.places[row, : len(best)] = scores[best], places[best]
        self.filled[row] = len(best)

    def finish(self, block: int) -> Neighbours:
        """Return the best k by exact score, then place."""
        self.tighten()
        held = np.arange(self.capacity) < self.filled[:, None]
        rows, columns = np.nonzero(held)
        places = self.places[rows, columns]
        scores = score_pairs(self.queries, rows, self.corpus, places, block=block)
        order = np.lexsort((places, -scores, rows))
        starts = np.repeat(np.cumsum(self.filled) - self.filled, self.filled)
        best = order[np.arange(len(rows)) - starts < self.depth]
        shape = (len(self.queries), self.depth)
        return Neighbours(places[best].reshape(shape), scores[best].reshape(shape))


def score_pairs(
    queries: Embeddings, rows: NDArray[Any], corpus: Vectors, places: Places, *, block: int = CORPUS
) -> Embeddings:
    """Return the score of queries[rows[i]] and corpus[places[i]] for each i, float32; reads the corpus once, in order.

    A score is the sum over the dimensions in float64, rounded to float32: the same for a pair wherever it stands.
    """
    scores = np.empty(len(places), dtype=np.float32)
    order = np.argsort(places, kind="stable")
    ordered = places[order]
    for start in range(0, len(corpus), block):
        low, high = np.searchsorted(ordered, (start, start + block)).tolist()
        if low == high:
            continue
        vectors = corpus.read(start, min(start + block, len(corpus)))
        for part in range(low, high, CHUNK):
            chosen = order[part : min(part + CHUNK, high)]
            scores[chosen] = _dot(queries[rows[chosen]], vectors[places[chosen] - start])
    return scores


def _score(queries: Embeddings, corpus: Vectors, places: Places) -> Embeddings:
    return _dot(queries, corpus.gather(places))


def _dot(left: Embeddings, right: Embeddings) -> Embeddings:
    products = np.multiply(left, right, dtype=np.float64, order="C")  # exact: 24 + 24 bits fit in 53
    return np.asarray(np.add.reduce(products, axis=1), dtype=np.float32)
