"""What only the store in memory promises: expiry costs what expires, and keeps no more than it must."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import entry

from embedsmith.cache.stores import Entry, Order
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


@pytest.mark.parametrize("order", ["lru", "lfu", "size"])
def test_a_full_store_looks_at_all_entries_once(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, order: Order
) -> None:
    store.put([entry(f"{number:03}") for number in range(100)])
    full = store.count().bytes
    weighed: list[str] = []
    weigh = store._worth
    monkeypatch.setattr(store, "_worth", lambda one: weighed.append(one.id) or weigh(one))
    for number in range(100, 600):
        store.put([entry(f"{number:03}", created=float(number))])
        store.touch(f"{number:03}", float(number))
        assert store.evict(bytes=full, order=order) == 1
    assert len(weighed) <= 100 + 3 * 500  # each as it comes, as it goes, and after its use; 50,000 once


ACTS = st.one_of(
    st.tuples(st.just("put"), st.sampled_from("abcdefgh"), st.integers(0, 9)),
    st.tuples(st.just("touch"), st.sampled_from("abcdefgh"), st.integers(0, 9)),
    st.tuples(st.just("delete"), st.sampled_from("abcdefgh"), st.just(0)),
    st.tuples(st.just("evict"), st.sampled_from(["lru", "lfu", "size"]), st.integers(0, 6)),
    st.tuples(st.just("fit"), st.sampled_from(["lru", "lfu", "size"]), st.integers(0, 400)),
)


@given(st.lists(ACTS, max_size=60))
def test_the_order_of_evictions_is_that_of_all_entries_sorted(acts: list[tuple[str, str, int]]) -> None:
    store = MemoryStore(dimension=4, model="m")
    kept: dict[str, tuple[Entry, float, int]] = {}  # with last use and uses
    for act, name, number in acts:
        if act == "put":
            one = entry(name, created=float(number), answer="x" * (number % 3))
            store.put([one])
            kept[name] = (one, one.created, 0)
        elif act == "touch":
            store.touch(name, float(number))
            if name in kept:
                one, used, uses = kept[name]
                kept[name] = (one, max(used, float(number)), uses + 1)
        elif act == "delete":
            store.delete([name])
            kept.pop(name, None)
        else:
            worth = {"lru": lambda of: of[1], "lfu": lambda of: of[2], "size": lambda of: -of[0].size}[name]
            for going in sorted(kept, key=lambda id: (worth(kept[id]), kept[id][1], id)):
                held = len(kept) if act == "evict" else sum(one.size for one, _, _ in kept.values())
                if held > number:
                    del kept[going]
            store.evict(**{"entries" if act == "evict" else "bytes": number}, order=name)
        assert {one.id for one in store.scan()} == set(kept)


def test_entries_that_are_replaced_for_ever_leave_nothing_behind(store: MemoryStore) -> None:
    for number in range(5000):
        store.put([entry("the same", expires=1e9 + number)])
    assert len(store._ends) < 100
    store.evict(entries=0)
    for number in range(5000):
        store.put([entry("the same", expires=1e9 + number)])
    assert store._least is not None
    assert len(store._least) < 100
    assert store.expire(2e9) == 1
