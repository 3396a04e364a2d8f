"""Exact ranking: whoever finds candidates, their similarities are computed here, from the vectors as stored."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from embedsmith.cache.stores import Entry, Match
from embedsmith.encoder import Embeddings

SPARE = 4  # candidates asked for beyond k
MOST = 2048  # living candidates at most: more entries that are equally close are not put in order
ROUNDING = 1e-5  # the index may misorder candidates whose cosines differ by less than this


def rank(
    vector: Embeddings,
    k: int,
    now: float,
    near: Callable[[int, float], Sequence[Entry]],
    *,
    floor: float = -1.0,
) -> list[Match]:
    """Return the `k` closest living entries, closest first, ties by id, with cosines computed in float64.

    Args:
        near: from a number to that many entries, the closest by the server's reckoning, or all there are; it may
            leave out those that are surely less similar than its second argument, but for the closest.
        floor: similarity below which entries may be missing, but for the closest one.
    """
    wanted = k + SPARE
    while k > 0:
        found = near(wanted, floor)
        alive = [entry for entry in found if entry.alive(now)]
        if floor > -1 and len(alive) < len(found):  # the closest living one may be among those left out
            floor = -1.0
            continue
        matches = score(vector, alive)
        # What was not fetched cannot belong to the first k once the last one fetched is clearly farther.
        settled = len(matches) > k and matches[k - 1].similarity - matches[-1].similarity > ROUNDING
        most = MOST + len(found) - len(alive)  # expired candidates do not count towards MOST
        if settled or len(found) < wanted or wanted >= most:
            return matches[:k]
        wanted = min(4 * wanted, most)
    return []


def score(vector: Embeddings, entries: Sequence[Entry]) -> list[Match]:
    """Return a match for each entry, closest first, ties by id; vectors of length 0 match nothing (0.0)."""
    query = vector.astype(np.float64)
    length = float(query.dot(query))
    matches = [Match(entry, _cosine(query, length, entry.vector.astype(np.float64))) for entry in entries]
    return sorted(matches, key=_order) if len(matches) > 1 else matches


def _cosine(query: NDArray[np.float64], length: float, row: NDArray[np.float64]) -> float:
    """Return the cosine of the query, of this squared length, with a vector.

    A product per vector, not one of a matrix: BLAS may round equal rows of a matrix differently, and ties would break.
    """
    lengths = math.sqrt(length * float(row.dot(row)))
    return min(max(float(query.dot(row)) / lengths, -1.0), 1.0) if lengths else 0.0


def _order(match: Match) -> tuple[float, str]:
    return -match.similarity, match.entry.id
