"""What it means for two texts to be the same, or nearly: normal form, trigrams, Jaccard, facts."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

WORD = re.compile(r"\w+(?:['’]\w+)*")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
NEGATIONS = frozenset({"no", "not", "never", "none", "nothing", "nobody", "without", "cannot", "neither", "nor"})
CLOSING = " \t\r\n.?!…。？！"
REMEMBERED = 400  # letters of a text whose trigrams are kept for the next question: 65,536 of them are a few hundred MB


def normalize(text: str) -> str:
    """Return `text` without differences that carry no meaning: NFKC, case, spaces, closing punctuation.

    >>> normalize("  How do I  FREEZE my card?? ")
    'how do i freeze my card'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().replace("’", "'").split()).rstrip(CLOSING)


def is_storable(text: str) -> bool:
    """Say whether UTF-8 and every store can hold `text`: no half characters (lone surrogates), no NUL."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def words(text: str) -> list[str]:
    """Return the words and numbers of the normal form, in order."""
    return WORD.findall(normalize(text))


def trigrams(text: str) -> frozenset[str]:
    """Return the character trigrams of the words, with one space at both ends; never empty.

    >>> sorted(trigrams("ab"))
    [' ab', 'ab ']
    """
    return _known_trigrams(text) if len(text) <= REMEMBERED else cut_trigrams(text)


def cut_trigrams(text: str) -> frozenset[str]:
    """Return `trigrams` of a text that is looked at once: nothing is kept for the next time."""
    padded = f" {' '.join(words(text))} "
    return frozenset(padded[start : start + 3] for start in range(max(len(padded) - 2, 1)))


_known_trigrams = lru_cache(maxsize=1 << 16)(cut_trigrams)


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Return shared over all elements, 0 to 1; two empty sets are equal."""
    if not left and not right:
        return 1.0
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)


def same_facts(left: str, right: str) -> bool:
    """Say whether both texts have the same numbers and as many negations.

    "in 30 days" and "in 60 days", "it works" and "it doesn't work" are close as strings and far apart
    as questions.
    """
    return _facts(left) == _facts(right)


def _facts(text: str) -> tuple[list[str], int]:
    plain = normalize(text)
    found = WORD.findall(plain)
    return sorted(NUMBER.findall(plain)), sum(word in NEGATIONS or word.endswith("n't") for word in found)


class NearIndex:
    """Finds the texts whose trigram sets are near a given one, exactly, without comparing all pairs.

    Two sets with Jaccard ≥ t share one of their first ⌊(1 − t)·size⌋ + 1 elements in any common order
    (prefix filtering: Chaudhuri et al. 2006), and their sizes differ by at most the factor t, so only
    the few sets that pass both are compared. With the order "rarest first" the shared elements are
    rare ones, and lists stay short.

    Args:
        texts: made findable at once.
        like: texts whose trigrams are counted to know the rare ones; default `texts`. Any choice gives
            the same answers, a fitting one gives them fast.
    """

    def __init__(self, texts: Iterable[str] = (), *, threshold: float = 0.9, like: Iterable[str] | None = None) -> None:
        self.threshold = threshold
        texts = list(texts)
        self._counts = Counter(gram for text in (texts if like is None else like) for gram in trigrams(text))
        self._texts: list[tuple[str, frozenset[str]]] = []
        self._places: dict[str, list[int]] = {}
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str) -> int:
        """Make `text` findable and return its place."""
        grams = trigrams(text)
        for gram in self._prefix(grams):
            self._places.setdefault(gram, []).append(len(self._texts))
        self._texts.append((text, grams))
        return len(self._texts) - 1

    def find(self, text: str) -> tuple[int, str, float] | None:
        """Return (place, text, Jaccard) of the first added text that is near `text` and has its facts."""
        grams = trigrams(text)
        near = {place for gram in self._prefix(grams) for place in self._places.get(gram, ())}
        for place in sorted(near):
            other, other_grams = self._texts[place]
            small, large = sorted((len(grams), len(other_grams)))
            if small < self.threshold * large:
                continue
            closeness = jaccard(grams, other_grams)
            if closeness >= self.threshold and same_facts(text, other):
                return place, other, closeness
        return None

    def _prefix(self, grams: frozenset[str]) -> list[str]:
        ordered = sorted(grams, key=lambda gram: (self._counts.get(gram, 0), gram))
        return ordered[: int((1 - self.threshold) * len(grams) + 1e-9) + 1]
