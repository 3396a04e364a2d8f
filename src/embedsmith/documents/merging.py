"""Near-duplicate passages merged into the first of their kind, in memory that a million of them fit into.

Near means what it means everywhere here (`embedsmith.text.NearIndex`): trigram Jaccard ≥ 0.9, the same numbers, as many
negations; and it is found exactly. `NearIndex` keeps the trigrams of all texts and is made for questions; passages have
ten times as many. Here each is 1,024 bits, which say exactly for most pairs that they are not near.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import IO

import numpy as np
from numpy.typing import NDArray

from embedsmith.documents.passages import NEAR_DUPLICATE, Passage, decode_row, encode_row
from embedsmith.examples import Rejected
from embedsmith.text import NUMBER, cut_trigrams, jaccard, normalize, same_facts

NEAR = 0.9
WORDS = 16  # of 64 bits
BITS = 64 * WORDS
FIRST_WORDS = 4
EVIDENCE = 300  # characters of the kept passage that a rejection quotes


def merge_near(rows: Iterable[Passage | Rejected], *, threshold: float = NEAR) -> Iterator[Passage | Rejected]:
    """Yield the passages of `rows`, the first of each kind with the ids of the others in `also`.

    Rejections pass at once, and each merged passage becomes one; the passages follow at the end, since only then it is
    known what was merged into them. Until then they lie in a temporary file.
    """
    also: dict[int, list[str]] = defaultdict(list)
    with tempfile.TemporaryFile("w+b") as handle:
        kept = _Kept(handle)
        index = _NearPassages(kept, threshold)
        for row in rows:
            found = None if isinstance(row, Rejected) else index.find_or_add(row)
            if isinstance(row, Rejected):
                yield row
            elif found is not None:
                place, closeness = found
                also[place].append(row.id)
                yield _describe_merger(row, kept[place], closeness)
        for place, passage in enumerate(kept):
            yield replace(passage, also=passage.also + tuple(also[place])) if place in also else passage


def _describe_merger(passage: Passage, first: Passage, closeness: float) -> Rejected:
    about = {"merged_into": first.id, "document": first.document, "text": first.text[:EVIDENCE]}
    detail = f"Jaccard {closeness:.2f} with {first.id}"
    return Rejected(NEAR_DUPLICATE, detail, passage.text, file=passage.document, source=passage.id, context=about)


class _Kept:
    """Passages on disk, by place."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self._starts: list[int] = []

    def __len__(self) -> int:
        return len(self._starts)

    def append(self, passage: Passage) -> None:
        self._starts.append(self._handle.seek(0, 2))
        self._handle.write(encode_row(passage).encode("utf-8") + b"\n")

    def __getitem__(self, place: int) -> Passage:
        self._handle.seek(self._starts[place])
        return decode_row(self._handle.readline().decode("utf-8"))

    def __iter__(self) -> Iterator[Passage]:
        self._handle.seek(0)
        for line in self._handle:
            yield decode_row(line.decode("utf-8"))


class _NearPassages:
    """Finds the first kept passage that is near a given one.

    Two sets A, B have Jaccard ≥ t exactly when |A Δ B| ≤ (1 − t)/(1 + t)·(|A| + |B|); 400 and 400, t = 0.9: 42.
    The bits that differ are never more than the elements that differ, so whatever differs in more bits is not near.
    Near passages have the same numbers, and sizes within the factor t: only such are compared at all.
    """

    def __init__(self, kept: _Kept, threshold: float) -> None:
        self._kept = kept
        self._threshold = threshold
        self._slack = (1 - threshold) / (1 + threshold)
        self._groups: dict[tuple[bytes, int], _Group] = defaultdict(_Group)

    def find_or_add(self, passage: Passage) -> tuple[int, float] | None:
        """Return (place, Jaccard) of the first near one; where there is none, keep the passage."""
        grams = cut_trigrams(passage.text)
        bits = _to_bits(grams)
        numbers = _digest_numbers(passage.text)
        step = int(math.log(len(grams), 1.05 / self._threshold))
        near = (self._groups.get((numbers, step + other)) for other in (-1, 0, 1))
        places = sorted(place for group in near if group for place in group.find(bits, len(grams), self._slack))
        for place in places:
            other = self._kept[place].text
            closeness = jaccard(grams, cut_trigrams(other))
            if closeness >= self._threshold and same_facts(passage.text, other):
                return place, closeness
        self._groups[numbers, step].add(len(self._kept), bits, len(grams))
        self._kept.append(passage)
        return None


class _Group:
    """Bits of passages with the same numbers and about as many trigrams, one row of `_bits` for each of the words.

    The first words alone tell nearly all apart, and stand in memory without gaps.
    """

    def __init__(self) -> None:
        self._places: list[int] = []
        self._bits: NDArray[np.uint64] = np.empty((WORDS, 1), dtype=np.uint64)
        self._sizes: NDArray[np.int32] = np.empty(1, dtype=np.int32)
        self._largest = 0

    def add(self, place: int, bits: NDArray[np.uint64], size: int) -> None:
        used = len(self._places)
        if used == len(self._sizes):
            self._bits = np.concatenate([self._bits, np.empty_like(self._bits)], axis=1)
            self._sizes = np.concatenate([self._sizes, np.empty_like(self._sizes)])
        self._bits[:, used], self._sizes[used] = bits, size
        self._places.append(place)
        self._largest = max(self._largest, size)

    def find(self, bits: NDArray[np.uint64], size: int, slack: float) -> list[int]:
        """Return the places that may be near, in order."""
        used = len(self._places)
        differing = np.zeros(used, dtype=np.uint16)
        for word in range(FIRST_WORDS):
            differing += np.bitwise_count(self._bits[word, :used] ^ bits[word])
        left = np.flatnonzero(differing <= int(slack * (self._largest + size) + 1e-9))
        differing = np.bitwise_count(self._bits[:, left] ^ bits[:, None]).sum(axis=0, dtype=np.uint16)
        near = left[differing <= slack * (self._sizes[left] + size) + 1e-9]
        return [self._places[at] for at in near]


def _to_bits(grams: Iterable[str]) -> NDArray[np.uint64]:
    number = 0
    for gram in grams:
        number |= 1 << (hash(gram) % BITS)  # which bit does not matter: what is found is compared exactly
    return np.frombuffer(number.to_bytes(BITS // 8, "little"), dtype=np.uint64)


def _digest_numbers(text: str) -> bytes:
    numbers = sorted(NUMBER.findall(normalize(text)))
    return hashlib.blake2b(json.dumps(numbers).encode(), digest_size=12).digest() if numbers else b""
