"""Questions on their way through the filters: kept in a file between the steps, examples or rejections in the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from embedsmith.documents import Passage
from embedsmith.examples import PositivePair, Provenance, Rejected
from embedsmith.synthesis.rag.plan import name_set

CHECKS = ("form", "reference", "span", "copy", "repeat", "leak")
SHOWN = 300  # characters of a passage in the evidence of a rejection


@dataclass(frozen=True, slots=True)
class Candidate:
    """A question on its way through the filters; `sources` are places of passages, `answers` their spans."""

    question: str
    style: str
    sources: tuple[int, ...]
    answers: tuple[str, ...]
    prompt: str
    model: str
    positives: tuple[tuple[int, str], ...] = ()  # further ones: (place, why)
    asked: tuple[int, ...] = ()  # places that only a judge can tell of
    evidence: tuple[str, ...] = ()


def candidate_from(row: Mapping[str, Any]) -> Candidate:
    """Return the candidate that `artifacts.plain` made the row of."""
    tuples: dict[str, Any] = {name: tuple(row[name]) for name in ("sources", "answers", "asked", "evidence")}
    return Candidate(**{**row, **tuples, "positives": tuple((place, why) for place, why in row["positives"])})


def to_examples(candidate: Candidate, passages: Sequence[Passage], seed: int | None) -> Iterator[PositivePair]:
    group = passages[candidate.sources[0]].id
    sources = [(place, "source", span) for place, span in zip(candidate.sources, candidate.answers, strict=True)]
    others = [(place, why, candidate.answers[0]) for place, why in candidate.positives]
    source = "+".join(passages[place].id for place in candidate.sources)
    trip = ("round-trip",) if candidate.evidence else ()
    several = len(candidate.sources) > 1
    together = (f"together={name_set(passages, candidate.sources)}",) if several else ()
    for place, why, span in [*sources, *others]:
        found = (f"style={candidate.style}", f"passage={passages[place].id}", f"positive={why}", f"span={span}")
        checks = (*CHECKS, *trip, *found, *together, *candidate.evidence)
        origin = Provenance(source, candidate.prompt, candidate.model, seed, checks)
        yield PositivePair(candidate.question, passages[place].text, group, origin)


def reject(reason: str, detail: str, candidate: Candidate, passages: Sequence[Passage]) -> Rejected:
    own = passages[candidate.sources[0]]
    about = {"style": candidate.style, "answer": " | ".join(candidate.answers), "passage": own.text[:SHOWN]}
    source = "+".join(passages[place].id for place in candidate.sources)
    return Rejected(reason, detail, candidate.question, source=source, context=about)


def read_evidence(provenance: Provenance) -> dict[str, str]:
    """Return what the filters found of an example: style, passage, positive, span, ranks.

    >>> read_evidence(Provenance("d7", "abc", "llm", checks=("form", "style=keyword", "rank.bm25=2")))
    {'style': 'keyword', 'rank.bm25': '2'}
    """
    pairs = (check.partition("=") for check in provenance.checks if "=" in check)
    return {name: value for name, _, value in pairs}
