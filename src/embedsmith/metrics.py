"""Metrics of scored pairs, numpy only: independent of row order, right at ties, with intervals.

Throughout, `labels` is (n,) of 0 and 1, `scores` (n,) of any float, higher is closer. A threshold t
means: score ≥ t is called a duplicate (a *hit*). Rows with equal scores are always on the same side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from embedsmith.errors import ConfigurationError

Labels = NDArray[np.int64]
Scores = NDArray[np.float64]
Weights = NDArray[np.float64]
HELD = 1 << 25  # weights of resamples that are kept, 256 MiB: 2,000 resamples of 16,000 rows
BLOCK = 1 << 21  # of more, those in memory at once


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval; `level` is the probability that the interval covers the truth."""

    value: float
    low: float
    high: float
    level: float = 0.95


@dataclass(frozen=True, slots=True)
class PairScores:
    """What a threshold does to labelled pairs.

    Attributes:
        precision: right answers among hits; 1 where there is no hit.
        recall: hits among the duplicates. accuracy: rows on the right side.
        hit_rate: hits among all rows.
    """

    threshold: float
    precision: float
    recall: float
    f1: float
    accuracy: float
    hit_rate: float


@dataclass(frozen=True, slots=True)
class Difference:
    """The second model less the first on the same rows, with its interval and two-sided p-value."""

    value: float
    low: float
    high: float
    p_value: float
    level: float = 0.95


class Ranking:
    """Scored rows, sorted once; every metric is then a few cumulative sums, for any row weights.

    A bootstrap resample is a vector of weights (how often each row was drawn), so 2,000 resamples of
    10,000 rows need no further sorting.
    """

    def __init__(self, labels: NDArray[np.integer], scores: NDArray[np.floating]) -> None:
        labels, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
        if labels.shape != scores.shape or labels.ndim != 1:
            raise ValueError(f"labels {labels.shape} and scores {scores.shape} must be (n,) both")
        if not np.isin(labels, (0, 1)).all():
            raise ValueError("labels must be 0 or 1")
        if not np.isfinite(scores).all():
            raise ValueError("scores must be finite")
        self.order, starts, _ = find_runs(-scores)
        self.labels: NDArray[np.int64] = labels.astype(np.int64)[self.order]
        self.scores = scores[self.order]
        # Last row of each run of equal scores: a threshold can only lie there.
        self.ends = np.append(starts, len(scores))[1:] - 1
        self.thresholds: Scores = self.scores[self.ends]

    def counts(self, weights: Weights | None = None) -> tuple[Scores, Scores]:
        """Return (true hits, hits) at each threshold, from the highest down; `weights` by original row."""
        sorted_weights = np.ones(len(self.labels)) if weights is None else weights[self.order]
        hits = np.cumsum(sorted_weights)[self.ends]
        true_hits = np.cumsum(sorted_weights * self.labels)[self.ends]
        return true_hits, hits

    def average_precision(self, weights: Weights | None = None) -> float:
        """Return Σ (Rᵢ − Rᵢ₋₁)·Pᵢ over thresholds from high to low, as scikit-learn does.

        Labels 1, 0, 1 in the order of scores: (1 + 2/3) / 2 = 0.8333. NaN without a positive row.
        """
        true_hits, hits = self.counts(weights)
        if not len(hits) or true_hits[-1] == 0:
            return float("nan")
        steps = np.diff(true_hits, prepend=0.0)
        return float(np.sum(steps * _share(true_hits, hits)) / true_hits[-1])

    def pchr_auc(self, weights: Weights | None = None) -> float:
        """Return precision integrated over the cache-hit ratio (share of rows that are hits), 0 to 1.

        What a cache sees while its threshold falls: Σ (Hᵢ − Hᵢ₋₁)·Pᵢ with H the hit ratio (P-CHR of
        arXiv 2606.19719, taken over pairs). Labels 1, 0, 1: (1 + 1/2 + 2/3) / 3 = 0.7222.
        """
        true_hits, hits = self.counts(weights)
        if not len(hits) or hits[-1] == 0:
            return float("nan")
        steps = np.diff(hits, prepend=0.0)
        return float(np.sum(steps * _share(true_hits, hits)) / hits[-1])

    def recall_at_precision(self, floor: float = 0.95, weights: Weights | None = None) -> float:
        """Return the highest recall of any threshold whose precision is at least `floor`; 0 if none is."""
        true_hits, hits = self.counts(weights)
        if not len(hits) or true_hits[-1] == 0:
            return float("nan")
        good = (_share(true_hits, hits) >= floor) & (hits > 0)
        return float(true_hits[good].max() / true_hits[-1]) if good.any() else 0.0

    def roc_auc(self, weights: Weights | None = None) -> float:
        """Return the probability that a duplicate scores above a non-duplicate; ties count half."""
        true_hits, hits = self.counts(weights)
        false_hits = hits - true_hits
        if not len(hits) or true_hits[-1] == 0 or false_hits[-1] == 0:
            return float("nan")
        x = np.concatenate([[0.0], false_hits / false_hits[-1]])
        y = np.concatenate([[0.0], true_hits / true_hits[-1]])
        return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))

    def best_f1(self) -> PairScores:
        """Return the figures at the threshold with the highest F1 (the highest such threshold, at ties)."""
        true_hits, hits = self.counts()
        f1 = _share(2 * true_hits, hits + self.labels.sum())
        return self.at(float(self.thresholds[int(np.argmax(f1))]))

    def best_accuracy(self) -> PairScores:
        """Return the figures at the threshold with the highest accuracy."""
        true_hits, hits = self.counts()
        right = true_hits + (len(self.labels) - self.labels.sum() - (hits - true_hits))
        return self.at(float(self.thresholds[int(np.argmax(right))]))

    def at(self, threshold: float, weights: Weights | None = None) -> PairScores:
        """Return the figures at `threshold`."""
        sorted_weights = np.ones(len(self.labels)) if weights is None else weights[self.order]
        hit = self.scores >= threshold
        true_hits = float(np.sum(sorted_weights * hit * self.labels))
        hits, positives = float(np.sum(sorted_weights * hit)), float(np.sum(sorted_weights * self.labels))
        total = float(np.sum(sorted_weights))
        right = true_hits + (total - positives) - (hits - true_hits)
        return PairScores(
            threshold=threshold,
            precision=true_hits / hits if hits else 1.0,
            recall=true_hits / positives if positives else float("nan"),
            f1=2 * true_hits / (hits + positives) if hits + positives else float("nan"),
            accuracy=right / total if total else float("nan"),
            hit_rate=hits / total if total else float("nan"),
        )

    def curve(self, points: int = 400) -> dict[str, list[float]]:
        """Return threshold, precision, recall and hit_rate from the highest threshold down, thinned."""
        true_hits, hits = self.counts()
        keep = np.unique(np.linspace(0, len(hits) - 1, min(points, len(hits))).round().astype(int))
        positives = max(int(self.labels.sum()), 1)
        columns = {
            "threshold": self.thresholds,
            "precision": _share(true_hits, hits),
            "recall": true_hits / positives,
            "hit_rate": hits / len(self.labels),
        }
        return {name: np.round(values[keep], 5).tolist() for name, values in columns.items()}


def spearman(left: Sequence[float] | Scores, right: Sequence[float] | Scores) -> float:
    """Return Spearman's rank correlation, ties averaged; NaN where one side is constant (see `RankCorrelation`)."""
    return RankCorrelation(left, right)()


class RankCorrelation:
    """Spearman's correlation of two columns, sorted once; any row weights are then a few cumulative sums.

    With whole weights it is Spearman's correlation of the resample in which row i stands w_i times: a run of
    equal values whose weights sum to g, the last of them in place u, has the mean rank u − (g − 1) / 2.
    Values 3, 1, 1 with weights 1, 2, 0 are the resample 3, 1, 1: ranks 3, 1.5, 1.5.
    """

    def __init__(self, left: Sequence[float] | Scores, right: Sequence[float] | Scores) -> None:
        first, second = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
        if first.shape != second.shape or first.ndim != 1 or not len(first):
            raise ValueError(f"two columns {first.shape} and {second.shape} must be (n,) both, n ≥ 1")
        if not (np.isfinite(first).all() and np.isfinite(second).all()):
            raise ValueError("values must be finite")
        self._sides = find_runs(first), find_runs(second)

    def __call__(self, weights: Weights | None = None) -> float:
        """Return the correlation under row weights (n,), default 1 each; NaN where one side is constant."""
        rows = len(self._sides[0][2])
        return float(self._block(np.ones((1, rows)) if weights is None else weights[None])[0])

    def draws(self, weights: Resamples, *, block: int = 64) -> Scores:
        """Return the correlation in each of the resamples, shape (resamples,)."""
        parts = (drawn[at : at + block] for drawn in weights.blocks() for at in range(0, len(drawn), block))
        return np.concatenate(list(map(self._block, parts)))

    def _block(self, weights: Weights) -> Scores:
        first, second = (self._centred_ranks(side, weights) for side in self._sides)
        heavy = first * weights
        shared = (heavy * second).sum(axis=1)  # see `Resamples.means`
        scale = (heavy * first).sum(axis=1) * (second * second * weights).sum(axis=1)
        return np.asarray(np.divide(shared, np.sqrt(scale), out=np.full(len(scale), np.nan), where=scale > 0))

    @staticmethod
    def _centred_ranks(side: _Runs, weights: Weights) -> Scores:
        order, starts, run = side
        heavy = np.add.reduceat(weights[:, order], starts, axis=1)
        last = np.cumsum(heavy, axis=1)
        middle = (last[:, -1:] + 1) / 2  # the mean of all ranks
        return np.take(last - (heavy - 1) / 2 - middle, run, axis=1)


_Runs: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def find_runs(values: NDArray[np.floating]) -> _Runs:
    """Return (order by value, where each run of equal values starts in it, the run of each row)."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=np.nan))
    run = np.empty(len(values), dtype=np.int64)
    run[order] = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(values))))
    return order, starts, run


class Resamples:
    """Bootstrap resamples of rows: how often each row is in each, (resamples, rows) weights, drawn as they are read.

    Up to `HELD` weights are drawn once and kept; of more, each reading draws the same ones again, in blocks, so that
    memory does not grow with resamples times rows.

    Args:
        units: number (n,) of each row's group, from 0; groups are drawn whole.
        block: resamples that are in memory at once; by default what `BLOCK` weights hold.
    """

    def __init__(self, units: NDArray[np.int64], resamples: int, seed: int, *, block: int | None = None) -> None:
        self.shape = (resamples, len(units))
        self._units, self._seed = units, seed
        self._count = int(units.max(initial=-1)) + 1
        self._block = max(block or BLOCK // max(len(units), 1), 1)
        self._kept: Weights | None = None
        if block is None and resamples * len(units) <= HELD:
            self._kept = np.fromiter(chain.from_iterable(self._draw()), np.dtype((np.float64, len(units))), resamples)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Weights]:
        """Yield the weights (n,) of each resample."""
        return chain.from_iterable(self.blocks())

    def blocks(self) -> Iterator[Weights]:
        """Yield the weights of some resamples at a time, (some, n)."""
        if self._kept is None:
            return self._draw()
        return (self._kept[at : at + self._block] for at in range(0, len(self), self._block))

    def means(self, values: NDArray[np.floating]) -> Scores:
        """Return the mean of the values (n,) in each resample, shape (resamples,).

        The same bits whatever the blocks are: `@` and einsum add up in another order where there are more rows.
        """
        found = [(block * values).sum(axis=1) / block.sum(axis=1) for block in self.blocks()]
        return np.concatenate([np.empty(0), *found])

    def _draw(self) -> Iterator[Weights]:
        generator = np.random.default_rng(self._seed)
        for start in range(0, len(self), self._block):
            drawn = generator.integers(0, self._count, size=(min(self._block, len(self) - start), self._count))
            drawn += np.arange(len(drawn))[:, None] * self._count
            times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
            yield np.take(times, self._units, axis=1).astype(np.float64)


def resample_weights(
    rows: int, *, groups: Sequence[object] | None = None, resamples: int = 2000, seed: int = 0
) -> Resamples:
    """Return how often each row is in each bootstrap resample.

    With `groups`, whole groups are drawn, so that rows of one source question stay together and the
    intervals do not pretend that they are independent.
    """
    names = [("row", row) if group is None else group for row, group in enumerate(groups or [None] * rows)]
    return Resamples(number_groups(names), resamples, seed)


def number_groups(names: Sequence[object]) -> NDArray[np.int64]:
    """Return the number (n,) of each row's group, from 0 in order of appearance: b, a, b gives 0, 1, 0."""
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    return np.array([places[name] for name in names], dtype=np.int64)


def bootstrap(statistic: Callable[[Weights], float], weights: Resamples, *, level: float = 0.95) -> Estimate:
    """Return the statistic on all rows with its percentile interval over the resamples (Efron 1979)."""
    value = statistic(np.ones(weights.shape[1]))
    return estimate(value, np.array([statistic(row) for row in weights]), level=level)


def estimate(value: float, draws: Scores, *, level: float = 0.95) -> Estimate:
    """Return `value` with the percentile interval of what it was in the resamples (those that are finite)."""
    return Estimate(value, *_interval(draws, level), level)


def paired_bootstrap(
    first: Callable[[Weights], float],
    second: Callable[[Weights], float],
    weights: Resamples,
    *,
    level: float = 0.95,
) -> Difference:
    """Return second − first on the same resamples, with a two-sided p-value for "no difference".

    The p-value is twice the share of resamples on the less frequent side of 0 (ties half), at least
    1 / resamples.
    """
    ones = np.ones(weights.shape[1])
    draws = np.array([second(row) - first(row) for row in weights])
    return difference(second(ones) - first(ones), draws, level=level)


def difference(value: float, draws: Scores, *, level: float = 0.95) -> Difference:
    """Return `value` with the interval and the p-value (see `paired_bootstrap`) of the differences in the resamples."""
    draws = draws[np.isfinite(draws)]
    below = float(np.mean(draws < 0) + np.mean(draws == 0) / 2) if len(draws) else 0.5
    p_value = min(1.0, max(2 * min(below, 1 - below), 1 / max(len(draws), 1)))
    return Difference(value, *_interval(draws, level), p_value, level)


def compare_means(
    first: Scores,
    second: Scores,
    weights: Resamples,
    *,
    groups: Sequence[object] | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Return the mean of second − first over paired rows (n,); interval by bootstrap, p-value by randomisation.

    Rows of one group (those that `weights` were drawn by) turn their signs together.

    A mean over rows has an exact test of "no difference" (`randomization_p`); statistics that are no means, such as
    average precision over scored pairs, have only the resamples (`paired_bootstrap`).
    """
    changes = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    draws = weights.means(changes)
    turning = changes if groups is None else np.bincount(number_groups(groups), weights=changes).astype(np.float64)
    return Difference(float(changes.mean()), *_interval(draws, level), randomization_p(turning, seed=seed), level)


def randomization_p(changes: Scores, *, rounds: int = 10_000, seed: int = 0) -> float:
    """Return the two-sided p-value of "no difference" for the changes (n,) of paired rows, by turning signs.

    If the two systems did not differ, each change could as well have the other sign: p is the share of sign patterns
    whose sum is as far from 0 as the one seen (Smucker, Allan & Carterette 2007). All 2ⁿ patterns of the n changes
    that are not 0 are counted where they are at most `rounds`; else p = (1 + those of `rounds` random ones) /
    (1 + rounds), which is never 0 (Phipson & Smyth 2010). Changes 1, 1, 1: 2 of 8 patterns, p = 0.25.
    """
    turning = np.asarray(changes, dtype=np.float64)
    turning = turning[turning != 0]
    if not len(turning):
        return 1.0
    seen = abs(float(turning.sum())) * (1 - 1e-12)  # sums of the same numbers in another order are equal
    if 2 ** min(len(turning), 60) <= rounds:
        bits = (np.arange(2 ** len(turning))[:, None] >> np.arange(len(turning))) & 1
        return float(np.mean(np.abs((2 * bits - 1) @ turning) >= seen))
    generator, reached = np.random.default_rng(seed), 0
    for start in range(0, rounds, 500):
        bits = generator.integers(0, 2, size=(min(500, rounds - start), len(turning)), dtype=np.int8)
        reached += int(np.sum(np.abs((2.0 * bits - 1) @ turning) >= seen))
    return (1 + reached) / (1 + rounds)


def choose_baseline(names: Iterable[str], asked: str | None = None) -> str:
    """Return the one of `names` that the others are compared with: the one asked for, else the first.

    Raises:
        ConfigurationError: nothing is compared, or nothing of that name.
    """
    compared = list(names)
    if not compared:
        raise ConfigurationError("nothing to compare", expected="at least one encoder or ranking")
    if asked is not None and asked not in compared:
        raise ConfigurationError(f"the baseline {asked!r} is not compared", expected=f"one of {', '.join(compared)}")
    return compared[0] if asked is None else asked


def percent(share: float) -> str:
    """Return a share as people write it, exactly: .05 → "5%", .005 → "0.5%", .999 → "99.9%"."""
    return f"{100 * share:.6g}%"


def adjust_holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values of tests made at once, such that "any of them ≤ α" has probability ≤ α by chance (Holm 1979).

    The i-th smallest of n is taken n − i + 1 times, at most 1, and never below a smaller one's:
    0.01, 0.04, 0.03 → 0.03, 0.06, 0.06.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for turn, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - turn) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def _interval(draws: Scores, level: float) -> tuple[float, float]:
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return float("nan"), float("nan")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _share(part: Scores, whole: Scores) -> Scores:
    return np.asarray(np.divide(part, whole, out=np.zeros_like(part, dtype=np.float64), where=whole > 0))


def top_places(scores: NDArray[np.floating], k: int) -> NDArray[np.int64]:
    """Return the places of the k highest scores (all, if there are fewer), highest first, ties by place.

    >>> top_places(np.array([1.0, 3.0, 1.0, 2.0]), 3).tolist()
    [1, 3, 0]
    """
    k = min(k, len(scores))
    edge = np.partition(scores, len(scores) - k)[len(scores) - k]
    found = np.flatnonzero(scores >= edge)
    return np.asarray(found[np.lexsort((found, -scores[found]))][:k], dtype=np.int64)
