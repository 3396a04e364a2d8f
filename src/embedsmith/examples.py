"""Training and evaluation examples: five kinds of rows, told apart by their column names.

Column names are those of sentence-transformers; the order of columns never matters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a synthetic example comes from, so that every row can be traced and repeated."""

    source: str  # id of the row of the log
    prompt: str  # fingerprint of the exact prompt
    model: str
    seed: int | None = None
    checks: tuple[str, ...] = ()  # names of the filters it passed


@dataclass(frozen=True, slots=True)
class PositivePair:
    """Two texts that belong together (columns anchor, positive)."""

    anchor: str
    positive: str
    group: str | None = None
    provenance: Provenance | None = None


@dataclass(frozen=True, slots=True)
class Triplet:
    """An anchor, its positive and any number of negatives (columns anchor, positive, negative[s])."""

    anchor: str
    positive: str
    negatives: tuple[str, ...]
    group: str | None = None
    provenance: Provenance | None = None


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """Two texts and how close they are (columns sentence1, sentence2, score); any scale, higher is closer."""

    sentence1: str
    sentence2: str
    score: float
    group: str | None = None
    provenance: Provenance | None = None


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """Two texts, and 1 if one answer serves both, else 0 (columns sentence1, sentence2, label)."""

    sentence1: str
    sentence2: str
    label: int
    group: str | None = None
    provenance: Provenance | None = None


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text and its class (columns text, label)."""

    text: str
    label: str
    group: str | None = None
    provenance: Provenance | None = None


Example: TypeAlias = PositivePair | Triplet | ScoredPair | LabelledPair | LabelledText


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row or a candidate that is not used, and why."""

    reason: str  # a short kebab-case name that can be counted, e.g. "near-duplicate"
    detail: str = ""  # for people: "Jaccard .93 with paraphrase 1"
    text: str = ""
    file: str = ""
    line: int | None = None
    source: str | None = None  # id of the row of the log it was made from
    context: Mapping[str, str] = field(default_factory=dict)
