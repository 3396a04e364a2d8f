"""Evaluation: encoders and labelled pairs in; metrics with intervals, comparisons, latency out.

A threshold is never reported on the rows it was chosen on. Beside the honest figures stand those of
the published protocol (best threshold on the same rows), named as such, for comparison with papers.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedsmith.encoder import Encoder, encode_by_side, pair_similarities
from embedsmith.errors import InputError
from embedsmith.examples import Example, LabelledPair, ScoredPair, split, units_of
from embedsmith.guards import MOST, Numbering, bare, make_measure, shipped_guards
from embedsmith.machine import count_cores
from embedsmith.metrics import (
    Difference,
    Estimate,
    PairScores,
    RankCorrelation,
    Ranking,
    Resamples,
    Scores,
    Weights,
    adjust_holm,
    choose_baseline,
    difference,
    estimate,
    resample_weights,
)

RESAMPLES = 2000
RECALL_FLOOR = 0.95
HARDEST = 20  # errors of each kind that a report keeps
BINS = 40


@dataclass(frozen=True, slots=True)
class PairError:
    """A pair on the wrong side of the threshold."""

    sentence1: str
    sentence2: str
    label: int
    similarity: float


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of similarities in equal bins, by label."""

    edges: tuple[float, ...]
    positives: tuple[int, ...]
    negatives: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PairReport:
    """How well one encoder tells duplicates from near misses.

    Attributes:
        pairs, positives: rows the figures are on; `validation_pairs` chose the threshold and are not among them.
        metrics: by name: average_precision, pchr_auc, recall_at_precision_95 (no threshold needed) and
            precision, recall, f1, accuracy (at the threshold chosen on validation).
        published: the figures at the best-F1 threshold of these very rows; optimistic, for papers.
        false_hits, misses: the hardest errors at the threshold.
    """

    name: str
    pairs: int
    positives: int
    validation_pairs: int
    threshold: float
    metrics: Mapping[str, Estimate]
    published: PairScores
    published_accuracy: float
    curve: Mapping[str, Sequence[float]]
    histogram: Histogram
    false_hits: tuple[PairError, ...]
    misses: tuple[PairError, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Encoders side by side on the same rows.

    Attributes:
        baseline: name of the encoder the others are compared with.
        differences: by encoder and metric: encoder − baseline, with interval and p-value.
        holm: by encoder and metric: the p-value for all encoders and metrics at once (`metrics.adjust_holm`).
    """

    baseline: str
    reports: Mapping[str, PairReport]
    differences: Mapping[str, Mapping[str, Difference]]
    holm: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Latency:
    """How long one query takes, in milliseconds, and how many texts a second go through in bulk."""

    p50_ms: float
    p95_ms: float
    texts_per_second: float
    queries: int
    threads: int


@dataclass(frozen=True, slots=True)
class GeneralScore:
    """One figure of general ability, of the kind that the guard's rows give."""

    data: str
    metric: str
    rows: int
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class _Scored:
    """One encoder on the reported rows; validation rows chose the threshold.

    Attributes:
        values, draws: each metric on all rows, and in each resample, (resamples,).
    """

    test: Ranking
    similarities: NDArray[np.float64]
    threshold: float
    values: Mapping[str, float]
    draws: Mapping[str, Scores]


def evaluate(
    encoder: Encoder,
    pairs: Sequence[LabelledPair],
    *,
    validation: Sequence[LabelledPair] | None = None,
    name: str = "model",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> PairReport:
    """Return the report of one encoder.

    Args:
        pairs: the rows to report on. Without `validation`, half of them (whole groups) choose the
            threshold and the other half is reported.

    Raises:
        InputError: no pairs, or only one label among them.
    """
    return compare({name: encoder}, pairs, validation=validation, seed=seed, resamples=resamples).reports[name]


def compare(
    encoders: Mapping[str, Encoder],
    pairs: Sequence[LabelledPair],
    *,
    validation: Sequence[LabelledPair] | None = None,
    baseline: str | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Return the encoders side by side on the same rows, each against the baseline (default: the first).

    Raises:
        ConfigurationError: no encoder, or none of the baseline's name.
        InputError: no pairs, or only one label among them.
    """
    base = choose_baseline(encoders, baseline)
    chosen, reported = halve(pairs, seed=seed) if validation is None else (list(validation), list(pairs))
    for rows, what in ((chosen, "validation"), (reported, "reported")):
        require_both_labels(rows, what)
    weights = resample_weights(len(reported), groups=units_of(reported), resamples=resamples, seed=seed)
    scored = {name: _score(encoder, chosen, reported, weights) for name, encoder in encoders.items()}
    reports = {name: _report(name, item, chosen, reported) for name, item in scored.items()}
    differences = {name: _compare(scored[base], item) for name, item in scored.items() if name != base}
    return Comparison(base, reports, differences, _adjust(differences))


def _adjust(differences: Mapping[str, Mapping[str, Difference]]) -> dict[str, dict[str, float]]:
    adjusted = iter(adjust_holm([change.p_value for changes in differences.values() for change in changes.values()]))
    return {name: {metric: next(adjusted) for metric in changes} for name, changes in differences.items()}


def halve(pairs: Sequence[LabelledPair], *, seed: int = 0) -> tuple[list[LabelledPair], list[LabelledPair]]:
    """Return (validation, reported): two halves that share no group and no text."""
    parts = split(pairs, {"validation": 0.5, "reported": 0.5}, seed=seed)
    return parts["validation"], parts["reported"]


def require_both_labels(pairs: Sequence[LabelledPair], what: str) -> None:
    """Raise `InputError` unless there are duplicates and others among the pairs, which are called `what`."""
    found = {pair.label for pair in pairs}
    if found != {0, 1}:
        raise InputError(
            f"the {len(pairs)} {what} pairs have the labels {sorted(found) or 'none'}",
            expected="both 0 and 1",
            action="give more labelled pairs of both kinds",
        )


def similarities_of(encoder: Encoder, pairs: Sequence[LabelledPair | ScoredPair]) -> NDArray[np.float64]:
    """Return the cosine of each pair, (n,)."""
    return pair_similarities(encoder, [pair.sentence1 for pair in pairs], [pair.sentence2 for pair in pairs])


def labels_of(pairs: Sequence[LabelledPair]) -> NDArray[np.int64]:
    """Return the labels, (n,) of 0 and 1."""
    return np.array([pair.label for pair in pairs], dtype=np.int64)


def _score(encoder: Encoder, chosen: list[LabelledPair], reported: list[LabelledPair], weights: Resamples) -> _Scored:
    similarities = similarities_of(encoder, [*chosen, *reported])
    threshold = Ranking(labels_of(chosen), similarities[: len(chosen)]).best_f1().threshold
    own = similarities[len(chosen) :]
    test = Ranking(labels_of(reported), own)
    values = _measure(test, threshold, np.ones(len(reported)))
    drawn = [_measure(test, threshold, row) for row in weights]
    draws = {metric: np.array([found[metric] for found in drawn]) for metric in values}
    return _Scored(test, own, threshold, values, draws)


def _measure(test: Ranking, threshold: float, weights: Weights) -> dict[str, float]:
    there = test.at(threshold, weights)
    return {
        "average_precision": test.average_precision(weights),
        "pchr_auc": test.pchr_auc(weights),
        "recall_at_precision_95": test.recall_at_precision(RECALL_FLOOR, weights),
        "precision": there.precision,
        "recall": there.recall,
        "f1": there.f1,
        "accuracy": there.accuracy,
    }


def _compare(base: _Scored, other: _Scored) -> dict[str, Difference]:
    """Return other − base by metric, both on the same resamples."""
    return {
        metric: difference(value - base.values[metric], other.draws[metric] - base.draws[metric])
        for metric, value in other.values.items()
    }


def _report(
    name: str,
    scored: _Scored,
    chosen: list[LabelledPair],
    reported: list[LabelledPair],
) -> PairReport:
    false_hits, misses = _hardest(reported, scored.similarities, scored.threshold)
    return PairReport(
        name=name,
        pairs=len(reported),
        positives=int(labels_of(reported).sum()),
        validation_pairs=len(chosen),
        threshold=scored.threshold,
        metrics={metric: estimate(value, scored.draws[metric]) for metric, value in scored.values.items()},
        published=scored.test.best_f1(),
        published_accuracy=scored.test.best_accuracy().accuracy,
        curve=scored.test.curve(),
        histogram=_histogram(labels_of(reported), scored.similarities),
        false_hits=false_hits,
        misses=misses,
    )


def _hardest(
    pairs: Sequence[LabelledPair], similarities: NDArray[np.float64], threshold: float
) -> tuple[tuple[PairError, ...], tuple[PairError, ...]]:
    rows = [
        PairError(pair.sentence1, pair.sentence2, pair.label, round(float(value), 4))
        for pair, value in zip(pairs, similarities, strict=True)
        if (value >= threshold) != bool(pair.label)
    ]
    false_hits = sorted((row for row in rows if row.label == 0), key=lambda row: (-row.similarity, row.sentence1))
    misses = sorted((row for row in rows if row.label == 1), key=lambda row: (row.similarity, row.sentence1))
    return tuple(false_hits[:HARDEST]), tuple(misses[:HARDEST])


def _histogram(labels: NDArray[np.int64], similarities: NDArray[np.float64]) -> Histogram:
    low = min(0.0, float(np.floor(similarities.min() * 10) / 10))
    edges = np.linspace(low, 1.0, BINS + 1)
    clipped = np.clip(similarities, low, 1.0)
    positives, _ = np.histogram(clipped[labels == 1], edges)
    negatives, _ = np.histogram(clipped[labels == 0], edges)
    return Histogram(tuple(np.round(edges, 4).tolist()), tuple(positives.tolist()), tuple(negatives.tolist()))


def evaluate_scored(
    encoder: Encoder, pairs: Sequence[ScoredPair], *, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """Return Spearman's correlation of cosine and score, with its interval."""
    correlation = RankCorrelation(similarities_of(encoder, pairs), [pair.score for pair in pairs])
    weights = resample_weights(len(pairs), groups=units_of(pairs), resamples=resamples, seed=seed)
    return estimate(correlation(), correlation.draws(weights))


def evaluate_general(
    encoder: Encoder,
    guards: Mapping[str, Sequence[Example]] | None = None,
    *,
    seed: int = 0,
    resamples: int = 500,
) -> tuple[GeneralScore, ...]:
    """Return general ability: for each guard the figure of its kind of rows (`guards.make_measure`).

    Args:
        guards: examples by name, each of one kind; default is the small set that ships with the package (everyday
            questions and sentences, written for this project).
    """
    guards = guards if guards is not None else shipped_guards()
    return tuple(_measure_guard(encoder, name, rows, seed, resamples) for name, rows in guards.items())


def _measure_guard(encoder: Encoder, name: str, rows: Sequence[Example], seed: int, resamples: int) -> GeneralScore:
    texts = Numbering(bare)
    measure = make_measure(name, rows, texts.place, most=MOST, resamples=resamples, seed=seed)
    found = measure.read(encode_by_side(encoder, list(texts.places)))
    return GeneralScore(name, measure.metric, measure.rows, estimate(found.value, found.draws))


def measure_latency(encoder: Encoder, texts: Sequence[str], *, queries: int = 100) -> Latency:
    """Return the latency of single queries (after a warm-up) and the bulk throughput on `texts`."""
    if not texts:
        raise InputError("there is no text to measure the latency on", expected="at least one text")
    singles = [texts[place % len(texts)] for place in range(queries + 10)]
    times = []
    for text in singles:
        began = time.perf_counter()
        encoder.encode([text])
        times.append((time.perf_counter() - began) * 1000)
    began = time.perf_counter()
    encoder.encode(list(texts))
    seconds = time.perf_counter() - began
    p50, p95 = np.percentile(times[10:], [50, 95])
    return Latency(round(float(p50), 3), round(float(p95), 3), round(len(texts) / seconds, 1), queries, _threads())


def _threads() -> int:
    import sys

    torch = sys.modules.get("torch")  # only if someone else loaded it
    return int(torch.get_num_threads()) if torch is not None else count_cores()
