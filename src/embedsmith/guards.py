"""Guards: named rows of general ability, and the figure that rows of one kind give.

Each kind of rows has one figure, whoever asks for it: average precision of labelled pairs, Spearman's correlation of
scored ones, accuracy of triplets, reciprocal rank of positive pairs, nearest neighbours of classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from embedsmith.encoder import NO_SIDES, SIDES, Side, pair_cosines
from embedsmith.errors import InputError
from embedsmith.examples import (
    Example,
    LabelledPair,
    LabelledText,
    PositivePair,
    ScoredPair,
    Triplet,
    is_asymmetric,
    read_examples,
    texts_of,
    units_of,
)
from embedsmith.metrics import RankCorrelation, Ranking, Resamples, Scores, resample_weights

SHIPPED = ("general_pairs", "general_sts")
VALIDATION = "validation"  # the domain's own rows, wherever they stand beside guards
MOST = 10_000  # rows of a guard that are looked at; drawn by the seed

Vectors = NDArray[np.float32]
Places = NDArray[np.int64]
Read = TypeVar("Read")  # what is read of a text: with its prompt, or with its side
Place: TypeAlias = Callable[[Example], tuple[int, ...]]


# ── Which rows


def shipped_guards() -> dict[str, tuple[Example, ...]]:
    """Return the general pairs that ship with the package, by name."""
    folder = resources.files("embedsmith") / "data"
    found = {}
    for name in SHIPPED:
        with resources.as_file(folder / f"{name}.jsonl") as path:
            found[name] = read_examples(path).examples
    return found


def read_guards(paths: Sequence[Path | str]) -> dict[str, tuple[Example, ...]]:
    """Return the user's own guard files by name, besides the shipped ones.

    A file is called as it is without its endings; where that is taken, its folder's name goes before it: `b/dev`.

    Raises:
        InputError: two files that cannot be told apart, or rows that give no figure; so it is known before any work.
    """
    found = shipped_guards()
    for path in map(Path, paths):
        name = _find_name(path, {*found, VALIDATION})
        found[name] = read_examples(path).examples
        make_measure(name, found[name], Numbering(bare).place, most=MOST, resamples=1)
    return found


def _find_name(path: Path, taken: set[str]) -> str:
    stem = path.name.split(".")[0]
    for name in (stem, f"{path.resolve().parent.name}/{stem}"):
        if name not in taken:
            return name
    raise InputError(
        f"the guard {path} would be called {name} as another one is",
        expected="files with names of their own",
        action="name each guard once, or rename the file",
    )


# ── What they give


def bare(side: Side, text: str, _: Example | None) -> tuple[Side, str]:
    """Return a text and its side, for encoders that have prompts of their own."""
    return side, text


class Numbering(Generic[Read]):
    """Distinct texts, numbered as they come; a text that is read in two ways has two numbers.

    Args:
        read: what is read of a text on a side ("query", "document", or "" by itself) of an example.
    """

    def __init__(self, read: Callable[[Side, str, Example | None], Read]) -> None:
        self.read = read
        self.places: dict[Read, int] = {}

    def place(self, example: Example) -> tuple[int, ...]:
        """Return the numbers of the example's texts: the anchor, then what it is compared to."""
        first, *others = texts_of(example)
        own, other = SIDES if is_asymmetric(example) else NO_SIDES
        return (self._number(own, first, example), *(self._number(other, text, example) for text in others))

    def place_documents(self, documents: Sequence[str]) -> tuple[int, ...]:
        """Return the numbers of texts that stand beside positives."""
        return tuple(self._number("document", text) for text in documents)

    def _number(self, side: Side, text: str, example: Example | None = None) -> int:
        return self.places.setdefault(self.read(side, text, example), len(self.places))


@dataclass(frozen=True, slots=True)
class Measured:
    """A figure, and what it is in each resample, (resamples,)."""

    value: float
    draws: Scores


_Figure: TypeAlias = Callable[[Vectors], Measured]


@dataclass(frozen=True, slots=True)
class Measure:
    """A set of rows and its figure, which follows from the unit vectors (n, d) of all numbered texts."""

    data: str
    metric: str
    rows: int
    read: _Figure


def make_measure(
    name: str,
    rows: Sequence[Example],
    place: Place,
    *,
    most: int | None = None,
    resamples: int,
    seed: int = 0,
    others: Sequence[int] = (),
) -> Measure:
    """Return the measure of a set of rows.

    Args:
        place: numbers the texts of a row: the anchor, then what it is compared to.
        most: rows that are looked at; more are drawn by the seed. None looks at all.
        resamples: of whole units, for the intervals.
        others: numbers of texts that the positives of positive pairs are ranked among besides each other.

    Raises:
        InputError: no rows, rows of several kinds, or of one label or score only.
    """
    kinds = {type(row) for row in rows}
    if len(kinds) != 1:
        found = ", ".join(sorted(kind.__name__ for kind in kinds)) or "none"
        raise InputError(f"the {name} rows are of the kinds: {found}", expected="rows of one kind")
    if most is not None and len(rows) > most:
        drawn = np.random.default_rng(seed).choice(len(rows), most, replace=False)
        rows = [rows[row] for row in sorted(drawn.tolist())]
    weights = resample_weights(len(rows), groups=units_of(rows), resamples=resamples, seed=seed)
    placed = [place(row) for row in rows]
    measures: Mapping[type[Any], _Maker] = {**_MEASURES, PositivePair: partial(_of_positives, others=others)}
    metric, measure = measures[kinds.pop()](name, rows, placed, weights)
    return Measure(name, metric, len(rows), measure)


_Placed: TypeAlias = Sequence[tuple[int, ...]]
_Maker: TypeAlias = Callable[[str, Sequence[Any], _Placed, Resamples], tuple[str, _Figure]]


def _of_labelled(name: str, rows: Sequence[Any], placed: _Placed, weights: Resamples) -> tuple[str, _Figure]:
    labels = np.array([row.label for row in rows], dtype=np.int64)
    if len(set(labels.tolist())) != 2:
        raise InputError(f"the {name} pairs have the label {labels[0]} only", expected="both 0 and 1")

    def measure(vectors: Vectors) -> Measured:
        ranking = Ranking(labels, _cosines(vectors, placed))
        draws = np.array([ranking.average_precision(row) for row in weights])
        return Measured(ranking.average_precision(), draws)

    return "average precision", measure


def _of_scored(name: str, rows: Sequence[Any], placed: _Placed, weights: Resamples) -> tuple[str, _Figure]:
    scores = np.array([row.score for row in rows], dtype=np.float64)
    if not np.ptp(scores) > 0:
        raise InputError(f"the {name} pairs have one score only", expected="scores that differ")

    def measure(vectors: Vectors) -> Measured:
        correlation = RankCorrelation(_cosines(vectors, placed), scores)
        value, draws = correlation(), correlation.draws(weights)
        return Measured(value if math.isfinite(value) else 0.0, draws)  # equal cosines tell nothing

    return "Spearman", measure


def _of_triplets(name: str, rows: Sequence[Any], placed: _Placed, weights: Resamples) -> tuple[str, _Figure]:  # noqa: ARG001
    """A row counts by the share of its negatives that are farther than its positive; ties half."""

    def measure(vectors: Vectors) -> Measured:
        values = np.empty(len(placed))
        for row, (anchor, positive, *negatives) in enumerate(placed):
            gaps = (vectors[positive] - vectors[negatives]) @ vectors[anchor] if negatives else np.ones(1)
            values[row] = np.mean((gaps > 0) + (gaps == 0) / 2)
        return _mean(values, weights)

    return "triplet accuracy", measure


def _of_positives(
    name: str, rows: Sequence[Any], placed: _Placed, weights: Resamples, others: Sequence[int] = ()
) -> tuple[str, _Figure]:
    """Mean reciprocal rank of the positive among `others` and the positives that are wrong for the anchor."""
    anchors, positives = (np.array(column, dtype=np.int64) for column in zip(*placed, strict=True))
    candidates, found = np.unique(np.concatenate([positives, np.array(others, dtype=np.int64)]), return_inverse=True)
    own = found[: len(positives)]
    if len(candidates) < 2:
        raise InputError(f"the {name} pairs have one positive only", expected="at least two to choose from")
    right = _right_answers(rows, anchors, own, len(candidates))

    def measure(vectors: Vectors) -> Measured:
        cosines = vectors[anchors] @ vectors[candidates].T
        mine = cosines[np.arange(len(own)), own][:, None]
        above = np.where(right, False, cosines >= mine)
        return _mean(1 / (1 + above.sum(axis=1)), weights)

    return f"MRR among {len(candidates)}", measure


def _right_answers(rows: Sequence[Any], anchors: Places, own: Places, candidates: int) -> NDArray[np.bool_]:
    """Return (rows, candidates): the positives of the row's anchor and of its group."""
    known: dict[object, set[int]] = {}
    keys = [
        (("anchor", int(anchor)), ("group", row.group if row.group is not None else f"row {place}"))
        for place, (row, anchor) in enumerate(zip(rows, anchors, strict=True))
    ]
    for both, candidate in zip(keys, own.tolist(), strict=True):
        for key in both:
            known.setdefault(key, set()).add(candidate)
    right = np.zeros((len(rows), candidates), dtype=np.bool_)
    for row, both in enumerate(keys):
        right[row, sorted(known[both[0]] | known[both[1]])] = True
    return right


def _of_classes(name: str, rows: Sequence[Any], placed: _Placed, weights: Resamples) -> tuple[str, _Figure]:
    """Share of the texts whose nearest other text has the same class."""
    places = np.array([place for (place,) in placed], dtype=np.int64)
    labels = np.array([row.label for row in rows])
    if len(set(labels.tolist())) < 2:
        raise InputError(f"the {name} texts have one class only", expected="at least two classes")
    same_text = places[:, None] == places[None, :]

    def measure(vectors: Vectors) -> Measured:
        cosines = np.where(same_text, -np.inf, vectors[places] @ vectors[places].T)
        return _mean((labels[cosines.argmax(axis=1)] == labels).astype(np.float64), weights)

    return "nearest-neighbour accuracy", measure


_MEASURES: Mapping[type[Any], _Maker] = {
    LabelledPair: _of_labelled,
    ScoredPair: _of_scored,
    Triplet: _of_triplets,
    PositivePair: _of_positives,
    LabelledText: _of_classes,
}


def _cosines(vectors: Vectors, placed: _Placed) -> Scores:
    left, right = np.array(placed, dtype=np.int64).T
    return pair_cosines(vectors[left], vectors[right])


def _mean(values: NDArray[np.floating], weights: Resamples) -> Measured:
    return Measured(float(values.mean()), weights.means(values))
