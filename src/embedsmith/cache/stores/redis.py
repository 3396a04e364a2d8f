"""The store that replicas share through Redis 8 (or Redis Stack): one hash per entry, its vector in it.

All keys start with the prefix. What changes an entry is one Lua script, so that the entry, the sorted sets
that order eviction and the counts never disagree, whoever else writes. Use is counted outside the hash: a
change of the hash would put its vector into the index anew. Texts go into queries as fingerprints only.

Each model that the store has had has its own hashes and index, of which one is left: a re-encoding fills the next
and removes the last (redis_move.py). Scripts learn from `about` which is which, so that no two ever disagree, and
who writes says which one it means.

No key has a TTL, since `now` decides what has expired. Run the server with `maxmemory-policy noeviction`
(its default): another policy removes entries behind the counts.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

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
from embedsmith.cache.stores.network import Address, read_address
from embedsmith.cache.stores.ranking import rank
from embedsmith.encoder import Embeddings
from embedsmith.errors import MissingPartError

try:
    import redis
    from redis.backoff import ExponentialBackoff
    from redis.retry import Retry
except ModuleNotFoundError:
    raise MissingPartError("a store in Redis needs redis-py", action="pip install 'embedsmith[redis]'") from None

WAIT = 5.0  # seconds for one answer of the server
HOLD = 10.0  # seconds, at most, that a re-encoding makes additions wait
CONNECT = 5.0  # seconds for a connection
BLOCK = 256  # entries per script or pipeline: the server serves others in between
EXACT = 4096  # a partition of up to so many entries is compared whole, without the graph
RARE = 50  # so is one that is less than a RARE-th of all: the graph would pass through too many others
LINKS, EFFORT_BUILD, EFFORT_SEARCH = 16, 200, 128  # of the HNSW graph: neighbours, candidates
FIELDS = ("id", "namespace", "partition", "text", "answer", "vector", "created", "expires", "tags")
MOVED, HELD = -1, -2  # what PUT answers when the store has moved to another model, or is about to
PAUSE = 0.005  # seconds until a held addition is tried again
OURS = frozenset({"protocol", "decode_responses", "encoding", "encoding_errors"})  # settings of the driver
FORM = "redis://HOST:PORT/0?prefix=NAME, or unix:///SOCKET"
LOST_INDEX = re.compile(r"no such index|unknown index|index_not_found", re.I)

# KEYS[1] is the prefix. created: id by creation, also per namespace. expires: id by expiry. used: id by last
# use. uses, size: the last use in 8 bytes that sort like it, then the id, by number of uses or by -size, so
# that members with equal scores are in order of last use, then id. about: see `About`; next: the generation that is
# being filled, whose missing ids are in todo; old: generations that are being removed, each with a space before it.
HEAD = """
local base = KEYS[1]
local about = redis.call('HMGET', base .. ':about', 'generation', 'next', 'old')
local current, coming, old = about[1] or '1', about[2], about[3] or ''
local function at(generation, id)
    if generation == '1' then return base .. ':entry:' .. id end
    return base .. ':entry.' .. generation .. ':' .. id
end
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
local function use(id, used, now, more)
    local old, new = place(used) .. id, place(tonumber(now)) .. id
    for name, extra in pairs({uses = more, size = 0}) do
        local score = tonumber(redis.call('ZSCORE', base .. ':' .. name, old)) + extra
        redis.call('ZREM', base .. ':' .. name, old)
        redis.call('ZADD', base .. ':' .. name, score, new)
    end
    return redis.call('ZADD', base .. ':used', now, id)
end
local function remove(id)
    local key = at(current, id)
    local was = redis.call('HMGET', key, 'group', 'space', 'size', 'labels')
    if not was[1] then return 0 end
    local member = place(tonumber(redis.call('ZSCORE', base .. ':used', id))) .. id
    redis.call('DEL', key)
    if coming then redis.call('DEL', at(coming, id)); redis.call('ZREM', base .. ':todo', id) end
    for generation in string.gmatch(old, '%d+') do redis.call('DEL', at(generation, id)) end
    redis.call('ZREM', base .. ':used', id)
    redis.call('ZREM', base .. ':uses', member)
    redis.call('ZREM', base .. ':size', member)
    redis.call('ZREM', base .. ':created', id)
    redis.call('ZREM', base .. ':created:' .. was[2], id)
    redis.call('ZREM', base .. ':expires', id)
    for label in string.gmatch(was[4], '%S+') do redis.call('SREM', base .. ':tag:' .. label, id) end
    count(was[1], was[2], -1, -tonumber(was[3]))
    return 1
end
"""
OPEN = """
local key, model, dimension, newest = KEYS[1] .. ':about', unpack(ARGV)
local migrated = 0
if redis.call('EXISTS', key) == 0 and model then
    redis.call('HSET', key, 'schema', newest, 'model', model, 'dimension', dimension)
    redis.call('HSET', key, 'generation', '1', 'counted', dimension)
elseif redis.call('HGET', key, 'schema') == '1' then
    redis.call('HSET', key, 'schema', '2', 'generation', '1', 'counted', redis.call('HGET', key, 'dimension'))
    migrated = 1
end
return {migrated, redis.call('HMGET', key, 'schema', 'model', 'dimension', 'generation', 'counted')}
"""
PUT = """
local generation, id, group, space, size, labels, created, expires = unpack(ARGV, 1, 8)
if about[1] ~= generation then return -1 end
if redis.call('EXISTS', base .. ':hold') == 1 then return -2 end
remove(id)
redis.call('HSET', at(current, id), 'id', id, 'group', group, 'space', space, 'size', size,
    'labels', labels, 'created', created, 'expires', expires, unpack(ARGV, 9))
if coming then redis.call('ZADD', base .. ':todo', 0, id) end
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
used = tonumber(used)
if tonumber(now) <= used then return redis.call('ZINCRBY', base .. ':uses', 1, place(used) .. id) end
return use(id, used, now, 1)
"""
MOVE_BACK = """
local shift, after = tonumber(ARGV[1]), tonumber(ARGV[2])
for number = 3, #ARGV do
    local id = ARGV[number]
    local used = tonumber(redis.call('ZSCORE', base .. ':used', id) or after)
    if used > after then use(id, used, string.format('%.17g', used - shift), 0) end
end
"""
# Ids that were listed a moment ago are removed only if they still are what was looked for ('' asks nothing).
REMOVE = """
local space, under, label, now = unpack(ARGV, 1, 4)
local removed = 0
for place = 5, #ARGV do
    local id = ARGV[place]
    local found = redis.call('HMGET', at(current, id), 'space', 'expires', 'namespace')
    if found[1] and (space == '' or space == found[1] or string.sub(found[3], 1, #under) == under)
        and (label == '' or redis.call('SISMEMBER', base .. ':tag:' .. label, id) == 1)
        and (now == '' or tonumber(found[2]) <= tonumber(now)) then
        removed = removed + remove(id)
    end
end
return removed
"""
EVICT = """
local order, entries, bytes, most, surplus = ARGV[1], unpack(ARGV, 2)
entries, bytes, most, surplus = tonumber(entries), tonumber(bytes), tonumber(most), tonumber(surplus)
local removed = 0
while removed < most do
    local left = redis.call('HMGET', base .. ':counts', 'entries', 'bytes')
    local count = tonumber(left[1] or 0)
    if count <= entries and tonumber(left[2] or 0) + count * surplus <= bytes then break end
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

    A server that says nothing is an error after `WAIT` seconds; it is not asked again.

    Raises:
        StoreError: the server cannot be reached, or has no search module. ModelMismatch: vectors of another model.
        ConfigurationError: the URL cannot be used.
    """

    local = False

    def __init__(self, url: str, *, dimension: int, model: str) -> None:
        self.dimension, self.model = dimension, model
        self._address = read_url(url)
        self.url, self._base = self._address.shown, self._address.name
        self._client: Any = connect(self._address)  # the driver's types do not know that all it reads is bytes
        self._put = self._client.register_script(HEAD + PUT)
        self._touch = self._client.register_script(HEAD + TOUCH)
        self._shift = self._client.register_script(HEAD + MOVE_BACK)
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
        require_search(self._client, self.url)
        about = open_about(self._client, self.url, self._base, self.model, self.dimension)
        assert about is not None
        about.require(self.url, self.model, self.dimension)
        self._about = about
        make_index(self._client, self._base, about.generation, self.dimension)
        self._key = key_of(self._base, about.generation)

    def _follow(self) -> None:
        """Take note of a re-encoding, or of a server that was emptied, where there was one."""
        generation = self._client.hget(f"{self._base}:about", "generation")
        if generation is None or int(generation) != self._about.generation:
            self._open()

    def get(self, id: str, now: float) -> Entry | None:
        with self._calls():
            entry = self._entry(self._client.hmget(self._key + id, FIELDS))
            if entry is None:
                self._follow()
        return entry if entry is not None and entry.alive(now) else None

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
        group = _fingerprint(partition)
        with self._calls():
            with self._client.pipeline(transaction=False) as pipe:
                pipe.hget(f"{self._base}:groups", group).hget(f"{self._base}:counts", "entries")
                members, all_entries = (int(value or 0) for value in pipe.execute())
            if not members:
                return []
            exact = members <= EXACT or members * RARE < all_entries
            how = "ADHOC_BF" if exact else f"BATCHES EF_RUNTIME {EFFORT_SEARCH}"
            knn = f"KNN $k @vector $vector HYBRID_POLICY {how} AS distance"
            query = f"(@group:{{{group}}} @expires:[($now inf])=>[{knn}]"

            def near(count: int, _: float) -> list[Entry]:
                return self._near(query, vector, count, now)

            try:
                return rank(vector, k, now, near)
            except redis.ResponseError as error:
                if not LOST_INDEX.search(str(error)):
                    raise
            self._open()  # the server was emptied, or restarted without its data
            return rank(vector, k, now, near)

    def _near(self, query: str, vector: Embeddings, count: int, now: float) -> list[Entry]:
        values = ("now", repr(float(now)), "k", count, "vector", vector.astype("<f4").tobytes())
        found = self._client.execute_command(
            *("FT.SEARCH", index_of(self._base, self._about.generation), query, "PARAMS", len(values), *values),
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
        left = list({entry.id: entry for entry in entries}.values())
        deadline = time.monotonic() + HOLD + WAIT
        while left:
            rows = [self._row(entry) for entry in left]  # all are checked before the first is written
            with self._calls():
                answers = self._put_all(rows)
                if MOVED in answers:
                    self._open()
            left = [entry for entry, answer in zip(left, answers, strict=True) if answer in (MOVED, HELD)]
            if HELD in answers:
                if time.monotonic() > deadline:
                    raise StoreError(f"{self.url} takes no entries: a re-encoding holds it", action="try again")
                time.sleep(PAUSE)

    def _put_all(self, rows: Sequence[list[Any]]) -> list[int]:
        if len(rows) == 1:
            return [int(self._put(keys=[self._base], args=rows[0]))]  # one round trip, a pipeline takes two
        answers = []
        for start in range(0, len(rows), BLOCK):
            with self._client.pipeline(transaction=False) as pipe:
                for row in rows[start : start + BLOCK]:
                    self._put(keys=[self._base], args=row, client=pipe)
                answers += pipe.execute()
        return answers

    def _row(self, entry: Entry) -> list[Any]:
        vector = check_vector(entry.vector, self.dimension)
        labels = " ".join(_fingerprint(tag) for tag in dict.fromkeys(entry.tags))
        expires = "inf" if entry.expires is None else repr(float(entry.expires))
        return [
            *(self._about.generation, entry.id, _fingerprint(entry.partition), _fingerprint(entry.namespace)),
            *(entry.size - self._about.surplus, labels),
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
        space, under = ("", "") if namespace is None else (_fingerprint(namespace), f"{namespace}/")
        label = "" if tag is None else _fingerprint(tag)
        with self._calls():
            if label:
                ids = list(self._client.smembers(f"{self._base}:tag:{label}"))
            else:
                ids = self._client.zrange(f"{self._base}:created", 0, -1)  # which namespaces lie below, only they know
            return self._remove_all(ids, space=space, under=under, label=label)

    def expire(self, now: float) -> int:
        with self._calls():
            with self._client.pipeline(transaction=False) as pipe:
                pipe.zrangebyscore(f"{self._base}:expires", "-inf", repr(float(now)))
                ids, last = pipe.zrange(f"{self._base}:used", -1, -1, withscores=True).execute()
            if last and last[0][1] > now + AHEAD:
                self._move_back(last[0][1] - now, now + AHEAD)
            return self._remove_all(ids, now=repr(float(now)))

    def _move_back(self, shift: float, after: float) -> None:
        ids = self._client.zrangebyscore(f"{self._base}:used", f"({after!r}", "inf")
        for start in range(0, len(ids), BLOCK):
            self._shift(keys=[self._base], args=[repr(shift), repr(after), *ids[start : start + BLOCK]])

    def _remove_all(
        self, ids: Sequence[bytes], *, space: str = "", under: str = "", label: str = "", now: str = ""
    ) -> int:
        removed = 0
        for start in range(0, len(ids), BLOCK):
            removed += int(
                self._remove(keys=[self._base], args=[space, under, label, now, *ids[start : start + BLOCK]])
            )
        return removed

    def evict(self, *, entries: int | None = None, bytes: int | None = None, order: Order = "lru") -> int:
        limits = ["inf" if limit is None else limit for limit in (entries, bytes)]
        removed, last = 0, BLOCK
        with self._calls():
            while last == BLOCK:
                last = int(self._evict(keys=[self._base], args=[ORDERS[order], *limits, BLOCK, self._about.surplus]))
                removed += last
        return removed

    def count(self, namespace: str | None = None) -> Counts:
        key = f"{self._base}:counts"
        with self._calls():
            if namespace is None:
                found = self._client.hmget(key, ["entries", "bytes"])
            else:
                space = _fingerprint(namespace)
                with self._client.pipeline(transaction=True) as pipe:
                    found = pipe.zcard(f"{self._base}:created:{space}").hget(key, f"bytes:{space}").execute()
        entries, bytes = (int(value or 0) for value in found)
        return Counts(entries, bytes + entries * self._about.surplus)

    def scan(self, namespace: str | None = None, *, newest: bool = False) -> Iterator[Entry]:
        suffix = "" if namespace is None else f":{_fingerprint(namespace)}"
        with self._calls():
            ids = self._client.zrange(f"{self._base}:created{suffix}", 0, -1, desc=newest)
        for start in range(0, len(ids), BLOCK):
            with self._calls(), self._client.pipeline(transaction=False) as pipe:
                for id in ids[start : start + BLOCK]:
                    pipe.hmget(self._key + id.decode(), FIELDS)
                found = list(map(self._entry, pipe.execute()))
                if None in found:
                    self._follow()
            yield from (entry for entry in found if entry is not None)

    def close(self) -> None:
        self._client.close()

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

    def _calls(self) -> AbstractContextManager[None]:
        return translated(self._address)


@contextmanager
def translated(address: Address) -> Iterator[None]:
    """Turn the driver's errors into ours, without the password."""
    try:
        yield
    except redis.AuthenticationError as error:
        raise StoreError(
            f"{address.shown} refuses the login: {address.censor(error)}",
            expected="a user and password that the server knows",
            action="write redis://USER:PASSWORD@HOST:PORT/0",
        ) from None
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise StoreError(
            f"{address.shown} cannot be reached: {address.censor(error)}",
            expected="a running Redis 8",
            action="start it, or check host and port",
        ) from None
    except redis.RedisError as error:
        raise StoreError(f"{address.shown} failed: {address.censor(error)}") from None


def read_url(url: str) -> Address:
    """Return where the store of `url` is.

    Raises:
        ConfigurationError: a part of it has no meaning for Redis, which the driver would pass over.
    """
    address = read_address(url, option="prefix", default="embedsmith", pattern=r"[A-Za-z0-9_.-]{1,64}")
    if fault := _find_fault(urlsplit(address.target)):
        raise address.refuse(fault, FORM)
    return address


def _find_fault(parts: SplitResult) -> str:
    """Return which part of an address has no meaning for Redis, "" for none."""
    host, options = parts.netloc.rpartition("@")[2], dict(parse_qsl(parts.query))
    if taken := sorted(OURS & options.keys()):
        return f"it sets {taken[0]}, and how answers are read is decided here"
    if parts.scheme == "unix":
        return "" if parts.path.strip("/") and not host else "a socket is a path behind three slashes"
    if not re.fullmatch("/?[0-9]{0,9}/?", parts.path):
        return f"its database is {parts.path[1:]!r}, and no number"
    if parts.path.strip("/") and "db" in options:
        return "it names a database twice"
    return "it names several hosts" if "," in host else ""


def key_of(base: str, generation: int) -> str:
    """Return what the keys of a generation's entries begin with."""
    return f"{base}:entry:" if generation == 1 else f"{base}:entry.{generation}:"


def index_of(base: str, generation: int) -> str:
    """Return the name of a generation's index."""
    return f"{base}:index" if generation == 1 else f"{base}:index.{generation}"


def require_search(client: Any, url: str) -> None:
    """Raise `StoreError` for a server without the search module."""
    try:
        client.execute_command("FT._LIST")
    except redis.ResponseError as error:
        if "unknown command" not in str(error).lower():
            raise
        raise StoreError(
            f"the Redis at {url} has no search module",
            expected="Redis 8, where search is built in, or Redis Stack",
            action="run Redis 8 (image redis:8), or load redisearch.so with `loadmodule`",
        ) from None


def open_about(client: Any, url: str, base: str, *new: object) -> About | None:
    """Return whose vectors the store holds; an older one becomes one of this version.

    Args:
        new: model and dimension that are written where there is no store; without them, the answer is None.

    Raises:
        StoreError: it is of a newer version.
    """
    values = [*map(str, new), str(SCHEMA)] if new else []
    migrated, found = client.eval(OPEN, 1, base, *values)
    if found[0] is None:
        return None
    schema, model, dimension = int(found[0]), found[1].decode(), int(found[2])
    if schema > SCHEMA:
        raise refuse_schema(url, schema)
    if migrated:
        LOG.warning("%s was migrated from schema 1 to %d: it can be re-encoded now", url, SCHEMA)
    return About(schema, model, dimension, int(found[3]), int(found[4]))


def make_index(client: Any, base: str, generation: int, dimension: int) -> None:
    """See to it that the index of a generation exists and is complete."""
    graph: tuple[str | int, ...] = ("TYPE", "FLOAT32", "DIM", dimension, "DISTANCE_METRIC", "COSINE")
    graph += ("M", LINKS, "EF_CONSTRUCTION", EFFORT_BUILD)
    fields = ("group", "TAG", "expires", "NUMERIC", "vector", "VECTOR", "HNSW", len(graph), *graph)
    name = index_of(base, generation)
    try:
        create = ("FT.CREATE", name, "ON", "HASH", "PREFIX", 1, key_of(base, generation))
        client.execute_command(*create, "SCHEMA", *fields)
    except redis.ResponseError as error:
        if "already exists" not in str(error).lower():
            raise
    # An index over hashes that were there before is filled in the background.
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        about = client.execute_command("FT.INFO", name)
        if not int(dict(zip(about[::2], about[1::2], strict=True))[b"indexing"]):
            return
        time.sleep(0.05)


def connect(address: Address) -> redis.Redis:
    """Return a client; nothing is sent yet."""
    try:
        client: redis.Redis = redis.Redis.from_url(
            address.target,
            protocol=2,
            socket_timeout=WAIT,
            socket_connect_timeout=CONNECT,
            health_check_interval=30,
            # A lost connection is replaced; a server that says nothing would say nothing again, for as long.
            retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), 3, supported_errors=(redis.ConnectionError,)),
        )
        made: Any = client.connection_pool.make_connection()  # where an unknown option shows
    except (TypeError, ValueError, redis.RedisError) as error:
        raise address.refuse(error, FORM) from None
    if not 0 <= made.db < 1 << 31:
        raise address.refuse("its database is no number from 0 on", FORM)
    if not all(0 < seconds < 1e6 for seconds in (made.socket_timeout, made.socket_connect_timeout)):
        raise address.refuse("its time limits are no numbers of seconds above 0", FORM)
    return client


def _fingerprint(text: str) -> str:
    """Return 32 hexadecimal digits: what stands for a text in keys and queries, where it needs no escaping."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]
