"""Calibration: labelled pairs and their similarities in, a threshold with a guarantee out, or a refusal.

The promise: among the answers that the cache serves at this threshold, at most a share δ is wrong, and
the procedure that chose the threshold keeps this with probability at least 1 − α over the draw of the
labelled pairs. It holds for traffic like the validation pairs: same kind of questions, same share of
duplicates. Pairs that share a question are no independent pairs: at each threshold the counts are divided by the
design effect that the units of pairs show there (Rao & Scott 1992, Biometrics 48:577); where they depend on each
other more than that can mend, `cache.independence.draw_sample` draws one of each unit.

Method: Learn then Test (Angelopoulos et al. 2021, arXiv 2110.01052). The thresholds to test are fixed
by the similarities alone. At each, "the share of wrong answers exceeds δ" is tested with the exact
binomial tail, from high similarity down. Several walks share α, so that one unlucky pair near the top does not
end all: each stops at its first test that fails, and one that comes to where the next begins hands its share on
(the fallback procedure, Wiens & Dmitrienko 2005, J. Biopharm. Stat. 15:929). Where none stops, the last tests at
α itself.

The rate promised is the one that would show in the long run. What shows among the next answers scatters about
it; with `traffic`, the promise is made for that: at most a share δ of the answers served to the next so many
pairs is wrong. Under exchangeability the wrong ones among all hits, labelled and to come, fall to either side
like balls drawn from an urn, so the tail is hypergeometric and exact for any number of hits to come. That holds for
each threshold; the walk stops where the draw at hand is at its luckiest, and half of α is kept for that.

Base rate: labelled pairs often hold more duplicates than the traffic does. Where the share of duplicates
among the pairs that a cache looks at is known, the promise is made for that share: with the odds of "not the
same" w times those of the labelled pairs, a false-hit rate of δ in the traffic is one of δ / (δ + (1 − δ) w) in
the labelled pairs (label shift, Saerens et al. 2002: similarities of duplicates, and of others, are as in
the labelled pairs). δ .1, half duplicates in the pairs, a quarter in the traffic: w is 3, tested is .0357.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# scipy is imported where it is needed: a server that reads a calibration computes none, and should start at once.
from embedsmith.artifacts import read_json, write_json
from embedsmith.errors import CalibrationRefused, ConfigurationError, InputError, require_share
from embedsmith.metrics import Ranking, find_runs, number_groups

WALKS = 5
STARTS = ((0.5, WALKS), (0.5, 1), (0.25, 2))  # shares of delta that may be wrong where the first walk starts, and walks
ROOM = 4  # times the hits of the first walk's start that a set has, to start there
METHOD = "learn-then-test, exact binomial, fallback procedure"
BLOCK = 128  # thresholds of a walk that are tested at once
SECOND_DRAW = 0.5  # of alpha, for a promise of the next answers: which thresholds are too low depends on them, too
MOST_TRAFFIC = 10**9  # pairs to come: beyond, the promise is that of the long run, and its tails lose their digits
ENOUGH = 30  # wrong answers that a design effect is measured on; fewer borrow from lower similarities
MOST = 0.85  # of the hits in reach: below, more labelled pairs are worth a word
OFFERS = (0.1, 0.15, 0.2, 0.25, 0.3)  # false-hit rates that a refusal looks at for a promise that can be made


@dataclass(frozen=True, slots=True)
class Conversations:
    """What the pairs of conversations among the labelled ones carry by themselves.

    Attributes:
        pairs: how many they are.
        threshold: cosine from which on the promise holds for them alone; None where no threshold keeps it.
        hits, false_hits: of these pairs, at the threshold.
        refused: why there is none.
    """

    pairs: int
    threshold: float | None = None
    hits: int = 0
    false_hits: int = 0
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A threshold and what it promises.

    Attributes:
        threshold: cosine; serve from here up.
        delta: most wrong answers among those served that is promised, at confidence 1 − alpha.
        hits, false_hits: of the validation pairs, at the threshold.
        upper_bound: one-sided Clopper–Pearson bound of the false-hit rate at the threshold, level 1 − alpha.
        effect: the design effect by which the counts were divided for it; 1 where pairs share no question.
        hit_rate: share of the validation pairs that are served. recall: share of the duplicates served.
        pairs: labelled pairs used.
        model: fingerprint of the model whose similarities these are; no other may use the threshold.
        duplicate_rate: share of duplicates the promise is made for; None is that of the labelled pairs. `tested`
            is the false-hit rate that was tested on them for it.
        traffic: number of pairs to come for whose answers the promise is made; None is the long run.
        probabilities: (similarity, probability that one answer serves both) from which on it holds, rising.
        verifier: fingerprint of the verifier that moved the similarities, "" for none; weight: cosine a logit.
        precision: what the encoder computed in, "" where it did not tell. guard: whether the vetoes of the cache's
            guard are in the similarities. An older file says neither: "" and None.
        guard_rules: fingerprint of that guard's rules and words; "" without it, and in an older file.
        cached: whether the similarities are those of a cache, or the model's by itself; None in an older file.
        hits_in_reach: of these pairs, down to the lowest threshold at which they themselves keep the rate: about what
            is served once there are many more of the kind. None in an older file.
        pairs_for_reach: labelled pairs, at least, with which `MOST` of that is served; None where it is already.
        written: a language model wrote the pairs, so the promise is for questions like those it writes.
        conversations: the pairs of them, which choose a threshold of their own and have no part in the other one
            (unless all pairs are such); None where no pair is.
    """

    threshold: float
    delta: float
    alpha: float
    hits: int
    false_hits: int
    upper_bound: float
    hit_rate: float
    recall: float
    pairs: int
    model: str
    method: str = METHOD
    duplicate_rate: float | None = None
    tested: float | None = None
    traffic: int | None = None
    probabilities: tuple[tuple[float, float], ...] = ()
    verifier: str = ""
    weight: float = 0.0
    precision: str = ""
    guard: bool | None = None
    written: bool = False
    conversations: Conversations | None = None
    effect: float = 1.0
    guard_rules: str = ""
    cached: bool | None = None
    hits_in_reach: int | None = None
    pairs_for_reach: int | None = None

    def probability(self, similarity: float) -> float | None:
        """Return the probability that one answer serves two texts this similar, None where it was not learnt."""
        place = bisect_right(self.probabilities, similarity, key=lambda knot: knot[0])
        return self.probabilities[max(place - 1, 0)][1] if self.probabilities else None


def calibrate(
    labels: Sequence[int] | NDArray[np.integer],
    similarities: Sequence[float] | NDArray[np.floating],
    *,
    delta: float = 0.05,
    alpha: float = 0.05,
    model: str = "",
    duplicate_rate: float | None = None,
    traffic: int | None = None,
    verifier: str = "",
    weight: float = 0.0,
    precision: str = "",
    guard: bool | None = None,
    guard_rules: str = "",
    cached: bool | None = None,
    written: bool = False,
    against: Sequence[float] | NDArray[np.floating] = (),
    units: Sequence[object] | None = None,
) -> Calibration:
    """Return the lowest threshold whose false-hit rate is at most `delta` with confidence 1 − `alpha`.

    A false hit is a wrong answer served; the rate is over the answers served (1 − precision). With no
    false hit at all, ⌈ln α / ln(1 − δ)⌉ = 59 hits certify δ = α = .05.

    Args:
        labels: (n,) 1 where one answer serves both texts of a pair.
        similarities: (n,) cosines of the same pairs; −1 for a pair that would be served at no threshold.
        duplicate_rate: share of duplicates among the pairs that the traffic brings, if it is another one.
        traffic: promise the share that shows in the answers to so many pairs to come, not the long run's.
        verifier, weight: what moved the similarities, if anything did; see `embedsmith.verifier`.
        precision, guard, guard_rules, cached, written: what else made them; see `Calibration`. They are only written
            down.
        against: cosines of further pairs that are known to be wrong and are no part of the sample. They count as
            false hits in every test, and in nothing else, so they can only raise the threshold.
        units: (n,) what each pair belongs to; pairs of one unit (they share a question or a group) may depend on each
            other. None: each is by itself.

    Raises:
        CalibrationRefused: no threshold can be certified; says how many pairs are missing.
        ConfigurationError: delta, alpha or duplicate_rate outside (0, 1). InputError: no pairs, or not finite.
    """
    for name, value in (("delta", delta), ("alpha", alpha), ("duplicate_rate", duplicate_rate)):
        if value is not None:
            require_share(name, value)
    if traffic is not None and not 1 <= traffic <= MOST_TRAFFIC:
        raise ConfigurationError(
            f"traffic {traffic}",
            expected=f"a number of pairs to come, 1 to {MOST_TRAFFIC:,}",
            action="leave it out to promise the long run's rate",
        )
    truth, scores = np.asarray(labels, dtype=np.int64), np.asarray(similarities, dtype=np.float64)
    _check(truth, scores, labels)
    _require_evidence(truth, scores, duplicate_rate)
    tested = shift_delta(delta, float(truth.mean()), duplicate_rate)
    counts = _cumulate(truth, scores, number_groups(units) if units is not None else None)
    reported = np.sort(np.asarray(against, dtype=np.float64))
    counts = replace(counts, known=len(reported) - np.searchsorted(reported, counts.thresholds))
    to_come = None if traffic is None else traffic / len(truth)
    certified = _walk(counts, tested, alpha, to_come)
    if certified is None:
        promise = _Promise(delta, alpha, duplicate_rate, tested)
        carried = _find_carried(truth, counts, promise, to_come)
        raise _refuse_for_few(truth, scores, promise, carried) or _refuse(truth, counts, promise, carried)
    served, wrong, effect = (float(part[certified]) for part in (counts.hits, counts.false_hits, counts.effects))
    reach, wanted = _find_reach(counts, certified, len(truth), _Promise(delta, alpha, duplicate_rate, tested))
    return Calibration(
        threshold=float(counts.thresholds[certified]),
        delta=delta,
        alpha=alpha,
        hits=int(served),
        false_hits=int(wrong),
        upper_bound=bound_rate(wrong / effect, served / effect, alpha),
        hit_rate=served / len(truth),
        recall=(served - wrong) / max(int(truth.sum()), 1),
        pairs=len(truth),
        model=model,
        duplicate_rate=duplicate_rate,
        tested=tested,
        traffic=traffic,
        probabilities=fit_probabilities(truth, scores, duplicate_rate),
        verifier=verifier,
        weight=weight,
        precision=precision,
        guard=guard,
        guard_rules=guard_rules,
        cached=cached,
        written=written,
        effect=effect,
        hits_in_reach=reach,
        pairs_for_reach=wanted,
    )


def shift_delta(delta: float, labelled_rate: float, duplicate_rate: float | None) -> float:
    """Return the false-hit rate among labelled pairs that is `delta` in traffic with another share of duplicates.

    .1 for labelled pairs half of which are duplicates and traffic with a quarter of them is .0357.
    """
    if duplicate_rate is None or not 0 < labelled_rate < 1:
        return delta
    odds = _odds(1 - duplicate_rate) / _odds(1 - labelled_rate)
    return delta / (delta + (1 - delta) * odds)


def _odds(share: float) -> float:
    return share / (1 - share)


def fit_probabilities(
    labels: NDArray[np.integer], similarities: NDArray[np.floating], duplicate_rate: float | None = None
) -> tuple[tuple[float, float], ...]:
    """Return (similarity, probability) knots: from each similarity on, the probability that one answer serves both.

    Isotonic regression (pool adjacent violators; Zadrozny & Elkan 2002) over the pairs that can be served, with
    half a pair of each label added to every block, so that nothing is certain: 3 of 3 give .875. With a
    `duplicate_rate`, the odds are those of that traffic.
    """
    from scipy.optimize import isotonic_regression

    served = np.asarray(similarities) > -1
    order, starts, run = find_runs(similarities[served])  # equal similarities go together
    scores, truth = similarities[served][order], labels[served][order].astype(np.float64)
    if not len(scores):
        return ()
    sizes = np.bincount(run)
    fitted = isotonic_regression(np.add.reduceat(truth, starts) / sizes, weights=sizes)
    blocks = starts[fitted.blocks[:-1]]
    counts, same = np.diff(np.append(blocks, len(scores))), np.add.reduceat(truth, blocks)
    chances = (same + 0.5) / (counts + 1)
    if duplicate_rate is not None and 0 < labels.mean() < 1:
        odds = chances / (1 - chances) * _odds(duplicate_rate) / _odds(float(labels.mean()))
        chances = odds / (1 + odds)
    rising = np.maximum.accumulate(chances)  # small blocks are pulled to the middle, past their neighbours
    return tuple((float(at), float(chance)) for at, chance in zip(scores[blocks], rising, strict=True))


def _check(truth: NDArray[np.int64], scores: NDArray[np.float64], labels: Sequence[int] | NDArray[np.integer]) -> None:
    if truth.ndim != 1 or truth.shape != scores.shape:
        raise InputError(
            f"labels of shape {truth.shape}, similarities of shape {scores.shape}", expected="one label per similarity"
        )
    if not len(truth) or not np.isfinite(scores).all():
        raise InputError("there are no labelled pairs to calibrate on", expected="pairs with finite similarities")
    if not np.isin(np.asarray(labels), (0, 1)).all():
        raise InputError(f"labels {sorted(set(np.asarray(labels).tolist()))[:5]}", expected="labels 0 and 1")


def _require_evidence(truth: NDArray[np.int64], scores: NDArray[np.float64], duplicate_rate: float | None) -> None:
    """Refuse pairs that say nothing of what is promised, however many they are."""
    facts: dict[str, object] = {"pairs": len(truth), "pairs_needed": None, "delta_carried": None}
    if not (scores > -1).any():
        raise CalibrationRefused(
            f"none of the {len(truth)} labelled pairs would be served at any threshold",
            expected="pairs that the guard lets pass, of texts that the model reads whole",
            action="label pairs like the traffic, or look at what is vetoed",
            facts=facts,
        )
    if duplicate_rate is not None and truth.all():
        raise CalibrationRefused(
            f"all {len(truth)} labelled pairs are duplicates, and the promise is for traffic with {duplicate_rate:.0%}",
            expected="pairs with different answers as well: how often these are served, nothing else tells",
            action="label such pairs, too",
            facts=facts,
        )


def bound_rate(events: float, trials: float, alpha: float) -> float:
    """Return the upper Clopper–Pearson bound of a rate at confidence 1 − `alpha`; 0 of 59 at .05 is .0495."""
    if events >= trials:
        return 1.0
    from scipy.special import betaincinv  # the same digits as scipy.stats.beta.ppf, in a third of the import

    return float(betaincinv(events + 1, trials - events, 1 - alpha))


def hits_needed(delta: float, alpha: float) -> int:
    """Return how many hits without one false hit certify `delta` at confidence 1 − `alpha`."""
    return math.ceil(math.log(alpha) / math.log(1 - delta))


@dataclass(frozen=True, slots=True)
class _Counts:
    """What would be served from each threshold on, from high to low; pairs of one similarity go together.

    Attributes:
        thresholds: (t,) distinct similarities. hits, false_hits: (t,) of the labelled pairs.
        effects: (t,) design effect of their units. known: (t,) further pairs that are known to be wrong.
    """

    thresholds: NDArray[np.float64]
    hits: NDArray[np.int64]
    false_hits: NDArray[np.int64]
    effects: NDArray[np.float64]
    known: NDArray[np.int64]

    def test(self, places: slice, delta: float, to_come: float | None) -> NDArray[np.float64]:
        """Return `tail` at these thresholds: the counts over their design effect, rounded against the cache."""
        effects, known = self.effects[places], self.known[places]
        wrong = np.ceil(self.false_hits[places] / effects).astype(np.int64)
        served = np.floor(self.hits[places] / effects).astype(np.int64)
        # With `known` more trials, all false, the tail can only grow: P(Bin(n + k) <= f + k) >= P(Bin(n) <= f).
        return tail(wrong + known, served + known, delta, to_come)


def _cumulate(truth: NDArray[np.int64], scores: NDArray[np.float64], units: NDArray[np.int64] | None) -> _Counts:
    ranking = Ranking(truth, scores)
    ends = ranking.ends[ranking.thresholds > -1]  # what is vetoed is served at no threshold
    served = ends[-1] + 1
    wrong = 1 - ranking.labels[:served]
    effects = measure_effects(wrong, units[ranking.order[:served]])[ends] if units is not None else np.ones(len(ends))
    return _Counts(ranking.thresholds[: len(ends)], ends + 1, np.cumsum(wrong)[ends], effects, np.zeros_like(ends))


def measure_effects(wrong: NDArray[np.int64], units: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the design effect (n,), 1 or more, of the first one, two, ... n pairs: variance over that of single pairs.

    Of w wrong among c pairs of each unit, at the rate p, it is the sum of (w − p · c)² over n · p · (1 − p) (Rao &
    Scott 1992). Where fewer than `ENOUGH` are wrong, it is that of the first pairs with so many: a few mistakes
    cannot tell whether they come together. Pairs of one unit each give 1; units of two alike pairs give 2.

    Args:
        wrong: (n,) 0 or 1. units: (n,) the unit of each pair, by number.
    """
    rank, before = _count_earlier(wrong, units)
    pairs, seen = np.arange(1, len(wrong) + 1), np.cumsum(wrong)
    same = np.cumsum(2 * rank + 1)  # of c², over the units so far
    both = np.cumsum(before + wrong * (rank + 1))  # of w · c
    errors = np.cumsum(wrong * (2 * before + 1))  # of w²
    rate = seen / pairs
    apart = pairs * rate * (1 - rate)
    spread = errors - 2 * rate * both + rate**2 * same
    effects: NDArray[np.float64] = np.ones(len(wrong))
    np.divide(spread, apart, out=effects, where=apart > 0)
    np.maximum(effects, 1.0, out=effects)
    first = int(np.searchsorted(seen, min(ENOUGH, int(seen[-1]))))
    effects[:first] = effects[first]
    return effects


def _count_earlier(wrong: NDArray[np.int64], units: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return for each pair how many pairs of its unit stand before it (n,), and how many of these are wrong (n,)."""
    order = np.argsort(units, kind="stable")
    sizes = np.bincount(units)
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    seen = np.cumsum(wrong[order]) - wrong[order]
    rank, before = np.empty_like(order), np.empty_like(order)
    rank[order] = np.arange(len(order)) - starts
    before[order] = seen - seen[starts]
    return rank, before


def _walk(counts: _Counts, delta: float, alpha: float, to_come: float | None = None) -> int | None:
    """Return the place of the lowest certified threshold, or None."""
    alpha *= SECOND_DRAW if to_come is not None else 1
    starts = _starts(counts.hits, np.floor(counts.hits / counts.effects), delta, alpha, to_come)
    ends = [*(start.place for start in starts), len(counts.hits)][1:]
    best: int | None = None
    carried = 0.0  # what an earlier walk brings along
    for start, end in zip(starts, ends, strict=True):
        level = carried + start.level
        passed = _first_failing(counts, start.place, end, delta, level, to_come)
        best = passed - 1 if passed > start.place else best
        carried = level if passed == end else 0.0
    return best


def _first_failing(counts: _Counts, place: int, end: int, delta: float, level: float, to_come: float | None) -> int:
    """Return the first place from `place` on whose test fails at `level`, or `end`."""
    for block in range(place, end, BLOCK):
        passes = counts.test(slice(block, min(block + BLOCK, end)), delta, to_come) <= level
        if not passes.all():
            return block + int(np.argmin(passes))
    return end


def tail(
    false_hits: NDArray[np.int64], hits: NDArray[np.int64], delta: float, to_come: float | None = None
) -> NDArray[np.float64]:
    """Return (n,) P(at most so many false hits), were the rate δ or more: small means that it is below.

    Args:
        to_come: hits to come for each hit at hand; None is the long run. With r to come, "more than δ of them are
            wrong" means at least ⌊δr⌋ + 1 wrong; with f wrong among the n at hand, that is a draw of n from n + r
            of which f + ⌊δr⌋ + 1 are wrong. 0 of 36 hits, 36 to come, δ .2: 8 wrong, all among those to come: .0025.
    """
    from scipy.stats import binom, hypergeom

    if to_come is None:
        return np.asarray(binom.cdf(false_hits, hits, delta))
    coming = np.maximum(np.round(hits * to_come), 1).astype(np.int64)
    wrong = false_hits + np.floor(delta * coming).astype(np.int64) + 1
    return np.asarray(hypergeom.cdf(false_hits, hits + coming, wrong, hits))


def _tail_of_none(hits: NDArray[np.number], delta: float, to_come: float | None) -> NDArray[np.float64]:
    """Return `tail` for no false hit at all, in closed form: C(N − K, n) / C(N, n)."""
    if to_come is None:
        return np.asarray((1 - delta) ** hits)
    from scipy.special import gammaln

    coming = np.maximum(np.round(hits * to_come), 1)
    wrong = np.minimum(np.floor(delta * coming) + 1, coming)
    total = hits + coming
    logs = gammaln(total - wrong + 1) - gammaln(coming - wrong + 1) - gammaln(total + 1) + gammaln(coming + 1)
    return np.asarray(np.exp(logs))


@dataclass(frozen=True, slots=True)
class _Start:
    """Where a walk begins, and its own share of alpha."""

    place: int
    level: float


def _starts(
    hits: NDArray[np.int64], effective: NDArray[np.float64], delta: float, alpha: float, to_come: float | None
) -> list[_Start]:
    """Return where the walks start: geometric in the number of hits, from the fewest that can pass.

    How many are wrong has no say here; the test would not be valid otherwise. `effective` are the hits over their
    design effect, which tells only whether mistakes come together. Earlier walks get more of alpha (5 of 15 parts,
    4, ... 1), since those that they meet inherit it. The first of them stops at once where it can only pass without
    any mistake and one is made; so sets that can afford it start where half of delta may be wrong; those that can do so
    with all of alpha alone have one walk, and smaller ones two from where a quarter may be wrong.
    """
    for part, walks in STARTS:
        easy = _find_easy(effective, delta, part, _share(walks, walks, alpha), to_come)
        if easy < len(hits) and ROOM * hits[easy] <= hits[-1]:
            return _deal(hits, easy, walks, alpha)
    best = _tail_of_none(effective, delta, to_come)  # were no hit false
    walks = WALKS
    while walks > 1 and not (best[2 * hits <= hits[-1]] <= _share(walks, walks, alpha)).any():
        walks -= 1  # small sets: fewer walks leave more of alpha to each
    passing = np.flatnonzero(best <= _share(walks, walks, alpha))
    if not len(passing):
        return []
    return _deal(hits, int(passing[0]), walks, alpha)


def _find_easy(hits: NDArray[np.float64], delta: float, part: float, level: float, to_come: float | None) -> int:
    """Return the first place that passes with `part` of delta wrong, `len(hits)` for none (bisected)."""

    def passes(place: int) -> bool:
        served = np.array([hits[place]], dtype=np.int64)
        return bool(tail(np.floor(delta * part * served).astype(np.int64), served, delta, to_come)[0] <= level)

    return bisect_left(range(len(hits)), True, key=passes)


def _deal(hits: NDArray[np.int64], first: int, walks: int, alpha: float) -> list[_Start]:
    wanted = np.geomspace(hits[first], hits[-1], walks + 1)[:walks]
    levels: dict[int, float] = {}
    for place, weight in zip(np.searchsorted(hits, wanted - 1e-9), range(walks, 0, -1), strict=True):
        levels[int(place)] = levels.get(int(place), 0.0) + _share(weight, walks, alpha)
    return [_Start(place, level) for place, level in sorted(levels.items())]


def _share(weight: int, walks: int, alpha: float) -> float:
    return alpha * weight / (walks * (walks + 1) / 2)


def _find_reach(counts: _Counts, certified: int, total: int, promise: _Promise) -> tuple[int, int | None]:
    """Return `hits_in_reach` and `pairs_for_reach` of a calibration."""
    hits, rates = counts.hits, counts.false_hits / counts.hits
    reach = max(int(np.flatnonzero(rates <= promise.tested)[-1]), certified)
    some = np.flatnonzero((hits >= MOST * hits[reach]) & (hits <= hits[reach]) & (rates < promise.tested))
    if hits[certified] >= MOST * hits[reach] or not len(some):
        return int(hits[reach]), None
    wanted = _pairs_needed(rates[some], hits[some] / total, promise, unlucky=1.0)
    return int(hits[reach]), max(wanted, total + 1)


def _find_carried(truth: NDArray[np.int64], counts: _Counts, promise: _Promise, to_come: float | None) -> float | None:
    """Return the lowest false-hit rate of `OFFERS` that these pairs carry, None where there is none.

    Offering the best of several rates is multiple testing: each is tested at alpha / len(OFFERS).
    """
    labelled = float(truth.mean())
    for delta in (offer for offer in OFFERS if offer > promise.delta):
        tested = shift_delta(delta, labelled, promise.duplicate_rate)
        if _walk(counts, tested, promise.alpha / len(OFFERS), to_come) is not None:
            return delta
    return None


def _refuse_for_few(
    truth: NDArray[np.int64], scores: NDArray[np.float64], promise: _Promise, carried: float | None
) -> CalibrationRefused | None:
    """Return the refusal of pairs that carry the promise for no model at all, None where another model could do.

    One without a mistake would serve the duplicates that are not vetoed, and nothing else.
    """
    total, duplicates = len(truth), int(truth[scores > -1].sum())
    needed = hits_needed(promise.tested, promise.alpha)
    if not 0 < duplicates < needed:
        return None
    pairs = math.ceil(needed * total / duplicates)
    vetoed = int(truth.sum()) - duplicates
    return CalibrationRefused(
        f"{total} labelled pairs are too few to promise {promise.told} at confidence {1 - promise.alpha:.0%}, whatever "
        f"the model: it takes {needed} right answers without a wrong one, and there are {duplicates} duplicates to "
        f"serve{f' ({vetoed} more are vetoed by the guard)' if vetoed else ''}",
        expected=f"at least {pairs} labelled pairs, {pairs - total} more than now (of the same kind)",
        action=f"label more pairs, or {_looser(carried)}",
        facts={"pairs": total, "pairs_needed": pairs, "delta_carried": carried},
    )


def _looser(carried: float | None) -> str:
    return f"allow --delta {carried:g}, which these pairs carry" if carried is not None else "allow a higher --delta"


def _refuse(truth: NDArray[np.int64], counts: _Counts, promise: _Promise, carried: float | None) -> CalibrationRefused:
    """Say how many more pairs it would take, if new ones are like those at hand, and what these can carry."""
    total = len(truth)
    looser = _looser(carried)
    hits = counts.hits
    rates = counts.false_hits / hits
    enough = np.flatnonzero(hits >= min(20, int(hits[-1])))
    place = int(enough[rates[enough].argmin()])
    best = f"the best threshold has {rates[place]:.1%} false hits on {hits[place]} hits"
    if rates[place] >= promise.tested:
        needed = hits_needed(promise.tested, promise.alpha)
        return CalibrationRefused(
            f"no threshold keeps the false-hit rate at {promise.told}: {best}",
            expected=f"a model that separates better: {needed} hits without a false one would do",
            action=f"{looser}, or train on more and harder examples",
            facts={"pairs": total, "pairs_needed": None, "delta_carried": carried},
        )
    # At least: the fewest pairs over all thresholds, were all of alpha spent on that one.
    below = enough[rates[enough] < promise.tested]
    below = below[np.unique(np.linspace(0, len(below) - 1, 64).round().astype(int))]
    needed = _pairs_needed(rates[below], hits[below] / total, promise)
    expected = f"at least {needed} labelled pairs, {needed - total} more than now (of the same kind)"
    if needed <= total:
        expected = "more labelled pairs of the same kind; it is close, and looking at several thresholds has its price"
    return CalibrationRefused(
        f"{total} labelled pairs are too few to promise {promise.told} at confidence {1 - promise.alpha:.0%}: {best}",
        expected=expected,
        action=f"label more pairs, or {looser}",
        facts={"pairs": total, "pairs_needed": max(needed, total + 1), "delta_carried": carried},
    )


@dataclass(frozen=True, slots=True)
class _Promise:
    """What was asked for, and what is tested on the labelled pairs for it."""

    delta: float
    alpha: float
    duplicate_rate: float | None
    tested: float

    @property
    def told(self) -> str:
        if self.duplicate_rate is None:
            return f"{self.delta:.1%}"
        traffic = f"{self.tested:.1%} of these pairs, for traffic with {self.duplicate_rate:.0%} duplicates"
        return f"{self.delta:.1%} ({traffic})"


def _pairs_needed(
    rates: NDArray[np.float64], shares: NDArray[np.float64], promise: _Promise, *, unlucky: float = 0.0
) -> int:
    """Return the fewest pairs at which a threshold with one of these false-hit rates and shares of hits passes.

    `unlucky`: so many standard deviations more of the hits may be wrong then; 1 lets five sets in six pass.
    """
    fewest = hits_needed(promise.tested, promise.alpha)
    counts = np.unique(np.geomspace(fewest, 1e7, 250).round().astype(np.int64))[None, :]
    expected = rates[:, None] * counts
    wrong = np.ceil(expected + unlucky * np.sqrt(expected * (1 - rates[:, None])) - 1e-9).astype(np.int64)
    passes = tail(wrong, counts, promise.tested) <= promise.alpha  # the long run's is the lowest bar
    pairs = np.where(passes, counts / shares[:, None], np.inf).min()
    return math.ceil(pairs) if math.isfinite(pairs) else 10_000_000


def write_calibration(path: Path | str, calibration: Calibration) -> Path:
    """Write `calibration.json`."""
    return write_json(path, calibration)


def calibration_from(content: Mapping[str, Any]) -> Calibration:
    """Return the calibration that was written as JSON."""
    knots = tuple((float(at), float(chance)) for at, chance in content.get("probabilities", ()))
    own = content.get("conversations")
    spoken = Conversations(**own) if own is not None else None
    return Calibration(**{**content, "probabilities": knots, "conversations": spoken})


def read_calibration(path: Path | str, *, model: str | None = None) -> Calibration:
    """Return a stored calibration.

    Args:
        model: fingerprint of the model in use; a calibration of another one is refused.

    Raises:
        InputError: the file is no calibration, or belongs to another model.
    """
    try:
        found = calibration_from(read_json(path))
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is not a calibration ({error})", expected="what `calibrate` wrote") from None
    if model is not None and found.model != model:
        raise InputError(
            f"{path} belongs to the model {found.model}, not to {model}",
            expected="similarities of one and the same model",
            action="run `embedsmith calibrate` with this model",
        )
    return found
