"""Which of an anchor's neighbours become its negatives, and why the others do not. Pure: no encoder, no file."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from embedsmith.encoder import Embeddings
from embedsmith.mining.settings import MiningSettings
from embedsmith.mining.store import Places
from embedsmith.text import cut_trigrams, nearness, normalize

# What becomes of a candidate: each that the search gave is counted under exactly one of these.
REASONS = {
    "anchor": "the anchor itself",
    "positive": "a positive of the anchor",
    "same-group": "belongs to a row of the same group",
    "own-negative": "a negative that the row has already",
    "before-window": "nearer than the window begins",
    "below-minimum": "less similar than the minimum",
    "above-maximum": "more similar than the maximum",
    "relative": "at or above the share of the positive's similarity",
    "margin": "within the margin of the positive's similarity",
    "near-anchor": "a near-duplicate of the anchor",
    "near-positive": "a near-duplicate of a positive",
    "near-negative": "a near-duplicate of a negative that is taken already",
    "judged-positive": "the relabeller says that it answers: now a positive",
    "judged-unclear": "the relabeller is not sure",
}


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of an anchor before its neighbours are looked at; places are those of the corpus.

    Attributes:
        anchor: its text. positives: the texts of all its positives.
        itself, answers, group, negatives: places that can never become a negative: of the anchor's own text, of its
            positives, of what its group holds, of the negatives that its rows have.
        similarities: cosine of each positive.
    """

    anchor: str
    positives: tuple[str, ...]
    similarities: tuple[float, ...]
    itself: int | None = None
    answers: Collection[int] = ()
    group: Collection[int] = ()
    negatives: Collection[int] = ()


@dataclass(slots=True)
class Candidates:
    """An anchor's candidates in the order in which they are drawn; those that are no candidates are counted.

    Attributes:
        places, scores, ranks: of the candidates, in the order of drawing; rank 1 is the nearest.
        dropped: number by reason.
    """

    places: list[int]
    scores: list[float]
    ranks: list[int]
    dropped: Counter[str] = field(default_factory=Counter)


def screen(known: Known, places: Places, scores: Embeddings, settings: MiningSettings, *, judge: bool) -> Candidates:
    """Return the neighbours that pass the rules on places and similarities, in the order of drawing.

    Args:
        places, scores: the neighbours, nearest first; place -1 is none.
        judge: a relabeller follows. It takes the place of `relative` and `margin`, which can only guess.
    """
    limit = float("inf") if judge else settings.limit(rule(known.similarities, settings))
    dropped: Counter[str] = Counter()
    kept = []
    for rank, (place, score) in enumerate(zip(places.tolist(), scores.tolist(), strict=True), start=1):
        if place < 0:
            continue
        reason = _reason(known, place, rank, score, limit, settings)
        if reason:
            dropped[reason] += 1
        else:
            kept.append((place, score, rank))
    kept = [kept[index] for index in draw_order([score for _, score, _ in kept], known.anchor, settings)]
    return Candidates([row[0] for row in kept], [row[1] for row in kept], [row[2] for row in kept], dropped)


def rule(similarities: Sequence[float], settings: MiningSettings) -> float:
    """Return the positive's similarity that the limits are made from.

    Returns:
        The lowest (or the mean) of several positives.
    """
    return min(similarities) if settings.ruling == "lowest" else sum(similarities) / len(similarities)


def _reason(known: Known, place: int, rank: int, score: float, limit: float, settings: MiningSettings) -> str:
    """Return why a neighbour is no candidate, "" if it is one; what is known comes before what is measured."""
    for reason, places in (
        ("anchor", () if known.itself is None else (known.itself,)),
        ("positive", known.answers),
        ("same-group", known.group),
        ("own-negative", known.negatives),
    ):
        if place in places:
            return reason
    if rank < settings.window[0]:
        return "before-window"
    if settings.minimum is not None and score < settings.minimum:
        return "below-minimum"
    if settings.maximum is not None and score > settings.maximum:
        return "above-maximum"
    if limit == float("inf"):
        return ""
    positive = rule(known.similarities, settings)
    if settings.relative is not None and score >= positive - (1 - settings.relative) * abs(positive):
        return "relative"
    return "margin" if settings.margin is not None and score > positive - settings.margin else ""


def draw_order(scores: Sequence[float], anchor: str, settings: MiningSettings) -> list[int]:
    """Return the order in which candidates are taken; random orders follow from the seed and the anchor's text only.

    Weighted: the k-th largest of u^(1/w) is a draw without replacement with weights w (Efraimidis & Spirakis 2006);
    here log(-log u) − score/temperature, ascending, which is the same order without overflow.
    """
    if settings.sampling == "top":
        return list(range(len(scores)))
    draw = random.Random(hashlib.sha256(f"{settings.seed}\0{normalize(anchor)}".encode("utf-8", "replace")).digest())
    if settings.sampling == "uniform":
        return draw.sample(range(len(scores)), len(scores))
    chances = np.array([draw.random() for _ in scores])
    weights: NDArray[np.float64] = np.asarray(scores, dtype=np.float64) / settings.temperature
    return [int(index) for index in np.argsort(np.log(-np.log(np.clip(chances, 1e-300, 1 - 1e-16))) - weights)]


def walk(known: Known, candidates: Candidates, read: Callable[[int], str]) -> Iterator[tuple[int, str]]:
    """Yield (index, text) of the candidates that are near-duplicates of nothing known and of none yielded before.

    Texts are read one by one, as far as the caller goes: most candidates are never needed.
    """
    near = [("near-anchor", known.anchor)] + [("near-positive", text) for text in known.positives]
    seen = [(reason, text, cut_trigrams(text)) for reason, text in near]
    for index, place in enumerate(candidates.places):
        text = read(place)
        grams = cut_trigrams(text)
        reason = next((why for why, other, known_grams in seen if nearness(text, other, grams, known_grams)), "")
        if reason:
            candidates.dropped[reason] += 1
        else:
            seen.append(("near-negative", text, grams))
            yield index, text
