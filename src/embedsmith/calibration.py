"""Calibration: labelled pairs and their similarities in, a threshold with a guarantee out, or a refusal.

The promise: among the answers that the cache serves at this threshold, at most a share δ is wrong, and
the procedure that chose the threshold keeps this with probability at least 1 − α over the draw of the
labelled pairs. It holds for traffic like the validation pairs: same kind of questions, same share of
duplicates. Pairs are taken as independent given their similarities.

Method: Learn then Test (Angelopoulos et al. 2021, arXiv 2110.01052). The thresholds to test are fixed
by the similarities alone. At each, "the share of wrong answers exceeds δ" is tested with the exact
binomial tail; walks from high similarity down stop at the first test that fails. Several walks share α
(Bonferroni), so that one unlucky pair near the top does not end all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom

from embedsmith.artifacts import read_json, write_json
from embedsmith.errors import CalibrationRefused, ConfigurationError, InputError

WALKS = 8


@dataclass(frozen=True, slots=True)
class Calibration:
    """A threshold and what it promises.

    Attributes:
        threshold: cosine; serve from here up.
        delta: most wrong answers among those served that is promised, at confidence 1 − alpha.
        hits, false_hits: of the validation pairs, at the threshold.
        upper_bound: one-sided Clopper–Pearson bound of the false-hit rate at the threshold, level 1 − alpha.
        hit_rate: share of the validation pairs that are served. recall: share of the duplicates served.
        pairs: labelled pairs used.
        model: fingerprint of the model whose similarities these are; no other may use the threshold.
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
    method: str = "learn-then-test, exact binomial, fixed sequences"


def calibrate(
    labels: Sequence[int] | NDArray[np.integer],
    similarities: Sequence[float] | NDArray[np.floating],
    *,
    delta: float = 0.05,
    alpha: float = 0.05,
    model: str = "",
    against: Sequence[float] | NDArray[np.floating] = (),
) -> Calibration:
    """Return the lowest threshold whose false-hit rate is at most `delta` with confidence 1 − `alpha`.

    A false hit is a wrong answer served; the rate is over the answers served (1 − precision). With no
    false hit at all, ⌈ln α / ln(1 − δ)⌉ = 59 hits certify δ = α = .05.

    Args:
        labels: (n,) 1 where one answer serves both texts of a pair.
        similarities: (n,) cosines of the same pairs.
        against: cosines of further pairs that are known to be wrong and are no part of the sample. They count as
            false hits in every test, and in nothing else, so they can only raise the threshold.

    Raises:
        CalibrationRefused: no threshold can be certified; says how many pairs are missing.
        ConfigurationError: delta or alpha outside (0, 1). InputError: no pairs, or not finite.
    """
    if not (0 < delta < 1 and 0 < alpha < 1):
        raise ConfigurationError(f"delta {delta}, alpha {alpha}", expected="both between 0 and 1")
    truth, scores = np.asarray(labels, dtype=np.int64), np.asarray(similarities, dtype=np.float64)
    _check(truth, scores, labels)
    thresholds, hits, false_hits = _cumulate(truth, scores)
    known = (np.asarray(against, dtype=np.float64)[None, :] >= thresholds[:, None]).sum(axis=1)
    certified = _walk(hits, false_hits, known, delta, alpha)
    if certified is None:
        raise _refuse(truth, hits, false_hits, delta, alpha)
    served, wrong = int(hits[certified]), int(false_hits[certified])
    return Calibration(
        threshold=float(thresholds[certified]),
        delta=delta,
        alpha=alpha,
        hits=served,
        false_hits=wrong,
        upper_bound=bound_rate(wrong, served, alpha),
        hit_rate=served / len(truth),
        recall=(served - wrong) / max(int(truth.sum()), 1),
        pairs=len(truth),
        model=model,
    )


def _check(truth: NDArray[np.int64], scores: NDArray[np.float64], labels: Sequence[int] | NDArray[np.integer]) -> None:
    if truth.ndim != 1 or truth.shape != scores.shape:
        raise InputError(
            f"labels of shape {truth.shape}, similarities of shape {scores.shape}", expected="one label per similarity"
        )
    if not len(truth) or not np.isfinite(scores).all():
        raise InputError("there are no labelled pairs to calibrate on", expected="pairs with finite similarities")
    if not np.isin(np.asarray(labels), (0, 1)).all():
        raise InputError(f"labels {sorted(set(np.asarray(labels).tolist()))[:5]}", expected="labels 0 and 1")


def bound_rate(events: int, trials: int, alpha: float) -> float:
    """Return the upper Clopper–Pearson bound of a rate at confidence 1 − `alpha`; 0 of 59 at .05 is .0495."""
    if events >= trials:
        return 1.0
    return float(beta.ppf(1 - alpha, events + 1, trials - events))


def hits_needed(delta: float, alpha: float) -> int:
    """Return how many hits without one false hit certify `delta` at confidence 1 − `alpha`."""
    return math.ceil(math.log(alpha) / math.log(1 - delta))


def _cumulate(
    truth: NDArray[np.int64], scores: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return distinct thresholds from high to low with hits and false hits at each; ties go together."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = ends + 1
    false_hits = np.cumsum(1 - truth[order])[ends]
    return scores[order][ends], hits.astype(np.int64), false_hits.astype(np.int64)


def _walk(
    hits: NDArray[np.int64], false_hits: NDArray[np.int64], known: NDArray[np.int64], delta: float, alpha: float
) -> int | None:
    """Return the place of the lowest certified threshold, or None; `known` false hits are added at each."""
    starts = _starts(hits, delta, alpha)
    level = alpha / max(len(starts), 1)
    # P(at most this many false hits | the rate is delta): small means the rate is below delta.
    # With `known` more trials, all false, it can only grow: P(Bin(n + k) <= f + k) >= P(Bin(n) <= f).
    p_values = binom.cdf(false_hits + known, hits + known, delta)
    best: int | None = None
    for start in starts:
        place = start
        while place < len(hits) and p_values[place] <= level:
            best = place if best is None else max(best, place)
            place += 1
    return best


def _starts(hits: NDArray[np.int64], delta: float, alpha: float) -> list[int]:
    """Return where the walks start: geometric in the number of hits, from the fewest that can pass.

    Labels have no say here; the test would not be valid otherwise.
    """
    walks = WALKS
    while walks > 1 and hits_needed(delta, alpha / walks) * 2 > hits[-1]:
        walks -= 1  # small sets: fewer walks leave more of alpha to each
    fewest = hits_needed(delta, alpha / walks)
    if fewest > hits[-1]:
        return []
    wanted = np.geomspace(fewest, hits[-1], walks + 1)[:walks]
    return sorted({int(np.searchsorted(hits, count - 1e-9)) for count in wanted})


def _refuse(
    truth: NDArray[np.int64],
    hits: NDArray[np.int64],
    false_hits: NDArray[np.int64],
    delta: float,
    alpha: float,
) -> CalibrationRefused:
    """Say how many more pairs it would take, if new ones are like those at hand."""
    total = len(truth)
    rates = false_hits / hits
    enough = np.flatnonzero(hits >= min(20, int(hits[-1])))
    place = int(enough[rates[enough].argmin()])
    best = f"the best threshold has {rates[place]:.1%} false hits on {hits[place]} hits"
    if rates[place] >= delta:
        return CalibrationRefused(
            f"no threshold keeps the false-hit rate at {delta:.1%}: {best}",
            expected=f"a model that separates better: {hits_needed(delta, alpha)} hits without a false one would do",
            action="allow a higher --delta, or train on more and harder examples",
        )
    # At least: the fewest pairs over all thresholds, were all of alpha spent on that one.
    below = enough[rates[enough] < delta]
    below = below[np.unique(np.linspace(0, len(below) - 1, 64).round().astype(int))]
    needed = max(_pairs_needed(rates[below], hits[below] / total, delta, alpha), total + 1)
    return CalibrationRefused(
        f"{total} labelled pairs are too few to promise {delta:.1%} at confidence {1 - alpha:.0%}: {best}",
        expected=f"at least {needed} labelled pairs, {needed - total} more than now (of the same kind)",
        action="label more pairs, or allow a higher --delta or --alpha",
    )


def _pairs_needed(rates: NDArray[np.float64], shares: NDArray[np.float64], delta: float, alpha: float) -> int:
    """Return the fewest pairs at which a threshold with one of these false-hit rates and shares of hits passes."""
    fewest = hits_needed(delta, alpha)
    counts = np.unique(np.geomspace(fewest, 1e7, 250).round())[None, :]
    passes = binom.cdf(np.ceil(rates[:, None] * counts - 1e-9), counts, delta) <= alpha
    pairs = np.where(passes, counts / shares[:, None], np.inf).min()
    return math.ceil(pairs) if math.isfinite(pairs) else 10_000_000


def write_calibration(path: Path | str, calibration: Calibration) -> Path:
    """Write `calibration.json`."""
    return write_json(path, calibration)


def read_calibration(path: Path | str, *, model: str | None = None) -> Calibration:
    """Return a stored calibration.

    Args:
        model: fingerprint of the model in use; a calibration of another one is refused.

    Raises:
        InputError: the file is no calibration, or belongs to another model.
    """
    try:
        found = Calibration(**read_json(path))
    except TypeError as error:
        raise InputError(f"{path} is not a calibration ({error})", expected="what `calibrate` wrote") from None
    if model is not None and found.model != model:
        raise InputError(
            f"{path} belongs to the model {found.model}, not to {model}",
            expected="similarities of one and the same model",
            action="run `embedsmith calibrate` with this model",
        )
    return found
