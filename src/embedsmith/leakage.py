"""Leakage: what a set has of an evaluation set. Texts: the same, nearly, or inside a longer one; and rows of texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedsmith.examples import Example, texts_of
from embedsmith.signatures import NearTexts
from embedsmith.text import count_words, normalize, runs_of

GRAM = 8  # words in a row, or 16 signs without spaces, that two people rarely write by chance
COVERED = 0.7  # share of an evaluation text's runs of 8 words from which on it counts as contained (PaLM, 2204.02311)
TIMES = 4  # an evaluation text leaks into one of at most so many times its words (a greeting around it, no document)
DOCUMENT = 50  # evaluation texts of so many words leak by a share of their runs, shorter ones only as a whole


# ── Texts


@dataclass(frozen=True, slots=True)
class Leak:
    """A text that is in an evaluation set.

    Attributes:
        how: "exact" (in normal form), "near" (trigram Jaccard ≥ .9, same numbers and negations) or "8-gram" (70% of
            the evaluation text's runs of eight words stand in the text; two signs of a writing without spaces are one).
        evaluation: the text of the evaluation set.
        closeness: Jaccard, or the share of the runs; 1 where exact.
    """

    text: str
    how: str
    evaluation: str
    closeness: float

    def __str__(self) -> str:
        match self.how:
            case "exact":
                return f"the same text is in the evaluation set: “{self.evaluation}”"
            case "near":
                return f"Jaccard {self.closeness:.2f} with “{self.evaluation}”"
        return f"has {self.closeness:.0%} of the runs of {GRAM} words of “{self.evaluation}”"


class LeakIndex:
    """Finds evaluation texts in other texts. Holds the evaluation texts, 12 bytes a word and 8 to 128 a text of them.

    Args:
        same_kind: texts are made to be like the evaluation texts, questions beside questions. Then a document may quote
            a question, and of a question the whole must stand in another: of 482 real questions that share
            70% of one's runs, nearly all ask the same of another thing ("… compare to Paraguay's", "… to Uruguay's").

    >>> index = LeakIndex(["How do I roll back a failed migration in production?"])
    >>> index.find("Hello, how do I roll back a failed migration in production? Thanks").how
    '8-gram'
    """

    def __init__(self, texts: Iterable[str], *, same_kind: bool = False) -> None:
        self._texts = list(dict.fromkeys(text for text in texts if text.strip()))
        self._same_kind = same_kind
        self._exact = {normalize(text): text for text in reversed(self._texts)}
        self._near = NearTexts(self._texts.__getitem__)
        for text in self._texts:
            self._near.add(text)
        self._runs = _Runs(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def find(self, text: str) -> Leak | None:
        """Return the first leak of `text`, the surest way of finding it first; None where there is none."""
        exact = self._exact.get(normalize(text))
        if exact is not None:
            return Leak(text, "exact", exact, 1.0)
        near = self._near.find(text)
        if near is not None:
            return Leak(text, "near", self._texts[near[0]], near[1])
        held = self._runs.find(text, same_kind=self._same_kind)
        return None if held is None else Leak(text, "8-gram", self._texts[held[0]], held[1])


class _Runs:
    """The runs of eight words of all texts, as sorted hashes with the places of their texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        runs = [_hash_runs(text) for text in texts]
        self._sizes = [len(own) for own in runs]
        self._words = [count_words(text) if size else 0 for text, size in zip(texts, self._sizes, strict=True)]
        hashes = np.concatenate([*runs, np.empty(0, dtype=np.int64)])
        places = np.repeat(np.arange(len(texts), dtype=np.int32), self._sizes)
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._places = hashes[order], places[order]

    def find(self, text: str, *, same_kind: bool) -> tuple[int, float] | None:
        """Return (place, share) of the text whose runs stand in `text` most completely, the first of equals."""
        asked = _hash_runs(text) if len(self._hashes) else self._hashes
        starts = np.searchsorted(self._hashes, asked, side="left")
        ends = np.searchsorted(self._hashes, asked, side="right")
        hit = np.flatnonzero(ends > starts)
        if not len(hit):
            return None
        met = np.concatenate([self._places[starts[at] : ends[at]] for at in hit])
        places, counts = np.unique(met, return_counts=True)
        longest = count_words(text)
        shares = {
            place: count / self._sizes[place]
            for place, count in zip(places.tolist(), counts.tolist(), strict=True)
            if not same_kind or longest <= TIMES * self._words[place]
        }
        whole = {place for place in shares if same_kind and self._words[place] < DOCUMENT}
        held = [place for place, share in shares.items() if share >= (1 if place in whole else COVERED)]
        best = max(held, key=lambda place: (shares[place], -place), default=None)
        return None if best is None else (best, shares[best])


def _hash_runs(text: str) -> NDArray[np.int64]:
    """Return a number for each distinct run; Python's hash of a string has 64 bits and a key of its own a process."""
    runs = set(map(hash, runs_of(text, GRAM)))
    return np.fromiter(runs, dtype=np.int64, count=len(runs))


# ── Rows


@dataclass(frozen=True, slots=True)
class SharedRows:
    """What held-out rows share with training rows.

    A row is one or more pairs that are compared (two texts; the anchor with its positive, and with each negative), and
    it is trained on when a training row has one of them, whatever the order and the label.

    Attributes:
        rows, texts: how many there are, of texts the distinct ones.
        same: numbers, from 1, of the rows that are trained on, compared in normal form.
        near: numbers of further rows that are trained on if near texts (`signatures`) count as the same.
        how: of the texts alone: how many are in the training set "exactly", "but for case and punctuation", "nearly".
    """

    rows: int
    texts: int
    same: tuple[int, ...]
    near: tuple[int, ...]
    how: Mapping[str, int]


def find_shared(examples: Sequence[Example], held_out: Sequence[Example]) -> SharedRows:
    """Return what the held-out rows share with the training rows `examples`."""
    written = {text for example in examples for text in texts_of(example)}
    texts = {text for example in held_out for text in texts_of(example)}
    forms = {text: normalize(text) for text in (*written, *texts)}
    kinds, reached = _match(
        {forms[text] for text in written}, list(dict.fromkeys(forms[text] for text in sorted(texts)))
    )
    same = {pair for example in examples for pair in _pairs(example, forms)}
    near = {_by_kind(pair, kinds) for pair in same}
    found: dict[str, list[int]] = {"same": [], "near": []}
    for number, row in enumerate(held_out, start=1):
        pairs = list(_pairs(row, forms))
        if not same.isdisjoint(pairs):
            found["same"].append(number)
        elif not near.isdisjoint(_by_kind(pair, kinds) for pair in pairs):
            found["near"].append(number)
    plain = {forms[text] for text in written}
    how = {
        "exactly": sum(text in written for text in texts),
        "but for case and punctuation": sum(text not in written and forms[text] in plain for text in texts),
        "nearly": sum(forms[text] not in plain and kinds[forms[text]] in reached for text in texts),
    }
    return SharedRows(len(held_out), len(texts), tuple(found["same"]), tuple(found["near"]), how)


def _match(trained: Iterable[str], held_out: Sequence[str]) -> tuple[dict[str, str], set[str]]:
    """Return, for each text that is near one of a kind, the first of that kind; and the kinds met in training.

    The kinds are those of the held-out texts; a training text near none of them stands for itself, and is left out.
    """
    first: list[str] = []
    index = NearTexts(first.__getitem__)
    kinds: dict[str, str] = {}
    for text in held_out:
        near = index.find_or_add(text)
        if near is None:
            first.append(text)
        kinds[text] = text if near is None else first[near[0]]
    reached = set()
    for text in trained:
        if text not in kinds and (near := index.find(text)) is not None:
            kinds[text] = first[near[0]]
        if text in kinds:
            reached.add(kinds[text])
    return kinds, reached


def _pairs(example: Example, forms: Mapping[str, str]) -> Iterator[frozenset[str]]:
    first, *others = (forms[text] for text in texts_of(example))
    return (frozenset((first, other)) for other in others or [first])


def _by_kind(pair: frozenset[str], kinds: Mapping[str, str]) -> frozenset[str]:
    return frozenset(kinds.get(text, text) for text in pair)
