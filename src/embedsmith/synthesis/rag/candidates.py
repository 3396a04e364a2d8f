"""Questions on their way through the filters: kept in a file between the steps, examples or rejections in the end."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
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


class Spool:
    """Candidates in a temporary file, read as often as needed, in the order in which they came."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="embedsmith-")
        self._path = Path(self._folder.name) / "candidates.jsonl"
        self._file = self._path.open("w", encoding="utf-8")

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._folder.cleanup()

    def add(self, candidate: Candidate) -> None:
        """Append a candidate."""
        self._file.write(json.dumps(asdict(candidate), ensure_ascii=False) + "\n")

    def __iter__(self) -> Iterator[Candidate]:
        self._file.flush()
        with self._path.open(encoding="utf-8") as lines:  # a handle of its own: two may read at once
            for line in lines:
                row = json.loads(line)
                positives = tuple((place, why) for place, why in row.pop("positives"))
                tuples: Any = {key: tuple(row.pop(key)) for key in ("sources", "answers", "asked", "evidence")}
                yield Candidate(**row, **tuples, positives=positives)


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
