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
from pathlib import Path

import numpy as np

from embedsmith.cache.stores import SCHEMA, Counts, Entry, Match, Order, StoreError, check_vector, mismatch
from embedsmith.cache.stores.index import VectorIndex
from embedsmith.cache.stores.ranking import rank
from embedsmith.encoder import Embeddings

Row = tuple[str, int]  # partition, number
WAIT = 30.0  # seconds a writer waits for another process
TOUCHES = 256  # hits that are remembered before they are written
BLOCK = 8192  # rows read at once when the index is built
TABLES = (
    "create table if not exists meta (name text primary key, value text not null) without rowid",
    """create table if not exists entries (
        number integer primary key autoincrement,
        id text not null unique,
        namespace text not null,
        partition text not null,
        text text not null,
        answer text not null,
        vector blob not null,
        created real not null,
        expires real,
        tags text not null,
        size integer not null,
        used real not null,
        uses integer not null default 0)""",
    "create index if not exists by_namespace on entries (namespace)",
    "create index if not exists by_expiry on entries (expires) where expires is not null",
    """create table if not exists tags (
        tag text not null,
        number integer not null,
        primary key (tag, number)) without rowid""",
    "create index if not exists tags_by_number on tags (number)",
    """create trigger if not exists forget_tags after delete on entries begin
        delete from tags where number = old.number;
    end""",
)
COLUMNS = "id, namespace, partition, text, answer, vector, created, expires, tags"
ORDERS = {"lru": "used, id", "lfu": "uses, used, id", "size": "size desc, used, id"}


class SQLiteStore:
    """Entries in the file of `url` (`sqlite:///relative.db`, `sqlite:////absolute.db`).

    Raises:
        StoreError: the file cannot be opened, or is no store. ModelMismatch: vectors of another model.
    """

    def __init__(self, url: str, *, dimension: int, model: str) -> None:
        self.url, self.dimension, self.model = url, dimension, model
        self._path = Path(url.removeprefix("sqlite:///"))
        self._lock = threading.RLock()  # of the index, the touches and the writing connection
        self._index = VectorIndex(dimension)
        self._seen = 0  # highest number in the index
        self._touches: dict[str, tuple[float, int]] = {}
        self._readers = threading.local()
        self._all: list[sqlite3.Connection] = []
        self._closed = False
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = self._connect()
            with self._write():
                self._begin()
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{url} cannot be opened: {error}", expected="a store, or a free path") from None
        with self._lock:
            self._catch_up()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=WAIT, isolation_level=None, check_same_thread=False)
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = normal")
        connection.execute("pragma mmap_size = 1073741824")
        self._all.append(connection)
        return connection

    def _begin(self) -> None:
        for statement in TABLES:
            self._writer.execute(statement)
        about = dict(self._writer.execute("select name, value from meta"))
        if not about:
            rows = [("schema", str(SCHEMA)), ("model", self.model), ("dimension", str(self.dimension))]
            self._writer.executemany("insert into meta values (?, ?)", rows)
            return
        if int(about["schema"]) > SCHEMA:
            raise StoreError(
                f"{self.url} has schema {about['schema']}", expected=f"at most {SCHEMA}", action="update embedsmith"
            )
        found = about["model"], int(about["dimension"])
        if found != (self.model, self.dimension):
            raise mismatch(self.url, found, (self.model, self.dimension))

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

    def _read(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._readers, "connection", None)
        if connection is None:
            with self._lock:
                connection = self._readers.connection = self._connect()
        return connection

    def get(self, id: str, now: float) -> Entry | None:
        row = self._read().execute(f"select {COLUMNS} from entries where id = ?", (id,)).fetchone()
        entry = self._entry(row) if row is not None else None
        return entry if entry is not None and entry.alive(now) else None

    def search(self, partition: str, vector: Embeddings, k: int, now: float) -> list[Match]:
        vector = check_vector(vector, self.dimension)
        return rank(vector, k, now, lambda count: self._near(partition, vector, count))

    def _near(self, partition: str, vector: Embeddings, count: int) -> list[Entry]:
        """Return the closest entries; rows that another process has removed are forgotten on the way."""
        reader = self._read()
        while True:
            with self._lock:
                self._catch_up()
                numbers = self._index.nearest(partition, vector, count)
            marks = ",".join("?" * len(numbers))
            rows = reader.execute(
                f"select number, {COLUMNS} from entries where number in ({marks})", numbers
            ).fetchall()
            if len(rows) == len(numbers):
                return [self._entry(row[1:]) for row in rows]
            self._forget({(partition, number) for number in numbers} - {(partition, row[0]) for row in rows})

    def _catch_up(self) -> None:
        """Take up what has been added since, by whatever process."""
        reader = self._writer
        (last,) = reader.execute("select coalesce(max(number), 0) from entries").fetchone()
        while self._seen < last:
            rows = reader.execute(
                "select number, partition, vector from entries where number > ? order by number limit ?",
                (self._seen, BLOCK),
            ).fetchall()
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
            for entry, vector in zip(entries, vectors, strict=True):
                gone |= self._delete(writer, "id = ?", (entry.id,))
                self._touches.pop(entry.id, None)
                values = (
                    *(entry.id, entry.namespace, entry.partition, entry.text, entry.answer),
                    *(vector.astype("<f4").tobytes(), entry.created, entry.expires),
                    *(json.dumps(list(entry.tags)), entry.size, entry.created),
                )
                marks = ",".join("?" * len(values))
                number = writer.execute(
                    f"insert into entries ({COLUMNS}, size, used) values ({marks})", values
                ).lastrowid
                tags = [(tag, number) for tag in dict.fromkeys(entry.tags)]
                writer.executemany("insert into tags values (?, ?)", tags)
        self._forget(gone)

    def touch(self, id: str, now: float) -> None:
        with self._lock:
            used, uses = self._touches.get(id, (now, 0))
            self._touches[id] = (max(used, now), uses + 1)
            due = len(self._touches) >= TOUCHES
        if due:
            with self._write() as writer:
                self._write_touches(writer)

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
                left = Counts(left.entries - 1, left.bytes - size)
            rows.close()
            writer.executemany("delete from entries where number = ?", [(number,) for _, number in gone])
        self._forget(gone)
        return len(gone)

    def count(self, namespace: str | None = None) -> Counts:
        return self._count(self._read(), namespace)

    def _count(self, connection: sqlite3.Connection, namespace: str | None = None) -> Counts:
        where, values = ("where namespace = ?", (namespace,)) if namespace is not None else ("", ())
        found = connection.execute(f"select count(*), coalesce(sum(size), 0) from entries {where}", values).fetchone()
        return Counts(*found)

    def scan(self, namespace: str | None = None) -> Iterator[Entry]:
        where, values = ("where namespace = ?", (namespace,)) if namespace is not None else ("", ())
        numbers = self._read().execute(f"select number from entries {where} order by created, id", values).fetchall()
        for (number,) in numbers:
            row = self._read().execute(f"select {COLUMNS} from entries where number = ?", (number,)).fetchone()
            if row is not None:
                yield self._entry(row)

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

    def _entry(self, row: tuple[object, ...]) -> Entry:
        id, namespace, partition, text, answer, vector, created, expires, tags = row
        return Entry(
            id=str(id),
            namespace=str(namespace),
            partition=str(partition),
            text=str(text),
            answer=str(answer),
            vector=np.frombuffer(vector, dtype="<f4"),  # type: ignore[call-overload]
            created=float(created),  # type: ignore[arg-type]
            expires=None if expires is None else float(expires),  # type: ignore[arg-type]
            tags=tuple(json.loads(str(tags))) if tags != "[]" else (),
        )
