"""The store for tests, notebooks and single processes: everything in this process, gone with it."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterator, Sequence
from functools import partial

from embedsmith.cache.stores import AHEAD, Counts, Entry, Match, Order, check_vector, is_within
from embedsmith.cache.stores.index import VectorIndex
from embedsmith.cache.stores.ranking import rank
from embedsmith.encoder import Embeddings

SPARE = 64  # expiries and worths of entries that are gone, at least, until these are dropped
Worth = tuple[float, float, str, int]  # by the order of eviction, last use, id, key


class MemoryStore:
    """Entries in a dictionary, vectors in a `VectorIndex`; one lock."""

    local = True

    def __init__(self, *, dimension: int, model: str) -> None:
        self.url, self.dimension, self.model = "memory://", dimension, model
        self._lock = threading.RLock()
        self._index = VectorIndex(dimension)
        self._entries: dict[str, Entry] = {}
        self._keys: dict[str, int] = {}  # id -> key in the index
        self._ids: dict[int, str] = {}
        self._uses: dict[str, tuple[float, int]] = {}  # id -> last use, number of uses
        self._ends: list[tuple[float, int]] = []  # a heap of expiries and keys, of replaced entries too
        # A heap of worths for one order, from the first eviction on. A worth only grows while its entry lives, so each
        # stands here as it was at some time: the least is looked at again before it goes.
        self._latest = float("-inf")  # no use is later
        self._order: Order = "lru"
        self._least: list[Worth] | None = None
        self._next = 0
        self._bytes = 0  # of all entries

    def get(self, id: str, now: float) -> Entry | None:
        entry = self._entries.get(id)
        return entry if entry is not None and entry.alive(now) else None

    def search(self, partition: str, vector: Embeddings, k: int, now: float, *, floor: float = -1.0) -> list[Match]:
        vector = check_vector(vector, self.dimension)
        with self._lock:
            return rank(vector, k, now, partial(self._near, partition, vector), floor=floor)

    def _near(self, partition: str, vector: Embeddings, count: int, floor: float) -> list[Entry]:
        keys = self._index.nearest(partition, vector, count, floor=floor)
        return [self._entries[self._ids[key]] for key in keys]

    def put(self, entries: Sequence[Entry]) -> None:
        checked = [check_vector(entry.vector, self.dimension) for entry in entries]
        with self._lock:
            for entry, vector in zip(entries, checked, strict=True):
                self._remove([entry.id])
                self._entries[entry.id] = entry
                self._bytes += entry.size
                self._keys[entry.id], self._ids[self._next] = self._next, entry.id
                self._uses[entry.id] = (entry.created, 0)
                self._latest = max(self._latest, entry.created)
                self._index.add(entry.partition, [self._next], vector[None])
                if entry.expires is not None:
                    heapq.heappush(self._ends, (entry.expires, self._next))
                if self._least is not None:
                    heapq.heappush(self._least, self._worth(entry))
                self._next += 1
            self._drop_gone()

    def _drop_gone(self) -> None:
        most = 2 * len(self._entries) + SPARE
        if len(self._ends) > most:
            self._ends = [end for end in self._ends if end[-1] in self._ids]
            heapq.heapify(self._ends)
        if self._least is not None and len(self._least) > most:
            self._least = [worth for worth in self._least if worth[-1] in self._ids]
            heapq.heapify(self._least)

    def touch(self, id: str, now: float) -> None:
        with self._lock:
            if id in self._uses:
                used, uses = self._uses[id]
                self._uses[id] = (max(used, now), uses + 1)
                self._latest = max(self._latest, now)

    def delete(self, ids: Sequence[str]) -> int:
        with self._lock:
            return self._remove(ids)

    def purge(self, *, namespace: str | None = None, tag: str | None = None) -> int:
        with self._lock:
            return self._remove(
                [
                    entry.id
                    for entry in self._entries.values()
                    if (namespace is None or is_within(entry.namespace, namespace))
                    and (tag is None or tag in entry.tags)
                ]
            )

    def expire(self, now: float) -> int:
        with self._lock:
            if self._latest > now + AHEAD:
                self._move_back(now)
            ended = []
            while self._ends and self._ends[0][0] <= now:
                ended.append(heapq.heappop(self._ends)[1])
            return self._remove([self._ids[key] for key in ended if key in self._ids])

    def _move_back(self, now: float) -> None:
        latest = max((used for used, _ in self._uses.values()), default=now)
        for id, (used, uses) in self._uses.items():
            if used > now + AHEAD:
                self._uses[id] = (used - (latest - now), uses)
        self._latest, self._least = now + AHEAD, None  # worths have become less

    def evict(self, *, entries: int | None = None, bytes: int | None = None, order: Order = "lru") -> int:
        with self._lock:
            if not self._exceeds(entries, bytes):
                return 0
            before = len(self._entries)
            least = self._order_by(order)
            while self._exceeds(entries, bytes):
                id = self._ids.get(least[0][-1])
                worth = self._worth(self._entries[id]) if id is not None else None
                if worth is None or worth == least[0]:
                    heapq.heappop(least)
                    self._remove([id] if id is not None else [])
                else:
                    heapq.heapreplace(least, worth)  # it was used meanwhile
            return before - len(self._entries)

    def _order_by(self, order: Order) -> list[Worth]:
        """Return the heap of worths for an order; another one than before looks at all entries."""
        if self._least is None or order != self._order:
            self._order = order
            self._least = [self._worth(entry) for entry in self._entries.values()]
            heapq.heapify(self._least)
        return self._least

    def _exceeds(self, entries: int | None, bytes: int | None) -> bool:
        return (entries is not None and len(self._entries) > entries) or (bytes is not None and self._bytes > bytes)

    def _worth(self, entry: Entry) -> Worth:
        used, uses = self._uses[entry.id]
        by = used if self._order == "lru" else uses if self._order == "lfu" else -entry.size
        return by, used, entry.id, self._keys[entry.id]

    def count(self, namespace: str | None = None) -> Counts:
        with self._lock:
            if namespace is None:
                return Counts(len(self._entries), self._bytes)
            found = [entry.size for entry in self._entries.values() if entry.namespace == namespace]
        return Counts(len(found), sum(found))

    def scan(self, namespace: str | None = None, *, newest: bool = False) -> Iterator[Entry]:
        with self._lock:
            found = [entry for entry in self._entries.values() if namespace in (None, entry.namespace)]
        yield from sorted(found, key=lambda entry: (entry.created, entry.id), reverse=newest)

    def close(self) -> None:
        with self._lock:
            self._remove(list(self._entries))

    def _remove(self, ids: Sequence[str]) -> int:
        gone = [entry for entry in (self._entries.pop(id, None) for id in ids) if entry is not None]
        for entry in gone:
            key = self._keys.pop(entry.id)
            del self._ids[key], self._uses[entry.id]
            self._index.remove(entry.partition, [key])
            self._bytes -= entry.size
        return len(gone)
