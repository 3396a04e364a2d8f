"""Which of the labelled pairs a promise may count: its exact test takes them as independent, and files rarely are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedsmith.encoder import Encoder
from embedsmith.evaluation import labels_of, similarities_of
from embedsmith.examples import LabelledPair, has_conversations, units_of
from embedsmith.metrics import number_groups

DEPENDENT = 4.0  # design effect above which one pair of each unit is drawn


def draw_sample(pairs: Sequence[LabelledPair], encoder: Encoder, *, seed: int = 0) -> tuple[list[LabelledPair], str]:
    """Return the pairs that a promise may count, and one sentence on what was left out, "" for nothing.

    The exact test takes pairs as independent. So a pair that stands there again counts once; and where pairs come in
    large units (they share a question or a group) and are alike within them, one of each unit is drawn. Simulated at
    δ = α = .05, with pairs of a unit all alike, the promise breaks in 1% of the draws with one pair a unit, 4.5% with
    five, 14% with eight and 21.5% with twenty: so design effects up to `DEPENDENT` are let pass. Single questions and
    conversations are looked at apart, since each chooses a threshold.
    """
    kinds = [[pair for pair in pairs if has_conversations(pair) == spoken] for spoken in (False, True)]
    drawn = [_draw_sample(kind, encoder, seed=seed) for kind in kinds if kind]
    return [pair for kept, _ in drawn for pair in kept], "; ".join(told for _, told in drawn if told)


def _draw_sample(pairs: Sequence[LabelledPair], encoder: Encoder, *, seed: int) -> tuple[list[LabelledPair], str]:
    first: dict[tuple[frozenset[str], int], LabelledPair] = {}
    for pair in pairs:
        first.setdefault((frozenset((pair.sentence1, pair.sentence2)), pair.label), pair)
    kept = list(first.values())
    told = [f"{len(pairs) - len(kept)} pairs that stand twice count once"] if len(kept) < len(pairs) else []
    units = units_of(kept)
    if _measure_dependence(kept, units, encoder) > DEPENDENT:
        order = np.random.default_rng(seed).permutation(len(kept))
        drawn = {units[place]: place for place in order.tolist()}
        told += [f"one pair of each of {len(drawn)} groups of alike pairs is counted, {len(kept)} in all"]
        kept = [kept[place] for place in sorted(drawn.values())]
    return kept, "; ".join(told)


def _measure_dependence(pairs: Sequence[LabelledPair], units: Sequence[str], encoder: Encoder) -> float:
    """Return the design effect of the units, 1 for none (Kish 1965): how many times fewer pairs would tell as much.

    It is 1 + (m − 1) · ρ, m the pairs in the unit of a pair on average, ρ how alike pairs of a unit are: in their
    labels, or in the cosines of those that must not be served, whichever is more.
    """
    sizes = np.array(list(Counter(units).values()), dtype=np.int64)
    size = float((sizes**2).sum() / sizes.sum()) if len(sizes) else 1.0
    if size <= DEPENDENT:
        return size  # whatever they have in common
    labels = labels_of(pairs)
    wrong = [place for place, label in enumerate(labels) if not label]
    cosines = similarities_of(encoder, [pairs[place] for place in wrong]) if wrong else np.zeros(0)
    alike = max(correlate_units(labels, units), correlate_units(cosines, [units[place] for place in wrong]))
    return 1 + (size - 1) * alike


def correlate_units(values: NDArray[Any], units: Sequence[str]) -> float:
    """Return how alike values (n,) of one unit are: 0 as any two, 1 all equal (intraclass correlation, by ANOVA).

    Values that do not vary at all tell nothing, which counts as 1; units of one value each have nothing to be alike: 0.
    1, 1, 0, 0 in the units a, a, b, b give 1; in a, b, a, b they give 0.
    """
    count, groups = len(values), len(set(units))
    if groups == count or groups < 2:
        return 0.0 if groups == count else 1.0
    if np.ptp(values) == 0:
        return 1.0
    unit = number_groups(units)
    sizes = np.bincount(unit)
    means = np.bincount(unit, weights=values) / sizes
    between = float((sizes * (means - np.mean(values)) ** 2).sum()) / (groups - 1)
    within = float(((values - means[unit]) ** 2).sum()) / (count - groups)
    usual = (count - float((sizes**2).sum()) / count) / (groups - 1)
    return max((between - within) / (between + (usual - 1) * within), 0.0)
