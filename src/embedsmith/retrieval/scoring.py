"""The figures of a ranking, query by query, as trec_eval defines them; numpy only.

Throughout, `grades` is (queries, depth): the grade of what stands at each place, best place first; 0 and below is not
relevant, and so is a place at which nothing stands. `judged` has, for each query, the grades of all that is relevant.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Judged = Sequence[Sequence[int]]


def score_grades(grades: Values, judged: Judged, cutoffs: Sequence[int], depth: int) -> dict[str, Values]:
    """Return each figure of each query, (queries,), by name: ndcg@k, mrr@k, recall@k, precision@k; map@depth."""
    grades = np.maximum(grades, 0)
    found: dict[str, Values] = {}
    for k in cutoffs:
        found |= {
            f"ndcg@{k}": ndcg(grades, judged, k),
            f"mrr@{k}": mrr(grades, k),
            f"recall@{k}": recall(grades, judged, k),
            f"precision@{k}": precision(grades, k),
        }
    return found | {f"map@{depth}": average_precision(grades[:, :depth], judged)}


def ndcg(grades: Values, judged: Judged, k: int) -> Values:
    """Return nDCG@k: Σ grade / log₂(place + 1), over the same sum of the best order.

    One relevant document at place 3: (1 / log₂ 4) / (1 / log₂ 2) = 0.5 (Järvelin & Kekäläinen 2002).
    """
    discounts = 1 / np.log2(np.arange(2, k + 2))
    gained = grades[:, :k] @ discounts[: grades[:, :k].shape[1]]
    best = [sorted((grade for grade in own if grade > 0), reverse=True)[:k] for own in judged]
    return _share(gained, np.array([float(np.dot(own, discounts[: len(own)])) for own in best]))


def mrr(grades: Values, k: int) -> Values:
    """Return 1 / place of the first relevant document among k, 0 where there is none."""
    hits = grades[:, :k] > 0
    if not hits.shape[1]:
        return np.zeros(len(grades))
    return np.where(hits.any(axis=1), 1 / (hits.argmax(axis=1) + 1), 0.0)


def recall(grades: Values, judged: Judged, k: int) -> Values:
    """Return how many of all relevant documents stand among k, as a share."""
    return _share((grades[:, :k] > 0).sum(axis=1).astype(np.float64), _relevant(judged))


def precision(grades: Values, k: int) -> Values:
    """Return relevant documents among k, over k, however few were found."""
    return np.asarray((grades[:, :k] > 0).sum(axis=1) / k, dtype=np.float64)


def average_precision(grades: Values, judged: Judged) -> Values:
    """Return the precision at the place of each relevant document, summed, over the number of all relevant ones.

    Relevant at places 1 and 3 of three known ones: (1/1 + 2/3 + 0) / 3 = 0.5556 (trec_eval's map).
    """
    hits = grades > 0
    at = np.cumsum(hits, axis=1) / np.arange(1, grades.shape[1] + 1)
    return _share((at * hits).sum(axis=1), _relevant(judged))


def _relevant(judged: Judged) -> Values:
    return np.array([sum(grade > 0 for grade in own) for own in judged], dtype=np.float64)


def _share(part: Values, whole: Values) -> Values:
    return np.asarray(np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0), dtype=np.float64)
