"""Near texts found exactly, among very many, in memory that does not grow with their length.

Near means: trigram Jaccard ≥ 0.9, the same numbers, as many negations. Each text becomes a signature of 64 to 1,024
bits; signatures that differ in too many bits prove that two texts are not near, and the few pairs that remain are
compared in full.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedsmith.text import NEAR, NUMBER, cut_trigrams, nearness, normalize

WORDS = 16  # of 64 bits: the most that a text has
BITS = 64 * WORDS
FIRST_WORDS = 4
SPARSE = 2  # bits for each trigram at least, so that two texts rarely agree by chance

Bits = NDArray[np.uint64]


class NearTexts:
    """Finds the first added text that is near a given one.

    Two sets A, B have Jaccard ≥ t exactly when |A Δ B| ≤ (1 − t)/(1 + t)·(|A| + |B|); 400 and 400, t = 0.9: 42.
    The bits that differ are never more than the elements that differ, so whatever differs in more bits is not near.
    Near texts have the same numbers, and sizes within the factor t: only such are compared at all.

    Args:
        text_at: returns an added text by its place (0, 1, … in the order of adding), from memory or from disk.
        apart: says of two near texts if they are none after all.
    """

    def __init__(
        self,
        text_at: Callable[[int], str],
        *,
        threshold: float = NEAR,
        apart: Callable[[str, str], object] = lambda _, __: False,
    ) -> None:
        self._text_at = text_at
        self._apart = apart
        self._threshold = threshold
        self._slack = (1 - threshold) / (1 + threshold)
        self._growth = 1.05 / threshold
        self._groups: dict[tuple[bytes, int], _Group] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def find(self, text: str) -> tuple[int, float] | None:
        """Return (place, Jaccard) of the first near text."""
        return self._find(text, _sign(text, self._growth))

    def add(self, text: str) -> None:
        """Make `text` findable; its place is the number of texts before it."""
        self._add(_sign(text, self._growth))

    def find_or_add(self, text: str) -> tuple[int, float] | None:
        """Return (place, Jaccard) of the first near text; where there is none, add this one."""
        signed = _sign(text, self._growth)
        found = self._find(text, signed)
        if found is None:
            self._add(signed)
        return found

    def _find(self, text: str, signed: _Signed) -> tuple[int, float] | None:
        near: list[int] = []
        folded: dict[int, Bits] = {}  # groups of one width ask for the same bits
        for step in (signed.step - 1, signed.step, signed.step + 1):
            group = self._groups.get((signed.numbers, step))
            if group is not None:
                if group.words not in folded:
                    folded[group.words] = _fold(signed.bits, group.words)
                near += group.find(folded[group.words], signed.size, self._slack)
        for place in sorted(near):
            other = self._text_at(place)
            closeness = nearness(text, other, cut_trigrams(text), cut_trigrams(other), self._threshold)
            if closeness and not self._apart(other, text):
                return place, closeness
        return None

    def _add(self, signed: _Signed) -> None:
        key = (signed.numbers, signed.step)
        if key not in self._groups:
            self._groups[key] = _Group(_count_words(self._growth ** (signed.step + 1)))
        group = self._groups[key]
        group.add(self._count, _fold(signed.bits, group.words), signed.size)
        self._count += 1


@dataclass(frozen=True, slots=True)
class _Signed:
    """What decides which texts a text is compared with: bits, number of trigrams and its step, a digest of numbers."""

    bits: Bits
    size: int
    step: int
    numbers: bytes


class _Group:
    """Bits of texts with the same numbers and about as many trigrams, one row of `_bits` for each of the words.

    The first words alone tell nearly all apart, and stand in memory without gaps.
    """

    def __init__(self, words: int) -> None:
        self.words = words
        self._places: list[int] = []
        self._bits: Bits = np.empty((words, 1), dtype=np.uint64)
        self._sizes: NDArray[np.int32] = np.empty(1, dtype=np.int32)
        self._largest = 0

    def add(self, place: int, bits: Bits, size: int) -> None:
        used = len(self._places)
        if used == len(self._sizes):
            self._bits = np.concatenate([self._bits, np.empty_like(self._bits)], axis=1)
            self._sizes = np.concatenate([self._sizes, np.empty_like(self._sizes)])
        self._bits[:, used], self._sizes[used] = bits, size
        self._places.append(place)
        self._largest = max(self._largest, size)

    def find(self, bits: Bits, size: int, slack: float) -> list[int]:
        """Return the places that may be near, in order."""
        used = len(self._places)
        differing = np.bitwise_count(self._bits[0, :used] ^ bits[0])
        if self.words >= FIRST_WORDS:
            differing = differing.astype(np.uint16)  # 256 bits may differ
        for word in range(1, min(self.words, FIRST_WORDS)):
            differing += np.bitwise_count(self._bits[word, :used] ^ bits[word])
        (left,) = (differing <= int(slack * (self._largest + size) + 1e-9)).nonzero()
        if not len(left):
            return []
        differing = np.bitwise_count(self._bits[:, left] ^ bits[:, None]).sum(axis=0, dtype=np.uint16)
        near = left[differing <= slack * (self._sizes[left] + size) + 1e-9]
        return [self._places[at] for at in near]


def _count_words(size: float) -> int:
    """Return how many words of 64 bits a text of `size` trigrams gets: a power of two, 60 have 2, 600 have 16."""
    return min(1 << max(math.ceil(math.log2(SPARSE * size / 64)), 0), WORDS)


def _fold(bits: Bits, words: int) -> Bits:
    """Return the bits as `words` words: two sets still differ in no more bits than elements."""
    folded: Bits = bits if words == WORDS else np.bitwise_or.reduce(bits.reshape(-1, words), axis=0)
    return folded


def _sign(text: str, growth: float) -> _Signed:
    grams = cut_trigrams(text)
    step = int(math.log(len(grams), growth))
    return _Signed(_to_bits(grams), len(grams), step, _digest_numbers(text))


def _to_bits(grams: Collection[str]) -> Bits:
    """Return one bit a trigram; which one does not matter, since what is found is compared itself."""
    flags = np.zeros(BITS, dtype=np.bool_)
    flags[np.fromiter(map(hash, grams), dtype=np.int64, count=len(grams)) % BITS] = True
    return np.packbits(flags, bitorder="little").view("<u8")


def _digest_numbers(text: str) -> bytes:
    numbers = sorted(NUMBER.findall(normalize(text)))
    return hashlib.blake2b(json.dumps(numbers).encode(), digest_size=12).digest() if numbers else b""
