"""Near duplicates among very many texts, in memory that the plan fixes beforehand.

MinHash (Broder 1997): the share of equal minima of two texts' trigram sets under many hash functions estimates their
Jaccard. 64 functions, kept as one byte each; texts that agree in one of 8 bands of 8 are compared. Of pairs with
Jaccard J, 1 − (1 − J⁸)⁸ meet in a band: 99.98% at .95, 98.9% at .9, 38% at .7; and of those, at least 55 of the 64
functions agree (binomial tail) for 99.9% at .95, 90% at .9, 0.25% at .7. So of pairs at .9, 89% are found.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from embedsmith.text import NUMBER, normalize

FUNCTIONS, BANDS = 64, 8
EQUAL = 55  # of the functions: a Jaccard of about .86
SLOTS = 1 << 20  # at least, so that verdicts up to 262,144 texts do not depend on how many are expected
LONGEST = 4000  # characters of a text that are looked at
_rng = np.random.default_rng(20240101)  # part of the method: the same functions in every run
_SLOPES = _rng.integers(0, 1 << 63, FUNCTIONS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_SHIFTS = _rng.integers(0, 1 << 63, FUNCTIONS, dtype=np.uint64)

# One byte a function, a place a band, numbers of the text, the text.
_Description: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.int64], int, int]


class SeenTexts:
    """Tells whether a text is the same as, or nearly the same as, one that was added before.

    Texts with other numbers are never near. There is room for `expected` texts at 200 to 330 bytes each (33 MB at
    least), taken from the system as it fills; where more come, older ones are forgotten, so memory never grows beyond
    that. A full table has lost a fifth of its entries to newer ones at most, which leaves six bands of eight.
    """

    def __init__(self, expected: int) -> None:
        rows = max(expected, 16)
        slots = max(4 << (rows - 1).bit_length(), SLOTS)
        self._tables: NDArray[np.int32] = np.zeros((BANDS, slots), dtype=np.int32)  # row + 1; 0 is empty
        self._signatures: NDArray[np.uint8] = np.zeros((rows, FUNCTIONS), dtype=np.uint8)
        self._facts: NDArray[np.uint32] = np.zeros(rows, dtype=np.uint32)
        self._exact: NDArray[np.uint64] = np.zeros(rows, dtype=np.uint64)
        self._count = 0
        self._last: tuple[str, _Description] | None = None  # find and add follow one another

    def find(self, text: str) -> str:
        """Return "duplicate" or "near-duplicate" if such a text was added, else ""."""
        if not self._count:
            return ""
        signature, places, facts, exact = self._describe(text)
        rows = self._tables[np.arange(BANDS), places]
        rows = np.unique(rows[rows > 0]) - 1
        if (self._exact[rows] == exact).any():
            return "duplicate"
        rows = rows[self._facts[rows] == facts]
        near = (self._signatures[rows] == signature).sum(axis=1) >= EQUAL
        return "near-duplicate" if near.any() else ""

    def add(self, text: str) -> None:
        """Make `text` findable."""
        signature, places, facts, exact = self._describe(text)
        row = self._count % len(self._signatures)
        self._signatures[row], self._facts[row], self._exact[row] = signature, facts, exact
        self._tables[np.arange(BANDS), places] = row + 1
        self._count += 1

    def _describe(self, text: str) -> _Description:
        if self._last is None or self._last[0] != text:
            self._last = text, self._hash(text)
        return self._last[1]

    def _hash(self, text: str) -> _Description:
        plain = normalize(text)
        minima = _minima(plain[:LONGEST])
        bands = minima.reshape(BANDS, -1)
        slots = self._tables.shape[1]
        places = np.array([zlib.crc32(band.tobytes()) % slots for band in bands], dtype=np.int64)
        facts = zlib.crc32(" ".join(sorted(NUMBER.findall(plain))).encode())
        exact = int.from_bytes(_digest(plain), "little")
        return (minima & np.uint64(255)).astype(np.uint8), places, facts, exact


def _minima(text: str) -> NDArray[np.uint64]:
    """Return the minimum of each hash function over the text's trigrams, (FUNCTIONS,), 32 bits each.

    Multiply-shift (Dietzfelbinger et al. 1997): the high half of a·x + b modulo 2⁶⁴, a odd.
    """
    signs = np.frombuffer(f"  {text} ".encode("utf-32-le", "replace"), dtype=np.uint32).astype(np.uint64)
    grams = np.unique(signs[:-2] << np.uint64(42) ^ signs[1:-1] << np.uint64(21) ^ signs[2:])
    grams = (grams ^ grams >> np.uint64(31)) * np.uint64(0x9E3779B97F4A7C15)  # spreads the bits of the signs
    grams ^= grams >> np.uint64(29)
    lowest: NDArray[np.uint64] = (_SLOPES[:, None] * grams + _SHIFTS[:, None]).min(axis=1)
    return lowest >> np.uint64(32)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
