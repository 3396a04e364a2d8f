"""Streams of requests with known right answers, and what a cache makes of them.

A stream is built from labelled pairs. Label 1 puts two questions into one *cluster* (one answer serves both,
and so on from pair to pair), label 0 keeps two clusters apart. Questions that any pair connects form a *unit*:
units are dealt to the halves whole, so that a near miss meets its twin, and intervals resample units.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedsmith.cache.decision import Policy, decide
from embedsmith.cache.stores import Entry, Match
from embedsmith.encoder import Embeddings
from embedsmith.text import normalize

Pair = tuple[str, str, int]
Served = NDArray[np.int64]  # by request: the place of the request whose answer was served, MISS or STORED
MISS, STORED = -1, -2
FLOOR = 0.3  # cosine below which no neighbour is looked at


@dataclass(frozen=True, slots=True)
class Stream:
    """Requests in the order in which they come.

    Attributes:
        texts: the requests; no two have the same normalised text. The first `stored` are in the cache beforehand.
        clusters: (n,) requests of one cluster have one answer. units: (n,) resampled together.
        apart: pairs of clusters that a label 0 keeps apart. denied: pairs of places that themselves have it.
    """

    texts: tuple[str, ...]
    stored: int
    clusters: NDArray[np.int64]
    units: NDArray[np.int64]
    apart: frozenset[tuple[int, int]]
    denied: frozenset[tuple[int, int]]

    @property
    def asked(self) -> NDArray[np.bool_]:
        """(n,) False for what was stored beforehand."""
        return np.arange(len(self.texts)) >= self.stored

    @property
    def repeats(self) -> NDArray[np.bool_]:
        """(n,) True where an earlier request has the same answer."""
        _, first = np.unique(self.clusters, return_index=True)
        new = np.zeros(len(self.texts), dtype=bool)
        new[first] = True
        return ~new & self.asked


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was served, judged; each (n,) over the requests asked.

    Attributes:
        right: served, and the stored question is of the same cluster.
        labelled: served wrongly, and a label 0 says so. unlabelled: of another cluster, which nobody judged.
        repeats: there was an earlier request with the same answer. units: resampled together.
    """

    right: NDArray[np.bool_]
    labelled: NDArray[np.bool_]
    unlabelled: NDArray[np.bool_]
    repeats: NDArray[np.bool_]
    units: NDArray[np.int64]

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """All that was not served rightly: the upper bound of what is wrong; `labelled` is the lower one."""
        return self.labelled | self.unlabelled


class _Sets:
    """Union-find over texts."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}

    def find(self, text: str) -> str:
        self._parents.setdefault(text, text)
        while self._parents[text] != text:
            self._parents[text] = self._parents[self._parents[text]]
            text = self._parents[text]
        return text

    def join(self, left: str, right: str) -> None:
        self._parents[self.find(left)] = self.find(right)


def build_streams(
    pairs: Sequence[Pair],
    *,
    first: Iterable[str] = (),
    without: Iterable[str] = (),
    halves: Mapping[str, str] | None = None,
    requests: int | None = None,
    seed: int = 0,
) -> dict[str, Stream]:
    """Return two streams that share no unit: "chosen" (to choose thresholds on) and "reported".

    Args:
        first: texts that are stored before the first request.
        without: texts whose whole unit is left out (those a model was trained on).
        halves: the half of each text, where the data have halves of their own; else units are dealt at random.
        requests: units are taken until a half has so many texts.
    """
    forms = {normalize(text): text for left, right, _ in pairs for text in (left, right)}
    before, banned = ({normalize(text) for text in texts} for texts in (first, without))
    own = {normalize(text): half for text, half in (halves or {}).items()}
    clusters, units = _Sets(), _Sets()
    for left, right, label in pairs:
        units.join(normalize(left), normalize(right))
        if label:
            clusters.join(normalize(left), normalize(right))
    members: dict[str, list[str]] = defaultdict(list)
    for text in forms:
        members[units.find(text)].append(text)
    whole = [texts for texts in members.values() if banned.isdisjoint(texts)]
    draw = np.random.default_rng(seed)
    dealt: dict[str, list[str]] = {"chosen": [], "reported": []}
    for place, unit in enumerate(draw.permutation(len(whole))):
        half = own.get(whole[unit][0], ("chosen", "reported")[place % 2])
        if requests is None or len(dealt[half]) < requests:
            dealt[half] += whole[unit]
    return {half: _order(texts, before, forms, clusters, units, pairs, draw) for half, texts in dealt.items()}


def _order(
    texts: list[str],
    before: set[str],
    forms: Mapping[str, str],
    clusters: _Sets,
    units: _Sets,
    pairs: Sequence[Pair],
    draw: np.random.Generator,
) -> Stream:
    """Return the texts as a stream in random order, those of `before` first."""
    shuffled = [texts[place] for place in draw.permutation(len(texts))]
    ordered = sorted(shuffled, key=lambda text: text not in before)
    place = {text: index for index, text in enumerate(ordered)}
    cluster_of = _number([clusters.find(text) for text in ordered])
    denied = {
        _sorted(place[normalize(left)], place[normalize(right)])
        for left, right, label in pairs
        if not label and normalize(left) in place and normalize(right) in place
    }
    return Stream(
        tuple(forms[text] for text in ordered),
        sum(text in before for text in ordered),
        cluster_of,
        _number([units.find(text) for text in ordered]),
        frozenset(_sorted(int(cluster_of[one]), int(cluster_of[other])) for one, other in denied),
        frozenset(denied),
    )


def _number(names: Sequence[str]) -> NDArray[np.int64]:
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def _sorted(one: int, other: int) -> tuple[int, int]:
    return (one, other) if one < other else (other, one)


def judge(stream: Stream, served: Served) -> Outcome:
    """Return what of the served answers was right, by the labels."""
    right, labelled, unlabelled = (np.zeros(len(served), dtype=bool) for _ in range(3))
    for place, answer in enumerate(served.tolist()):
        if answer < 0:
            continue
        ours, theirs = int(stream.clusters[place]), int(stream.clusters[answer])
        denied = _sorted(place, answer) in stream.denied
        right[place] = ours == theirs and not denied
        labelled[place] = denied or (ours != theirs and _sorted(ours, theirs) in stream.apart)
        unlabelled[place] = not right[place] and not labelled[place]
    asked = stream.asked
    return Outcome(right[asked], labelled[asked], unlabelled[asked], stream.repeats[asked], stream.units[asked])


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The earlier requests near each request, so that one pass over the stream serves every threshold.

    Attributes:
        near: for each request (place, cosine) of all earlier ones from FLOOR on, closest first.
        entries: the requests as a store would give them.
    """

    near: tuple[tuple[tuple[int, float], ...], ...]
    entries: tuple[Entry, ...]


def find_neighbours(stream: Stream, vectors: Embeddings) -> Neighbours:
    """Return the earlier neighbours of each request; `vectors` are (n, d) unit rows in its order."""
    near: list[tuple[tuple[int, float], ...]] = []
    for place, vector in enumerate(vectors):
        similarities = vectors[:place] @ vector
        found = np.flatnonzero(similarities >= FLOOR)
        found = found[np.argsort(-similarities[found], kind="stable")]
        near.append(tuple(zip(found.tolist(), similarities[found].tolist(), strict=True)))
    entries = tuple(
        Entry(str(place), "stream", "stream", text, str(place), vectors[place], 0.0)
        for place, text in enumerate(stream.texts)
    )
    return Neighbours(tuple(near), entries)


def replay(stream: Stream, neighbours: Neighbours, policy: Policy) -> Served:
    """Return what a cache under `policy` serves: a miss is stored, a hit is not."""
    served = np.full(len(stream.texts), STORED, dtype=np.int64)
    held = np.zeros(len(stream.texts), dtype=bool).tolist()
    for place, text in enumerate(stream.texts):
        answer = MISS if place >= stream.stored else STORED
        if answer == MISS:
            matches = _search(neighbours, place, held, policy.candidates)
            entry = decide(text, matches, policy).entry if matches else None
            answer = int(entry.answer) if entry is not None else MISS
        served[place] = answer
        held[place] = answer < 0
    return served


def _search(neighbours: Neighbours, place: int, held: Sequence[bool], count: int) -> list[Match]:
    """Return what a store would: the nearest that it holds, whatever the threshold."""
    found: list[Match] = []
    for other, similarity in neighbours.near[place]:
        if len(found) == count:
            break
        if held[other]:
            found.append(Match(neighbours.entries[other], similarity))
    return found


def drive(stream: Stream, look_up: Callable[[str], str | None], store: Callable[[str, str], object]) -> Served:
    """Return what a real cache serves; its answers are the places of the requests."""
    served = np.full(len(stream.texts), STORED, dtype=np.int64)
    for place, text in enumerate(stream.texts):
        answer = look_up(text) if place >= stream.stored else None
        if place >= stream.stored:
            served[place] = MISS if answer is None else int(answer)
        if answer is None:
            store(text, str(place))
    return served
