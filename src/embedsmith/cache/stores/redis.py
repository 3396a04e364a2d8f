"""The store that replicas share through Redis 8 (or Redis Stack): one hash per entry, its vector in it.

All keys start with the prefix. What changes an entry is one Lua script, so that the entry, the sorted sets
that order eviction and the counts never disagree, whoever else writes. Use is counted outside the hash: a
change of the hash would put its vector into the index anew. Texts go into queries as fingerprints only.

No key has a TTL, since `now` decides what has expired. Run the server with `maxmemory-policy noeviction`
(its default): another policy removes entries behind the counts.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from embedsmith.cache.stores import SCHEMA, Counts, Entry, Match, Order, StoreError, check_vector, mismatch
from embedsmith.cache.stores.network import Address, read_address
from embedsmith.cache.stores.ranking import rank
from embedsmith.encoder import Embeddings
from embedsmith.errors import ConfigurationError, MissingPartError

try:
    import redis
    from redis.backoff import ExponentialBackoff
    from redis.retry import Retry
except ModuleNotFoundError:
    raise MissingPartError("a store in Redis needs redis-py", action="pip install 'embedsmith[redis]'") from None

WAIT = 10.0  # seconds for one answer of the server
CONNECT = 5.0  # seconds for a connection
BLOCK = 256  # entries per script or pipeline: the server serves others in between
EXACT = 4096  # a partition of up to so many entries is compared whole, without the graph
RARE = 50  # so is one that is less than a RARE-th of all: the graph would pass through too many others
LINKS, EFFORT_BUILD, EFFORT_SEARCH = 16, 200, 128  # of the HNSW graph: neighbours, candidates
FIELDS = ("id", "namespace", "partition", "text", "answer", "vector", "created", "expires", "tags")
LOST_INDEX = re.compile(r"no such index|unknown index|index_not_found", re.I)

# KEYS[1] is the prefix. created: id by creation, also per namespace. expires: id by expiry. used: id by last
# use. uses, size: the last use in 8 bytes that sort like it, then the id, by number of uses or by -size, so
# that members with equal scores are in order of last use, then id.
HEAD = """
local base = KEYS[1]
local function place(number)
    local packed = struct.pack('>d', number + 0)
    local first = string.byte(packed)
    if first < 128 then return string.char(first + 128) .. string.sub(packed, 2) end
    return (string.gsub(packed, '.', function(c) return string.char(255 - string.byte(c)) end))
end
local function add(key, field, amount)
    if redis.call('HINCRBY', key, field, amount) == 0 then redis.call('HDEL', key, field) end
end
local function count(group, space, entries, bytes)
    add(base .. ':counts', 'entries', entries)
    add(base .. ':counts', 'bytes', bytes)
    add(base .. ':counts', 'bytes:' .. space, bytes)
    add(base .. ':groups', group, entries)
end
local function remove(id)
    local key = base .. ':entry:' .. id
    local old = redis.call('HMGET', key, 'group', 'space', 'size', 'labels')
    if not old[1] then return 0 end
    local member = place(tonumber(redis.call('ZSCORE', base .. ':used', id))) .. id
    redis.call('DEL', key)
    redis.call('ZREM', base .. ':used', id)
    redis.call('ZREM', base .. ':uses', member)
    redis.call('ZREM', base .. ':size', member)
    redis.call('ZREM', base .. ':created', id)
    redis.call('ZREM', base .. ':created:' .. old[2], id)
    redis.call('ZREM', base .. ':expires', id)
    for label in string.gmatch(old[4], '%S+') do redis.call('SREM', base .. ':tag:' .. label, id) end
    count(old[1], old[2], -1, -tonumber(old[3]))
    return 1
end
"""
OPEN = """
if redis.call('EXISTS', KEYS[1] .. ':about') == 0 then
    redis.call('HSET', KEYS[1] .. ':about', 'schema', ARGV[1], 'model', ARGV[2], 'dimension', ARGV[3])
end
return redis.call('HMGET', KEYS[1] .. ':about', 'schema', 'model', 'dimension')
"""
PUT = """
local id, group, space, size, labels, created, expires = unpack(ARGV, 1, 7)
remove(id)
redis.call('HSET', base .. ':entry:' .. id, 'id', id, 'group', group, 'space', space, 'size', size,
    'labels', labels, 'created', created, 'expires', expires, unpack(ARGV, 8))
local member = place(tonumber(created)) .. id
redis.call('ZADD', base .. ':used', created, id)
redis.call('ZADD', base .. ':uses', 0, member)
redis.call('ZADD', base .. ':size', '-' .. size, member)
redis.call('ZADD', base .. ':created', created, id)
redis.call('ZADD', base .. ':created:' .. space, created, id)
if expires ~= 'inf' then redis.call('ZADD', base .. ':expires', expires, id) end
for label in string.gmatch(labels, '%S+') do redis.call('SADD', base .. ':tag:' .. label, id) end
count(group, space, 1, tonumber(size))
return 1
"""
TOUCH = """
local id, now = ARGV[1], ARGV[2]
local used = redis.call('ZSCORE', base .. ':used', id)
if not used then return 0 end
local old = place(tonumber(used)) .. id
if tonumber(now) <= tonumber(used) then return redis.call('ZINCRBY', base .. ':uses', 1, old) end
local new = place(tonumber(now)) .. id
for name, more in pairs({uses = 1, size = 0}) do
    local score = tonumber(redis.call('ZSCORE', base .. ':' .. name, old)) + more
    redis.call('ZREM', base .. ':' .. name, old)
    redis.call('ZADD', base .. ':' .. name, score, new)
end
return redis.call('ZADD', base .. ':used', now, id)
"""
# Ids that were listed a moment ago are removed only if they still are what was looked for ('' asks nothing).
REMOVE = """
local space, label, now = unpack(ARGV, 1, 3)
local removed = 0
for place = 4, #ARGV do
    local id = ARGV[place]
    local found = redis.call('HMGET', base .. ':entry:' .. id, 'space', 'expires')
    if found[1] and (space == '' or space == found[1])
        and (label == '' or redis.call('SISMEMBER', base .. ':tag:' .. label, id) == 1)
        and (now == '' or tonumber(found[2]) <= tonumber(now)) then
        removed = removed + remove(id)
    end
end
return removed
"""
EVICT = """
local order, entries, bytes, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local removed = 0
while removed < most do
    local left = redis.call('HMGET', base .. ':counts', 'entries', 'bytes')
    if tonumber(left[1] or 0) <= entries and tonumber(left[2] or 0) <= bytes then break end
    local first = redis.call('ZRANGE', base .. ':' .. order, 0, 0)[1]
    if not first then break end
    if remove(order == 'used' and first or string.sub(first, 9)) == 0 then
        redis.call('ZREM', base .. ':' .. order, first)
    else
        removed = removed + 1
    end
end
return removed
"""
ORDERS: dict[Order, str] = {"lru": "used", "lfu": "uses", "size": "size"}


class RedisStore:
    """Entries in the Redis of `url` (`redis://host:port/0?prefix=name`, also `rediss://` and `unix://`).

    Raises:
        StoreError: the server cannot be reached, or has no search module. ModelMismatch: vectors of another model.
        ConfigurationError: the URL cannot be used.
    """

    def __init__(self, url: str, *, dimension: int, model: str) -> None:
        self.dimension, self.model = dimension, model
        self._address = read_address(url, option="prefix", default="embedsmith", pattern=r"[A-Za-z0-9_.-]{1,64}")
        self.url, self._base = self._address.shown, self._address.name
        self._client: Any = _connect(self._address)  # the driver's types do not know that all it reads is bytes
        self._put = self._client.register_script(HEAD + PUT)
        self._touch = self._client.register_script(HEAD + TOUCH)
        self._remove = self._client.register_script(HEAD + REMOVE)
        self._evict = self._client.register_script(HEAD + EVICT)
        try:
            with self._calls():
                self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        """Check or write what the store is, and see to it that the index exists and is complete."""
        try:
            self._client.execute_command("FT._LIST")
        except redis.ResponseError as error:
            if "unknown command" not in str(error).lower():
                raise
            raise StoreError(
                f"the Redis at {self.url} has no search module",
                expected="Redis 8, where search is built in, or Redis Stack",
                action="run Redis 8 (image redis:8), or load redisearch.so with `loadmodule`",
            ) from None
        about = self._client.eval(OPEN, 1, self._base, str(SCHEMA), self.model, str(self.dimension))
        schema, model, dimension = (value.decode() for value in about)
        if int(schema) > SCHEMA:
            raise StoreError(
                f"{self.url} has schema {schema}", expected=f"at most {SCHEMA}", action="update embedsmith"
            )
        if (model, int(dimension)) != (self.model, self.dimension):
            raise mismatch(self.url, (model, int(dimension)), (self.model, self.dimension))
        self._index()

    def _index(self) -> None:
        graph: tuple[str | int, ...] = ("TYPE", "FLOAT32", "DIM", self.dimension, "DISTANCE_METRIC", "COSINE")
        graph += ("M", LINKS, "EF_CONSTRUCTION", EFFORT_BUILD)
        fields = ("group", "TAG", "expires", "NUMERIC", "vector", "VECTOR", "HNSW", len(graph), *graph)
        name = f"{self._base}:index"
        try:
            create = ("FT.CREATE", name, "ON", "HASH", "PREFIX", 1, f"{self._base}:entry:")
            self._client.execute_command(*create, "SCHEMA", *fields)
        except redis.ResponseError as error:
            if "already exists" not in str(error).lower():
                raise
        # An index over hashes that were there before is filled in the background.
        deadline = time.monotonic() + WAIT
        while time.monotonic() < deadline:
            about = self._client.execute_command("FT.INFO", name)
            if not int(dict(zip(about[::2], about[1::2], strict=True))[b"indexing"]):
                return
            time.sleep(0.05)

    def get(self, id: str, now: float) -> Entry | None:
        with self._calls():
            entry = self._entry(self._client.hmget(self._key(id), FIELDS))
        return entry if entry is not None and entry.alive(now) else None

    def search(self, partition: str, vector: Embeddings, k: int, now: float) -> list[Match]:
        vector = check_vector(vector, self.dimension)
        if k < 1:
            return []
        group = _fingerprint(partition)
        with self._calls():
            with self._client.pipeline(transaction=False) as pipe:
                pipe.hget(f"{self._base}:groups", group).hget(f"{self._base}:counts", "entries")
                members, all_entries = (int(value or 0) for value in pipe.execute())
            if not members:
                return []
            exact = members <= EXACT or members * RARE < all_entries
            how = "ADHOC_BF" if exact else f"BATCHES EF_RUNTIME {EFFORT_SEARCH}"
            near = f"KNN $k @vector $vector HYBRID_POLICY {how} AS distance"
            query = f"(@group:{{{group}}} @expires:[($now inf])=>[{near}]"
            try:
                return rank(vector, k, now, lambda count: self._near(query, vector, count, now))
            except redis.ResponseError as error:
                if not LOST_INDEX.search(str(error)):
                    raise
            self._open()  # the server was emptied, or restarted without its data
            return rank(vector, k, now, lambda count: self._near(query, vector, count, now))

    def _near(self, query: str, vector: Embeddings, count: int, now: float) -> list[Entry]:
        values = ("now", repr(float(now)), "k", count, "vector", vector.astype("<f4").tobytes())
        found = self._client.execute_command(
            *("FT.SEARCH", f"{self._base}:index", query, "PARAMS", len(values), *values),
            *("RETURN", len(FIELDS), *FIELDS, "SORTBY", "distance", "LIMIT", 0, count),
            *("TIMEOUT", int(1000 * WAIT), "DIALECT", 2),
        )
        entries = []
        for pairs in found[2::2]:  # the number of results, then key and fields of each
            fields = dict(zip(pairs[::2], pairs[1::2], strict=True)) if pairs else {}
            entry = self._entry([fields.get(name.encode()) for name in FIELDS])
            if entry is not None:  # None: removed while the search ran
                entries.append(entry)
        return entries

    def put(self, entries: Sequence[Entry]) -> None:
        rows = [self._row(entry) for entry in entries]  # all are checked before the first is written
        with self._calls():
            if len(rows) == 1:
                self._put(keys=[self._base], args=rows[0])  # one round trip, a pipeline takes two
                return
            for start in range(0, len(rows), BLOCK):
                with self._client.pipeline(transaction=False) as pipe:
                    for row in rows[start : start + BLOCK]:
                        self._put(keys=[self._base], args=row, client=pipe)
                    pipe.execute()

    def _row(self, entry: Entry) -> list[Any]:
        vector = check_vector(entry.vector, self.dimension)
        labels = " ".join(_fingerprint(tag) for tag in dict.fromkeys(entry.tags))
        expires = "inf" if entry.expires is None else repr(float(entry.expires))
        return [
            *(entry.id, _fingerprint(entry.partition), _fingerprint(entry.namespace), entry.size, labels),
            *(repr(float(entry.created)), expires, "vector", vector.astype("<f4").tobytes()),
            *("namespace", entry.namespace, "partition", entry.partition, "text", entry.text),
            *("answer", entry.answer, "tags", json.dumps(entry.tags)),
        ]

    def touch(self, id: str, now: float) -> None:
        with self._calls():
            self._touch(keys=[self._base], args=[id, repr(float(now))])

    def delete(self, ids: Sequence[str]) -> int:
        with self._calls():
            return self._remove_all([id.encode() for id in ids])

    def purge(self, *, namespace: str | None = None, tag: str | None = None) -> int:
        space = "" if namespace is None else _fingerprint(namespace)
        label = "" if tag is None else _fingerprint(tag)
        with self._calls():
            if label:
                ids = list(self._client.smembers(f"{self._base}:tag:{label}"))
            else:
                ids = self._client.zrange(f"{self._base}:created" + (f":{space}" if space else ""), 0, -1)
            return self._remove_all(ids, space=space, label=label)

    def expire(self, now: float) -> int:
        with self._calls():
            ids = self._client.zrangebyscore(f"{self._base}:expires", "-inf", repr(float(now)))
            return self._remove_all(ids, now=repr(float(now)))

    def _remove_all(self, ids: Sequence[bytes], *, space: str = "", label: str = "", now: str = "") -> int:
        removed = 0
        for start in range(0, len(ids), BLOCK):
            removed += int(self._remove(keys=[self._base], args=[space, label, now, *ids[start : start + BLOCK]]))
        return removed

    def evict(self, *, entries: int | None = None, bytes: int | None = None, order: Order = "lru") -> int:
        limits = ["inf" if limit is None else limit for limit in (entries, bytes)]
        removed, last = 0, BLOCK
        with self._calls():
            while last == BLOCK:
                last = int(self._evict(keys=[self._base], args=[ORDERS[order], *limits, BLOCK]))
                removed += last
        return removed

    def count(self, namespace: str | None = None) -> Counts:
        key = f"{self._base}:counts"
        with self._calls():
            if namespace is None:
                return Counts(*(int(value or 0) for value in self._client.hmget(key, ["entries", "bytes"])))
            space = _fingerprint(namespace)
            with self._client.pipeline(transaction=True) as pipe:
                pipe.zcard(f"{self._base}:created:{space}").hget(key, f"bytes:{space}")
                return Counts(*(int(value or 0) for value in pipe.execute()))

    def scan(self, namespace: str | None = None) -> Iterator[Entry]:
        suffix = "" if namespace is None else f":{_fingerprint(namespace)}"
        with self._calls():
            ids = self._client.zrange(f"{self._base}:created{suffix}", 0, -1)
        for start in range(0, len(ids), BLOCK):
            with self._calls(), self._client.pipeline(transaction=False) as pipe:
                for id in ids[start : start + BLOCK]:
                    pipe.hmget(self._key(id.decode()), FIELDS)
                rows = pipe.execute()
            yield from (entry for entry in map(self._entry, rows) if entry is not None)

    def close(self) -> None:
        self._client.close()

    def _key(self, id: str) -> str:
        return f"{self._base}:entry:{id}"

    def _entry(self, row: Sequence[bytes | None]) -> Entry | None:
        """Return the entry of the values of FIELDS, or None where there is no such hash."""
        if any(value is None for value in row):
            return None
        id, namespace, partition, text, answer, vector, created, expires, tags = (value or b"" for value in row)
        until = float(expires)
        return Entry(
            id=id.decode(),
            namespace=namespace.decode(),
            partition=partition.decode(),
            text=text.decode(),
            answer=answer.decode(),
            vector=np.frombuffer(vector, dtype="<f4").astype(np.float32, copy=False),
            created=float(created),
            expires=None if until == float("inf") else until,
            tags=tuple(json.loads(tags)),
        )

    @contextmanager
    def _calls(self) -> Iterator[None]:
        """Turn the driver's errors into ours, without the password."""
        try:
            yield
        except redis.AuthenticationError as error:
            raise StoreError(
                f"{self.url} refuses the login: {self._address.censor(error)}",
                expected="a user and password that the server knows",
                action="write redis://USER:PASSWORD@HOST:PORT/0",
            ) from None
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise StoreError(
                f"{self.url} cannot be reached: {self._address.censor(error)}",
                expected="a running Redis 8",
                action="start it, or check host and port",
            ) from None
        except redis.RedisError as error:
            raise StoreError(f"{self.url} failed: {self._address.censor(error)}") from None


def _connect(address: Address) -> redis.Redis:
    """Return a client; nothing is sent yet."""
    try:
        client: redis.Redis = redis.Redis.from_url(
            address.target,
            protocol=2,
            socket_timeout=WAIT,
            socket_connect_timeout=CONNECT,
            health_check_interval=30,
            retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), 3),
        )
        client.connection_pool.make_connection()  # where an unknown option shows
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{address.shown} cannot be used: {address.censor(error)}", expected="redis://HOST:PORT/0?prefix=NAME"
        ) from None
    return client


def _fingerprint(text: str) -> str:
    """Return 32 hexadecimal digits: what stands for a text in keys and queries, where it needs no escaping."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]
