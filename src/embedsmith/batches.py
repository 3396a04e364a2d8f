"""Examples as batches: what the training step sees, in an order that only the seed decides.

A *row* is an anchor with all it is compared to: texts with the same answer and texts with another
one. Rows of one batch never share a group, so that no text of one row is a false negative of another
because both come from the same source.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from embedsmith.errors import InputError
from embedsmith.examples import Example, LabelledPair, LabelledText, PositivePair, ScoredPair, Triplet

Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Row:
    """Places in `TrainingSet.texts` of an anchor, its positives and its negatives."""

    anchor: int
    positives: tuple[int, ...]
    negatives: tuple[int, ...]
    group: str


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Distinct texts and the rows that point into them."""

    texts: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def pairs(self) -> int:
        """Number of labelled (anchor, text) pairs."""
        return sum(len(row.positives) + len(row.negatives) for row in self.rows)


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's texts and how they belong together; places point into `texts` unless said otherwise.

    Attributes:
        texts: (n,) rows of the training set's texts, each once.
        left, right, labels: (P,) every pair whose label follows from a row: the anchor and its positives
            are alike (1), each of them and each negative are not (0).
        anchors, positives: (A,) one contrast each: the positive has to be found among all candidates.
        candidates: (C,) the distinct positives and negatives of the batch.
        positive_of: (A,) place in `candidates` of each anchor's positive.
        excluded: (A, C) bool; candidates that are no negative of the anchor (its other positives, itself).
    """

    texts: Index
    left: Index
    right: Index
    labels: Index
    anchors: Index
    candidates: Index
    positive_of: Index
    excluded: NDArray[np.bool_]


def collect_rows(examples: Sequence[Example]) -> TrainingSet:
    """Return the training set of pairs and triplets; rows with the same anchor and group are joined.

    Raises:
        InputError: an example kind that has no anchor (texts with classes, scored pairs).
    """
    places: dict[str, int] = {}
    found: dict[tuple[int, str], tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))

    def place(text: str) -> int:
        return places.setdefault(text, len(places))

    for example in examples:
        anchor_text, positives, negatives = _roles(example)
        anchor = place(anchor_text)
        group = example.group if example.group is not None else f"text:{anchor}"
        known = found[anchor, group]
        for target, texts in zip(known, (positives, negatives), strict=True):
            target.extend(place(text) for text in texts if place(text) not in target)
    rows = tuple(
        Row(anchor, tuple(positives), tuple(negatives), group)
        for (anchor, group), (positives, negatives) in found.items()
    )
    return TrainingSet(tuple(places), rows)


def _roles(example: Example) -> tuple[str, Sequence[str], Sequence[str]]:
    match example:
        case PositivePair():
            return example.anchor, [example.positive], []
        case Triplet():
            return example.anchor, [example.positive], example.negatives
        case LabelledPair(label=1):
            return example.sentence1, [example.sentence2], []
        case LabelledPair():
            return example.sentence1, [], [example.sentence2]
        case ScoredPair() | LabelledText():
            raise InputError(
                f"{type(example).__name__} examples cannot be trained on with these losses",
                expected="positive pairs, triplets or labelled pairs",
                action="turn scores or classes into labelled pairs first",
            )


def count_batches(rows: Sequence[Row], *, size: int) -> int:
    """Return the number of batches of an epoch: enough for all rows and for the most frequent group."""
    most = max(Counter(row.group for row in rows).values(), default=0)
    return max(-(-len(rows) // size), most)


def order_batches(rows: Sequence[Row], *, size: int, seed: int, epoch: int) -> list[list[int]]:
    """Return the rows of each batch of one epoch: every row once, no group twice in a batch.

    There are `count_batches` of them, of nearly equal size. The order depends on (seed, epoch) only, so
    a resumed run sees the same batches. Linear time: groups are dealt out like cards, row after row
    to the next batch, so that the rows of a group (at most as many as batches) land in different ones.
    """
    generator = np.random.default_rng([seed, epoch])
    count = count_batches(rows, size=size)
    members: dict[str, list[int]] = defaultdict(list)
    for row in generator.permutation(len(rows)).tolist():
        members[rows[row].group].append(row)
    dealt = [row for group in members.values() for row in group]
    batches: list[list[int]] = [[] for _ in range(count)]
    for place, row in enumerate(dealt):
        batches[place % count].append(row)
    return [batches[place] for place in generator.permutation(count).tolist()]


def assemble(rows: Sequence[Row]) -> Batch:
    """Return the batch of `rows`: every pair with a known label, and one contrast for every positive.

    The candidates of a contrast are the positives and negatives of all rows of the batch; what
    answers the anchor as well (its other positives, the anchor itself) is excluded.
    """
    used = dict.fromkeys(text for row in rows for text in (row.anchor, *row.positives, *row.negatives))
    place = {text: index for index, text in enumerate(used)}
    pairs = [pair for row in rows for pair in pairs_of(row)]
    contrasts = [(row, text) for row in rows for text in row.positives]
    candidates = list(dict.fromkeys([text for _, text in contrasts] + [text for row in rows for text in row.negatives]))
    column = {text: index for index, text in enumerate(candidates)}
    excluded = np.zeros((len(contrasts), len(candidates)), dtype=np.bool_)
    for index, (row, chosen) in enumerate(contrasts):
        excluded[index, [column[text] for text in (row.anchor, *row.positives) if text in column]] = True
        excluded[index, column[chosen]] = False
    return Batch(
        texts=_index(used),
        left=_index(place[left] for left, _, _ in pairs),
        right=_index(place[right] for _, right, _ in pairs),
        labels=_index(label for _, _, label in pairs),
        anchors=_index(place[row.anchor] for row, _ in contrasts),
        candidates=_index(place[text] for text in candidates),
        positive_of=_index(column[text] for _, text in contrasts),
        excluded=excluded,
    )


def pairs_of(row: Row) -> list[tuple[int, int, int]]:
    """Return (left, right, label) of every pair of a row whose label follows; left and right are places of texts."""
    same = (row.anchor, *row.positives)
    alike = [(left, right, 1) for left, right in combinations(same, 2)]
    return alike + [(left, right, 0) for left, right in product(same, row.negatives)]


def _index(values: Iterable[int]) -> Index:
    return np.fromiter(values, dtype=np.int64)
