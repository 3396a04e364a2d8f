"""What is in the file of the SQLite store: its tables, how an older file becomes a new one, and whose vectors it holds.

Version 2 keeps the vectors in a table of their own, `vectors_G`, where G counts the models that the store has had:
the vectors of another model gather in `vectors_G+1` while G serves, and a switch is one row of `meta`. Rows without
vectors are short, eviction goes along an index, and counts are kept up by triggers (figures in docs/log.md).
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager

from embedsmith.cache.stores import LOG, SCHEMA, About, refuse_schema

TABLES = (
    "create table if not exists meta (name text primary key, value text not null) without rowid",
    """create table if not exists entries (
        number integer primary key autoincrement,
        id text not null unique,
        namespace text not null,
        partition text not null,
        text text not null,
        answer text not null,
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
# Ids, which order what is equal, are not in the indexes: they would make the file a sixth larger.
ORDERS = (
    "create index by_use on entries (used)",
    "create index by_uses on entries (uses, used)",
    "create index by_size on entries (size desc, used)",
)
COUNTS = (
    """create table counts (
        namespace text primary key,
        entries integer not null,
        bytes integer not null) without rowid""",
    "insert into counts select namespace, count(*), sum(size) from entries group by namespace",
    """create trigger count_in after insert on entries begin
        insert into counts values (new.namespace, 1, new.size)
        on conflict (namespace) do update set entries = entries + 1, bytes = bytes + new.size;
    end""",
    """create trigger count_out after delete on entries begin
        update counts set entries = entries - 1, bytes = bytes - old.size where namespace = old.namespace;
        delete from counts where namespace = old.namespace and entries = 0;
    end""",
)
CURRENT = """
select schema.value, model.value, dimension.value, generation.value, counted.value
from meta schema, meta model, meta dimension, meta generation, meta counted
where schema.name = 'schema' and model.name = 'model' and dimension.name = 'dimension'
    and generation.name = 'generation' and counted.name = 'counted'
"""


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Hold the lock of the file for writing: all of it happens, or nothing; within another one, it is part of that."""
    if connection.in_transaction:
        yield
        return
    connection.execute("begin immediate")
    try:
        yield
        connection.execute("commit")
    except BaseException:
        if connection.in_transaction:  # a full disk has ended it already
            connection.execute("rollback")
        raise


def read_about(connection: sqlite3.Connection) -> About | None:
    """Return whose vectors the file holds, None where there is no store of this version."""
    row = connection.execute(CURRENT).fetchone()
    return About(int(row[0]), row[1], int(row[2]), int(row[3]), int(row[4])) if row is not None else None


def prepare(connection: sqlite3.Connection, url: str, model: str, dimension: int) -> About:
    """Return whose vectors the file holds, which is new, of this version or made so; inside a transaction.

    Raises:
        StoreError: the file is of a newer version.
    """
    for statement in TABLES:
        connection.execute(statement)
    found = connection.execute("select value from meta where name = 'schema'").fetchone()
    if found is None:
        write_meta(connection, schema=SCHEMA, model=model, dimension=dimension, generation=1, counted=dimension)
        for statement in (*ORDERS, *COUNTS):
            connection.execute(statement)
        make_vectors(connection, 1)
    elif int(found[0]) > SCHEMA:
        raise refuse_schema(url, int(found[0]))
    elif int(found[0]) < SCHEMA:
        migrate(connection, url)
    about = read_about(connection)
    assert about is not None
    return about


def migrate(connection: sqlite3.Connection, url: str) -> None:
    """Make version 2 of version 1; inside a transaction."""
    began = time.perf_counter()
    make_vectors(connection, 1)
    connection.execute("insert into vectors_1 select number, vector from entries")
    connection.execute("alter table entries drop column vector")
    for statement in (*ORDERS, *COUNTS):
        connection.execute(statement)
    ((dimension,),) = connection.execute("select value from meta where name = 'dimension'")
    write_meta(connection, schema=SCHEMA, generation=1, counted=dimension)
    ((entries,),) = connection.execute("select count(*) from vectors_1")
    LOG.warning(
        "%s was migrated from schema 1 to %d: vectors in a table of their own, indexes for eviction, kept counts "
        "(%d entries, %.1f s); older versions of embedsmith cannot open it any more",
        *(url, SCHEMA, entries, time.perf_counter() - began),
    )


def make_vectors(connection: sqlite3.Connection, generation: int) -> None:
    """Add the table for the vectors of a model; an entry that goes takes its vector with it."""
    connection.execute(f"create table vectors_{generation} (number integer primary key, vector blob not null)")
    connection.execute(
        f"""create trigger forget_vectors_{generation} after delete on entries begin
            delete from vectors_{generation} where number = old.number;
        end"""
    )


def drop_vectors(connection: sqlite3.Connection, generation: int) -> None:
    """Remove the vectors of a model."""
    connection.execute(f"drop trigger if exists forget_vectors_{generation}")
    connection.execute(f"drop table if exists vectors_{generation}")


def find_vectors(connection: sqlite3.Connection) -> set[int]:
    """Return the generations whose vectors are in the file."""
    names = connection.execute("select name from sqlite_schema where type = 'table' and name glob 'vectors_*'")
    return {int(name.removeprefix("vectors_")) for (name,) in names}


def write_meta(connection: sqlite3.Connection, **values: object) -> None:
    """Write or replace rows of `meta`."""
    rows = [(name, str(value)) for name, value in values.items()]
    connection.executemany("insert or replace into meta values (?, ?)", rows)
