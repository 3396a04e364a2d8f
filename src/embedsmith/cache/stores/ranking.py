"""Exact ranking: whoever finds candidates, their similarities are computed here, from the vectors as stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from embedsmith.cache.stores import Entry, Match
from embedsmith.encoder import Embeddings

SPARE = 4  # candidates asked for beyond k
MOST = 2048  # candidates at most: more entries that are equally close are not put in order
ROUNDING = 1e-5  # whoever finds candidates may order closer similarities than this wrongly


def rank(vector: Embeddings, k: int, now: float, near: Callable[[int], Sequence[Entry]]) -> list[Match]:
    """Return the `k` closest living entries, closest first, ties by id, with cosines computed in float64.

    Args:
        near: from a number to that many entries, the closest by the server's reckoning, or all there are.
    """
    wanted = k + SPARE
    while k > 0:
        found = near(wanted)
        matches = score(vector, [entry for entry in found if entry.alive(now)])
        # What was not fetched cannot belong to the first k once the last one fetched is clearly farther.
        settled = len(matches) > k and matches[k - 1].similarity - matches[-1].similarity > ROUNDING
        if settled or len(found) < wanted or wanted >= MOST:
            return matches[:k]
        wanted = min(4 * wanted, MOST)
    return []


def score(vector: Embeddings, entries: Sequence[Entry]) -> list[Match]:
    """Return a match for each entry, closest first, ties by id; vectors of length 0 match nothing (0.0)."""
    if not entries:
        return []
    rows = np.stack([entry.vector for entry in entries]).astype(np.float64)
    query = vector.astype(np.float64)
    # A sum per row, not a matrix product: BLAS may round equal rows differently, and ties would break.
    products = (rows * query).sum(axis=1)
    lengths = np.sqrt((rows * rows).sum(axis=1) * (query * query).sum())
    cosines = np.clip(products / np.where(lengths == 0, 1, lengths), -1, 1)
    matches = [Match(entry, float(cosine)) for entry, cosine in zip(entries, cosines, strict=True)]
    return sorted(matches, key=lambda match: (-match.similarity, match.entry.id))
