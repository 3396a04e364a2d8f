"""The second step: a question among all other questions and all passages: repeats, round trip, further positives."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from embedsmith.artifacts import Spool
from embedsmith.documents import Passage
from embedsmith.encoder import Encoder
from embedsmith.examples import Rejected
from embedsmith.facts import find_changes
from embedsmith.synthesis.rag.candidates import SHOWN, Candidate, reject
from embedsmith.synthesis.rag.checks import answers_alike, answers_too
from embedsmith.synthesis.rag.plan import RagPlan
from embedsmith.synthesis.rag.search import Found, PassageSearch

NEARLY = (
    0.95  # share of the source's cosine from which a judge is asked about a passage; miners draw the line there, too
)
NAMES = {"encoder": "encoder", "lexical": "bm25"}  # in the evidence


@dataclass(frozen=True, slots=True)
class Repeat:
    """A question whose telling words other questions have, too."""

    question: str
    sources: tuple[int, ...]
    answers: tuple[str, ...]


Repeats = Mapping[int, Sequence[Repeat]]


def gather_repeats(waiting: Spool[Candidate], sums: array[int]) -> Repeats:
    """Return the questions by their sum where a sum comes more than once."""
    values, counts = np.unique(np.asarray(sums, dtype=np.uint64), return_counts=True)
    often = set(values[counts > 1].tolist())
    found: dict[int, list[Repeat]] = {}
    for total, candidate in zip(sums, waiting, strict=True):
        if total in often:
            found.setdefault(total, []).append(Repeat(candidate.question, candidate.sources, candidate.answers))
    return found


def place_candidates(
    plan: RagPlan,
    passages: Sequence[Passage],
    waiting: Spool[Candidate],
    sums: array[int],
    repeats: Repeats,
    encoder: Encoder | None,
    cache: Path | str | None,
) -> Iterator[Candidate | Rejected]:
    """Yield each candidate with its ranks and further positives, or why it cannot stay; in order."""
    texts = [passage.text for passage in passages]
    base = encoder if plan.needs_encoder else None
    search = PassageSearch(texts, base, cache=cache, lexical=plan.needs_words)
    pairs = zip(sums, waiting, strict=True)
    while block := list(islice(pairs, search.block)):
        found = [_settle_repeats(candidate, repeats.get(total, ()), passages) for total, candidate in block]
        rest = [item for item in found if isinstance(item, Candidate)]
        done = iter(_place(plan, passages, rest, search))
        for item in found:
            yield item if isinstance(item, Rejected) else next(done)


def _settle_repeats(
    candidate: Candidate, repeats: Sequence[Repeat], passages: Sequence[Passage]
) -> Candidate | Rejected:
    """Return the candidate with the passages of the same question as positives, or why it cannot stay."""
    repeats = [repeat for repeat in repeats if not find_changes(repeat.question, candidate.question)]
    elsewhere = [repeat for repeat in repeats if not set(repeat.sources) & set(candidate.sources)]
    for other in elsewhere:
        if not _alike(candidate, other, passages):
            shown = (
                f"“{other.question}” about {passages[other.sources[0]].id} has the answer “{other.answers[0][:SHOWN]}”"
            )
            return reject("ambiguous", shown, candidate, passages)
    if elsewhere and repeats[0].sources != candidate.sources and not set(repeats[0].sources) & set(candidate.sources):
        first = passages[repeats[0].sources[0]].id
        return reject(
            "duplicate-elsewhere", f"asked about {first}; both passages are its positives", candidate, passages
        )
    same = dict.fromkeys(place for other in elsewhere for place in other.sources)
    return replace(candidate, positives=tuple((place, "same question, same answer") for place in same))


def _alike(candidate: Candidate, other: Repeat, passages: Sequence[Passage]) -> bool:
    return answers_alike(
        candidate.answers[0], passages[candidate.sources[0]].text, other.answers[0], passages[other.sources[0]].text
    )


def _place(
    plan: RagPlan, passages: Sequence[Passage], candidates: Sequence[Candidate], search: PassageSearch
) -> Iterator[Candidate | Rejected]:
    """Yield each candidate with its ranks and further positives, or what the round trip says against it."""
    if not candidates:
        return
    questions = [candidate.question for candidate in candidates]
    sources = [candidate.sources for candidate in candidates]
    near = search.by_encoder(questions, sources, plan.k_further)
    worded = search.by_words(questions, sources, plan.k_further)
    for place, candidate in enumerate(candidates):
        own, lexical = near[place] if near else None, worded[place] if worded else None
        full = _find_further(plan, passages, candidate, own, lexical)
        yield _round_trip(plan, passages, full, own, lexical)


def _find_further(
    plan: RagPlan, passages: Sequence[Passage], candidate: Candidate, near: Found | None, worded: Found | None
) -> Candidate:
    """Return the candidate with the other passages that answer, and those about which a judge has to be asked."""
    known = {*candidate.sources, *(place for place, _ in candidate.positives)}
    top = dict.fromkeys([*(near.top if near else ()), *(worded.top if worded else ())])
    others = [place for place in top if place not in known]
    positives, asked = list(candidate.positives), []
    for place in others if plan.further and len(candidate.sources) == 1 else ():
        source = passages[candidate.sources[0]].text
        why = answers_too(candidate.question, candidate.answers[0], source, passages[place].text)
        if why is not None:
            positives.append((place, why))
        elif near and place in near.top and near.top_scores[near.top.index(place)] >= NEARLY * min(near.scores):
            asked.append(place)
    return replace(candidate, positives=tuple(positives), asked=tuple(asked))


def _round_trip(
    plan: RagPlan, passages: Sequence[Passage], candidate: Candidate, near: Found | None, worded: Found | None
) -> Candidate | Rejected:
    """Return the candidate, or a rejection if its passages do not come back.

    Other passages that answer as well do not count as being in the way. Of a question with several passages each
    has to come back, k times as far down as there are passages.
    """
    alike = {place for place, _ in candidate.positives}
    known = {"encoder": _worst_rank(near, alike), "lexical": _worst_rank(worded, alike)}
    ranks = {name: rank for name, rank in known.items() if rank is not None}
    evidence = tuple(f"rank.{NAMES[name]}={rank}" for name, rank in ranks.items())
    depths = plan.depths(len(passages))
    came = [
        rank <= depths[name] * len(candidate.sources)
        for name, rank in ranks.items()
        if plan.trip in ("either", "both", name)
    ]
    if not came or (all(came) if plan.trip == "both" else any(came)):
        return replace(candidate, evidence=evidence)
    best = near or worded
    above = passages[best.top[0]] if best and best.top else None
    shown = f"; first comes {above.id}: “{above.text[:SHOWN]}”" if above else ""
    return reject("round-trip", f"{', '.join(evidence)}{shown}", candidate, passages)


def _worst_rank(found: Found | None, alike: set[int]) -> int | None:
    """Return the lowest rank of the sources, passages that answer as well left out of the count."""
    if found is None:
        return None
    worst = max(range(len(found.ranks)), key=lambda number: found.ranks[number])
    before = zip(found.top, found.top_scores, strict=True)
    better = sum(place in alike and score > found.scores[worst] for place, score in before)
    return found.ranks[worst] - better
