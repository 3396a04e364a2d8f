"""What only the store in memory promises: expiry costs what expires, and keeps no more than it must."""

from __future__ import annotations

import pytest
from places import entry

from embedsmith.cache.stores import Entry
from embedsmith.cache.stores.memory import MemoryStore


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(dimension=4, model="m")


def test_looking_for_what_has_expired_looks_at_no_other_entry(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put([entry(f"{number}", expires=float(number)) for number in range(100)])
    looked: list[str] = []

    class Watched(dict[str, Entry]):
        def values(self):  # type: ignore[no-untyped-def]
            looked.append("all")
            return super().values()

    monkeypatch.setattr(store, "_entries", Watched(store._entries))
    assert [store.expire(float(now)) for now in (-1, 0, 9, 9)] == [0, 1, 9, 0]
    assert looked == []


def test_limits_that_are_kept_cost_no_look_at_the_entries(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put([entry(f"{number}") for number in range(10)])
    store.put([entry("3", answer="another, longer answer")])
    store.delete(["4", "none"])
    held = store.count()
    assert held == store.count(entry("3").namespace)  # which adds up what is there
    monkeypatch.setattr(store, "_worth", None)
    assert store.evict(entries=held.entries, bytes=held.bytes) == 0
    monkeypatch.undo()
    assert store.evict(bytes=held.bytes - 1) == 1
    store.close()
    assert (store.count().entries, store.count().bytes) == (0, 0)


def test_entries_that_are_replaced_for_ever_leave_nothing_behind(store: MemoryStore) -> None:
    for number in range(5000):
        store.put([entry("the same", expires=1e9 + number)])
    assert len(store._ends) < 100
    assert store.expire(2e9) == 1
