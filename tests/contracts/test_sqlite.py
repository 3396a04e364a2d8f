"""What only the SQLite store promises: its readers, who waits for whom, and what other processes remove."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from places import entry, ids, units

from embedsmith.cache.stores import Entry, ModelMismatch, Order, StoreError, open_store
from embedsmith.cache.stores import sqlite as sqlite_store
from embedsmith.cache.stores.sqlite import IDLE, SWEEP, SQLiteStore
from embedsmith.cache.stores.sqlite_schema import transaction
from embedsmith.errors import ConfigurationError

MANY = 3000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s.db"


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    with closing(open_here(path)) as opened:
        yield opened


def open_here(path: Path, dimension: int = 4) -> SQLiteStore:
    store = open_store(f"sqlite:///{path}", dimension=dimension, model="m")
    assert isinstance(store, SQLiteStore)
    return store


@pytest.mark.parametrize("url", ["sqlite://cache.db", "sqlite:cache.db", "sqlite:///", "sqlite:///~/cache.db"])
def test_a_url_without_a_file_is_refused_before_anything_is_made(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="names no file"):
        open_store(url, dimension=4, model="m")
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_model_is_not_left_open(path: Path) -> None:
    open_here(path).close()
    with pytest.raises(ModelMismatch) as caught:
        open_here(path, dimension=8)
    assert (caught.type, count_open(path)) == (ModelMismatch, 0)  # though the error holds the frames, and so the store


def test_a_transaction_that_fails_leaves_nothing_and_the_next_one_is_its_own() -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("pragma foreign_keys = on")
        connection.execute("create table a (id integer primary key)")
        connection.execute("create table b (a integer references a deferrable initially deferred)")
        with suppress(RuntimeError), transaction(connection):
            with transaction(connection):
                connection.execute("insert into a values (1)")
            raise RuntimeError
        with pytest.raises(sqlite3.IntegrityError), transaction(connection):
            connection.execute("insert into b values (9)")  # which fails at the commit
        assert not connection.in_transaction
        with transaction(connection):
            connection.execute("insert into a values (2)")
        assert connection.execute("select id from a union all select a from b").fetchall() == [(2,)]


def many(count: int, partition: str = "p", first: int = 0) -> list[Entry]:
    rows = enumerate(units(count, 4, seed=first), start=first)
    return [entry(f"{partition}{number:06}", row, partition=partition, created=float(number)) for number, row in rows]


def count_open(path: Path) -> int:
    """Return how many handles of the file this process has."""
    links = Path("/proc/self/fd").iterdir()
    return sum(link.resolve() == path for link in links if link.exists())


def run_threads(work: Callable[[], object], count: int) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="this system does not list a process's files")
def test_no_thread_leaves_a_connection_behind(path: Path, store: SQLiteStore) -> None:
    store.put([entry()])
    store.get("a", 1.0)
    before = count_open(path)
    for _ in range(20):
        run_threads(lambda: store.search("p", entry().vector, 1, 1.0), 1)
    assert count_open(path) == before


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="this system does not list a process's files")
def test_a_crowd_of_threads_leaves_a_few_connections_behind(path: Path, store: SQLiteStore) -> None:
    store.put([entry()])
    crowd = 2 * IDLE
    for _ in range(3):
        barrier = threading.Barrier(crowd)

        def look_up(barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            for _ in range(20):
                assert store.get("a", 1.0) is not None

        run_threads(look_up, crowd)
        assert len(store._idle) <= IDLE
    store.close()
    assert count_open(path) == 0


def test_a_closed_store_says_so(store: SQLiteStore) -> None:
    store.close()
    store.close()
    for work in (
        lambda: store.get("a", 1.0),
        lambda: store.search("p", entry().vector, 1, 1.0),
        lambda: store.put([entry()]),
    ):
        with pytest.raises(StoreError, match="is closed"):
            work()


@contextmanager
def another_writes(path: Path) -> Iterator[None]:
    """Hold the lock of the file as another process does while it writes."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("begin immediate")
        yield
        other.execute("rollback")


def wait_for_a_writer(store: SQLiteStore) -> None:
    while store._writing.acquire(blocking=False):
        store._writing.release()
        time.sleep(0.001)


def test_what_the_file_refuses_is_an_error_of_the_store(path: Path, store: SQLiteStore) -> None:
    store._writer.execute("pragma busy_timeout = 10")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("begin immediate")
        for change in (lambda: store.put([entry()]), lambda: store.delete(["a"]), store.purge):
            with pytest.raises(StoreError, match=r"sqlite://.*s\.db failed: database is locked"):
                change()
        other.execute("rollback")
        store.put([entry()])
        other.execute("alter table vectors_1 rename to moved")
        for read in (
            lambda: store.get("a", 1.0),
            lambda: store.search("p", units(1, 4)[0], 1, 1.0),
            lambda: [*store.scan()],
        ):
            with pytest.raises(StoreError, match="failed: no such table"):
                read()
        other.execute("begin immediate")
        with pytest.raises(StoreError, match="failed: database is locked"):
            store.close()
    with pytest.raises(StoreError, match="is closed"):  # all the same
        store.get("a", 1.0)


def test_a_failed_write_forgets_no_use(store: SQLiteStore) -> None:
    store.put([entry("a", created=1.0), entry("b", created=2.0)])
    store._writer.execute("pragma query_only = on")
    for refused in (lambda: store.touch("a", 9.0), lambda: store.evict(entries=1)):
        with pytest.raises(StoreError, match="failed: attempt to write a readonly database"):
            refused()
    store._writer.execute("pragma query_only = off")
    assert store.evict(entries=1) == 1
    assert [one.id for one in store.scan()] == ["a"]


@pytest.mark.parametrize("order", ["lru", "lfu"])
def test_an_eviction_knows_of_the_uses_in_another_process(
    path: Path, store: SQLiteStore, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The few entries that everybody asks for are never many enough to be written for their number."""
    store.put([entry(name, created=created) for name, created in (("a", 1.0), ("b", 2.0), ("c", 3.0))])
    with closing(open_store(store.url, dimension=4, model="m")) as other:
        other.touch("a", 9.0)
        assert store.evict(entries=2, order=order) == 1
        assert [one.id for one in store.scan()] == ["a", "c"]
        monkeypatch.setattr(sqlite_store, "TOUCHED", 0.0)
        other.touch("c", 10.0)
        other.touch("c", 11.0)
        assert store.evict(entries=1, order=order) == 1
        assert [one.id for one in store.scan()] == ["c"]


def test_lookups_wait_neither_for_a_writing_process_nor_for_who_waits_for_it(path: Path, store: SQLiteStore) -> None:
    store.put([entry("a"), entry("b", (0, 1, 0, 0))])
    with ThreadPoolExecutor(3) as pool:
        with another_writes(path):
            waiting = pool.submit(store.put, [entry("c")])
            wait_for_a_writer(store)
            near = pool.submit(store.search, "p", entry().vector, 1, 1.0)
            assert ids(near.result(timeout=10)) == ["a"]
            assert pool.submit(store.get, "a", 1.0).result(timeout=10) is not None
            assert pool.submit(store.count).result(timeout=10).entries == 2
            for number in range(600):  # more hits than are remembered
                pool.submit(store.touch, f"b{number}", 2.0).result(timeout=10)
            assert not waiting.done()
        waiting.result(timeout=60)
    assert store.get("c", 1.0) is not None
    assert ids(store.search("p", entry().vector, 2, 1.0)) == ["a", "c"]


def count_rounds(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows with each question to the index: how many neighbours were wanted."""
    asked: list[int] = []
    nearest = store._index.nearest

    def count(*args: object, **options: object) -> list[int]:
        asked.append(int(args[2]))  # type: ignore[call-overload]
        return nearest(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(store._index, "nearest", count)
    return asked


def test_a_purge_by_another_process_costs_a_search_a_few_rounds(
    path: Path, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(open_here(path)) as other:
        other.put(many(MANY))
        store.search("p", entry().vector, 5, 1.0)
        other.purge()
        other.put([entry("new")])
        rounds = count_rounds(store, monkeypatch)
        assert ids(store.search("p", entry().vector, 5, 1.0)) == ["new"]
        assert len(rounds) < 20
        assert len(store._index) == 1


def test_what_others_remove_where_nobody_searches_is_forgotten(path: Path, store: SQLiteStore) -> None:
    with closing(open_here(path)) as other:
        for first in range(0, 10 * SWEEP, SWEEP):
            other.put(many(SWEEP, "elsewhere", first))
            other.evict(entries=100)
            assert store.search("p", entry().vector, 1, 1.0) == []
        assert len(store._index) < 3 * SWEEP
        kept = {one.id for one in other.scan()}
        near = store.search("elsewhere", entry().vector, 1000, 1.0)
        assert {*ids(near)} == kept


def test_a_store_of_its_own_is_never_compared_with_its_table(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    monkeypatch.setattr(store._index, "keep", lambda numbers: kept.append(len(numbers)))
    for first in range(0, 4 * SWEEP, SWEEP // 2):
        store.put(many(SWEEP // 2, first=first))
        store.evict(entries=SWEEP)
        store.search("p", entry().vector, 1, 1.0)
    assert kept == []


def test_looking_for_what_has_expired_reads_no_other_rows(path: Path, store: SQLiteStore) -> None:
    store.put(many(50))
    removal = "delete from entries where expires <= ? returning partition, number"
    with closing(sqlite3.connect(path)) as file:
        ((*_, plan),) = file.execute(f"explain query plan {removal}", (5.0,))
    assert plan.endswith("INDEX by_expiry (expires<?)")


def test_more_entries_than_one_question_can_name(store: SQLiteStore) -> None:
    store.put([entry(f"{number:05}", expires=5.0) for number in range(9000)])
    store.put([entry("alive", (0.6, 0.8, 0, 0))])
    assert ids(store.search("p", entry().vector, 3, 6.0)) == ["alive"]
