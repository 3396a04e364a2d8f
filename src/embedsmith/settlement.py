"""Verdicts on pairs of texts, several on one pair among them: which of them counts.

A person's goes before a language model's, since a model errs and people are asked where it does; of equals the latest
counts, since whoever judges again knows what was said before. A pair is the same in both directions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from embedsmith.text import exact_form

PERSON = "person"
NOTED = {"label", "source", "judge", "marked"}  # columns by which a file of verdicts is recognised


@dataclass(frozen=True, slots=True)
class Verdict:
    """One verdict.

    Attributes:
        pair: what it is on (`pair_of`, and the tenant where tenants judge for themselves).
        label: 1 where one answer serves both, else 0. human: a person's. marked: Unix seconds.
    """

    pair: tuple[str, ...]
    label: int
    human: bool
    marked: float


def pair_of(left: str, right: str) -> tuple[str, str]:
    """Return the same for two texts in either order, and for texts that are one to the cache (`exact_form`)."""
    first, second = sorted((exact_form(left), exact_form(right)))
    return first, second


def verdict_in(row: Mapping[str, Any], left: str, right: str, label: int) -> Verdict:
    """Return the verdict in a row of a file; rows of older versions, which name no judge, are marks of people."""
    try:
        marked = float(row.get("marked") or 0.0)
    except (TypeError, ValueError, OverflowError):
        marked = 0.0
    known = marked if math.isfinite(marked) else 0.0  # NaN is how tables tell that there is none
    return Verdict(pair_of(left, right), label, (row.get("judge") or PERSON) == PERSON, known)


def settle(verdicts: Iterable[Verdict]) -> dict[tuple[str, ...], int]:
    """Return the label of each pair; of verdicts at the same time the later in order counts."""
    standing: dict[tuple[str, ...], Verdict] = {}
    for verdict in verdicts:
        held = standing.get(verdict.pair)
        if held is None or (verdict.human, verdict.marked) >= (held.human, held.marked):
            standing[verdict.pair] = verdict
    return {pair: verdict.label for pair, verdict in standing.items()}
