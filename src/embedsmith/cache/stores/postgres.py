"""The store that replicas share through PostgreSQL with pgvector: one row per entry, its vector in it.

Three tables: the entries; their use, apart because a new version of a row would put its vector into the
index anew; and the changes of the counts, which triggers append and FOLDING adds up now and then, so that
writers never wait for each other on a total.

Each model that the store has had has its own table of entries, of which one is left: a re-encoding fills the next
and drops the last (postgres_move.py). So a statement of a server with the old model finds no table, never vectors of
another model.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Any, TypeAlias, TypeVar

import numpy as np

from embedsmith.cache.stores import (
    AHEAD,
    LOG,
    SCHEMA,
    About,
    Counts,
    Entry,
    Match,
    Order,
    StoreError,
    check_vector,
    refuse_schema,
)
from embedsmith.cache.stores.columns import COLUMNS, ORDERS
from embedsmith.cache.stores.network import Address, read_address
from embedsmith.cache.stores.ranking import rank
from embedsmith.encoder import Embeddings
from embedsmith.errors import ConfigurationError, MissingPartError

try:
    import psycopg
    from psycopg import errors, pq, sql
    from psycopg.adapt import Buffer, Dumper, Loader
    from psycopg.types import TypeInfo
    from psycopg_pool import ConnectionPool
except ImportError:  # also a psycopg without libpq
    raise MissingPartError(
        "a store in PostgreSQL needs psycopg and psycopg_pool", action="pip install 'embedsmith[postgres]'"
    ) from None

Connection: TypeAlias = "psycopg.Connection[tuple[Any, ...]]"
Result = TypeVar("Result")

CONNECT = 5  # seconds for a connection
WAIT = 5.0  # seconds for a free connection, and for the answer to a statement
CHANGE = 20.0  # seconds for one that changes entries: a re-encoding makes it wait
BULK = 600.0  # seconds for one that goes through many entries
REACH = {  # limits of libpq: the network may swallow what is sent, or never bring an answer
    "connect_timeout": CONNECT,
    "tcp_user_timeout": 10_000,  # milliseconds
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
CONNECTIONS = 16  # at most, per store object
TRIES = 5  # of a transaction that lost against another, or whose connection broke
BLOCK = 256  # rows read or removed at once
FOLD = 512  # statements that change counts, until their rows are added up
PGVECTOR = (0, 8)  # the first with iterative scans
EXACT = 1000  # a partition of up to so many entries is compared whole, without the graph
RARE = 200  # so is one that is less than a RARE-th of all: the graph would pass through too many others
INLINE = 1900  # dimensions up to which a vector fits into its page; beside it, each comparison would fetch it
LINKS, EFFORT_BUILD, EFFORT_SEARCH = 16, 128, 120  # of the HNSW graph: neighbours, candidates
NOWHERE = "/proc/no-such-folder"  # of a socket
OPENING, EVICTING = 4, 5  # who holds a store's lock of this number opens or moves it, or removes what is too much

ABOUT = """
create table {about} (
    schema integer not null,
    model text not null,
    dimension integer not null,
    generation integer not null,
    counted integer not null,
    next_model text,
    next_dimension integer,
    next_generation integer
)
"""
MIGRATE = """
alter table {about} add column generation integer not null default 1, add column counted integer,
    add column next_model text, add column next_dimension integer, add column next_generation integer;
update {about} set schema = 2, counted = dimension;
alter table {about} alter column counted set not null;
"""
ENTRIES = """
create table {entries} (
    id text collate "C" primary key,
    namespace text not null,
    partition text not null,
    text text not null,
    answer text not null,
    vector vector({dimension}) not null,
    created double precision not null,
    expires double precision,
    tags text[] not null,
    size bigint not null
)
"""
INDEXES = """
create index on {entries} using hash (namespace);
create index on {entries} using hash (partition);
create index on {entries} using gin (tags);
create index on {entries} (created, id);
create index on {entries} (expires) where expires is not null;
"""
REST = """
create table {use} (
    id text collate "C" primary key references {entries} on delete cascade,
    used double precision not null,
    uses bigint not null,
    size bigint not null
);
create index on {use} (used, id);
create index on {use} (uses, used, id);
create index on {use} (size desc, used, id);
create table {counts} (kind text not null, name text not null, entries bigint not null, bytes bigint not null);
create index on {counts} using hash (name);
create function {tally}() returns trigger language plpgsql as $body$
begin
    if tg_op <> 'INSERT' then
        insert into {counts} select 'all', '', -count(*), -sum(size) from before having count(*) > 0;
        insert into {counts} select 'namespace', namespace, -count(*), -sum(size) from before group by namespace;
        insert into {counts} select 'partition', partition, -count(*), -sum(size) from before group by partition;
    end if;
    if tg_op <> 'DELETE' then
        insert into {counts} select 'all', '', count(*), sum(size) from after having count(*) > 0;
        insert into {counts} select 'namespace', namespace, count(*), sum(size) from after group by namespace;
        insert into {counts} select 'partition', partition, count(*), sum(size) from after group by partition;
    end if;
    return null;
end $body$;
"""
TRIGGERS = """
create trigger tally_insert after insert on {entries} referencing new table as after
    for each statement execute function {tally}();
create trigger tally_update after update on {entries} referencing old table as before new table as after
    for each statement execute function {tally}();
create trigger tally_delete after delete on {entries} referencing old table as before
    for each statement execute function {tally}();
"""
# The entry is locked before its use, as a removal does it: the second insert reads from the first.
PUT = """
with put as (
    insert into {entries} (id, namespace, partition, text, answer, vector, created, expires, tags, size)
    values (%(id)s, %(namespace)s, %(partition)s, %(text)s, %(answer)s, %(vector)s, %(created)s, %(expires)s,
        %(tags)s, %(size)s)
    on conflict (id) do update set (namespace, partition, text, answer, vector, created, expires, tags, size)
        = (excluded.namespace, excluded.partition, excluded.text, excluded.answer, excluded.vector,
        excluded.created, excluded.expires, excluded.tags, excluded.size)
    returning id, created, size
)
insert into {use} (id, used, uses, size) select id, created, 0, size from put
on conflict (id) do update set used = excluded.used, uses = 0, size = excluded.size
"""
# Rows are locked in the order of their ids, so that two removals cannot wait for each other.
REMOVE = """
delete from {entries} where id in (select id from {entries} where {rule} order by id for update)
"""
TOUCH = "update {use} set used = greatest(used, %s), uses = uses + 1 where id = %s"
LATEST = "select max(used) from {use}"
MOVE_BACK = "update {use} set used = used - %s where used > %s"
TALLY = "select coalesce(sum(entries), 0)::bigint, coalesce(sum(bytes), 0)::bigint from {counts}"
MEMBERS = """
select coalesce(sum(entries) filter (where kind = 'partition'), 0)::bigint,
    coalesce(sum(entries) filter (where kind = 'all'), 0)::bigint
from {counts} where kind = 'partition' and name = %s or kind = 'all' and name = ''
"""
FOLDING = """
with gone as (
    delete from {counts} where ctid in (select ctid from {counts} for update skip locked) returning *
)
insert into {counts} select kind, name, sum(entries), sum(bytes) from gone group by kind, name
having sum(entries) <> 0 or sum(bytes) <> 0
"""
# "+ 0" keeps the planner from the graph; without it, enable_sort = off (below) makes it take the graph.
NEAR = """
select {columns} from {entries} where partition = %s and (expires is null or expires > %s)
order by {distance} limit %s
"""
IN_BULK = "set local statement_timeout = 0"
SESSION = f"""
set statement_timeout = {int(1000 * CHANGE)};
set jit = off;
set enable_sort = off;
set hnsw.iterative_scan = strict_order;
set hnsw.ef_search = {EFFORT_SEARCH};
set hnsw.max_scan_tuples = 200000;
"""


class PostgresStore:
    """Entries in the database of `url` (`postgresql://user@host:port/database?table=name`; `?host=/path`: a socket).

    Text must not hold the character NUL, which PostgreSQL cannot store. A server that says nothing is an error after
    `WAIT` seconds for a lookup, `CHANGE` for an addition and `BULK` for what goes through many entries.

    Raises:
        StoreError: the server cannot be reached, or has no pgvector. ModelMismatch: vectors of another model.
        ConfigurationError: the URL cannot be used.
    """

    local = False

    def __init__(self, url: str, *, dimension: int, model: str) -> None:
        self.dimension, self.model = dimension, model
        self._address = read_url(url)
        self.url = self._address.shown
        self._lock = threading.Lock()
        self._changes = 0  # statements that changed counts since the last folding
        self._end = _End()
        with self._calls():
            check_target(self._address)
            with psycopg.connect(self._address.target, **limits_of(self._address.target)) as connection:
                self._about = self._open(connection)
        self._names = name_parts(self._address.name, dimension, self._about.generation)
        self._pool = ConnectionPool(
            self._address.target,
            connection_class=_Patient,
            kwargs={"autocommit": True, **limits_of(self._address.target)},  # a lookup is one round trip, not three
            configure=self._configure,
            min_size=1,
            max_size=CONNECTIONS,
            timeout=WAIT,
            open=True,
        )

    def _open(self, connection: Connection) -> About:
        """Check or write what the store is; one process at a time."""
        lock_store(connection, OPENING, self._address.name)
        self._check_extension(connection)
        about = open_about(connection, self.url, self._address.name)
        if about is None:
            about = About(SCHEMA, self.model, self.dimension, 1, self.dimension)
            self._create(connection, about)
        about.require(self.url, self.model, self.dimension)
        return about

    def _check_extension(self, connection: Connection) -> None:
        find = "select extversion from pg_extension where extname = 'vector'"
        expected = f"pgvector {'.'.join(map(str, PGVECTOR))} or newer"
        found = connection.execute(find).fetchone()
        if found is None:
            try:
                with connection.transaction():
                    connection.execute("create extension vector")
            except errors.InsufficientPrivilege:
                raise StoreError(
                    f"the user of {self.url} may not add the extension pgvector",
                    expected=expected,
                    action="let an administrator run `create extension vector` in this database",
                ) from None
            except (errors.FeatureNotSupported, errors.UndefinedFile):
                raise StoreError(
                    f"the PostgreSQL at {self.url} has no pgvector",
                    expected=expected,
                    action="install it on the server (Debian: apt-get install postgresql-17-pgvector; "
                    "image pgvector/pgvector:pg17)",
                ) from None
            found = connection.execute(find).fetchone()
        version = str(found[0]) if found else "0"
        if tuple(int(part) for part in version.split(".")[:2]) < PGVECTOR:
            raise StoreError(
                f"the PostgreSQL at {self.url} has pgvector {version}",
                expected=expected,
                action="update it, then run `alter extension vector update`",
            )

    def _create(self, connection: Connection, about: About) -> None:
        names = name_parts(self._address.name, self.dimension, about.generation)
        create_entries(connection, names, self.dimension)
        for statements in (ABOUT, REST, TRIGGERS):
            connection.execute(sql.SQL(statements).format(**names))
        index_entries(connection, names, self.dimension)
        values = (about.schema, about.model, about.dimension, about.generation, about.counted)
        connection.execute(sql.SQL("insert into {about} values (%s, %s, %s, %s, %s)").format(**names), values)

    def _configure(self, connection: Connection) -> None:
        """Prepare a connection of the pool."""
        register_vectors(connection, self.url)
        connection.execute(SESSION)

    def _sql(self, text: str, **parts: sql.Composable) -> sql.Composed:
        return sql.SQL(text).format(**self._names, **parts)

    def get(self, id: str, now: float) -> Entry | None:
        query = self._sql(f"select {COLUMNS} from {{entries}} where id = %s and (expires is null or expires > %s)")
        rows = self._run(lambda connection: self._fetch(connection, query, (id, now)))
        return _entry(rows[0]) if rows else None

    def search(
        self,
        partition: str,
        vector: Embeddings,
        k: int,
        now: float,
        *,
        floor: float = -1.0,  # noqa: ARG002  the server sends what it finds in one answer
    ) -> list[Match]:
        vector = check_vector(vector, self.dimension)
        if k < 1:
            return []
        return self._run(lambda connection: self._search(connection, partition, vector, k, now))

    def _search(self, connection: Connection, partition: str, vector: Embeddings, k: int, now: float) -> list[Match]:
        members, all_entries = self._fetch(connection, self._sql(MEMBERS), (partition,))[0]
        if not members:
            return []
        exact = members <= EXACT or members * RARE < all_entries
        distance = self._sql("({exact}) + 0" if exact else "{approximate}")
        query = self._sql(NEAR, distance=distance, columns=sql.SQL(COLUMNS))

        def near(count: int, _: float) -> list[Entry]:
            return [_entry(row) for row in self._fetch(connection, query, (partition, now, vector, count))]

        return rank(vector, k, now, near)

    def put(self, entries: Sequence[Entry]) -> None:
        latest = {entry.id: entry for entry in entries}
        rows = [self._row(latest[id]) for id in sorted(latest)]  # one order of locks for everybody
        if rows:
            patience = CHANGE if len(rows) == 1 else BULK  # they are sent in one go, and answered so
            self._change(lambda cursor: cursor.executemany(self._sql(PUT), rows), len(rows), patience=patience)

    def _row(self, entry: Entry) -> dict[str, object]:
        row = {name: getattr(entry, name) for name in (*COLUMNS.split(", "), "size")}
        for name, value in row.items():
            if isinstance(value, str) and "\0" in value:
                raise ValueError(f"{name} of entry {entry.id!r} holds the character NUL, which PostgreSQL cannot store")
        size = entry.size - self._about.surplus
        return row | {"vector": check_vector(entry.vector, self.dimension), "tags": list(entry.tags), "size": size}

    def touch(self, id: str, now: float) -> None:
        self._run(lambda connection: connection.execute(self._sql(TOUCH), (now, id)))

    def delete(self, ids: Sequence[str]) -> int:
        return self._remove("id = any(%s)", list(ids))

    def purge(self, *, namespace: str | None = None, tag: str | None = None) -> int:
        rules, values = ["true"], list[object]()
        if namespace is not None:
            rules.append("(namespace = %s or starts_with(namespace, %s))")
            values += [namespace, f"{namespace}/"]
        if tag is not None:
            rules.append("tags @> %s")
            values.append([tag])
        return self._remove(" and ".join(rules), *values)

    def expire(self, now: float) -> int:
        removed = self._remove("expires <= %s", now)
        latest = self._run(lambda connection: connection.execute(self._sql(LATEST)).fetchall()[0][0])
        if latest is not None and latest > now + AHEAD:
            values = (latest - now, now + AHEAD)
            self._change(lambda cursor: cursor.execute(self._sql(MOVE_BACK), values), patience=BULK)
        return removed

    def _remove(self, rule: str, *values: object) -> int:
        query = self._sql(REMOVE, rule=sql.SQL(rule))

        def remove(cursor: psycopg.Cursor[tuple[Any, ...]]) -> int:
            cursor.execute(IN_BULK)
            cursor.execute("set local enable_sort = on")  # else all rows are read by their ids, which are in order
            return cursor.execute(query, values).rowcount

        return self._change(remove, patience=BULK)

    def evict(self, *, entries: int | None = None, bytes: int | None = None, order: Order = "lru") -> int:
        def excess(connection: Connection) -> Counts:
            left = self._tally(connection, "all")
            more = 0 if entries is None else max(left.entries - max(entries, 0), 0)
            return Counts(more, 0 if bytes is None else max(left.bytes - max(bytes, 0), 0))

        def evict(cursor: psycopg.Cursor[tuple[Any, ...]]) -> int:
            # One process at a time: two that saw the same excess would both remove it.
            cursor.execute(IN_BULK)
            lock_store(cursor.connection, EVICTING, self._address.name)
            return self._evict(cursor, excess(cursor.connection), ORDERS[order])

        if self._run(excess) == Counts(0, 0):
            return 0
        return self._change(evict, patience=BULK)

    def _evict(self, cursor: psycopg.Cursor[tuple[Any, ...]], excess: Counts, order: str) -> int:
        more, weight, removed = excess.entries, excess.bytes, 0
        query = self._sql(f"select id, size from {{use}} order by {order} limit {BLOCK}")
        remove = self._sql(REMOVE, rule=sql.SQL("id = any(%s)"))
        while more > 0 or weight > 0:
            going = []
            for id, size in cursor.execute(query).fetchall():
                if more <= 0 and weight <= 0:
                    break
                going.append(id)
                more, weight = more - 1, weight - size - self._about.surplus
            if not going:
                break
            removed += cursor.execute(remove, [going]).rowcount
        return removed

    def count(self, namespace: str | None = None) -> Counts:
        kind = "all" if namespace is None else "namespace"
        return self._run(lambda connection: self._tally(connection, kind, namespace or ""))

    def _tally(self, connection: Connection, kind: str, name: str = "") -> Counts:
        query = self._sql(TALLY + " where kind = %s and name = %s")
        entries, bytes = self._fetch(connection, query, (kind, name))[0]
        return Counts(entries, bytes + entries * self._about.surplus)

    def scan(self, namespace: str | None = None, *, newest: bool = False) -> Iterator[Entry]:
        rule = "true" if namespace is None else "namespace = %s"
        given = () if namespace is None else (namespace,)
        side, order = ("<", "created desc, id desc") if newest else (">", "created, id")
        text = f"select {COLUMNS} from {{entries}} where {rule} and (created, id) {side} (%s, %s)"
        query = self._sql(text + f" order by {order} limit {BLOCK}")
        last: tuple[float, str] = (float("inf") if newest else float("-inf"), "")
        while True:
            values = (*given, *last)
            rows = self._run(partial(self._fetch_block, query, values), BULK)
            yield from map(_entry, rows)
            if len(rows) < BLOCK:
                return
            last = (rows[-1][6], rows[-1][0])

    def _fetch_block(
        self, query: sql.Composed, values: Sequence[object], connection: Connection
    ) -> list[tuple[Any, ...]]:
        with connection.transaction():
            connection.execute(IN_BULK)
            return self._fetch(connection, query, values)

    def close(self) -> None:
        self._end.at = time.monotonic() + WAIT  # what is on its way may take minutes, and a process waits for it
        self._pool.close()

    def _fetch(self, connection: Connection, query: sql.Composed, values: Sequence[object]) -> list[tuple[Any, ...]]:
        return connection.execute(query, values, binary=True).fetchall()

    def _change(
        self,
        work: Callable[[psycopg.Cursor[tuple[Any, ...]]], Result],
        statements: int = 1,
        *,
        patience: float = CHANGE,
    ) -> Result:
        """Return what `work` does to the entries in one transaction; now and then, add up the counts."""

        def change(connection: Connection) -> Result:
            with connection.transaction(), connection.cursor() as cursor:
                return work(cursor)

        result = self._run(change, patience)
        with self._lock:
            self._changes += statements
            due = self._changes >= FOLD
            self._changes = 0 if due else self._changes
        if due:
            self._run(lambda connection: connection.execute(self._sql(FOLDING)), CHANGE)
        return result

    def _run(self, work: Callable[[Connection], Result], patience: float = WAIT) -> Result:
        """Return what `work` does, which is tried again when it lost against another transaction.

        Args:
            patience: seconds for each of its statements.
        """
        with self._calls():
            try:
                for _ in range(TRIES - 1):
                    with suppress(errors.DeadlockDetected, errors.SerializationFailure, _Broken):
                        return self._try(work, patience)
                return self._try(work, patience)
            except errors.UndefinedTable:
                self._follow()
                raise

    def _follow(self) -> None:
        """Take note of a re-encoding, which dropped the table of entries; its model is another one, or came back."""
        about = self._try(lambda connection: open_about(connection, self.url, self._address.name))
        if about is not None and about.generation != self._about.generation:
            about.require(self.url, self.model, self.dimension)
            self._about = about
            self._names = name_parts(self._address.name, self.dimension, about.generation)

    def _try(self, work: Callable[[Connection], Result], patience: float = WAIT) -> Result:
        with self._pool.connection() as connection:
            connection.patience, connection.end = patience, self._end
            try:
                return work(connection)
            except psycopg.OperationalError as error:
                if connection.broken:  # the server was restarted: others of the pool are broken too
                    raise _Broken(*error.args) from None
                raise

    def _calls(self) -> AbstractContextManager[None]:
        return translated(self._address)


def lock_store(connection: Connection, doing: int, name: str) -> None:
    """Let others who do the same (`OPENING`, `EVICTING`) with the store `name` wait until the transaction ends."""
    connection.execute("select pg_advisory_xact_lock(hashtextextended(%s, %s))", [name, doing])


@contextmanager
def translated(address: Address) -> Iterator[None]:
    """Turn the driver's errors into ours, without the password."""
    try:
        yield
    except psycopg.OperationalError as error:
        raise StoreError(
            f"{address.shown} cannot be reached: {address.censor(error)}",
            expected="a running PostgreSQL with pgvector, and a user and password that it knows",
            action="start it, or check host, port, user and password",
        ) from None
    except psycopg.Error as error:
        raise StoreError(f"{address.shown} failed: {address.censor(error)}") from None


def read_url(url: str) -> Address:
    """Return where the store of `url` is."""
    return read_address(url, option="table", default="embedsmith_cache", pattern=r"[A-Za-z_][A-Za-z0-9_]{0,39}")


class _Broken(psycopg.OperationalError):
    """The connection broke; another may do."""


class _Late(psycopg.OperationalError):
    """The server has said nothing for too long."""


class _End:
    """When calls that are on their way are given up, however long they may take; of the monotonic clock."""

    at = float("inf")


class _Patient(psycopg.Connection[tuple[Any, ...]]):
    """A connection that is closed when an answer does not come.

    A server that stands still sends no timeout, and its kernel acknowledges what is sent: only the clock here tells.
    """

    patience, end = WAIT, _End()

    def wait(self, gen: Generator[Any, Any, Result], *args: Any, **options: Any) -> Result:
        """Return what comes of `gen`, which is resumed ten times a second while nothing comes."""
        try:
            return super().wait(_limit(gen, self.patience, self.end), *args, **options)
        except _Late:
            self.close()
            raise


def _limit(gen: Generator[Any, Any, Result], seconds: float, end: _End) -> Generator[Any, Any, Result]:
    """Yield and return what `gen` does; once it has got nothing for so many seconds, or to the `end`, raise `_Late`."""
    until = time.monotonic() + seconds
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if ready:
                until = time.monotonic() + seconds
            elif time.monotonic() > min(until, end.at):
                told = f"within {seconds:g} s" if end.at > until else "before the store was closed"
                raise _Late(f"no answer {told}")
            wanted = gen.send(ready)
    except StopIteration as done:
        found: Result = done.value
        return found


class _VectorDumper(Dumper):
    """A (d,) array as pgvector sends it: two int16 (d, 0), then d float32, all big-endian."""

    format = pq.Format.BINARY

    def dump(self, obj: Embeddings) -> Buffer:
        return np.array([len(obj), 0], dtype=">i2").tobytes() + obj.astype(">f4").tobytes()


class _VectorLoader(Loader):
    """The reverse."""

    format = pq.Format.BINARY

    def load(self, data: Buffer) -> Embeddings:
        return np.frombuffer(data, dtype=">f4", offset=4).astype(np.float32)


def name_parts(table: str, dimension: int, generation: int) -> dict[str, sql.Composable]:
    """Return what the statements call {entries}, {use}, ..., quoted."""
    cast = "vector" if dimension <= 2000 else f"(vector::halfvec({dimension}))"  # the index of `vector` ends there
    kind = "vector" if dimension <= 2000 else "halfvec"
    query = "%s" if dimension <= 2000 else f"%s::vector::halfvec({dimension})"
    return {
        "entries": sql.Identifier(table if generation == 1 else f"{table}_entries_{generation}"),
        **{name: sql.Identifier(f"{table}_{name}") for name in ("about", "use", "counts", "tally")},
        "dimension": sql.SQL(str(dimension)),
        "indexed": sql.SQL(f"{cast} {kind}_cosine_ops"),
        "approximate": sql.SQL(f"{cast} <=> {query}"),
        "exact": sql.SQL("vector <=> %s"),
    }


def open_about(connection: Connection, url: str, table: str) -> About | None:
    """Return whose vectors the store holds, None where there is none; an older one becomes one of this version.

    Raises:
        StoreError: it is of a newer version.
    """
    names = name_parts(table, 1, 1)
    if connection.execute("select to_regclass(%s)", [f'"{table}_about"']).fetchone() == (None,):
        return None
    ((schema,),) = connection.execute(sql.SQL("select schema from {about}").format(**names)).fetchall()
    if schema > SCHEMA:
        raise refuse_schema(url, schema)
    if schema < SCHEMA:
        connection.execute(sql.SQL(MIGRATE).format(**names))
        LOG.warning("%s was migrated from schema 1 to %d: it can be re-encoded now", url, SCHEMA)
    query = sql.SQL("select schema, model, dimension, generation, counted from {about}").format(**names)
    return About(*connection.execute(query).fetchall()[0])


def create_entries(connection: Connection, names: Mapping[str, sql.Composable], dimension: int) -> None:
    """Add a table of entries, without indexes."""
    connection.execute(sql.SQL(ENTRIES).format(**names))
    if dimension <= INLINE:
        connection.execute(sql.SQL("alter table {entries} alter column vector set storage plain").format(**names))


def index_entries(connection: Connection, names: Mapping[str, sql.Composable], dimension: int) -> None:
    """Add the indexes of a table of entries."""
    connection.execute(sql.SQL(INDEXES).format(**names))
    if dimension <= 4000:  # beyond, pgvector has no index, and every search compares all
        build = f"with (m = {LINKS}, ef_construction = {EFFORT_BUILD})"
        connection.execute(sql.SQL("create index on {entries} using hnsw ({indexed}) " + build).format(**names))


def register_vectors(connection: Connection, url: str) -> None:
    """Let a connection read and write arrays as pgvector's vectors."""
    info = TypeInfo.fetch(connection, "vector")
    if info is None:
        raise StoreError(f"the PostgreSQL at {url} has no pgvector any more")
    connection.adapters.register_dumper(np.ndarray, type("Dumper", (_VectorDumper,), {"oid": info.oid}))
    connection.adapters.register_loader(info.oid, _VectorLoader)


def _entry(row: tuple[Any, ...]) -> Entry:
    """Return the entry of the values of COLUMNS."""
    id, namespace, partition, text, answer, vector, created, expires, tags = row
    return Entry(id, namespace, partition, text, answer, vector, created, expires, tuple(tags))


def check_target(address: Address) -> None:
    """Raise `ConfigurationError` for an address that the driver cannot read or use; no server is asked."""
    expected = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE?table=NAME"
    try:
        given = psycopg.conninfo.conninfo_to_dict(address.target)
    except psycopg.ProgrammingError:
        raise ConfigurationError(
            "the postgresql:// URL of the store cannot be read (not shown: it may hold a password)", expected=expected
        ) from None
    wrong = (name for name in (*REACH, "keepalives") if not re.fullmatch("-?[0-9]{1,9}", str(given.get(name, 0))))
    if fault := next((f"its {name} is no number" for name in wrong), "") or _find_fault(given):
        raise address.refuse(fault, expected)


def _find_fault(given: Mapping[str, Any]) -> str:
    """Return what libpq has against the options of an address, "" for nothing.

    It looks at them as it begins to connect, and tells no other way: so it is sent to where there is no server, by a
    socket, for which it takes nothing that requires more than one.
    """
    hosts = str(given.get("host") or given.get("hostaddr") or "").count(",") + 1  # as many as there are ports
    tried = {name: value for name, value in given.items() if name != "hostaddr" and value != "require"}
    tried["host"] = ",".join([NOWHERE] * hosts)
    connection = pq.PGconn.connect_start(psycopg.conninfo.make_conninfo("", **tried).encode())
    told = connection.get_error_message()
    connection.finish()
    return "" if NOWHERE in told else told


def limits_of(target: str) -> dict[str, Any]:
    """Return the limits that the driver is given for an address, but those that it names itself."""
    given = psycopg.conninfo.conninfo_to_dict(target)
    return {name: seconds for name, seconds in REACH.items() if name not in given}
