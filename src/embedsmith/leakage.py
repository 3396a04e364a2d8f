"""Leakage: texts of a set that an evaluation file has, too: the same, nearly the same, or inside a longer text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from embedsmith.text import NearIndex, normalize, words

GRAM = 8  # words in a row that two people rarely write by chance
COVERED = 0.7  # share of an evaluation text's runs of 8 words from which on it counts as contained (PaLM, 2204.02311)
NEAR = 0.9


@dataclass(frozen=True, slots=True)
class Leak:
    """A text that is in an evaluation set.

    Attributes:
        how: "exact" (in normal form), "near" (trigram Jaccard ≥ .9, same numbers and negations) or "8-gram" (70% of
            the evaluation text's runs of eight words stand in the text).
        evaluation: the text of the evaluation set.
        closeness: Jaccard, or the share of the runs; 1 where exact.
    """

    text: str
    how: str
    evaluation: str
    closeness: float


class LeakIndex:
    """Finds evaluation texts in other texts. Holds the evaluation texts only, never what is asked about.

    >>> index = LeakIndex(["How do I roll back a failed migration in production?"])
    >>> index.find("Hello, how do I roll back a failed migration in production? Thanks").how
    '8-gram'
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = list(dict.fromkeys(text for text in texts if text.strip()))
        self._exact = {normalize(text): text for text in reversed(self._texts)}
        self._near = NearIndex(self._texts, threshold=NEAR)
        self._runs: dict[str, list[int]] = {}
        self._sizes: list[int] = []
        for place, text in enumerate(self._texts):
            runs = set(_runs(text))
            self._sizes.append(len(runs))
            for run in runs:
                self._runs.setdefault(run, []).append(place)

    def __len__(self) -> int:
        return len(self._texts)

    def find(self, text: str) -> Leak | None:
        """Return the first leak of `text`, the surest way of finding it first; None where there is none."""
        exact = self._exact.get(normalize(text))
        if exact is not None:
            return Leak(text, "exact", exact, 1.0)
        near = self._near.find(text)
        if near is not None:
            return Leak(text, "near", near[1], near[2])
        return self._find_contained(text)

    def _find_contained(self, text: str) -> Leak | None:
        met: dict[int, int] = {}
        for run in set(_runs(text)):
            for place in self._runs.get(run, ()):
                met[place] = met.get(place, 0) + 1
        shares = {place: count / self._sizes[place] for place, count in met.items()}
        best = max(shares, key=lambda place: (shares[place], -place), default=None)
        if best is None or shares[best] < COVERED:
            return None
        return Leak(text, "8-gram", self._texts[best], shares[best])


def _runs(text: str) -> list[str]:
    found = words(text)
    return [" ".join(found[start : start + GRAM]) for start in range(len(found) - GRAM + 1)]
