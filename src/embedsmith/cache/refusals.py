"""Pairs of which a person has said that one answer does not serve both: the cache does not join them again.

Removing the entry is not enough: the question that was answered wrongly is asked of the upstream and stored, and then
the other one finds it. The pairs come from the feedback file (which is what makes them last), those marked since then
are in memory; a server without such a file forgets them when it ends, and those that share one hear of each other's
with their next lookup, a second later at most.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from embedsmith.cache.feedback import Judged, settle_rows
from embedsmith.cache.stores import Match
from embedsmith.settlement import PERSON, pair_of

ROOM = 50_000  # pairs: 16 bytes and a dictionary's place for each, some 8 MB


class Refusals:
    """The pairs of one model, by namespace, in either direction. Safe for threads; beyond `room` the oldest go."""

    def __init__(self, room: int = ROOM) -> None:
        self._room = room
        self._lock = threading.Lock()
        self._pairs: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pairs)

    def recall(self, rows: Sequence[Judged], model: str) -> None:
        """Take the verdicts of people on what `model` has joined."""
        people = settle_rows([row for row in rows if row.judge == PERSON and row.model == model])
        for row in people:
            self.note(row.sentence1, row.sentence2, row.label, row.namespace)

    def note(self, left: str, right: str, label: int, namespace: str) -> None:
        """Take note of a person's verdict: 0 refuses the pair, 1 allows it again."""
        key = _key_of(left, right, namespace)
        with self._lock:
            self._pairs.pop(key, None)
            if label == 0:
                self._pairs[key] = None
            while len(self._pairs) > self._room:
                self._pairs.popitem(last=False)

    def among(self, text: str, matches: Iterable[Match], namespace: str) -> frozenset[str]:
        """Return the ids of the entries that must not answer `text`."""
        if not self._pairs:
            return frozenset()
        entries = (match.entry for match in matches)
        return frozenset(entry.id for entry in entries if _key_of(text, entry.text, namespace) in self._pairs)


def _key_of(left: str, right: str, namespace: str) -> bytes:
    told = "\0".join((namespace, *pair_of(left, right)))  # no text holds NUL
    return hashlib.blake2b(told.encode("utf-8", "surrogatepass"), digest_size=16).digest()
