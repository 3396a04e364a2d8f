"""What every store promises, in one suite: memory, SQLite, Redis and PostgreSQL, the last two on real servers."""

from __future__ import annotations

import re
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import Place, describe, entry, find_place, ids, same, serve, units
from servers import start_redis
from typer.testing import CliRunner

from embedsmith.cache.options import ENDLESS
from embedsmith.cache.stores import (
    SCHEMA,
    Counts,
    Entry,
    Match,
    ModelMismatch,
    Order,
    Store,
    StoreError,
    kind_of,
    open_store,
    require_store,
)
from embedsmith.cache.stores.moving import open_move
from embedsmith.cli import app
from embedsmith.encoder import Embeddings
from embedsmith.errors import ConfigurationError, InputError, MissingPartError

ODD = (
    "plain",
    "",
    " leading and trailing ",
    "UPPER and upper",
    'it\'s "quoted" `so` \\ so',
    "line\nbreak\r\n\ttab",
    "a,b|c{d}[e](f)<g>@h:i*j%k~l-m_n/o?p=q&r#s;t!u$v^w+x",
    "Grüße, 日本語, 🦊, e\u0301, \u202eright to left",
    "'; drop table entries; --",
    "*)=>[KNN 1 @vector $v]",
    "%s {} %(id)s \x01\x7f",
)


@pytest.fixture
def store(place: Place) -> Store:
    return place.open()


def found(
    store: Store, id: str, vector: Sequence[float] = (1, 0, 0, 0), partition: str = "p", now: float = 1.0
) -> bool:
    return id in ids(store.search(partition, np.array(vector, dtype=np.float32), 1000, now))


# Put and get


def test_what_is_put_is_got_back_whole(store: Store) -> None:
    whole = entry(created=1763719492.1234567, expires=1763723092.7654321, tags=("x", "y"))
    store.put([whole])
    back = store.get("a", 1763719500.0)
    assert same(back, whole)
    assert back is not None
    assert back.vector.dtype == np.float32
    assert store.get("b", 0.0) is None


def test_nothing_can_be_put(store: Store) -> None:
    store.put([])
    assert store.count() == Counts(0, 0)


def test_the_same_id_replaces(store: Store) -> None:
    store.put([entry(namespace="old", partition="old", tags=("old",), text="a longer text than later", expires=9.0)])
    new = entry(vector=(0, 1, 0, 0), tags=("new",))
    store.put([new])
    assert same(store.get("a", 100.0), new)
    assert store.count() == Counts(1, new.size)
    assert store.count("old") == Counts(0, 0)
    assert not found(store, "a", partition="old")
    assert store.search("p", new.vector, 5, 100.0)[0].similarity == 1.0
    assert store.purge(tag="old") == 0
    assert store.purge(tag="new") == 1


def test_the_last_of_equal_ids_in_one_call_stays(store: Store) -> None:
    store.put([entry(answer="1"), entry("b"), entry(answer="2")])
    back = store.get("a", 1.0)
    assert back is not None
    assert back.answer == "2"
    assert store.count().entries == 2


@pytest.mark.parametrize("vector", [(1, 0, 0), (1, 0, 0, 0, 0), (float("nan"), 0, 0, 0), (float("inf"), 0, 0, 0)])
def test_a_wrong_vector_is_refused_and_nothing_is_written(store: Store, vector: Sequence[float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        store.put([entry("good"), entry("bad", vector)])
    with pytest.raises(ValueError, match="expected"):
        store.search("p", np.array(vector, dtype=np.float32), 1, 1.0)
    assert store.count().entries == 0


@pytest.mark.parametrize("field", ["id", "namespace", "partition", "text", "answer", "tags"])
def test_any_text_survives_in_every_field(store: Store, field: str) -> None:
    texts = [text for text in ODD if text or field not in {"id", "tags"}]  # an empty id or tag means nothing
    all_of_them = []
    for number, text in enumerate(texts):
        values: dict[str, Any] = {"id": f"e{number}", field: (text, "common") if field == "tags" else text}
        all_of_them.append(entry(**values))
    store.put(all_of_them)
    for one, text in zip(all_of_them, texts, strict=True):
        assert same(store.get(one.id, 1.0), one)
        assert one.id in ids(store.search(one.partition, one.vector, 50, 1.0))
        if field == "partition":
            assert ids(store.search(text, one.vector, 50, 1.0)) == [one.id]
        if field == "namespace":
            assert [other.id for other in store.scan(text)] == [one.id]
            assert store.count(text) == Counts(1, one.size)
            assert store.purge(namespace=text) == 1
        if field == "tags":
            assert store.purge(tag=text) == 1
        if field == "id":
            store.touch(text, 5.0)
            assert store.delete([text]) == 1


# Search


def test_a_search_never_leaves_its_partition(store: Store) -> None:
    names = ["p", "P", "p ", "pp", "p|q", "q", "p,q", "*", ""]
    store.put([entry(f"{number}", partition=name) for number, name in enumerate(names)])
    for number, name in enumerate(names):
        assert ids(store.search(name, entry().vector, 100, 1.0)) == [str(number)]
    assert store.search("unknown", entry().vector, 100, 1.0) == []


def test_the_closest_come_first_with_their_cosines(store: Store) -> None:
    store.put(
        [entry("far", (-1, 0, 0, 0)), entry("near", (0.6, 0.8, 0, 0)), entry("same"), entry("aside", (0, 0, 1, 0))]
    )
    matches = store.search("p", entry().vector, 10, 1.0)
    assert ids(matches) == ["same", "near", "aside", "far"]
    assert [match.similarity for match in matches] == pytest.approx([1.0, 0.6, 0.0, -1.0], abs=1e-7)
    assert all(same(match.entry, store.get(match.entry.id, 1.0)) for match in matches)


def test_equal_similarities_are_in_order_of_ids(store: Store) -> None:
    names = [f"{number:03}" for number in range(60)] + ["Z", "a", "ä", "\U0001f98a"]
    order = np.random.default_rng(0).permutation(len(names))
    store.put([entry(names[number]) for number in order] + [entry("0-other", (0, 1, 0, 0))])
    for k in (1, 5, 30, 64):
        assert ids(store.search("p", entry().vector, k, 1.0)) == names[:k]


def test_k_is_the_most(store: Store) -> None:
    store.put([entry(str(number), unit) for number, unit in enumerate(units(30, 4))])
    for k, expected in ((-1, 0), (0, 0), (1, 1), (29, 29), (1000, 30)):
        assert len(store.search("p", entry().vector, k, 1.0)) == expected


def closest(vectors: Embeddings, query: Embeddings, k: int) -> list[int]:
    cosines = vectors.astype(np.float64) @ query.astype(np.float64)
    return [int(row) for row in np.argsort(-cosines, kind="stable")[:k]]


def recall(store: Store, partition: str, vectors: Embeddings, queries: Embeddings, k: int = 10) -> float:
    """Return the share of the true neighbours that are found; the id of row 7 is PARTITION-7."""
    hits = 0
    for query in queries:
        true = {f"{partition}-{row}" for row in closest(vectors, query, k)}
        hits += len(true & {*ids(store.search(partition, query, k, 1.0))})
    return hits / (k * len(queries))


def test_neighbours_are_those_of_numpy(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store, vectors, queries = place.open(dimension=32), units(2000, 32), units(40, 32, seed=1)
    store.put([entry(f"large-{row}", vector, partition="large") for row, vector in enumerate(vectors)])
    store.put([entry(f"small-{row}", vector, partition="small") for row, vector in enumerate(vectors[:50])])

    assert recall(store, "large", vectors, queries) >= 0.99
    for query in queries:
        matches = store.search("small", query, 10, 1.0)
        assert ids(matches) == [f"small-{row}" for row in closest(vectors[:50], query, 10)]
        expected = [match.entry.vector.astype(np.float64) @ query.astype(np.float64) for match in matches]
        assert [match.similarity for match in matches] == pytest.approx(expected, abs=1e-6)

    module = sys.modules[type(store).__module__]
    if hasattr(module, "EXACT"):  # the graph alone, which larger partitions get
        monkeypatch.setattr(module, "EXACT", 0)
        monkeypatch.setattr(module, "RARE", 10**9, raising=False)
        assert recall(store, "large", vectors, queries) >= 0.99
        assert recall(store, "small", vectors[:50], queries) >= 0.99


def test_a_floor_leaves_out_nothing_above_it_and_never_the_closest(place: Place) -> None:
    store, vectors = place.open(dimension=32), units(300, 32)
    store.put([entry(f"{row:03}", vector) for row, vector in enumerate(vectors)])
    for query in units(20, 32, seed=1):
        whole = store.search("p", query, 10, 1.0)
        for floor in (-1.0, whole[5].similarity, whole[0].similarity, 0.999):
            above = [match for match in whole if match.similarity >= floor] or whole[:1]
            kept = store.search("p", query, 10, 1.0, floor=floor)
            assert ids(kept)[: len(above)] == ids(above)
            assert ids(kept) == ids(whole)[: len(kept)]


def test_of_equals_above_a_floor_all_are_found_in_order(store: Store) -> None:
    store.put([entry(f"{number:02}") for number in range(40)] + [entry("far", (0, 1, 0, 0))])
    found = ids(store.search("p", entry().vector, 25, 1.0, floor=0.9))
    assert found == [f"{number:02}" for number in range(25)]


# Time


def test_the_closest_living_entry_is_found_below_a_floor(store: Store) -> None:
    store.put([entry("old", expires=5.0), entry("alive", (0.6, 0.8, 0, 0)), entry("far", (0, 1, 0, 0))])
    assert ids(store.search("p", entry().vector, 3, 4.0, floor=0.9))[0] == "old"
    assert ids(store.search("p", entry().vector, 3, 6.0, floor=0.9))[0] == "alive"


def test_expiry_is_decided_by_now(store: Store) -> None:
    store.put([entry("soon", expires=10.0), entry("late", expires=20.0), entry("never")])
    assert store.get("soon", 9.999999) is not None
    assert store.get("soon", 10.0) is None
    assert ids(store.search("p", entry().vector, 5, 9.999999)) == ["late", "never", "soon"]
    assert ids(store.search("p", entry().vector, 5, 10.0)) == ["late", "never"]
    assert ids(store.search("p", entry().vector, 5, 9.0)) == ["late", "never", "soon"]  # nothing was removed by looking
    assert store.count().entries == 3
    assert store.expire(10.0) == 1
    assert store.expire(10.0) == 0
    assert store.get("soon", 9.0) is None
    assert not found(store, "soon", now=9.0)
    assert store.expire(1e12) == 1
    assert [one.id for one in store.scan()] == ["never"]


def test_an_answer_that_lived_long_ago_is_no_news(store: Store) -> None:
    store.put([entry(expires=10.0)])  # `now` is an argument: the clock of the server plays no part
    assert store.get("a", 5.0) is not None


def test_expired_entries_do_not_crowd_out_living_ones(store: Store) -> None:
    store.put([entry(f"old{number}", expires=5.0) for number in range(200)])
    store.put([entry("alive", (0.6, 0.8, 0, 0))])
    assert ids(store.search("p", entry().vector, 3, 6.0)) == ["alive"]


def test_however_many_have_expired_they_hide_no_living_one(store: Store) -> None:
    near = np.array([1, 0, 0, 0]) + 0.2 * units(2500, 4)
    store.put([entry(f"old{number}", tuple(row), expires=5.0) for number, row in enumerate(near)])
    store.put([entry("alive", (0.6, 0.8, 0, 0))])
    assert ids(store.search("p", entry().vector, 3, 6.0)) == ["alive"]


def test_the_expiry_of_a_replaced_entry_is_forgotten(store: Store) -> None:
    for expires in (5.0, 50.0, None, 7.0, 60.0):
        store.put([entry(expires=expires), entry("other", expires=expires)])
    store.put([entry("other")])
    assert store.expire(59.0) == 0
    assert store.expire(60.0) == 1
    assert [one.id for one in store.scan()] == ["other"]


def test_a_touch_moves_no_expiry(store: Store) -> None:
    store.put([entry(expires=10.0)])
    store.touch("a", 9.0)
    back = store.get("a", 9.5)
    assert back is not None
    assert back.expires == 10.0
    assert store.get("a", 10.0) is None


def test_a_touch_of_nothing_does_nothing(store: Store) -> None:
    store.touch("nothing", 1.0)
    assert store.count() == Counts(0, 0)
    assert store.get("nothing", 1.0) is None


# Removal


def test_delete_removes_vectors_too(store: Store) -> None:
    store.put([entry(name) for name in "abc"])
    assert store.delete(["a", "c", "a", "unknown"]) == 2
    assert store.delete([]) == 0
    assert ids(store.search("p", entry().vector, 5, 1.0)) == ["b"]
    assert store.get("a", 1.0) is None
    assert store.count() == Counts(1, entry("b").size)
    store.put([entry("a")])  # and it can come back
    assert ids(store.search("p", entry().vector, 5, 1.0)) == ["a", "b"]


@pytest.mark.parametrize(
    ("which", "left"),
    [
        ({"namespace": "n1"}, ["c", "d"]),
        ({"tag": "t1"}, ["b", "d"]),
        ({"namespace": "n1", "tag": "t1"}, ["b", "c", "d"]),
        ({"namespace": "n3"}, ["a", "b", "c", "d"]),
        ({"tag": "t"}, ["a", "b", "c", "d"]),
        ({}, []),
    ],
)
def test_purge_removes_what_has_both(store: Store, which: dict[str, str], left: list[str]) -> None:
    store.put(
        [
            entry("a", namespace="n1", tags=("t1", "t2")),
            entry("b", namespace="n1", tags=("t2",)),
            entry("c", namespace="n2", tags=("t1",)),
            entry("d", namespace="n2"),
        ]
    )
    assert store.purge(**which) == 4 - len(left)
    assert ids(store.search("p", entry().vector, 5, 1.0)) == left
    assert [one.id for one in store.scan()] == left
    assert store.count().entries == len(left)


@pytest.mark.parametrize("tag", [None, "t"])
def test_purging_a_namespace_takes_those_below_it_and_none_beside_it(store: Store, tag: str | None) -> None:
    below, beside = ["n", "n/a", "n/a/b", "n/"], ["n0", "n.", "na", "m/n", "N/a", "n%2Fa", "", "/n"]
    store.put([entry(name, namespace=name, tags=("t",)) for name in (*below, *beside) if name])
    store.put([entry("empty", namespace="", tags=("t",))])
    assert store.purge(namespace="n", tag="u") == 0
    assert store.purge(namespace="n", tag=tag) == len(below)
    assert sorted(one.namespace for one in store.scan()) == sorted(beside)
    assert store.count().entries == len(beside)


def used(store: Store) -> None:
    """Four entries: sizes d > b > a = c; by last use c, b, d, a; by number of uses b, c, d, a."""
    about = (("a", 1, 4.0), ("b", 3, 3.0), ("c", 1, 2.0), ("d", 9, 1.0))
    store.put([entry(name, text="x" * size, created=created) for name, size, created in about])
    for name, now in (("c", 2.5), ("a", 6.0), ("d", 5.0), ("a", 7.0)):
        store.touch(name, now)


@pytest.mark.parametrize(
    ("order", "going"), [("lru", ["c", "b", "d", "a"]), ("lfu", ["b", "c", "d", "a"]), ("size", ["d", "b", "c", "a"])]
)
def test_eviction_follows_its_order(store: Store, order: Order, going: list[str]) -> None:
    used(store)
    for number, name in enumerate(going, start=1):
        assert store.evict(entries=4 - number, order=order) == 1
        assert store.get(name, 1.0) is None
        assert not found(store, name)
        assert store.evict(entries=4 - number, order=order) == 0


def test_eviction_by_bytes_removes_no_more_than_it_must(store: Store) -> None:
    used(store)
    full, first = store.count().bytes, entry("c", text="x").size
    assert store.evict(bytes=full) == 0
    assert store.evict(bytes=full - 1) == 1
    assert store.count() == Counts(3, full - first)
    assert store.evict(entries=3, bytes=1) == 3
    assert store.count() == Counts(0, 0)
    assert store.evict(entries=0, bytes=0) == 0


def test_the_largest_limits_and_the_longest_lives_overflow_in_no_store(store: Store) -> None:
    largest = ENDLESS - 1  # of what a `SemanticCache` takes
    whole = entry("a", created=1.0, expires=1.0 + largest)
    store.put([whole])
    assert store.evict(entries=largest, bytes=largest) == store.expire(1e12) == 0
    kept = store.get("a", 1e12)
    assert kept is not None
    assert kept.expires == whole.expires
    assert [match.entry.id for match in store.search("p", whole.vector, 1, 1e12)] == ["a"]
    assert store.expire(float(ENDLESS << 1)) == 1


def test_eviction_without_limits_removes_nothing(store: Store) -> None:
    used(store)
    assert store.evict() == 0
    assert store.evict(entries=10, bytes=10**9) == 0
    assert store.count().entries == 4


def test_a_replaced_entry_counts_as_unused(store: Store) -> None:
    store.put([entry("a", created=1.0), entry("b", created=2.0)])
    store.touch("a", 9.0)
    store.touch("a", 9.0)
    store.put([entry("a", created=1.5), entry("c", created=1.0)])
    store.touch("b", 9.0)
    store.touch("c", 9.0)
    store.evict(entries=2, order="lfu")
    assert [one.id for one in store.scan()] == ["c", "b"]


def test_a_use_in_the_past_counts_but_is_not_the_last(store: Store) -> None:
    store.put([entry("a", created=1.0), entry("b", created=1.0)])
    for now in (9.0, 2.0):  # as two replicas may report them
        store.touch("a", now)
    store.touch("b", 5.0)
    assert store.evict(entries=1) == 1
    assert [one.id for one in store.scan()] == ["a"]


def test_a_clock_that_goes_back_makes_nothing_that_is_added_the_first_to_go(store: Store) -> None:
    store.put([entry("a", created=5000.5), entry("b", created=5000.25), entry("c", created=1000.75)])
    store.touch("b", 6000.125)
    assert store.expire(5950.0) == 0  # other machines' clocks are not the same
    store.put([entry("d", created=1100.0)])
    assert store.expire(1200.0) == 0
    store.put([entry("e", created=1201.0)])
    store.touch("d", 1202.0)
    for left in ("bcde", "bde", "de", "d"):  # a as long before b as it was used; both before what was used since
        assert store.evict(entries=len(left)) == 1
        assert {one.id for one in store.scan()} == {*left}
    store.touch("d", 1203.0)
    assert store.delete(["d"]) == 1
    assert store.count() == Counts(0, 0)
    assert store.expire(0.0) == 0


def test_a_use_does_not_wait_for_another_process_that_writes(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'cache.db'}"
    with closing(open_store(url, dimension=4, model="m")) as store:
        store.put([entry(f"{number:03}", created=1.0) for number in range(300)])
        with closing(sqlite3.connect(tmp_path / "cache.db", isolation_level=None)) as other:
            other.execute("begin immediate")
            for number in range(299):
                store.touch(f"{number:03}", 9.0)
            other.execute("rollback")
        store.touch("298", 9.0)  # and none was lost meanwhile
        assert store.evict(entries=299) == 1
        assert store.get("299", 1.0) is None


@pytest.mark.parametrize("order", ["lru", "lfu", "size"])
def test_times_before_1970_are_times(store: Store, order: Order) -> None:
    store.put(
        [entry(name, created=created) for name, created in zip("abcde", (2.5, 0.0, -1.5, -300.0, 300.0), strict=True)]
    )
    for going in "dcba":
        store.evict(entries=store.count().entries - 1, order=order)
        assert store.get(going, 0.0) is None


def test_many_are_evicted_at_once(store: Store) -> None:
    store.put([entry(f"{number:04}", created=float(number)) for number in range(700)])
    assert store.evict(entries=100) == 600
    assert [one.id for one in store.scan()] == [f"{number:04}" for number in range(600, 700)]


# Counting and scanning


def test_counts_are_of_all_or_one_namespace(store: Store) -> None:
    one, two = entry("a", namespace="n1", text="täxt"), entry("b", namespace="n2", expires=1.0)
    store.put([one, two])
    assert one.size == len("täxt".encode()) + len('{"a": 1}') + 16
    assert store.count() == Counts(2, one.size + two.size)  # expired ones included
    assert store.count("n1") == Counts(1, one.size)
    assert store.count("n3") == Counts(0, 0)


def test_a_scan_is_in_order_of_creation_then_id(store: Store) -> None:
    made = [("b", 2.0), ("a", 2.0), ("Z", 2.0), ("c", 1.0), ("d", 10.0), ("e", -1.0)]
    store.put([entry(name, created=created, namespace="n1" if name < "c" else "n2") for name, created in made])
    assert [one.id for one in store.scan()] == ["e", "c", "Z", "a", "b", "d"]
    assert [one.id for one in store.scan("n1")] == ["Z", "a", "b"]
    assert list(store.scan("n3")) == []
    assert [one.id for one in store.scan(newest=True)] == ["d", "b", "a", "Z", "c", "e"]
    assert [one.id for one in store.scan("n1", newest=True)] == ["b", "a", "Z"]


@pytest.mark.parametrize("newest", [False, True])
def test_a_scan_of_many_yields_each_once_and_bears_changes(store: Store, newest: bool) -> None:
    everything = [entry(f"{number:04}", units(1, 4, number)[0], created=float(number // 100)) for number in range(600)]
    store.put(everything)
    seen = []
    for one in store.scan(newest=newest):
        seen.append(one)
        if len(seen) % 100 == 0:
            store.delete([each.id for each in seen[-100:]])
    assert len(seen) == 600
    assert all(map(same, seen, everything[::-1] if newest else everything))
    assert store.count() == Counts(0, 0)


# Opening


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("memory://", "memory"),
        ("sqlite:///cache.db", "sqlite"),
        ("redis://localhost:6379/0?prefix=a", "redis"),
        ("rediss://localhost", "redis"),
        ("unix:///run/redis.sock", "redis"),
        ("postgresql://user@host/database", "postgres"),
        ("postgres://user@host/database", "postgres"),
    ],
)
def test_a_url_names_its_kind_of_store(url: str, kind: str) -> None:
    assert kind_of(url) == kind


@pytest.mark.parametrize("url", ["", "cache.db", "mysql://localhost/a", "SQLITE:///a"])
def test_a_url_of_no_store_is_refused_by_all_who_read_it(url: str) -> None:
    for read in (
        kind_of,
        lambda url: open_store(url, dimension=4, model="m"),
        lambda url: open_move(url, model="m", dimension=4),
    ):
        with pytest.raises(ConfigurationError, match="names no store"):
            read(url)


def test_a_store_says_whether_lookups_wait_for_a_network(place: Place) -> None:
    assert place.open().local == (kind_of(place.url) in {"memory", "sqlite"})


def test_a_closed_store_can_be_closed_again_and_reopened(durable: Place) -> None:
    store = durable.open()
    whole = entry(tags=("x",), expires=10.0)
    store.put([whole, entry("b")])
    store.touch("b", 5.0)
    store.close()
    store.close()
    again = durable.open()
    assert same(again.get("a", 1.0), whole)
    assert ids(again.search("p", whole.vector, 5, 1.0)) == ["a", "b"]
    assert again.count().entries == 2
    assert again.evict(entries=1) == 1
    assert [one.id for one in again.scan()] == ["b"]  # its use was kept


@pytest.mark.parametrize(("dimension", "model"), [(4, "model-b"), (8, "model-a"), (4, "")])
def test_another_model_is_refused(durable: Place, dimension: int, model: str) -> None:
    durable.open().put([entry()])
    with pytest.raises(ModelMismatch, match="model-a with 4 dimensions"):
        durable.open(dimension, model)
    assert durable.open().count().entries == 1


def test_two_store_objects_see_each_other_at_once(durable: Place) -> None:
    one, two = durable.open(), durable.open()
    one.put([entry("a")])
    assert two.get("a", 1.0) is not None
    assert found(two, "a")
    two.put([entry("a", (0, 1, 0, 0), answer="new"), entry("b")])
    assert [match.entry.answer for match in one.search("p", entry(vector=(0, 1, 0, 0)).vector, 1, 1.0)] == ["new"]
    assert ids(one.search("p", entry().vector, 1, 1.0)) == ["b"]
    assert one.count() == two.count()
    assert one.delete(["b"]) == 1
    assert not found(two, "b")
    assert two.purge() == 1
    assert one.count() == Counts(0, 0)
    assert not found(one, "a", (0, 1, 0, 0))


def test_two_places_do_not_mix(durable: Place, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    other = find_place(durable.kind, request, tmp_path, durable.opened)
    one, two = durable.open(), other.open(dimension=8, model="model-b")
    one.put([entry()])
    assert two.count() == Counts(0, 0)
    assert two.purge() == 0
    assert found(one, "a")


# Many at once


def run_threads(work: Callable[[int], None], count: int = 8) -> None:
    gate = threading.Barrier(count)

    def start(number: int) -> None:
        gate.wait()
        work(number)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(start, range(count)))


def test_threads_do_not_disturb_each_other(place: Place) -> None:
    stores = [place.open()] * 8 if place.kind == "memory" else [place.open(), place.open()] * 4
    vectors = units(40, 4)

    def work(number: int) -> None:
        store, random = stores[number], np.random.default_rng(number)
        for _ in range(25):
            first, second = (int(draw) for draw in random.integers(0, 40, 2))
            mine = [
                entry(str(first), vectors[first], text="x" * number),
                entry(str(second), vectors[second], tags=("t",)),
            ]
            store.put(mine)
            store.touch(str(second), 2.0)
            matches = store.search("p", vectors[first], 3, 1.0)
            assert all(match.similarity <= matches[0].similarity for match in matches)
            store.delete([str(second), str(int(random.integers(40)))])
            if number == 0:
                store.evict(entries=20)
            if number == 1:
                store.purge(tag="t")

    run_threads(work)
    left = list(stores[0].scan())
    assert stores[0].count() == Counts(len(left), sum(one.size for one in left))
    assert stores[0].count("n") == stores[0].count()
    assert sorted(ids(stores[0].search("p", vectors[0], 100, 1.0))) == sorted(one.id for one in left)


def test_two_that_evict_do_not_remove_twice(durable: Place) -> None:
    stores = [durable.open() for _ in range(4)]
    stores[0].put([entry(f"{number:03}", created=float(number)) for number in range(200)])

    def work(number: int) -> None:
        stores[number].evict(entries=150)

    run_threads(work, count=4)
    assert [one.id for one in stores[0].scan()] == [f"{number:03}" for number in range(50, 200)]


def test_many_can_open_a_new_place_at_once(durable: Place) -> None:
    def work(number: int) -> None:
        durable.open().put([entry(str(number))])

    run_threads(work)
    assert sorted(ids(durable.open().search("p", entry().vector, 20, 1.0))) == [str(number) for number in range(8)]


# Any sequence of operations


class Plain:
    """The contract as a dictionary: what each store must agree with."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.uses: dict[str, tuple[float, int]] = {}

    def get(self, id: str, now: float) -> Entry | None:
        one = self.entries.get(id)
        return one if one is not None and one.alive(now) else None

    def search(self, partition: str, vector: Embeddings, k: int, now: float) -> list[tuple[str, float]]:
        alive = [one for one in self.entries.values() if one.partition == partition and one.alive(now)]
        scored = [(one.id, float(one.vector.astype(np.float64) @ vector.astype(np.float64))) for one in alive]
        return sorted(scored, key=lambda pair: (-pair[1], pair[0]))[:k]

    def put(self, entries: Sequence[Entry]) -> None:
        for one in entries:
            self.entries[one.id], self.uses[one.id] = one, (one.created, 0)

    def touch(self, id: str, now: float) -> None:
        if id in self.entries:
            used, uses = self.uses[id]
            self.uses[id] = max(used, now), uses + 1

    def delete(self, ids: Sequence[str]) -> int:
        return sum(self.entries.pop(id, None) is not None for id in ids)

    def purge(self, *, namespace: str | None, tag: str | None) -> int:
        fits = [one for one in self.entries.values() if namespace in (None, one.namespace)]
        return self.delete([one.id for one in fits if tag is None or tag in one.tags])

    def expire(self, now: float) -> int:
        return self.delete([one.id for one in self.entries.values() if not one.alive(now)])

    def evict(self, *, entries: int | None, bytes: int | None, order: Order) -> int:
        def worth(one: Entry) -> tuple[float, float, str]:
            used, uses = self.uses[one.id]
            return {"lru": used, "lfu": uses, "size": -one.size}[order], used, one.id

        removed = 0
        for one in sorted(self.entries.values(), key=worth):
            left = self.count(None)
            if (entries is None or left.entries <= entries) and (bytes is None or left.bytes <= bytes):
                break
            removed += self.delete([one.id])
        return removed

    def count(self, namespace: str | None) -> Counts:
        sizes = [one.size for one in self.entries.values() if namespace in (None, one.namespace)]
        return Counts(len(sizes), sum(sizes))

    def scan(self, namespace: str | None) -> list[Entry]:
        fits = [one for one in self.entries.values() if namespace in (None, one.namespace)]
        return sorted(fits, key=lambda one: (one.created, one.id))


# Lengths and products of these are exact in float32, so that equal similarities are equal in every store.
EXACT_UNITS = [tuple(row) for row in np.concatenate([np.eye(4), -np.eye(4), list(product((0.5, -0.5), repeat=4))])]
names = st.sampled_from(["a", "b", "ü", "x y", "q'\"", "{|}"])
spaces = st.sampled_from(["n", "m, n"])
partitions = st.sampled_from(["p", "P"])
labels = st.sampled_from(["t", "t,u", "u"])
times = st.integers(0, 12).map(float)
vectors = st.sampled_from(EXACT_UNITS).map(lambda row: np.array(row, dtype=np.float32))
some = st.builds(
    Entry,
    id=names,
    namespace=spaces,
    partition=partitions,
    text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5),
    answer=st.sampled_from(["", "long" * 5]),
    vector=vectors,
    created=times,
    expires=st.none() | times,
    tags=st.lists(labels, unique=True, max_size=2).map(tuple),
)
optional = st.none() | st.integers(0, 4)
operations = st.one_of(
    st.tuples(st.just("put"), st.tuples(st.lists(some, max_size=4)), st.just({})),
    st.tuples(st.just("put"), st.tuples(st.lists(some, min_size=1, max_size=1)), st.just({})),
    st.tuples(st.just("get"), st.tuples(names, times), st.just({})),
    st.tuples(st.just("search"), st.tuples(partitions, vectors, st.integers(0, 4), times), st.just({})),
    st.tuples(st.just("touch"), st.tuples(names, times), st.just({})),
    st.tuples(st.just("delete"), st.tuples(st.lists(names, max_size=3)), st.just({})),
    st.tuples(
        st.just("purge"),
        st.just(()),
        st.fixed_dictionaries({"namespace": st.none() | spaces, "tag": st.none() | labels}),
    ),
    st.tuples(st.just("expire"), st.tuples(times), st.just({})),
    st.tuples(
        st.just("evict"),
        st.just(()),
        st.fixed_dictionaries(
            {
                "entries": optional,
                "bytes": st.none() | st.integers(0, 150),
                "order": st.sampled_from(["lru", "lfu", "size"]),
            }
        ),
    ),
    st.tuples(st.just("count"), st.tuples(st.none() | spaces), st.just({})),
)


def comparable(result: Any) -> Any:
    if isinstance(result, list):
        return [(one.entry.id, one.similarity) if isinstance(one, Match) else one for one in result]
    return describe(result) if isinstance(result, Entry) else result


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sequence=st.lists(operations, min_size=5, max_size=15))
def test_any_sequence_gives_what_a_dictionary_gives(store: Store, sequence: list[tuple[str, Any, Any]]) -> None:
    store.purge()
    plain = Plain()
    for name, values, options in sequence:
        expected = getattr(plain, name)(*values, **options)
        assert comparable(getattr(store, name)(*values, **options)) == comparable(expected), name
    for namespace in (None, "n", "m, n"):
        assert store.count(namespace) == plain.count(namespace)
        kept = list(store.scan(namespace))
        assert len(kept) == len(plain.scan(namespace))
        assert all(map(same, kept, plain.scan(namespace)))


# Servers: what goes wrong, and what is said then

UNREACHABLE = ("redis://:gehe%3Aim@127.0.0.1:1/0", "postgresql://me:gehe%3Aim@127.0.0.1:1/db")
DRIVERS = {"redis": "redis", "postgres": "psycopg"}


def needs_driver(url: str) -> None:
    if url.startswith(("redis", "unix", "postgres")):
        pytest.importorskip("psycopg_pool" if url.startswith("postgres") else "redis")


@pytest.mark.parametrize("url", UNREACHABLE)
def test_a_server_that_is_not_there_is_named_without_its_password(url: str) -> None:
    needs_driver(url)
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:1") as caught:
        open_store(url, dimension=4, model="m")
    assert caught.value.action
    assert "gehe" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "url",
    [
        "redis://:ge/heim@127.0.0.1:1/0",
        "redis://:ge#heim@127.0.0.1:1/0",
        "redis://:ge[heim@127.0.0.1:1/0",
        "redis://:geheim@127.0.0.1:port/0",
        "redis://:geheim@127.0.0.1:1/0?unknown=1",
        "redis://:geheim@127.0.0.1:1/0?prefix=a%20b",
        "redis://:geheim@127.0.0.1:1/0?prefix=a:b",
        "postgresql://me:ge?heim@127.0.0.1:1/db",
        "postgresql://me:geheim@127.0.0.1:1/db?unknown=1",
        "postgresql://me:geheim@127.0.0.1:1/db?table=a%22b",
        "postgresql://me:geheim@127.0.0.1:1/db?table=" + "x" * 60,
    ],
)
def test_a_wrong_url_is_refused_without_its_password(url: str) -> None:
    needs_driver(url)
    with pytest.raises(ConfigurationError) as caught:
        open_store(url, dimension=4, model="m")
    assert caught.value.expected
    assert "heim" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("redis://:geheim@h/x", "its database is 'x', and no number"),
        ("redis://:geheim@h/0/1", "no number"),  # the driver took it for 01
        ("redis://:geheim@h/-1", "no number"),
        ("redis://:geheim@h/99999999999", "no number"),
        ("redis://:geheim@h?db=-1", "no number from 0 on"),
        ("redis://:geheim@h/0?db=1", "it names a database twice"),
        ("redis://:geheim@h,i/0", "it names several hosts"),
        ("redis://:geheim@h:0/0", "ports are numbers from 1 to 65535"),
        ("redis://:geheim@a..b/0", "a part of its host's name is empty"),
        ("redis://:geheim@h/0?prefix=a&prefix=b", "cannot be read"),
        ("redis://:geheim@h/0?decode_responses=True", "it sets decode_responses"),
        ("redis://:geheim@h/0?socket_timeout=nan", "its time limits are no numbers"),
        ("redis://:geheim@h/0?socket_connect_timeout=-1", "its time limits are no numbers"),
        ("redis://:geheim@h /0", "cannot be read"),
        ("rediss://:geheim@h/0?ssl_cert_reqs=maybe", "cannot be used"),
        ("unix://:geheim@tmp/redis.sock", "a socket is a path behind three slashes"),
        ("unix://", "a socket is a path behind three slashes"),
        ("postgresql://me:geheim@h:x/db", "ports are numbers from 1 to 65535"),
        ("postgresql://me:geheim@h:5432,i:99999/db", "ports are numbers from 1 to 65535"),
        ("postgresql://me:geheim@a..b/db", "a part of its host's name is empty"),
        ("postgresql://me:geheim@h/db?sslmode=maybe", 'invalid sslmode value: "maybe"'),
        ("postgresql://me:geheim@h/db?target_session_attrs=maybe", "invalid target_session_attrs"),
        ("postgresql://me:geheim@h/db?port=x", 'invalid integer value "x"'),
        ("postgresql://me:geheim@h/db?connect_timeout=x", "its connect_timeout is no number"),
        ("postgresql://me:geheim@h/db?service=none", "not found"),
        ("mysql://me:geheim@h/db", "names no store"),
        ("REDIS://:geheim@h/0", "names no store"),
        ("redis:/h/0", "names no store"),
        ("memory://x", "names no store"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:///cache.db?mode=ro", "names no file"),
        ("sqlite:///folder/", "names no file"),
        ("sqlite:///a\0b", "names no file"),
        ("sqlite:////dev/null", "is a device"),
    ],
)
def test_a_part_of_an_address_without_a_meaning_is_refused_before_anything_is_opened(url: str, fault: str) -> None:
    needs_driver(url)
    with pytest.raises((ConfigurationError, InputError), match=re.escape(fault)) as caught:
        require_store(url)
    assert caught.value.exit_code == 2
    assert caught.value.expected
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        *("redis://h", "redis://h/", "redis://h/0/", "redis://h?db=3", "redis://[::1]:6379/0", "redis://:6379/1"),
        *("rediss://h/0?ssl_cert_reqs=none", "unix:///run/redis.sock?db=1", "redis://h/0?socket_timeout=0.5"),
        *("postgresql:///db", "postgresql://h1:1,h2:2/db?target_session_attrs=read-write", "postgresql://h1,h2/db"),
        *("postgresql://%2Frun%2Fpostgresql/db", "postgresql://h/db?sslmode=require&channel_binding=require"),
        *("postgresql://h/db?gssencmode=require&connect_timeout=-1", "postgresql://[::1]/db?options=-c%20jit%3Doff"),
    ],
)
def test_addresses_that_drivers_know_are_taken(url: str) -> None:
    needs_driver(url)
    require_store(url)


@pytest.mark.parametrize("kind", ["redis", "postgres"])
def test_a_store_does_not_show_its_password(kind: str, request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue(f"{kind}_url")
    needs_driver(server)
    url = {
        "redis": server + "?prefix=passwords&password=geheim",
        "postgres": server.replace("postgres@", "postgres:geheim@") + "&table=passwords",
    }[kind]
    if kind == "redis":  # this server knows no password, and says so
        with pytest.raises(StoreError) as caught:
            open_store(url, dimension=4, model="m")
        assert "geheim" not in str(caught.value)
        return
    store = open_store(url, dimension=4, model="m")
    store.close()
    assert store.url == server + "&table=passwords"
    with pytest.raises(ModelMismatch) as refused:
        open_store(url, dimension=4, model="other")
    assert "geheim" not in str(refused.value)


def test_the_start_of_a_server_does_not_print_the_password(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("redis")
    monkeypatch.setenv("EMBEDSMITH_SECRET", "00ff" * 16)
    monkeypatch.setattr("embedsmith.server.run.listen", lambda cache, service, say: cache.close())
    command = ["serve", "--threshold", "0.8", "--upstream", "simulator:", "--model", str(tiny_model), "--port", "0"]
    for url in serve(start_redis(password="geheim")):
        done = CliRunner().invoke(app, [*command, "--store", url.replace("//", "//:geheim@")])
        assert done.exit_code == 0, done.output
        assert url.removeprefix("redis://") in " ".join(done.output.split())
        assert "geheim" not in done.output


def test_a_wrong_password_for_redis_is_said() -> None:
    pytest.importorskip("redis")
    for url in serve(start_redis(password="richtig")):
        right = open_store(url.replace("//", "//:richtig@"), dimension=4, model="m")
        right.put([entry()])
        assert right.url == url
        right.close()
        with pytest.raises(StoreError, match="refuses the login") as caught:
            open_store(url.replace("//", "//:geheim@"), dimension=4, model="m")
        assert "geheim" not in str(caught.value)


def test_a_redis_without_search_is_told_what_to_install() -> None:
    pytest.importorskip("redis")
    for url in serve(start_redis(search=False)):
        with pytest.raises(StoreError, match="no search module") as caught:
            open_store(url, dimension=4, model="m")
        assert "Redis 8" in caught.value.action


def test_a_redis_that_was_emptied_works_again(redis_url: str) -> None:
    redis = pytest.importorskip("redis")
    for url in serve(start_redis()):
        store = open_store(url, dimension=4, model="m")
        store.put([entry()])
        client = redis.Redis.from_url(url)
        client.flushall()
        client.close()
        assert not found(store, "a")
        store.put([entry("b")])
        assert found(store, "b")
        assert store.count().entries == 1
        store.close()


@pytest.mark.parametrize("kind", ["redis", "postgres"])
def test_lost_connections_are_replaced(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with ExitStack() as opened:
        place = find_place(kind, request, tmp_path, opened)
        store = place.open()
        run_threads(lambda number: store.put([entry(str(number))]))  # several connections are open now
        server = request.getfixturevalue(f"{kind}_url")
        if kind == "redis":
            import redis

            with redis.Redis.from_url(server) as client:
                client.execute_command("CLIENT", "KILL", "TYPE", "normal")
        else:
            import psycopg

            with psycopg.connect(server) as connection:
                mine = "datname = current_database() and pid <> pg_backend_pid()"
                connection.execute(f"select pg_terminate_backend(pid) from pg_stat_activity where {mine}")
        assert found(store, "0")
        run_threads(lambda number: store.touch(str(number), 5.0))
        assert store.count().entries == 8


@pytest.mark.parametrize("kind", ["redis", "postgres"])
def test_a_missing_driver_comes_with_its_install_line(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, DRIVERS[kind], None)
    monkeypatch.delitem(sys.modules, f"embedsmith.cache.stores.{kind}", raising=False)
    with pytest.raises(MissingPartError) as caught:
        open_store({"redis": "redis://x", "postgres": "postgresql://x/y"}[kind], dimension=4, model="m")
    assert caught.value.action == f"pip install 'embedsmith[{kind}]'"


def test_a_newer_schema_is_refused(durable: Place, request: pytest.FixtureRequest) -> None:
    durable.open().close()
    raise_schema(durable)
    with pytest.raises(StoreError, match=f"schema {SCHEMA + 1}"):
        durable.open()


def raise_schema(place: Place) -> None:
    """Write what a later version of embedsmith would have written."""
    server, _, name = place.url.rpartition("=")
    if place.kind == "redis":
        import redis

        with redis.Redis.from_url(server.partition("?")[0]) as client:
            client.hset(f"{name}:about", "schema", SCHEMA + 1)
    elif place.kind == "postgres":
        import psycopg

        with psycopg.connect(server.rpartition("&")[0]) as connection:
            connection.execute(f"update {name}_about set schema = schema + 1")
    else:
        import sqlite3

        with closing(sqlite3.connect(place.url.removeprefix("sqlite:///"))) as file, file:
            file.execute("update meta set value = value + 1 where name = 'schema'")


@pytest.mark.parametrize("dimension", [1900, 1901, 2001, 4001])
def test_postgres_takes_vectors_of_any_length(
    request: pytest.FixtureRequest, tmp_path: Path, dimension: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as opened:
        store = find_place("postgres", request, tmp_path, opened).open(dimension=dimension)
        rows = units(3, dimension)
        store.put([entry(str(number), row) for number, row in enumerate(rows)])
        assert ids(store.search("p", rows[1], 1, 1.0)) == ["1"]
        monkeypatch.setattr(sys.modules[type(store).__module__], "EXACT", 0)
        assert ids(store.search("p", rows[1], 1, 1.0)) == ["1"]


def test_postgres_reads_no_more_than_what_it_removes(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with ExitStack() as opened:
        place = find_place("postgres", request, tmp_path, opened)
        store = place.open()
        store.put([entry(f"{number:04}", expires=float(number)) for number in range(2000)])
        store.close()  # which lets the server write down what it has counted
        before = rows_read_by_id(place)
        store = place.open()
        assert store.purge(namespace="nobody's") == 0
        assert store.expire(4.0) == 5
        store.close()
        assert rows_read_by_id(place) - before < 100


def rows_read_by_id(place: Place) -> int:
    import psycopg

    server, _, table = place.url.partition("&table=")
    with psycopg.connect(server, autocommit=True) as connection:
        others = "backend_type = 'client backend' and pid <> pg_backend_pid()"
        while connection.execute(f"select from pg_stat_activity where {others}").fetchone() is not None:
            time.sleep(0.01)  # a session writes down what it has counted before it ends
        query = "select idx_tup_read from pg_stat_user_indexes where indexrelname = %s"
        ((read,),) = connection.execute(query, [f"{table}_pkey"]).fetchall()
    return int(read)


def test_postgres_says_that_it_cannot_keep_nul(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with ExitStack() as opened:
        store = find_place("postgres", request, tmp_path, opened).open()
        with pytest.raises(ValueError, match="NUL"):
            store.put([entry(text="a\0b")])
