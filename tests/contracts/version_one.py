"""Stores as version 1 wrote them: its tables and commands, kept here word for word."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

from places import Place

from embedsmith.cache.stores import Entry

Uses = Mapping[str, tuple[float, int]]  # id -> last use, number of uses
SQLITE = (
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
POSTGRES = """
create table T_about (schema integer not null, model text not null, dimension integer not null);
create table T (
    id text collate "C" primary key,
    namespace text not null,
    partition text not null,
    text text not null,
    answer text not null,
    vector vector(DIMENSION) not null,
    created double precision not null,
    expires double precision,
    tags text[] not null,
    size bigint not null
);
create index on T using hash (namespace);
create index on T using hash (partition);
create index on T using gin (tags);
create index on T (created, id);
create index on T (expires) where expires is not null;
create table T_use (
    id text collate "C" primary key references T on delete cascade,
    used double precision not null,
    uses bigint not null,
    size bigint not null
);
create index on T_use (used, id);
create index on T_use (uses, used, id);
create index on T_use (size desc, used, id);
create table T_counts (kind text not null, name text not null, entries bigint not null, bytes bigint not null);
create index on T_counts using hash (name);
create function T_tally() returns trigger language plpgsql as $body$
begin
    if tg_op <> 'INSERT' then
        insert into T_counts select 'all', '', -count(*), -sum(size) from before having count(*) > 0;
        insert into T_counts select 'namespace', namespace, -count(*), -sum(size) from before group by namespace;
        insert into T_counts select 'partition', partition, -count(*), -sum(size) from before group by partition;
    end if;
    if tg_op <> 'DELETE' then
        insert into T_counts select 'all', '', count(*), sum(size) from after having count(*) > 0;
        insert into T_counts select 'namespace', namespace, count(*), sum(size) from after group by namespace;
        insert into T_counts select 'partition', partition, count(*), sum(size) from after group by partition;
    end if;
    return null;
end $body$;
create trigger tally_insert after insert on T referencing new table as after
    for each statement execute function T_tally();
create trigger tally_update after update on T referencing old table as before new table as after
    for each statement execute function T_tally();
create trigger tally_delete after delete on T referencing old table as before
    for each statement execute function T_tally();
alter table T alter column vector set storage plain;
create index on T using hnsw (vector vector_cosine_ops) with (m = 16, ef_construction = 128);
insert into T_about values (1, 'model-a', DIMENSION);
"""


def write_version_one(place: Place, entries: Sequence[Entry], uses: Uses, dimension: int = 4) -> None:
    """Write a store of model-a with these entries; an entry without uses was last used when it was created."""
    whole = {entry.id: uses.get(entry.id, (entry.created, 0)) for entry in entries}
    {"sqlite": _write_sqlite, "redis": _write_redis, "postgres": _write_postgres}[place.kind](
        place.url, entries, whole, dimension
    )


def read_schema(place: Place) -> int:
    """Return the version that the store says it has."""
    server, _, name = place.url.rpartition("=")
    if place.kind == "sqlite":
        import sqlite3

        with closing(sqlite3.connect(place.url.removeprefix("sqlite:///"))) as file:
            return int(file.execute("select value from meta where name = 'schema'").fetchone()[0])
    if place.kind == "redis":
        import redis

        with redis.Redis.from_url(server.partition("?")[0]) as client:
            return int(client.hget(f"{name}:about", "schema") or 0)
    import psycopg

    with psycopg.connect(server.rpartition("&")[0]) as connection:
        return int(connection.execute(f"select schema from {name}_about").fetchone()[0])


def _write_sqlite(url: str, entries: Sequence[Entry], uses: Uses, dimension: int) -> None:
    import sqlite3

    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file, file:
        file.execute("pragma journal_mode = wal")
        for statement in SQLITE:
            file.execute(statement)
        about = [("schema", "1"), ("model", "model-a"), ("dimension", str(dimension))]
        file.executemany("insert into meta values (?, ?)", about)
        for one in entries:
            values = (
                *(one.id, one.namespace, one.partition, one.text, one.answer, one.vector.astype("<f4").tobytes()),
                *(one.created, one.expires, json.dumps(list(one.tags)), one.size, *uses[one.id]),
            )
            columns = "id, namespace, partition, text, answer, vector, created, expires, tags, size, used, uses"
            marks = ",".join("?" * len(values))
            number = file.execute(f"insert into entries ({columns}) values ({marks})", values).lastrowid
            file.executemany("insert into tags values (?, ?)", [(tag, number) for tag in one.tags])


def _write_postgres(url: str, entries: Sequence[Entry], uses: Uses, dimension: int) -> None:
    import psycopg

    server, _, table = url.rpartition("&table=")
    with psycopg.connect(server) as connection:
        connection.execute("create extension if not exists vector")
        connection.execute(
            POSTGRES.replace("DIMENSION", str(dimension))
            .replace("T_", f"{table}_")
            .replace(" T ", f" {table} ")
            .replace(" T;", f" {table};")
        )
        for one in entries:
            values = (
                *(one.id, one.namespace, one.partition, one.text, one.answer, str(one.vector.tolist())),
                *(one.created, one.expires, list(one.tags), one.size),
            )
            connection.execute(f"insert into {table} values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)", values)
            connection.execute(f"insert into {table}_use values (%s, %s, %s, %s)", (one.id, *uses[one.id], one.size))


def _write_redis(url: str, entries: Sequence[Entry], uses: Uses, dimension: int) -> None:
    import redis

    server, _, base = url.partition("?prefix=")
    with redis.Redis.from_url(server, protocol=2) as client:
        client.hset(f"{base}:about", mapping={"schema": "1", "model": "model-a", "dimension": str(dimension)})
        graph = ("TYPE", "FLOAT32", "DIM", dimension, "DISTANCE_METRIC", "COSINE", "M", 16, "EF_CONSTRUCTION", 200)
        fields = ("group", "TAG", "expires", "NUMERIC", "vector", "VECTOR", "HNSW", len(graph), *graph)
        create = ("FT.CREATE", f"{base}:index", "ON", "HASH", "PREFIX", 1, f"{base}:entry:", "SCHEMA")
        client.execute_command(*create, *fields)
        for one in entries:
            _write_hash(client, base, one, *uses[one.id])


def _write_hash(client: Any, base: str, one: Entry, used: float, uses: int) -> None:
    group, space = _fingerprint(one.partition), _fingerprint(one.namespace)
    labels, expires = [_fingerprint(tag) for tag in one.tags], "inf" if one.expires is None else repr(one.expires)
    fields = {
        **{"id": one.id, "group": group, "space": space, "size": one.size, "labels": " ".join(labels)},
        **{"created": repr(one.created), "expires": expires, "vector": one.vector.astype("<f4").tobytes()},
        **{"namespace": one.namespace, "partition": one.partition, "text": one.text, "answer": one.answer},
        "tags": json.dumps(one.tags),
    }
    assert used >= 0
    packed = struct.pack(">d", used)
    member = bytes([packed[0] + 128]) + packed[1:] + one.id.encode()
    client.hset(f"{base}:entry:{one.id}", mapping=fields)
    client.zadd(f"{base}:used", {one.id: used})
    client.zadd(f"{base}:uses", {member: uses})
    client.zadd(f"{base}:size", {member: -one.size})
    client.zadd(f"{base}:created", {one.id: one.created})
    client.zadd(f"{base}:created:{space}", {one.id: one.created})
    if one.expires is not None:
        client.zadd(f"{base}:expires", {one.id: one.expires})
    for label in labels:
        client.sadd(f"{base}:tag:{label}", one.id)
    client.hincrby(f"{base}:counts", "entries", 1)
    client.hincrby(f"{base}:counts", "bytes", one.size)
    client.hincrby(f"{base}:counts", f"bytes:{space}", one.size)
    client.hincrby(f"{base}:groups", group, 1)


def _fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
