"""What the recipe `rag` asks for, and which passages it asks about: a quota spread evenly over the documents.

Who comes first is decided by hashes of names, never by places in a list, and a document's own order is that of a
binary grid: so a larger quota goes on where the smaller one ended, and new documents only push back the last
passages of the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

from embedsmith.artifacts import fingerprint
from embedsmith.documents import Passage
from embedsmith.errors import require
from embedsmith.lexical import LexicalIndex
from embedsmith.metrics import top_places

STYLES = ("keyword", "natural", "conversational")
MULTI = "multi-passage"
Trip = Literal["either", "both", "encoder", "lexical", "off"]
RELATED = 50  # passages at the top of BM25, beside those of the same document, among which related ones are looked for
TRIPS = ("either", "both", "encoder", "lexical", "off")
_require = partial(require, action="change the plan of the recipe rag")


@dataclass(frozen=True, slots=True)
class RagPlan:
    """How many questions of which kind, about how many passages, and which of them are kept.

    Attributes:
        keyword, natural, conversational: questions of each style about a passage; one call asks for all of them.
        multi_passage: share of the chosen passages about which, and the next ones of the document, one further
            call asks for a question that needs all of them; 0 to 1.
        passages_per_multi: passages of such a question, 2 or 3.
        across: share of these questions for which, in the place of the next passages, those of other documents are
            taken that BM25 finds nearest, one a document; 0 to 1.
        quota: questions of single passages to ask for in all; None asks about every passage.
        seed: of the order in which documents and passages are taken.
        trip: which search has to bring the passage back for its question (`round trip`): the base encoder or BM25
            ("either"), "both", one of them, or "off".
        k_encoder, k_lexical: how near the top the passage has to be; among few passages, within their first fiftieth
            (but ten at least).
        further: whether other passages that also answer are looked for and become positives.
        k_further: how many passages at the top of either search are looked at for that.
        judge: whether an LLM says if the passages answer; it needs `judge_calls`, or takes the calls of the recipe.
        copied: words in a row shared with the passage from which a question counts as a copy, if they are
            `copied_share` of it.
        span_edits: one word in this many of a long answer span may differ from the passage; 0 for none.
        prompts: a prompts file of the user's own.

    Raises:
        ConfigurationError: a number out of its range.
    """

    keyword: int = 1
    natural: int = 1
    conversational: int = 1
    multi_passage: float = 0.1
    passages_per_multi: int = 2
    across: float = 0.0
    quota: int | None = None
    seed: int = 0
    trip: Trip = "either"
    k_encoder: int = 100
    k_lexical: int = 100
    further: bool = True
    k_further: int = 10
    judge: bool = False
    copied: int = 8
    copied_share: float = 0.75
    span_edits: int = 8
    prompts: Path | str | None = None

    def __post_init__(self) -> None:
        counts = self.styles
        _require(min(counts.values()) >= 0, f"{counts} questions a passage", "none below 0")
        _require(self.per_passage > 0, "no question for any passage", "at least one style with a question")
        _require(0 <= self.multi_passage <= 1, f"multi_passage = {self.multi_passage}", "a share from 0 to 1")
        _require(0 <= self.across <= 1, f"across = {self.across}", "a share from 0 to 1")
        _require(self.passages_per_multi in (2, 3), f"passages_per_multi = {self.passages_per_multi}", "2 or 3")
        _require(self.quota is None or self.quota > 0, f"a quota of {self.quota} questions", "at least one, or none")
        _require(self.trip in TRIPS, f"trip = {self.trip!r}", f"one of: {', '.join(TRIPS)}")
        for name in ("k_encoder", "k_lexical", "k_further", "copied"):
            _require(getattr(self, name) > 0, f"{name} = {getattr(self, name)}", "at least 1")
        _require(0 < self.copied_share <= 1, f"copied_share = {self.copied_share}", "a share above 0, at most 1")
        _require(self.span_edits >= 0, f"span_edits = {self.span_edits}", "0 or more")

    @property
    def styles(self) -> dict[str, int]:
        """Questions of each style about a passage."""
        return {"keyword": self.keyword, "natural": self.natural, "conversational": self.conversational}

    @property
    def needs_encoder(self) -> bool:
        """Whether the base encoder has a say."""
        return self.further or self.trip in ("either", "both", "encoder")

    @property
    def needs_words(self) -> bool:
        """Whether BM25 has a say."""
        return self.further or self.trip in ("either", "both", "lexical")

    def depths(self, passages: int) -> dict[str, int]:
        """Return how far down the passage may come, by search, among so many passages.

        >>> RagPlan().depths(300)["encoder"], RagPlan().depths(1_000_000)["encoder"]
        (10, 100)
        """
        most = max(passages // 50, 10)
        return {"encoder": min(self.k_encoder, most), "lexical": min(self.k_lexical, most)}

    @property
    def per_passage(self) -> int:
        """Questions that one call about one passage asks for."""
        return self.keyword + self.natural + self.conversational


def choose_passages(plan: RagPlan, passages: Sequence[Passage]) -> list[int]:
    """Return the places of the passages to ask about, in order: one of each document, then the next of each, …

    Documents that have enough passages get equally many, give or take one. The same passages and seed give the same
    order; a larger quota gives the same places and more.

    >>> files = [Passage(f"{name}{n}", "text", document=name) for name in "ab" for n in range(4)]
    >>> sorted(files[place].id for place in choose_passages(RagPlan(quota=12), files))
    ['a0', 'a2', 'b0', 'b2']
    """
    order = _take_turns(plan, passages)
    wanted = None if plan.quota is None else -(-plan.quota // plan.per_passage)
    return list(islice(order, wanted))


def _take_turns(plan: RagPlan, passages: Sequence[Passage]) -> Iterator[int]:
    documents: dict[str, list[int]] = {}
    for place, passage in enumerate(passages):
        documents.setdefault(passage.document, []).append(place)
    names = sorted(documents, key=lambda name: fingerprint([plan.seed, "document", name]))
    turns = [(documents[name], spread(len(documents[name]))) for name in names]
    while turns:
        left = []
        for own, order in turns:
            number = next(order, None)
            if number is not None:
                yield own[number]
                left.append((own, order))
        turns = left


def spread(count: int) -> Iterator[int]:
    """Yield 0 … count − 1 so that the first ones of any number lie evenly: the halves, then the quarters, …

    The grid is the next power of two, so that a document which grows a little keeps its order.

    >>> list(spread(6))
    [0, 4, 2, 1, 5, 3]
    """
    bits = max(count - 1, 0).bit_length()
    for number in range(1 << bits):
        place = int(f"{number:0{bits}b}"[::-1], 2) if bits else 0
        if place < count:
            yield place


def choose_sets(plan: RagPlan, passages: Sequence[Passage], chosen: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the places of the passages of each multi-passage question: a chosen one and those that go with it.

    These are the next ones of its document (at its end, the ones before), or for a share `across` of the questions the
    nearest of other documents by BM25. Whether a passage gets a question, and of which kind, are draws from its id
    alone. A passage that nothing goes with has none. No set comes twice.
    """
    drawn = [place for place in chosen if _draw(plan.seed, "multi", passages[place].id) < plan.multi_passage]
    if not drawn:
        return []
    abroad = {place for place in drawn if _draw(plan.seed, "across", passages[place].id) < plan.across}
    index = LexicalIndex([passage.text for passage in passages]) if abroad else None
    size = plan.passages_per_multi
    near = _take_neighbours(passages, drawn, size)
    sets: dict[frozenset[int], tuple[int, ...]] = {}
    for place in drawn:
        places = near[place] if index is None or place not in abroad else _take_related(index, passages, place, size)
        if places:
            sets.setdefault(frozenset(places), places)
    return list(sets.values())


def _take_neighbours(passages: Sequence[Passage], drawn: Sequence[int], size: int) -> dict[int, tuple[int, ...]]:
    """Return for each place its set within its document; () where the document has too few passages."""
    documents: dict[str, list[int]] = {}
    for place, passage in enumerate(passages):
        documents.setdefault(passage.document, []).append(place)
    turn = {place: number for own in documents.values() for number, place in enumerate(own)}
    sets: dict[int, tuple[int, ...]] = {}
    for place in drawn:
        own = documents[passages[place].document]
        start = min(turn[place], len(own) - size)
        sets[place] = tuple(own[start : start + size]) if start >= 0 else ()
    return sets


def _take_related(index: LexicalIndex, passages: Sequence[Passage], place: int, size: int) -> tuple[int, ...]:
    """Return a place and the nearest ones of other documents, one each; () where too few share a word with it."""
    scores = index.score(passages[place].text)
    found, seen = [place], {passages[place].document}
    for other in top_places(scores, RELATED + sum(passage.document in seen for passage in passages)).tolist():
        if scores[other] > 0 and passages[other].document not in seen:
            found.append(other)
            seen.add(passages[other].document)
        if len(found) == size:
            return tuple(found)
    return ()


def name_set(passages: Sequence[Passage], places: Sequence[int]) -> str:
    """Return why passages are asked about together: "neighbours" of one document, or "bm25" across documents."""
    return "neighbours" if len({passages[place].document for place in places}) == 1 else "bm25"


def _draw(seed: int, purpose: str, name: str) -> float:
    return int(fingerprint([seed, purpose, name]), 16) / 16**16
