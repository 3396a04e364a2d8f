"""Stores of version 1 become stores of this version: whole, once, and never half, whoever opens or dies meanwhile."""

from __future__ import annotations

import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from places import Place, entry, ids, same, units
from version_one import read_schema, write_version_one

from embedsmith.cache.stores import SCHEMA, Counts, Entry, Order, StoreError

KILLS = int(os.environ.get("EMBEDSMITH_KILLS", "2"))
USES = {"a": (9.0, 2), "b": (7.0, 5), "c": (8.0, 1)}
CHILD = """
import logging, sys
from embedsmith.cache.stores import open_store
logging.basicConfig(stream=sys.stdout, format="%(message)s", force=True)
print("ready", flush=True)
sys.stdin.readline()
store = open_store(sys.argv[1], dimension=int(sys.argv[2]), model="model-a")
print("count", store.count().entries, flush=True)
store.close()
"""
# Dies, as by a power cut of its own, before the statement with the number argv[2].
DYING_CHILD = """
import os, signal, sys
from embedsmith.cache.stores import open_store, sqlite
plain, left = sqlite.connect, int(sys.argv[2])
def count(statement):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
def connect(path):
    connection = plain(path)
    connection.set_trace_callback(count)
    return connection
sqlite.connect = connect
open_store(sys.argv[1], dimension=4, model="model-a").close()
"""


def some_entries() -> list[Entry]:
    return [
        entry("a", (1, 0, 0, 0), namespace="n1", tags=("t",), text="Grüße", created=1.5),
        entry("b", (0, 1, 0, 0), namespace="n2", partition="q", expires=50.0, created=2.0, answer="x" * 100),
        entry("c", (0.6, 0.8, 0, 0), namespace="n1", created=3.0, tags=("t", "u")),
        entry("d", (0, 0, 1, 0), namespace="n2", created=4.0, answer="y" * 50),
    ]


def test_version_one_opens_with_all_it_holds(durable: Place, caplog: pytest.LogCaptureFixture) -> None:
    old = some_entries()
    write_version_one(durable, old, USES)
    with caplog.at_level(logging.WARNING, logger="embedsmith.stores"):
        store = durable.open()
    assert [record.message.count("migrated from schema 1 to") for record in caplog.records] == [1]
    assert read_schema(durable) == SCHEMA
    assert all(map(same, store.scan(), old))
    assert all(same(store.get(one.id, 5.0), one) for one in old)
    assert store.count() == Counts(4, sum(one.size for one in old))
    assert store.count("n1") == Counts(2, old[0].size + old[2].size)
    matches = store.search("p", old[0].vector, 5, 5.0)
    assert ids(matches) == ["a", "c", "d"]
    assert [match.similarity for match in matches] == pytest.approx([1.0, 0.6, 0.0])
    assert store.purge(tag="u") == 1
    assert store.expire(50.0) == 1
    assert store.count() == Counts(2, old[0].size + old[3].size)


@pytest.mark.parametrize(("order", "going"), [("lru", "dbca"), ("lfu", "dcab"), ("size", "bdca")])
def test_version_one_keeps_its_uses(durable: Place, order: Order, going: str) -> None:
    write_version_one(durable, some_entries(), USES)
    store = durable.open()
    for number, name in enumerate(going, start=1):
        assert store.evict(entries=4 - number, order=order) == 1
        assert store.get(name, 1.0) is None


def test_a_migrated_store_takes_and_loses_entries_as_any(durable: Place) -> None:
    old = some_entries()
    write_version_one(durable, old, USES)
    store = durable.open()
    store.put([entry("a", (0, 0, 0, 1), text="new"), entry("e", (0, 0, 0, 1))])
    assert store.delete(["b"]) == 1
    assert ids(store.search("p", entry("e", (0, 0, 0, 1)).vector, 2, 5.0)) == ["a", "e"]
    assert store.count() == Counts(4, sum(one.size for one in store.scan()))
    assert store.evict(bytes=0) == 4
    assert store.count() == Counts(0, 0)


def test_a_migration_is_said_once(durable: Place, caplog: pytest.LogCaptureFixture) -> None:
    write_version_one(durable, some_entries(), USES)
    with caplog.at_level(logging.DEBUG, logger="embedsmith.stores"):
        durable.open().close()
        durable.open().close()
    assert len(caplog.records) == 1


def test_another_model_is_refused_at_the_migration_too(durable: Place) -> None:
    write_version_one(durable, some_entries(), USES)
    with pytest.raises(StoreError, match="model-a with 4 dimensions"):
        durable.open(model="model-b")
    assert all(map(same, durable.open().scan(), some_entries()))


def start(url: str, dimension: int, count: int) -> list[subprocess.Popen[str]]:
    """Return processes that wait for a line before they open the store."""
    command = [sys.executable, "-c", CHILD, url, str(dimension)]
    pipe = subprocess.PIPE
    children = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(count)]
    assert [child.stdout.readline() for child in children if child.stdout is not None] == ["ready\n"] * count
    return children


def let_go(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


def test_processes_that_open_at_once_migrate_once(durable: Place) -> None:
    write_version_one(durable, many(500), {}, dimension=64)
    children = start(durable.url, 64, 3)
    for child in children:
        let_go(child)
    said = [child.communicate(timeout=60)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0, 0]
    assert "".join(said).count("migrated from schema 1 to") == 1
    assert all("count 500" in lines for lines in said)


def many(count: int, dimension: int = 64) -> list[Entry]:
    vectors = units(count, dimension)
    return [entry(f"{number:05}", vector, created=float(number)) for number, vector in enumerate(vectors)]


def test_a_kill_leaves_one_version_or_the_other(durable: Place) -> None:
    """SIGKILL at random moments of an opening that migrates."""
    old = many(500)
    write_version_one(durable, old, {}, dimension=64)
    versions = [read_schema(durable)]
    for kill, child in enumerate(start(durable.url, 64, KILLS)):
        let_go(child)
        time.sleep(random.Random(kill).uniform(0.0, 0.03))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        versions.append(read_schema(durable))
    assert versions == sorted(versions)  # never back
    assert all(map(same, durable.open(dimension=64).scan(), old))
    assert read_schema(durable) == SCHEMA


def columns_of(path: Path) -> Iterator[tuple[str, ...]]:
    """Yield what of the file tells the versions apart."""
    with closing(sqlite3.connect(path)) as file:
        yield from file.execute(
            "select name from sqlite_schema where name not glob 'sqlite_*' order by name"
        ).fetchall()
        yield from file.execute("select name from pragma_table_info('entries')").fetchall()
        yield from file.execute("select name from meta order by name").fetchall()
        yield from file.execute("pragma integrity_check").fetchall()


def test_sqlite_dies_before_any_statement_of_the_migration(tmp_path: Path) -> None:
    """The file is then of one version to the last name, and opens as if nothing had been."""
    with ExitStack() as opened:
        places = {point: Place("sqlite", f"sqlite:///{tmp_path / str(point)}", opened) for point in range(-1, 30)}
        for place in places.values():
            write_version_one(place, some_entries(), USES)
        first = list(columns_of(tmp_path / "-1"))
        places[-1].open().close()
        versions = {1: first, SCHEMA: list(columns_of(tmp_path / "-1"))}
        points = range(30) if KILLS > 3 else [2, *random.Random(0).sample(range(9, 24), KILLS)]
        ends = set()
        for point in points:
            child = subprocess.run([sys.executable, "-c", DYING_CHILD, places[point].url, str(point)], timeout=60)
            assert child.returncode == -signal.SIGKILL
            found = read_schema(places[point])
            ends.add(found)
            assert list(columns_of(tmp_path / str(point))) == versions[found]
            assert all(map(same, places[point].open().scan(), some_entries()))
        assert 1 in ends
