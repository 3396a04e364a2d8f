"""The embedded store: one SQLite file that any number of threads and processes share, and an index in memory.

The file is the truth; the index only proposes. A row gets a number that is never used again, so every
process sees what the others have added (higher numbers than it knows) and what they have removed (numbers
that are gone). Writes are durable against the death of a process at any moment; WAL with synchronous =
normal means that a power cut can lose the last ones, which a cache can afford and a disk flush for each
answer cannot.

Two locks, so that no lookup waits for the lock of the file: one thread at a time writes, which may wait for another
process; and one at a time uses the index, which waits for nobody. Who needs both takes the first one first.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from embedsmith.artifacts import write_ahead
from embedsmith.cache.stores import AHEAD, Counts, Entry, Match, Order, StoreError, check_vector
from embedsmith.cache.stores.columns import COLUMNS, ORDERS
from embedsmith.cache.stores.index import VectorIndex
from embedsmith.cache.stores.ranking import rank
from embedsmith.cache.stores.sqlite_schema import prepare, read_about, transaction
from embedsmith.encoder import Embeddings
from embedsmith.errors import ConfigurationError
from embedsmith.text import is_storable

Row = tuple[str, int]  # partition, number
WAIT = 30.0  # seconds a writer waits for another process
MIGRATION = 600.0  # seconds an opening waits for another process, which may be migrating a large file
TOUCHES = 256  # entries whose hits are remembered before they are written
TOUCHED = 5.0  # seconds for which hits are remembered, so that the evictions of other processes know of them
BLOCK = 8192  # rows read at once: when the index is built, and by number
IDLE = 16  # readers that are kept open for the next lookups; more are open only while more threads read at once
WIDER = 4  # times as many neighbours are looked at whenever some of the last ones were gone
SWEEP = 1024  # additions, at least, until the index is compared with the table
GET = f"select {COLUMNS} from {{rows}} where id = ?"
TAKE_UP = f"select number, partition, vector from {{rows}} where number > ? order by number limit {BLOCK}"
EXISTING = "select number from entries where number in (select value from json_each(?))"
PUT = """
insert into entries (id, namespace, partition, text, answer, created, expires, tags, size, used)
values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
USE = "update entries set used = max(used, ?), uses = uses + ? where id = ?"


class SQLiteStore:
    """Entries in the file of `url` (`sqlite:///relative.db`, `sqlite:////absolute.db`).

    Raises:
        ConfigurationError: the URL names no file. StoreError: the file cannot be opened, or is no store.
        ModelMismatch: vectors of another model.
    """

    local = True

    def __init__(self, url: str, *, dimension: int, model: str) -> None:
        self.url, self.dimension, self.model = url, dimension, model
        self._path = path_of(url)
        self._writing = threading.RLock()  # of the writing connection
        self._lock = threading.RLock()  # of the index, what it was built from, and the touches
        self._index = VectorIndex(dimension)
        self._seen = 0  # highest number in the index
        self._fresh = 0  # numbers that the index has taken up since it was compared with the table
        self._version = 0  # of the file when the index was last up to date, as the watcher counts
        self._touches: dict[str, tuple[float, int]] = {}  # when each was last used, and how often
        self._touched = 0.0  # when they were last written, or tried to be, on the monotonic clock
        self._idle: list[sqlite3.Connection] = []  # readers; append and pop need no lock
        self._closed = False
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with ExitStack() as opened:
                self._writer = opened.enter_context(closing(connect(self._path)))
                self._writer.execute(f"pragma busy_timeout = {int(1000 * MIGRATION)}")
                with transaction(self._writer):
                    self._about = prepare(self._writer, url, model, dimension)
                    self._about.require(url, model, dimension)
                self._writer.execute(f"pragma busy_timeout = {int(1000 * WAIT)}")
                self._watcher = opened.enter_context(closing(connect(self._path)))
                with self._lock:
                    self._catch_up()
                opened.pop_all()  # whatever failed until now has closed them
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{url} cannot be opened: {error}", expected="a store, or a free path") from None

    def _require_open(self) -> None:
        if self._closed:
            raise StoreError(f"{self.url} is closed", expected="an open store")

    def _follow(self) -> None:
        """Take note of a re-encoding since the last call; its model is another one, unless it came back."""
        with self._lock:
            about = read_about(self._watcher)
            if about is not None and about.generation != self._about.generation:
                about.require(self.url, self.model, self.dimension)
                self._about, self._seen, self._index = about, 0, VectorIndex(self.dimension)

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """Hold one transaction; all of it happens, or nothing."""
        with self._calls(), self._writing:
            self._require_open()
            with transaction(self._writer):
                yield self._writer

    @contextmanager
    def _calls(self) -> Iterator[None]:
        """Turn the driver's errors into ours: a file that is locked for too long or damaged, a full disk."""
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(f"{self.url} failed: {error}") from None

    def _read(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        """Return all rows; the connection is nobody's in particular, so none stays behind when a thread ends."""
        self._require_open()
        try:
            reader = self._idle.pop()
        except IndexError:
            reader = connect(self._path)
        try:
            return reader.execute(query, values).fetchall()
        finally:
            if self._closed or len(self._idle) >= IDLE:
                reader.close()
            else:
                self._idle.append(reader)

    def _fetch(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        """Return what is found in {rows}; when the model's vectors are gone, `ModelMismatch`."""
        try:
            return self._read(_complete(query, self._about.generation), values)
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error):
                raise
            self._follow()
            return self._read(_complete(query, self._about.generation), values)

    def get(self, id: str, now: float) -> Entry | None:
        with self._calls():
            rows = self._fetch(GET, (id,))
        entry = _entry(rows[0]) if rows else None
        return entry if entry is not None and entry.alive(now) else None

    def search(self, partition: str, vector: Embeddings, k: int, now: float, *, floor: float = -1.0) -> list[Match]:
        vector = check_vector(vector, self.dimension)
        with self._calls():
            return rank(vector, k, now, partial(self._near, partition, vector), floor=floor)

    def _near(self, partition: str, vector: Embeddings, count: int, floor: float) -> list[Entry]:
        """Return the closest entries; rows that another process has removed are forgotten on the way."""
        reach = count
        while True:
            with self._lock:
                self._catch_up()
                numbers = self._index.nearest(partition, vector, count, floor=floor)
            rows = self._fetch_all(numbers)
            if len(rows) == len(numbers):
                return [_entry(row) for row in rows]
            reach *= WIDER
            self._forget_removed(partition, vector, reach)

    def _fetch_all(self, numbers: Sequence[int]) -> list[tuple[Any, ...]]:
        if len(numbers) <= BLOCK:
            return self._fetch(_select(len(numbers)), numbers)
        parts = [numbers[start : start + BLOCK] for start in range(0, len(numbers), BLOCK)]
        return [row for part in parts for row in self._fetch(_select(len(part)), part)]

    def _forget_removed(self, partition: str, vector: Embeddings, reach: int) -> None:
        """Forget what is gone among the nearest `reach`: where one was removed, its neighbours often were too.

        So a purge by another process costs a search a few rounds, and one removal only one short round.
        """
        with self._lock:
            numbers = self._index.nearest(partition, vector, reach)
        living = {number for (number,) in self._read(EXISTING, (json.dumps(numbers),))}
        self._forget({(partition, number) for number in numbers if number not in living})

    def _catch_up(self) -> None:
        """Take up what has been added since, by whatever process.

        The data version changes when another connection than the watcher has written, and only then; so a search after
        which nobody wrote costs one question to the library, and none to the tables.
        """
        self._require_open()
        ((version,),) = self._watcher.execute("pragma data_version")
        if version == self._version:
            return
        self._watcher.execute("begin")  # the model, its vectors and what is left of them, at one moment
        try:
            self._take_up()
        finally:
            self._watcher.execute("commit")
        self._version = version

    def _take_up(self) -> None:
        self._follow()
        query = _complete(TAKE_UP, self._about.generation)
        while rows := self._watcher.execute(query, (self._seen,)).fetchall():
            for partition, members in groupby(sorted(rows, key=_partition), key=_partition):
                numbers, blobs = zip(*((number, blob) for number, _, blob in members), strict=True)
                vectors = np.frombuffer(b"".join(blobs), dtype="<f4")
                self._index.add(partition, numbers, vectors.reshape(-1, self.dimension))
            self._seen = rows[-1][0]
            self._fresh += len(rows)
        if self._fresh >= max(SWEEP, len(self._index) // 4):
            self._sweep()

    def _sweep(self) -> None:
        """Forget what other processes have removed, in partitions that nobody searches too.

        It follows on additions, so the index never holds much more than the table.
        """
        self._fresh = 0
        stale = len(self._index) - self._count(self._watcher).entries
        if stale > len(self._index) // 8:
            self._index.keep([number for (number,) in self._watcher.execute("select number from entries")])

    def _forget(self, rows: Iterable[Row]) -> None:
        with self._lock:
            for partition, members in groupby(sorted(rows), key=lambda row: row[0]):
                self._index.remove(partition, [number for _, number in members])

    def put(self, entries: Sequence[Entry]) -> None:
        vectors = [check_vector(entry.vector, self.dimension) for entry in entries]
        gone: set[Row] = set()
        with self._write() as writer:
            self._follow()
            for entry, vector in zip(entries, vectors, strict=True):
                gone |= self._delete(writer, "id = ?", (entry.id,))
                self._insert(writer, entry, vector)
            with self._lock:
                for entry in entries:
                    self._touches.pop(entry.id, None)
        self._forget(gone)

    def _insert(self, writer: sqlite3.Connection, entry: Entry, vector: Embeddings) -> None:
        values = (
            *(entry.id, entry.namespace, entry.partition, entry.text, entry.answer, entry.created, entry.expires),
            *(json.dumps(list(entry.tags)), entry.size - self._about.surplus, entry.created),
        )
        number = writer.execute(PUT, values).lastrowid
        blob = vector.astype("<f4").tobytes()
        writer.execute(f"insert into vectors_{self._about.generation} values (?, ?)", (number, blob))
        writer.executemany("insert into tags values (?, ?)", [(tag, number) for tag in dict.fromkeys(entry.tags)])

    def touch(self, id: str, now: float) -> None:
        with self._lock:
            self._note_use(id, now, 1)
            due = len(self._touches) >= TOUCHES or time.monotonic() - self._touched >= TOUCHED
        if due:
            with self._calls():
                self._write_touches_if_free()

    def _note_use(self, id: str, now: float, more: int) -> None:
        used, uses = self._touches.get(id, (now, 0))
        self._touches[id] = (max(used, now), uses + more)

    def _write_touches_if_free(self) -> None:
        """Write the hits, unless somebody is writing: no lookup waits for that, a later hit tries again."""
        if not self._writing.acquire(blocking=False):
            return
        try:
            self._require_open()
            self._writer.execute("pragma busy_timeout = 0")
            with self._write_touches():
                pass
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
        finally:
            self._writer.execute(f"pragma busy_timeout = {int(1000 * WAIT)}")
            self._writing.release()

    @contextmanager
    def _write_touches(self) -> Iterator[sqlite3.Connection]:
        """Hold a transaction that begins with the hits; where it fails, they are remembered on."""
        with self._writing:
            self._require_open()
            with self._lock:
                self._touched = time.monotonic()
                touches, self._touches = self._touches, {}
            try:
                with transaction(self._writer):
                    rows = [(used, uses, id) for id, (used, uses) in touches.items()]
                    self._writer.executemany(USE, rows)
                    yield self._writer
            except BaseException:
                with self._lock:
                    for id, (used, uses) in touches.items():
                        self._note_use(id, used, uses)
                raise

    def delete(self, ids: Sequence[str]) -> int:
        with self._write() as writer:
            gone = set[Row]().union(*(self._delete(writer, "id = ?", (id,)) for id in ids))
        self._forget(gone)
        return len(gone)

    def purge(self, *, namespace: str | None = None, tag: str | None = None) -> int:
        rules, values = ["true"], list[str]()
        if namespace is not None:  # "0" comes right behind "/": a range, so that an index can find it
            rules.append("(namespace = ? or (namespace >= ? and namespace < ?))")
            values += [namespace, f"{namespace}/", f"{namespace}0"]
        if tag is not None:
            rules.append("number in (select number from tags where tag = ?)")
            values.append(tag)
        with self._write() as writer:
            gone = self._delete(writer, " and ".join(rules), tuple(values))
        self._forget(gone)
        return len(gone)

    def expire(self, now: float) -> int:
        with self._write() as writer:
            gone = self._delete(writer, "expires <= ?", (now,))
            ((latest,),) = writer.execute("select max(used) from entries")
            if latest is not None and latest > now + AHEAD:
                writer.execute("update entries set used = used - ? where used > ?", (latest - now, now + AHEAD))
        self._forget(gone)
        return len(gone)

    def evict(self, *, entries: int | None = None, bytes: int | None = None, order: Order = "lru") -> int:
        gone: set[Row] = set()
        with self._calls(), self._write_touches() as writer:
            left = self._count(writer)
            rows = writer.execute(f"select number, size, partition from entries order by {ORDERS[order]}")
            while (entries is not None and left.entries > entries) or (bytes is not None and left.bytes > bytes):
                number, size, partition = rows.fetchone()
                gone.add((partition, number))
                left = Counts(left.entries - 1, left.bytes - size - self._about.surplus)
            rows.close()
            writer.executemany("delete from entries where number = ?", [(number,) for _, number in gone])
        self._forget(gone)
        return len(gone)

    def count(self, namespace: str | None = None) -> Counts:
        with self._calls():
            return self._counts(self._read(*_count_query(namespace)))

    def _count(self, connection: sqlite3.Connection) -> Counts:
        return self._counts(connection.execute(*_count_query(None)).fetchall())

    def _counts(self, rows: Sequence[tuple[Any, ...]]) -> Counts:
        ((entries, bytes),) = rows
        return Counts(entries, bytes + entries * self._about.surplus)

    def scan(self, namespace: str | None = None, *, newest: bool = False) -> Iterator[Entry]:
        where, values = ("where namespace = ?", (namespace,)) if namespace is not None else ("", ())
        order = "created desc, id desc" if newest else "created, id"
        with self._calls():
            numbers = self._read(f"select number from entries {where} order by {order}", values)
        for number in numbers:
            with self._calls():
                rows = self._fetch(_select(1), number)
            yield from map(_entry, rows)

    def close(self) -> None:
        with self._writing:
            if self._closed:
                return
            try:
                with self._calls(), self._write_touches():
                    pass
            finally:  # a full disk, or another process that writes, keeps no file open
                with self._lock:
                    self._closed = True
                    self._watcher.close()
                self._writer.close()
                while self._idle:
                    self._idle.pop().close()

    def _delete(self, writer: sqlite3.Connection, where: str, values: tuple[object, ...]) -> set[Row]:
        rows = writer.execute(f"delete from entries where {where} returning partition, number", values)
        return {(partition, number) for partition, number in rows}


def _count_query(namespace: str | None) -> tuple[str, tuple[object, ...]]:
    where, values = ("where namespace = ?", (namespace,)) if namespace is not None else ("", ())
    return f"select coalesce(sum(entries), 0), coalesce(sum(bytes), 0) from counts {where}", values


def _partition(row: tuple[int, str, bytes]) -> str:
    return row[1]


@lru_cache(maxsize=64)
def _complete(query: str, generation: int) -> str:
    """Return `query` with {rows} as the entries with their vectors."""
    return query.format(rows=f"entries join vectors_{generation} using (number)")


@lru_cache(maxsize=64)
def _select(count: int) -> str:
    """Return the query for entries by their numbers."""
    return f"select {COLUMNS}, number from {{rows}} where number in ({','.join('?' * count)})"


def _entry(row: tuple[Any, ...]) -> Entry:
    """Return the entry in a row that begins with `COLUMNS`."""
    id, namespace, partition, text, answer, vector, created, expires, tags = row[:9]
    numbers = np.frombuffer(vector, dtype="<f4")
    return Entry(id, namespace, partition, text, answer, numbers, created, expires, _read_tags(tags))


def _read_tags(written: str) -> tuple[str, ...]:
    return () if written == "[]" else tuple(json.loads(written))


def path_of(url: str) -> Path:
    """Return the file of `sqlite:///FILE`.

    Raises:
        ConfigurationError: there are not three slashes, no name behind them, a "~", which no shell has expanded,
            options, which there are none of, or what is no name of one file.
    """
    name = url.removeprefix("sqlite:///")
    unusable = name == ":memory:" or name.endswith("/") or "?" in name or not is_storable(name)
    if unusable or name == url or not Path(name).name or name.startswith("~"):
        raise ConfigurationError(
            f"{url!r} names no file",
            expected="sqlite:///relative.db or sqlite:////absolute.db; ~ is not expanded, nothing follows the name",
            action="write three slashes before the path of the file, and the path in full; memory:// is kept nowhere",
        )
    return Path(name)


def connect(path: Path) -> sqlite3.Connection:
    """Return a connection whose transactions are opened and closed by hand."""
    connection = sqlite3.connect(path, timeout=WAIT, isolation_level=None, check_same_thread=False)
    write_ahead(connection, wait=WAIT)
    connection.execute("pragma synchronous = normal")
    connection.execute("pragma mmap_size = 1073741824")
    return connection
