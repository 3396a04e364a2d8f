"""A PostgreSQL store on its way to another model: a second table of entries, whose indexes are built before the switch.

What is in the second table is always a true copy but for the vector: a trigger takes a copy out when its entry is
replaced or removed, and a copy is made under a lock of its entry's row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import psycopg
from psycopg import errors, sql

from embedsmith.cache.stores import NoStore
from embedsmith.cache.stores.moving import Pending, Target, choose_target, overtaken
from embedsmith.cache.stores.postgres import (
    OPENING,
    TRIES,
    TRIGGERS,
    Connection,
    check_target,
    create_entries,
    index_entries,
    limits_of,
    lock_store,
    name_parts,
    open_about,
    read_url,
    register_vectors,
    translated,
)
from embedsmith.encoder import Embeddings

COPIED = "id, namespace, partition, text, answer, created, expires, tags, size"
FORGET = """
create function {forget}() returns trigger language plpgsql as $body$
begin
    delete from {coming} where id in (select id from before);
    return null;
end $body$;
create trigger forget_update after update on {entries} referencing old table as before
    for each statement execute function {forget}();
create trigger forget_delete after delete on {entries} referencing old table as before
    for each statement execute function {forget}();
"""
ABANDON = """
drop table if exists {coming};
drop function if exists {forget}() cascade;
update {about} set next_model = null, next_dimension = null, next_generation = null;
"""
PENDING = """
select id, text from {entries} as entry
where id > %s and not exists (select from {coming} as copy where copy.id = entry.id)
order by id limit %s
"""
# The row is locked, so that a replacement comes before the copy or, by the trigger, takes it out.
WRITE = f"""
insert into {{coming}} ({COPIED}, vector)
select {COPIED}, %s from {{entries}} where id = %s and text = %s for share
on conflict (id) do nothing
"""
# Lookups wait from here on, for as long as it takes to check that each use has its entry.
SWITCH = """
alter table {use} drop constraint {foreign};
drop table {entries};
drop function {forget}() cascade;
alter table {use} add constraint {foreign} foreign key (id) references {coming} on delete cascade;
update {about} set model = next_model, dimension = next_dimension, generation = next_generation,
    next_model = null, next_dimension = null, next_generation = null;
"""
MEMORY = 1 << 20  # KiB at most for the building of the graph, which is slow where it does not fit


class PostgresMove:
    """See `Move`."""

    def __init__(self, url: str, *, model: str, dimension: int, restart: bool) -> None:
        self._address = read_url(url)
        self.url = self._address.shown
        with translated(self._address):
            check_target(self._address)
            self._connection: Connection = psycopg.connect(
                self._address.target, autocommit=True, **limits_of(self._address.target)
            )
        try:
            with translated(self._address):
                self._open(model, dimension, restart)
        except BaseException:
            self.close()
            raise

    def _open(self, model: str, dimension: int, restart: bool) -> None:
        with self._connection.transaction():
            self._lock()
            about = open_about(self._connection, self.url, self._address.name)
            if about is None:
                raise NoStore(self.url)
            self.about = about
            self.finished = (about.model, about.dimension) == (model, dimension)
            self._begin(model, dimension, restart)
        register_vectors(self._connection, self.url)
        self._connection.execute("set enable_hashjoin = off")  # a few pending ones are found along the two keys

    def _begin(self, model: str, dimension: int, restart: bool) -> None:
        coming = self._coming()
        if coming is not None and restart:
            self._name(coming)
            self._connection.execute(self._sql(ABANDON))
        if self.finished:
            self._name(Target(model, dimension, self.about.generation))
            return
        target = choose_target(self.url, self.about, coming, model, dimension, restart=restart)
        self._name(target)
        if target != coming:
            create_entries(self._connection, self._next_names, dimension)
            self._connection.execute(self._sql(FORGET))
            values = (target.model, target.dimension, target.generation)
            query = "update {about} set next_model = %s, next_dimension = %s, next_generation = %s"
            self._connection.execute(self._sql(query), values)

    def _coming(self) -> Target | None:
        names = name_parts(self._address.name, 1, 1)
        query = sql.SQL("select next_model, next_dimension, next_generation from {about}").format(**names)
        row = self._connection.execute(query).fetchone()
        return Target(*row) if row is not None and row[2] is not None else None

    def _name(self, target: Target) -> None:
        """Say what the statements call {entries} and {coming}."""
        self._target, table = target, self._address.name
        self._next_names = name_parts(table, target.dimension, target.generation)
        self._names = name_parts(table, self.about.dimension, self.about.generation) | {
            "coming": self._next_names["entries"],
            "forget": sql.Identifier(f"{table}_forget"),
            "foreign": sql.Identifier(f"{table}_use_id_fkey"),
        }

    def _sql(self, text: str) -> sql.Composed:
        return sql.SQL(text).format(**self._names)

    def progress(self) -> tuple[int, int]:
        total = "select coalesce(sum(entries), 0)::bigint from {counts} where kind = 'all'"
        with self._calls():
            return self._number(self._sql("select count(*) from {coming}")), self._number(self._sql(total))

    def pending(self, after: str, count: int) -> list[Pending]:
        with self._calls():
            return [Pending(*row) for row in self._connection.execute(self._sql(PENDING), (after, count))]

    def write(self, rows: Sequence[tuple[Pending, Embeddings]]) -> None:
        self._write(WRITE, [(vector, row.id, row.text) for row, vector in rows])

    def drop(self, rows: Sequence[Pending]) -> None:
        self._write("delete from {entries} where id = %s and text = %s", [(row.id, row.text) for row in rows])

    def _write(self, query: str, rows: Sequence[tuple[object, ...]]) -> None:
        """Run `query` for all rows, or for none; again when it lost against another transaction."""
        with self._calls():
            for _ in range(TRIES - 1):
                with suppress(errors.DeadlockDetected):
                    return self._write_all(query, rows)
            return self._write_all(query, rows)

    def _write_all(self, query: str, rows: Sequence[tuple[object, ...]]) -> None:
        with self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.executemany(self._sql(query), rows)

    def ready(self) -> None:
        """Build the indexes, of which the graph takes minutes for a million vectors."""
        name = self._next_names["entries"].as_string(self._connection)
        with self._calls():
            find = "select count(*) from pg_index where indrelid = %s::regclass"
            if self._number(sql.SQL(find), [name]) > 1:  # more than the key
                return
            size = self._number(self._sql("select count(*) from {coming}")) * (4 * self._target.dimension + 700)
            with self._connection.transaction():
                memory = min(max(size // 1024, 1 << 16), MEMORY)
                self._connection.execute(sql.SQL("set local maintenance_work_mem = {}").format(memory))
                index_entries(self._connection, self._next_names, self._target.dimension)
            self._connection.execute(self._sql("analyze {coming}"))

    @contextmanager
    def hold(self) -> Iterator[None]:
        """See `Move`; when it loses against another transaction, nothing happened, and nothing is raised."""
        with self._calls(), suppress(errors.DeadlockDetected), self._connection.transaction():
            self._connection.execute(self._sql("lock table {entries} in share row exclusive mode"))
            yield

    def switch(self) -> bool:
        if self.pending("", 1):
            return False
        with self._calls():
            self._lock()
            if self._coming() != self._target:
                raise overtaken(self.url)
            self._connection.execute(self._sql(SWITCH))
            self._connection.execute(sql.SQL(TRIGGERS).format(**self._next_names))
        return True

    def clean(self) -> None:
        """There is nothing to do: the old table went with the switch."""

    def close(self) -> None:
        self._connection.close()

    def _lock(self) -> None:
        """Let others who open or move this store wait until the transaction ends."""
        lock_store(self._connection, OPENING, self._address.name)

    def _number(self, query: sql.SQL | sql.Composed, values: Sequence[object] = ()) -> int:
        return int(self._connection.execute(query, values).fetchall()[0][0])

    @contextmanager
    def _calls(self) -> Iterator[None]:
        """Turn the driver's errors into ours."""
        with translated(self._address):
            try:
                yield
            except errors.UndefinedTable:
                raise overtaken(self.url) from None
