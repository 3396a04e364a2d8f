"""The order in which an untrained base puts pairs: labels, columns and poolings that say the opposite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from embedsmith.batches import Source
from embedsmith.checks.findings import FEWEST, Finding, Outcome, Unchecked, Values, sample
from embedsmith.examples import LabelledPair, ScoredPair, Triplet
from embedsmith.metrics import Ranking, spearman

ROWS = 150  # examples whose cosines the untrained base gives, shared by all sources


@dataclass(frozen=True, slots=True)
class Probe:
    """Pairs of texts whose order is known, drawn from a source.

    Attributes:
        kind: "triplets" (the first half of the pairs are positives, the second half their negatives), "labels" or
            "scores".
        truth: (n,) 1 or 0, or the score.
    """

    name: str
    kind: Literal["triplets", "labels", "scores"]
    left: tuple[str, ...]
    right: tuple[str, ...]
    truth: Values

    @property
    def rows(self) -> int:
        """Rows that were looked at."""
        return len(self.left) // 2 if self.kind == "triplets" else len(self.left)


def draw_probe(source: Source, count: int = ROWS, *, seed: int = 0) -> Probe | Unchecked:
    """Return pairs of the source that the base is asked about, or why it cannot be asked."""
    triplets = [item for item in source.examples if isinstance(item, Triplet) and item.negatives]
    if triplets:
        drawn = sample(triplets, count, seed=seed)
        right = (*(item.positive for item in drawn), *(item.negatives[0] for item in drawn))
        truth = np.repeat([1.0, 0.0], len(drawn))
        return _enough(Probe(source.name, "triplets", tuple(item.anchor for item in drawn) * 2, right, truth))
    pairs = [item for item in source.examples if isinstance(item, (LabelledPair, ScoredPair))]
    if not pairs:
        return Unchecked("order", f"{source.name} has neither triplets nor labels nor scores to hold the base against")
    kept = sample(pairs, count, seed=seed)
    graded = isinstance(kept[0], ScoredPair)
    truth = np.array([item.score if isinstance(item, ScoredPair) else float(item.label) for item in kept])
    sides = tuple(item.sentence1 for item in kept), tuple(item.sentence2 for item in kept)
    return _enough(Probe(source.name, "scores" if graded else "labels", *sides, truth))


def _enough(probe: Probe) -> Probe | Unchecked:
    least = min(int((probe.truth == 1).sum()), int((probe.truth == 0).sum()))
    if probe.kind == "scores":
        least = probe.rows if np.isfinite(probe.truth).all() and np.ptp(probe.truth) > 0 else 0
    if least < FEWEST:
        return Unchecked("order", f"{probe.name} has {least} rows of a kind, too few of {FEWEST} to tell")
    return probe


def quality(probe: Probe, cosines: Values) -> float:
    """Return how well cosines order the pairs of a probe: a share of triplets or an AUC (.5 is chance), a Spearman (0).

    Two triplets, positives at (.8, .5), negatives at (.3, .6): one of two is right, 0.5.
    """
    if probe.kind == "scores":
        return spearman(cosines, probe.truth) if np.ptp(cosines) > 0 else 0.0
    if probe.kind == "labels":
        return float(Ranking(probe.truth.astype(np.int64), cosines).roc_auc())
    positives, negatives = np.split(cosines, 2)
    return float(((positives > negatives) + 0.5 * (positives == negatives)).mean())


_REVERSED: Mapping[str, tuple[str, float, str, str, str]] = {
    "triplets": (
        "swapped-columns",
        1 / 3,
        "the positive is closer than the negative in {:.0%} of {} triplets",
        "positives that are closer than negatives in most",
        "look at some rows: exchange the columns positive and negative; if the negatives are hard ones, go on",
    ),
    "labels": (
        "inverted-labels",
        0.4,
        "the cosine tells label 1 from label 0 with an AUC of {:.2f} on {} pairs, worse than chance (.5)",
        "pairs with label 1 that are closer",
        "look at some rows: label 1 means that one answer serves both; exchange 0 and 1 if it is the other way round",
    ),
    "scores": (
        "inverted-scores",
        -0.2,
        "the Spearman correlation of cosine and score is {:.2f} on {} pairs",
        "higher scores for closer texts",
        "look at some rows: if the score is a distance, give its negative",
    ),
}


def check_order(probe: Probe, cosines: Values, judge: str) -> Iterator[Outcome]:
    """Yield labels, scores or columns that say the opposite of what an untrained encoder says.

    A warning, since the negatives may be hard ones on purpose. `judge` names the encoder.
    """
    name, bound, found, expected, action = _REVERSED[probe.kind]
    value = quality(probe, cosines)
    if value < bound:
        told = found.format(value, probe.rows)
        yield Finding(
            name,
            "warning",
            found=f"{probe.name}: by {judge}, before training, {told}",
            expected=expected,
            action=action,
        )


BETTER = 0.04  # lead of another pooling that is worth a word, if it is no chance
DRAWS = 200  # bootstrap draws of that lead


def check_pooling(probe: Probe, cosines: Mapping[str, Values], own: str) -> Iterator[Outcome]:
    """Yield a pooling that orders the pairs clearly better than the base's own: in 98% of bootstrap draws as well.

    Args:
        cosines: by name of the pooling, the own one among them.
    """
    values = {name: quality(probe, found) for name, found in cosines.items()}
    best = max(values, key=values.__getitem__)
    if values[own] < _REVERSED[probe.kind][1]:
        return  # the labels look inverted, and then the worst pooling orders best
    if values[best] - values[own] > BETTER and _leads(probe, cosines[best], cosines[own]) >= 0.98:
        shown = ", ".join(f"{name} {value:.2f}" for name, value in sorted(values.items()))
        yield _wrong_pooling(
            f"{probe.name}: before training, {best} pooling orders {probe.rows} rows better than {own}: {shown}", best
        )


def check_known_pooling(known: str, chosen: str) -> Iterator[Outcome]:
    """Yield a pooling other than the one that the base's folder was made with (`known`, "" where it says nothing)."""
    if known and known != chosen:
        yield _wrong_pooling(f"the base was trained with {known} pooling, and this run pools by {chosen}", known)


def _wrong_pooling(found: str, better: str) -> Finding:
    return Finding(
        "pooling",
        "warning",
        found=found,
        expected="the pooling that the base was trained with",
        action=f"read the base's model card; start from the plain model with --set pooling={better} if it fits",
        place="configuration",
    )


def _leads(probe: Probe, better: Values, own: Values) -> float:
    """Return the share of resamples of the rows in which `better` orders them better than `own`."""
    generator = np.random.default_rng(0)
    won = []
    for _ in range(DRAWS):
        rows = generator.integers(probe.rows, size=probe.rows)
        places = np.concatenate([rows, rows + probe.rows]) if probe.kind == "triplets" else rows
        drawn = replace(probe, truth=probe.truth[places])
        if np.ptp(drawn.truth) > 0:
            won.append(quality(drawn, better[places]) > quality(drawn, own[places]))
    return float(np.mean(won)) if won else 0.0
