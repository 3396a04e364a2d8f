"""Rankers side by side on one task: figures with intervals, paired tests, and a table by dimension."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from embedsmith.encoder import Encoder
from embedsmith.errors import ConfigurationError
from embedsmith.metrics import (
    Difference,
    Estimate,
    Resamples,
    adjust_holm,
    choose_baseline,
    compare_means,
    estimate,
    resample_weights,
)
from embedsmith.retrieval.rankers import DEPTH, EncoderRanker, Index, Ranked, Ranker, as_ranker, drop_own, find_own
from embedsmith.retrieval.scoring import Values, score_grades
from embedsmith.retrieval.tasks import RetrievalTask

RESAMPLES = 2000
CUTOFFS = (10, DEPTH)
TESTS = (
    "p: paired randomisation test over queries (10,000 sign patterns), Holm-corrected over the systems of the table, "
    "for each metric by itself; intervals: 95%, bootstrap over queries"
)

Cutoffs = Sequence[int] | int


@dataclass(frozen=True, slots=True)
class Rankings:
    """What one ranker found: with its whole vectors, and by dimension where it is an encoder.

    Attributes:
        cut: rankings by dimension, the whole one among them; empty for what has no vectors.
    """

    whole: Ranked
    cut: Mapping[int, Ranked] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DimensionRow:
    """One encoder with its vectors cut to a dimension; differences are to the baseline with whole vectors.

    Attributes:
        holm: p-values by metric, corrected over all rows of the table but the baseline itself.
    """

    encoder: str
    dimension: int
    metrics: Mapping[str, Estimate]
    differences: Mapping[str, Difference]
    holm: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class RetrievalReport:
    """Rankers side by side on one task; metrics by ranker and name, such as ndcg@10.

    Attributes:
        differences: to the baseline; their p-values are those of each comparison by itself.
        holm: the same p-values corrected over the rankers, for each metric by itself.
        primary: the metric that decides, named before anything is measured: nDCG at the first cutoff.
        depth: documents of a ranking that were looked at.
        left_out, unjudged, unknown: queries without a figure; missing: relevant documents that the corpus does not
            hold (see `RetrievalTask`). own: queries whose own document, that of the same id, was left out.
        units: groups that are resampled whole; as many as queries where these are independent.
        unanswered: by ranker: queries for which it found nothing; they count with 0.
        dimensions: the Matryoshka table, empty if it was not asked for.
    """

    task: str
    queries: int
    documents: int
    baseline: str
    metrics: Mapping[str, Mapping[str, Estimate]]
    differences: Mapping[str, Mapping[str, Difference]]
    holm: Mapping[str, Mapping[str, float]]
    primary: str
    depth: int
    left_out: int
    missing: int
    unanswered: Mapping[str, int]
    dimensions: tuple[DimensionRow, ...] = ()
    tests: str = TESTS
    unjudged: int = 0
    unknown: int = 0
    own: int = 0
    units: int = 0

    def list_notes(self) -> tuple[str, ...]:
        """Return what a reader of the figures has to know, a sentence each."""
        return tuple(_describe_gaps(self))


def measure_retrieval(
    rankers: Mapping[str, Encoder | Ranker],
    task: RetrievalTask,
    *,
    baseline: str | None = None,
    k: Cutoffs = CUTOFFS,
    dimensions: Sequence[int] = (),
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> RetrievalReport:
    """Return nDCG, MRR, recall and precision at each k, and MAP, of each ranker: means over queries.

    An encoder that has prompts for queries and documents reads both with their own.

    Args:
        rankers: by name; each is asked for once, so a mapping may load them on demand.
        baseline: what the others are compared with; default: the first.
        k: cutoffs; the first decides. A single number stands for (k, 100).
        dimensions: lengths to which the encoders' vectors are cut (Matryoshka).

    Raises:
        ConfigurationError: the baseline is not ranked, a cutoff or dimension is below 1, or no encoder is as long.
        ModelError: an encoder gives vectors that are not finite, or not of length 1.
    """
    choose_baseline(rankers, baseline)
    found = rank_task(rankers, task, depth=max(parse_cutoffs(k)), dimensions=dimensions)
    return compare_rankings(found, task, baseline=baseline, k=k, seed=seed, resamples=resamples)


def rank_task(
    rankers: Mapping[str, Encoder | Ranker], task: RetrievalTask, *, depth: int = DEPTH, dimensions: Sequence[int] = ()
) -> dict[str, Rankings]:
    """Return what each ranker finds; a mapping that loads models on demand has one in memory at a time.

    Raises:
        ConfigurationError: a dimension below 1, or no encoder has vectors as long as one of them.
    """
    if any(size < 1 for size in dimensions):
        raise ConfigurationError(f"dimensions {', '.join(map(str, dimensions))}", expected="1 or more")
    found = {name: _rank_one(as_ranker(rankers[name]), task, depth, dimensions) for name in rankers}
    longest = max((max(rankings.cut) for rankings in found.values() if rankings.cut), default=0)
    too_long = [size for size in dimensions if size > longest]
    if too_long:
        raise ConfigurationError(
            f"vectors cut to {too_long[0]} numbers, where the longest has {longest}", expected="what an encoder has"
        )
    return found


def _rank_one(ranker: Ranker, task: RetrievalTask, depth: int, dimensions: Sequence[int]) -> Rankings:
    own = _find_dropped(task)
    deeper = depth + bool((own >= 0).any())  # one more, since one is dropped
    if isinstance(ranker, EncoderRanker):
        found = Rankings(*ranker.rank_cut(task.queries, task.documents, depth=deeper, dimensions=dimensions))
    else:
        found = Rankings(ranker.rank(task.queries, task.documents, depth=deeper))
    if deeper == depth:
        return found
    cut = {size: drop_own(ranked, own, depth) for size, ranked in found.cut.items()}
    return Rankings(drop_own(found.whole, own, depth), cut)


def _find_dropped(task: RetrievalTask) -> Index:
    """Return the place of each query's own document, (queries,); -2 where it has none, or may find it."""
    return find_own(task.queries, {} if task.keep_own else task.documents)


def compare_rankings(
    rankings: Mapping[str, Rankings],
    task: RetrievalTask,
    *,
    baseline: str | None = None,
    k: Cutoffs = CUTOFFS,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> RetrievalReport:
    """Return the report of what `rank_task` found (see `measure_retrieval`)."""
    cutoffs, base = parse_cutoffs(k), choose_baseline(rankings, baseline)
    values = {name: score_ranked(own.whole, task, k=cutoffs) for name, own in rankings.items()}
    units = task.units
    weights = resample_weights(len(task.queries), groups=units, resamples=resamples, seed=seed)
    differences = {
        name: {
            metric: compare_means(values[base][metric], own[metric], weights, groups=units, seed=seed) for metric in own
        }
        for name, own in values.items()
        if name != base
    }
    return RetrievalReport(
        task=task.name,
        queries=len(task.queries),
        documents=len(task.documents),
        baseline=base,
        metrics={name: _estimate(own, weights) for name, own in values.items()},
        differences=differences,
        holm=dict(zip(differences, _adjust(list(differences.values())), strict=True)),
        primary=f"ndcg@{cutoffs[0]}",
        depth=max(cutoffs),
        left_out=len(task.left_out),
        missing=task.missing,
        unanswered={name: _count_empty(own.whole) for name, own in rankings.items()},
        dimensions=_tabulate(rankings, task, values[base], base, cutoffs, weights, seed),
        unjudged=task.unjudged,
        unknown=task.unknown,
        own=int((_find_dropped(task) >= 0).sum()),
        units=len(set(units)),
    )


def _describe_gaps(report: RetrievalReport) -> Iterator[str]:
    if report.unjudged:
        yield f"{report.unjudged:,} queries have no judgement (such as those of another split): left out"
    if report.left_out:
        yield f"{report.left_out:,} judged queries have no relevant document: left out"
    if report.unknown:
        yield f"{report.unknown:,} judged queries have no text: left out"
    if report.missing:
        yield f"{report.missing:,} relevant documents are not in the corpus: they count as not found"
    if 0 < report.units < report.queries:
        yield f"the queries are in {report.units:,} groups that share a passage: whole groups are resampled and tested"
    if report.own:
        yield f"{report.own:,} queries have the id of a document, which is left out of what they find, as in BEIR"
    for name, count in report.unanswered.items():
        if count:
            yield f"{name} finds nothing for {count:,} queries: they count as 0"


def _tabulate(
    rankings: Mapping[str, Rankings],
    task: RetrievalTask,
    base_values: Mapping[str, Values],
    base: str,
    cutoffs: Sequence[int],
    weights: Resamples,
    seed: int,
) -> tuple[DimensionRow, ...]:
    """Return the Matryoshka table; () where no vectors were cut."""
    if all(len(own.cut) < 2 for own in rankings.values()):
        return ()
    places, units = [(name, size) for name, own in rankings.items() for size in own.cut], task.units
    values = [score_ranked(rankings[name].cut[size], task, k=cutoffs) for name, size in places]
    itself = next((at for at, (name, _) in enumerate(places) if name == base), None)  # its whole vectors come first
    changes = [
        {metric: compare_means(base_values[metric], own[metric], weights, groups=units, seed=seed) for metric in own}
        for own in values
    ]
    tested = [change for at, change in enumerate(changes) if at != itself]
    adjusted = iter(_adjust(tested))
    return tuple(
        DimensionRow(
            name,
            size,
            _estimate(values[at], weights),
            {} if at == itself else changes[at],
            {} if at == itself else next(adjusted),
        )
        for at, (name, size) in enumerate(places)
    )


def _estimate(values: Mapping[str, Values], weights: Resamples) -> dict[str, Estimate]:
    return {metric: estimate(float(own.mean()), weights.means(own)) for metric, own in values.items()}


def _adjust(differences: Sequence[Mapping[str, Difference]]) -> list[dict[str, float]]:
    """Return Holm's p-values of several comparisons by metric, each metric by itself."""
    if not differences:
        return []
    metrics = list(differences[0])
    by_metric = [adjust_holm([own[metric].p_value for own in differences]) for metric in metrics]
    return [dict(zip(metrics, own, strict=True)) for own in zip(*by_metric, strict=True)]


def _count_empty(ranked: Ranked) -> int:
    return int((ranked.places < 0).all(axis=1).sum())


def parse_cutoffs(k: Cutoffs) -> tuple[int, ...]:
    """Return the cutoffs, the deciding one first, each once; a single number stands for (k, 100)."""
    cutoffs = tuple(dict.fromkeys((k, max(k, DEPTH)) if isinstance(k, int) else k))
    if not cutoffs or min(cutoffs) < 1:
        raise ConfigurationError(f"the cutoffs {k!r}", expected="whole numbers from 1, such as 10,100")
    return cutoffs


def score_task(source: Encoder | Ranker, task: RetrievalTask, *, k: Cutoffs = CUTOFFS) -> dict[str, Values]:
    """Return each metric's value for each query, (queries,), by name."""
    cutoffs = parse_cutoffs(k)
    return score_ranked(_rank_one(as_ranker(source), task, max(cutoffs), ()).whole, task, k=cutoffs)


def score_ranked(ranked: Ranked, task: RetrievalTask, *, k: Cutoffs = CUTOFFS) -> dict[str, Values]:
    """Return each metric's value for each query, (queries,), by name, of a ranking of this task."""
    cutoffs = parse_cutoffs(k)
    judged = [list(task.relevant[query].values()) for query in task.queries]
    return score_grades(_grades_of(ranked.places, task), judged, cutoffs, max(cutoffs))


def _grades_of(places: Index, task: RetrievalTask) -> Values:
    ids = list(task.documents)
    grades = np.zeros(places.shape)
    for row, query in enumerate(task.queries):
        known = task.relevant[query]
        grades[row] = [known.get(ids[place], 0) if place >= 0 else 0 for place in places[row].tolist()]
    return grades
