"""Encoders side by side on the sets of a suite: Spearman per set and their mean, with paired differences."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedsmith.encoder import Encoder, check_vectors, pair_cosines
from embedsmith.errors import ConfigurationError, InputError, ModelError, require
from embedsmith.evaluation import RESAMPLES
from embedsmith.examples import ScoredPair, units_of
from embedsmith.metrics import (
    Difference,
    Estimate,
    RankCorrelation,
    choose_baseline,
    difference,
    estimate,
    resample_weights,
)
from embedsmith.suites.reading import ScoredSet

CHUNK = 512  # texts between two moves of the progress bar
FEW_UNITS = 20  # an interval over fewer units is called rough
LARGE_UNIT = 0.25  # so is one where a single unit holds this share of the pairs


@dataclass(frozen=True, slots=True)
class SetReport:
    """One set: Spearman's correlation of cosine and score, by encoder.

    Attributes:
        rows, units: pairs measured, and how many clusters of pairs that share a text are resampled.
        rejected: rows not used, counted by reason.
        differences: by encoder: encoder − baseline.
    """

    name: str
    rows: int
    units: int
    source: str
    choice: str
    rejected: Mapping[str, int]
    notes: tuple[str, ...]
    estimates: Mapping[str, Estimate]
    differences: Mapping[str, Difference]


@dataclass(frozen=True, slots=True)
class SuiteReport:
    """Encoders side by side on a suite; `means` are over its sets, each set with the same weight."""

    baseline: str
    sets: tuple[SetReport, ...]
    means: Mapping[str, Estimate]
    mean_differences: Mapping[str, Difference]
    resamples: int
    seed: int


def measure_suite(
    encoders: Mapping[str, Encoder],
    sets: Sequence[ScoredSet],
    *,
    baseline: str | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    on_progress: Callable[[int, int], None] | None = None,
) -> SuiteReport:
    """Return Spearman's correlation of cosine and score per set and its mean over the sets, by encoder.

    Intervals are 95% percentile intervals over resamples of whole units (pairs that share a text, also through
    others). All encoders see the same resamples, so differences are paired. For the mean, each set is resampled
    by itself: with .80 and .90 on two sets in a resample, the mean of that resample is .85.

    Args:
        encoders: by name; each is asked for once, so a mapping may load them on demand.
        baseline: the encoder that the others are compared with; default: the first.
        on_progress: called with (texts encoded, texts to encode), over all encoders.

    Raises:
        ConfigurationError: no encoder, no set, two sets of one name, an unknown baseline.
        InputError: a set whose scores are all the same.
        ModelError: an encoder whose vectors are not finite or not of length 1, or that gives all pairs of a set one
            cosine.
    """
    base = _require(encoders, sets, baseline)
    ordered = [sorted(item.pairs, key=lambda pair: (pair.sentence1, pair.sentence2, pair.score)) for item in sets]
    similarities = _encode_all(encoders, ordered, on_progress)
    draws: list[dict[str, NDArray[np.float64]]] = []
    reports: list[SetReport] = []
    for place, (item, pairs) in enumerate(zip(sets, ordered, strict=True)):
        own = {name: found[place] for name, found in similarities.items()}
        report, drawn = _measure_set(item, pairs, own, base, seed=seed, resamples=resamples)
        reports.append(report)
        draws.append(drawn)
    values = {name: float(np.mean([report.estimates[name].value for report in reports])) for name in encoders}
    means = {name: np.mean([drawn[name] for drawn in draws], axis=0) for name in encoders}
    return SuiteReport(
        baseline=base,
        sets=tuple(reports),
        means={name: estimate(values[name], means[name]) for name in encoders},
        mean_differences=_differences(values, means, base),
        resamples=resamples,
        seed=seed,
    )


def _require(encoders: Mapping[str, Encoder], sets: Sequence[ScoredSet], baseline: str | None) -> str:
    base = choose_baseline(encoders, baseline)
    require(bool(sets), "no set to measure on", "at least one")
    twice = [name for name, count in Counter(item.name for item in sets).items() if count > 1]
    if twice:
        raise ConfigurationError(f"two sets are called {twice[0]}", expected="a name for each")
    for item in sets:
        scores = {pair.score for pair in item.pairs}
        if len(scores) < 2:
            raise InputError(
                f"all {len(item.pairs)} scores of {item.name} ({item.source or 'given'}) are "
                f"{next(iter(scores), 'missing')}: they cannot be ranked",
                expected="scores that differ",
                action="check which column holds the score",
            )
    return base


def _encode_all(
    encoders: Mapping[str, Encoder],
    sets: Sequence[Sequence[ScoredPair]],
    on_progress: Callable[[int, int], None] | None,
) -> dict[str, list[NDArray[np.float64]]]:
    """Return the cosines of each set's pairs by encoder; each distinct text is encoded once per encoder."""
    distinct = {text for pairs in sets for pair in pairs for text in (pair.sentence1, pair.sentence2)}
    texts = sorted(distinct, key=lambda text: (len(text), text))  # like lengths together: little padding
    place = {text: row for row, text in enumerate(texts)}
    sides = [
        np.array([(place[pair.sentence1], place[pair.sentence2]) for pair in pairs], dtype=np.int64) for pairs in sets
    ]
    found = {}
    for turn, name in enumerate(encoders):

        def advance(done: int, before: int = turn * len(texts)) -> None:
            if on_progress is not None:
                on_progress(before + done, len(encoders) * len(texts))

        # No name is bound to the encoder: a mapping that loads models on demand has one in memory at a time.
        vectors = check_vectors(_encode(encoders[name], texts, advance), len(texts), name=name)
        found[name] = [pair_cosines(vectors[rows[:, 0]], vectors[rows[:, 1]]) for rows in sides]
    return found


def _encode(encoder: Encoder, texts: Sequence[str], advance: Callable[[int], None]) -> NDArray[np.float32]:
    parts = []
    for start in range(0, len(texts), CHUNK):
        parts.append(encoder.encode(texts[start : start + CHUNK]))
        advance(min(start + CHUNK, len(texts)))
    return np.concatenate(parts)


def _measure_set(
    item: ScoredSet,
    pairs: Sequence[ScoredPair],
    similarities: Mapping[str, NDArray[np.float64]],
    base: str,
    *,
    seed: int,
    resamples: int,
) -> tuple[SetReport, dict[str, NDArray[np.float64]]]:
    """Return the report of one set and what each encoder's figure was in each resample."""
    for name, found in similarities.items():
        if np.ptp(found) == 0:
            raise ModelError(
                f"{name} gives all {len(pairs)} pairs of {item.name} the cosine {found[0]:.4f}: they cannot be ranked",
                expected="cosines that differ",
                action="check the pooling of the model, and whether its texts are cut to nothing",
            )
    units = units_of(pairs)
    # A seed for each set: with one for all, sets of the same size would draw the same rows.
    own_seed = zlib.crc32(f"{seed}:{item.name}".encode())
    weights = resample_weights(len(pairs), groups=units, resamples=resamples, seed=own_seed)
    scores = [pair.score for pair in pairs]
    correlations = {name: RankCorrelation(found, scores) for name, found in similarities.items()}
    values = {name: correlation() for name, correlation in correlations.items()}
    draws = {name: correlation.draws(weights) for name, correlation in correlations.items()}
    report = SetReport(
        name=item.name,
        rows=len(pairs),
        units=len(set(units)),
        source=item.source,
        choice=item.choice,
        rejected=dict(Counter(bad.reason for bad in item.rejected)),
        notes=(*item.notes, *_unit_notes(Counter(units))),
        estimates={name: estimate(values[name], draws[name]) for name in values},
        differences=_differences(values, draws, base),
    )
    return report, draws


def _unit_notes(units: Counter[str]) -> Iterator[str]:
    rows, largest = units.total(), max(units.values())
    if len(units) < FEW_UNITS or largest > LARGE_UNIT * rows:
        yield (
            f"its {rows:,} pairs form {len(units):,} cluster(s) that share texts, the largest of {largest:,}: "
            "its interval is a rough one"
        )


def _differences(
    values: Mapping[str, float], draws: Mapping[str, NDArray[np.float64]], base: str
) -> dict[str, Difference]:
    return {name: difference(values[name] - values[base], draws[name] - draws[base]) for name in values if name != base}
