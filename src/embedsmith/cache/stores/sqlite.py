"""The embedded store: one SQLite file that any number of threads and processes share, and an index in memory.

The file is the truth; the index only proposes. A row gets a number that is never used again, so every
process sees what the others have added (higher numbers than it knows) and what they have removed (numbers
that are gone). Writes are durable against the death of a process at any moment; WAL with synchronous =
normal means that a power cut can lose the last ones, which a cache can afford and a disk flush for each
answer cannot.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from embedsmith.artifacts import write_ahead
from embedsmith.cache.stores import Counts, Entry, Match, Order, StoreError, check_vector
from embedsmith.cache.stores.index import VectorIndex
from embedsmith.cache.stores.ranking import rank
from embedsmith.cache.stores.sqlite_schema import prepare, read_about
from embedsmith.encoder import Embeddings

Row = tuple[str, int]  # partition, number
WAIT = 30.0  # seconds a writer waits for another process
MIGRATION = 600.0  # seconds an opening waits for another process, which may be migrating a large file
TOUCHES = 256  # hits that are remembered before they are written
BLOCK = 8192  # rows read at once when the index is built
COLUMNS = "id, namespace, partition, text, answer, vector, created, expires, tags"
GET = f"select {COLUMNS} from {{rows}} where id = ?"
PUT = """
insert into entries (id, namespace, partition, text, answer, created, expires, tags, size, used)
values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
ORDERS = {"lru": "used, id", "lfu": "uses, used, id", "size": "size desc, used, id"}


class SQLiteStore:
    """Entries in the file of `url` (`sqlite:///relative.db`, `sqlite:////absolute.db`).

    Raises:
        StoreError: the file cannot be opened, or is no store. ModelMismatch: vectors of another model.
    """

    def __init__(self, url: str, *, dimension: int, model: str) -> None:
        self.url, self.dimension, self.model = url, dimension, model
        self._path = path_of(url)
        self._lock = threading.RLock()  # of the index, the touches and the writing connection
        self._index = VectorIndex(dimension)
        self._seen = 0  # highest number in the index
        self._touches: dict[str, tuple[float, int]] = {}
        self._readers = threading.local()
        self._version, self._written = 0, True  # of the file when the index was last up to date; own writes since
        self._all: list[sqlite3.Connection] = []
        self._closed = False
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = self._connect()
            self._writer.execute(f"pragma busy_timeout = {int(1000 * MIGRATION)}")
            with self._write():
                self._about = prepare(self._writer, url, model, dimension)
                self._about.require(url, model, dimension)
            self._writer.execute(f"pragma busy_timeout = {int(1000 * WAIT)}")
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{url} cannot be opened: {error}", expected="a store, or a free path") from None
        with self._lock:
            self._catch_up()

    def _connect(self) -> sqlite3.Connection:
        connection = connect(self._path)
        self._all.append(connection)
        return connection

    def _follow(self) -> None:
        """Take note of a re-encoding since the last call; its model is another one, unless it came back."""
        about = read_about(self._writer)
        if about is not None and about.generation != self._about.generation:
            about.require(self.url, self.model, self.dimension)
            self._about, self._seen, self._index = about, 0, VectorIndex(self.dimension)

    @property
    def _rows(self) -> str:
        """Entries with their vectors."""
        return f"entries join vectors_{self._about.generation} using (number)"

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """Hold the lock and one transaction; all of it happens, or nothing."""
        with self._lock:
            self._writer.execute("begin immediate")
            try:
                yield self._writer
            except BaseException:
                self._writer.execute("rollback")
                raise
            self._writer.execute("commit")
            self._written = True

    def _read(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._readers, "connection", None)
        if connection is None:
            with self._lock:
                connection = self._readers.connection = self._connect()
        return connection

    def _fetch(self, query: str, values: Sequence[object]) -> sqlite3.Cursor:
        """Return what a reader finds in {rows}; when the model's vectors are gone, `ModelMismatch`."""
        try:
            return self._read().execute(query.format(rows=self._rows), values)
        except sqlite3.OperationalError:
            with self._lock:
                self._follow()
            return self._read().execute(query.format(rows=self._rows), values)

    def get(self, id: str, now: float) -> Entry | None:
        row = self._fetch(GET, (id,)).fetchone()
        entry = _entry(row) if row is not None else None
        return entry if entry is not None and entry.alive(now) else None

    def search(self, partition: str, vector: Embeddings, k: int, now: float, *, floor: float = -1.0) -> list[Match]:
        vector = check_vector(vector, self.dimension)
        return rank(vector, k, now, partial(self._near, partition, vector), floor=floor)

    def _near(self, partition: str, vector: Embeddings, count: int, floor: float) -> list[Entry]:
        """Return the closest entries; rows that another process has removed are forgotten on the way."""
        while True:
            with self._lock:
                self._catch_up()
                numbers = self._index.nearest(partition, vector, count, floor=floor)
            rows = self._fetch(_select(len(numbers)), numbers).fetchall()
            if len(rows) == len(numbers):
                return [_entry(row) for row in rows]
            self._forget({(partition, number) for number in numbers} - {(partition, row[-1]) for row in rows})

    def _catch_up(self) -> None:
        """Take up what has been added since, by whatever process.

        The data version changes when another connection has written, and only then; so a search after which nobody
        wrote costs one question to the library, and none to the tables.
        """
        (version,) = self._writer.execute("pragma data_version").fetchone()
        if version == self._version and not self._written:
            return
        self._take_up()
        self._version, self._written = version, False

    def _take_up(self) -> None:
        self._follow()
        (last,) = self._writer.execute("select coalesce(max(number), 0) from entries").fetchone()
        while self._seen < last:
            about, query = self._about, "select number, partition, vector from {rows} where number > ? order by number"
            rows = self._fetch(f"{query} limit ?", (self._seen, BLOCK)).fetchall()
            if self._about is not about:  # the model came back with other vectors: from the start
                continue
            if not rows:  # removed again since
                break
            by_partition: dict[str, list[tuple[int, bytes]]] = {}
            for number, partition, blob in rows:
                by_partition.setdefault(partition, []).append((number, blob))
            for partition, members in by_partition.items():
                vectors = np.frombuffer(b"".join(blob for _, blob in members), dtype="<f4")
                self._index.add(partition, [number for number, _ in members], vectors.reshape(-1, self.dimension))
            self._seen = rows[-1][0]

    def _forget(self, rows: set[Row]) -> None:
        with self._lock:
            for partition, number in rows:
                self._index.remove(partition, [number])

    def put(self, entries: Sequence[Entry]) -> None:
        vectors = [check_vector(entry.vector, self.dimension) for entry in entries]
        gone: set[Row] = set()
        with self._write() as writer:
            self._follow()
            for entry, vector in zip(entries, vectors, strict=True):
                gone |= self._delete(writer, "id = ?", (entry.id,))
                self._touches.pop(entry.id, None)
                self._insert(writer, entry, vector)
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
            used, uses = self._touches.get(id, (now, 0))
            self._touches[id] = (max(used, now), uses + 1)
            due = len(self._touches) >= TOUCHES
        if due:
            self._write_touches_if_free()

    def _write_touches_if_free(self) -> None:
        """Write the hits, unless another process is writing: no lookup waits for it, the next hit tries again."""
        with self._lock:
            self._writer.execute("pragma busy_timeout = 0")
            try:
                with self._write() as writer:
                    self._write_touches(writer)
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    raise
            finally:
                self._writer.execute(f"pragma busy_timeout = {int(1000 * WAIT)}")

    def _write_touches(self, writer: sqlite3.Connection) -> None:
        rows = [(used, uses, id) for id, (used, uses) in self._touches.items()]
        writer.executemany("update entries set used = max(used, ?), uses = uses + ? where id = ?", rows)
        self._touches.clear()

    def delete(self, ids: Sequence[str]) -> int:
        with self._write() as writer:
            gone = set[Row]().union(*(self._delete(writer, "id = ?", (id,)) for id in ids))
        self._forget(gone)
        return len(gone)

    def purge(self, *, namespace: str | None = None, tag: str | None = None) -> int:
        rules = [("namespace = ?", namespace), ("number in (select number from tags where tag = ?)", tag)]
        given = [(rule, value) for rule, value in rules if value is not None]
        with self._write() as writer:
            where = " and ".join(rule for rule, _ in given) or "true"
            gone = self._delete(writer, where, tuple(value for _, value in given))
        self._forget(gone)
        return len(gone)

    def expire(self, now: float) -> int:
        with self._write() as writer:
            gone = self._delete(writer, "expires <= ?", (now,))
        self._forget(gone)
        return len(gone)

    def evict(self, *, entries: int | None = None, bytes: int | None = None, order: Order = "lru") -> int:
        gone: set[Row] = set()
        with self._write() as writer:
            self._write_touches(writer)
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
        return self._count(self._read(), namespace)

    def _count(self, connection: sqlite3.Connection, namespace: str | None = None) -> Counts:
        where, values = ("where namespace = ?", (namespace,)) if namespace is not None else ("", ())
        query = f"select coalesce(sum(entries), 0), coalesce(sum(bytes), 0) from counts {where}"
        entries, bytes = connection.execute(query, values).fetchone()
        return Counts(entries, bytes + entries * self._about.surplus)

    def scan(self, namespace: str | None = None) -> Iterator[Entry]:
        where, values = ("where namespace = ?", (namespace,)) if namespace is not None else ("", ())
        numbers = self._read().execute(f"select number from entries {where} order by created, id", values).fetchall()
        for (number,) in numbers:
            row = self._fetch(f"select {COLUMNS} from {{rows}} where number = ?", (number,)).fetchone()
            if row is not None:
                yield _entry(row)

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            with self._write() as writer:
                self._write_touches(writer)
            for connection in self._all:
                connection.close()
            self._closed = True

    def _delete(self, writer: sqlite3.Connection, where: str, values: tuple[object, ...]) -> set[Row]:
        rows = writer.execute(f"delete from entries where {where} returning partition, number", values)
        return {(partition, number) for partition, number in rows}


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
    """Return the file of `sqlite:///FILE`."""
    return Path(url.removeprefix("sqlite:///"))


def connect(path: Path) -> sqlite3.Connection:
    """Return a connection whose transactions are opened and closed by hand."""
    connection = sqlite3.connect(path, timeout=WAIT, isolation_level=None, check_same_thread=False)
    write_ahead(connection, wait=WAIT)
    connection.execute("pragma synchronous = normal")
    connection.execute("pragma mmap_size = 1073741824")
    return connection
