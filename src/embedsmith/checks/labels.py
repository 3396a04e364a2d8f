"""Labels, scores and classes of a source that teach nothing or the opposite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from embedsmith.batches import Source
from embedsmith.checks.findings import FEWEST, Finding, Outcome, Values, share_of
from embedsmith.checks.sides import alike, unlike
from embedsmith.examples import Example, LabelledPair, LabelledText, ScoredPair, Triplet
from embedsmith.text import normalize


def check_labels(name: str, examples: Sequence[Example]) -> Iterator[Outcome]:
    """Yield labelled pairs that all have one label, or nearly all."""
    pairs = [example for example in examples if isinstance(example, LabelledPair)]
    if len(pairs) < len(examples) or not pairs:
        return
    ones = sum(pair.label for pair in pairs)
    rare = min(ones, len(pairs) - ones)
    if len(pairs) >= FEWEST and rare <= 0.01 * len(pairs):
        yield Finding(
            "one-label",
            "warning",
            found=f"{name}: {ones} of {len(pairs)} labelled pairs have label 1, {len(pairs) - ones} have label 0",
            expected="both labels",
            action="add pairs of the other label; with positives only, infonce takes the other rows of a batch as "
            "negatives",
        )


def check_triplets(name: str, examples: Sequence[Example]) -> Iterator[Outcome]:
    """Yield a source that the triplet loss cannot use: no anchor has both a positive and a negative."""
    positives = {normalize(left) for left, _ in alike(examples)}
    if not any(normalize(left) in positives for left, _ in unlike(examples)):
        yield Finding(
            "no-triplets",
            "error",
            found=f"{name}: no anchor of the {len(examples)} rows has both a positive and a negative",
            expected="anchors with both, which the triplet loss needs: it would be 0 in every step",
            action="use --losses logistic or online_contrastive, or give triplets",
        )


def check_scores(source: Source) -> Iterator[Outcome]:
    """Yield what is wrong with the scores as they were given; all are looked at, since one NaN is enough."""
    graded = [example for example in source.examples if isinstance(example, ScoredPair)]
    taught = [score for example in source.examples if isinstance(example, Triplet) for score in example.scores]
    scores = np.array([*(example.score for example in graded), *taught])
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        yield Finding(
            "scores-not-numbers",
            "error",
            found=f"{source.name}: {share_of(len(bad), len(scores))} scores are no numbers (the first: number "
            f"{bad[0] + 1})",
            expected="finite scores",
            action="leave these rows out or give them a score",
        )
        return
    if len(graded) >= 2 and scores.min() == scores.max():
        yield Finding(
            "constant-scores",
            "error",
            found=f"{source.name}: all {len(scores)} scores are {scores[0]:g}",
            expected="scores that differ: there is no order to learn",
            action="check that the right column was read; for pairs that all belong together use anchor and positive",
        )
    yield from _check_scales(source.name, scores)


def _check_scales(name: str, scores: Values) -> Iterator[Outcome]:
    fractions = int(((scores > 0) & (scores < 1)).sum())
    large = int((scores > 10).sum())
    if min(fractions, large) >= max(0.05 * len(scores), 2):
        yield Finding(
            "mixed-scales",
            "warning",
            found=f"{name}: {share_of(fractions, len(scores))} scores lie between 0 and 1, "
            f"{share_of(large, len(scores))} above 10",
            expected="one scale",
            action=f"bring all scores to one scale (the largest is {scores.max():g}), or give the parts as sources "
            f"(--mix)",
        )


def check_classes(name: str, examples: Sequence[Example]) -> Iterator[Outcome]:
    """Yield a source of one class, or of classes with one text."""
    counts = Counter(example.label for example in examples if isinstance(example, LabelledText))
    if not counts:
        return
    if len(counts) == 1:
        yield Finding(
            "one-class",
            "error",
            found=f"{name}: all {len(examples)} texts are of the class {next(iter(counts))!r}",
            expected="at least two classes",
            action="check that the right column was read as the class",
        )
        return
    alone = sum(count == 1 for count in counts.values())
    if alone > len(counts) / 2:
        yield Finding(
            "classes-of-one",
            "error" if alone == len(counts) else "warning",
            found=f"{name}: {share_of(alone, len(counts))} classes have one text",
            expected="two texts or more of a class: a triplet needs an anchor and a mate",
            action="give more texts a class, or check that the class column is not an id",
        )
