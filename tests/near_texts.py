"""What a search for near texts has to find: every pair compared, nothing left out."""

from __future__ import annotations

from collections.abc import Sequence

from embedsmith.text import jaccard, same_facts, trigrams


def compare_all(texts: Sequence[str], text: str, threshold: float = 0.9) -> tuple[int, float] | None:
    """Return (place, Jaccard) of the first of `texts` that is near `text`."""
    for place, other in enumerate(texts):
        closeness = jaccard(trigrams(text), trigrams(other))
        if closeness >= threshold and same_facts(text, other):
            return place, closeness
    return None
