"""A Redis store on its way to another model: a second set of hashes under a second index; the switch is one script.

What is in the second set is always a true copy but for the vector: the scripts of the store take a copy out when
its entry is replaced or removed, and note in `todo` whose copy is missing.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import redis

from embedsmith.cache.stores import NoStore
from embedsmith.cache.stores.moving import Pending, Target, choose_target, overtaken
from embedsmith.cache.stores.redis import (
    BLOCK,
    HEAD,
    HOLD,
    connect,
    index_of,
    key_of,
    make_index,
    open_about,
    read_url,
    require_search,
    translated,
)
from embedsmith.encoder import Embeddings

BEGIN = """
local generation, model, dimension, current = unpack(ARGV)
if about[1] ~= current or coming then return 0 end
redis.call('HSET', base .. ':about', 'next', generation, 'next_model', model, 'next_dimension', dimension)
redis.call('ZUNIONSTORE', base .. ':todo', 1, base .. ':created', 'WEIGHTS', 0)
return 1
"""
# The ids of what is to be removed are kept, so that a kill leaves no hash behind for good.
RETIRE = """
local function retire(generation)
    redis.call('ZUNIONSTORE', base .. ':old:' .. generation, 1, base .. ':created')
    redis.call('HSET', base .. ':about', 'old', old .. ' ' .. generation)
    redis.call('HDEL', base .. ':about', 'next', 'next_model', 'next_dimension')
    redis.call('DEL', base .. ':todo')
end
"""
ABANDON = """
if coming == ARGV[1] then retire(coming) end
return 1
"""
WRITE = f"""
local generation, id, text, vector, token = unpack(ARGV)
if coming ~= generation then return -1 end
if redis.call('GET', base .. ':hold') == token then redis.call('PEXPIRE', base .. ':hold', {int(1000 * HOLD)}) end
local found = redis.call('HGETALL', at(current, id))
local fields = {{}}
for place = 1, #found, 2 do fields[found[place]] = found[place + 1] end
if #found > 0 and fields.text ~= text then return 0 end
if #found > 0 then
    local copy = {{}}
    fields.vector = vector
    for name, value in pairs(fields) do copy[#copy + 1] = name; copy[#copy + 1] = value end
    redis.call('HSET', at(coming, id), unpack(copy))
end
return redis.call('ZREM', base .. ':todo', id)
"""
FORGET = """
if redis.call('EXISTS', at(current, ARGV[1])) == 1 then return 0 end
return redis.call('ZREM', base .. ':todo', ARGV[1])
"""
DROP = """
if redis.call('HGET', at(current, ARGV[1]), 'text') ~= ARGV[2] then return 0 end
return remove(ARGV[1])
"""
SWITCH = """
local generation, token = unpack(ARGV)
if coming ~= generation then return -1 end
if redis.call('GET', base .. ':hold') ~= token or redis.call('EXISTS', base .. ':todo') == 1 then return 0 end
local target = redis.call('HMGET', base .. ':about', 'next_model', 'next_dimension')
redis.call('HSET', base .. ':about', 'model', target[1], 'dimension', target[2], 'generation', coming)
retire(current)
return 1
"""
RELEASE = """
if redis.call('GET', base .. ':hold') == ARGV[1] then redis.call('DEL', base .. ':hold') end
return 1
"""
CLEANED = """
local rest = ''
for generation in string.gmatch(old, '%d+') do
    if generation ~= ARGV[1] then rest = rest .. ' ' .. generation end
end
redis.call('HDEL', base .. ':about', 'old')
if rest ~= '' then redis.call('HSET', base .. ':about', 'old', rest) end
return redis.call('DEL', base .. ':old:' .. ARGV[1])
"""


class RedisMove:
    """See `Move`."""

    def __init__(self, url: str, *, model: str, dimension: int, restart: bool) -> None:
        self._address = read_url(url)
        self.url, self._base = self._address.shown, self._address.name
        self._client: Any = connect(self._address)
        self._write = self._client.register_script(HEAD + WRITE)
        self._token = uuid.uuid4().hex
        try:
            with self._calls():
                self._open(model, dimension, restart)
        except BaseException:
            self.close()
            raise

    def _open(self, model: str, dimension: int, restart: bool) -> None:
        require_search(self._client, self.url)
        about = open_about(self._client, self.url, self._base)
        if about is None:
            raise NoStore(self.url)
        self.about = about
        self.finished = (about.model, about.dimension) == (model, dimension)
        coming = self._coming()
        if coming is not None and restart:
            self._run(RETIRE + ABANDON, coming.generation)
        if self.finished:
            self._target = Target(model, dimension, about.generation)
            return
        self._target = choose_target(self.url, about, coming, model, dimension, restart=restart)
        values = (self._target.generation, self._target.model, self._target.dimension, about.generation)
        if self._target != coming and not self._run(BEGIN, *values):
            raise overtaken(self.url)
        make_index(self._client, self._base, self._target.generation, dimension)

    def _coming(self) -> Target | None:
        names = ["next_model", "next_dimension", "next"]
        model, dimension, generation = self._client.hmget(f"{self._base}:about", names)
        return Target(model.decode(), int(dimension), int(generation)) if generation is not None else None

    def progress(self) -> tuple[int, int]:
        with self._calls():
            with self._client.pipeline(transaction=True) as pipe:
                left, total = pipe.zcard(f"{self._base}:todo").zcard(f"{self._base}:created").execute()
            return total - left, total

    def pending(self, after: str, count: int) -> list[Pending]:
        with self._calls():
            while ids := self._todo(after, count):
                key = key_of(self._base, self.about.generation)
                with self._client.pipeline(transaction=False) as pipe:
                    for id in ids:
                        pipe.hget(key + id, "text")
                    texts = pipe.execute()
                found = [Pending(id, text.decode()) for id, text in zip(ids, texts, strict=True) if text is not None]
                for id in {*ids} - {row.id for row in found}:  # removed just now, or lost by the server
                    self._run(FORGET, id)
                if found:
                    return found
                after = ids[-1]
        return []

    def _todo(self, after: str, count: int) -> list[str]:
        start = b"(" + after.encode() if after else b"-"
        return [id.decode() for id in self._client.zrangebylex(f"{self._base}:todo", start, "+", start=0, num=count)]

    def write(self, rows: Sequence[tuple[Pending, Embeddings]]) -> None:
        answers = []
        with self._calls():
            for start in range(0, len(rows), BLOCK):
                with self._client.pipeline(transaction=False) as pipe:
                    for row, vector in rows[start : start + BLOCK]:
                        blob = vector.astype("<f4").tobytes()
                        values: list[Any] = [self._target.generation, row.id, row.text, blob, self._token]
                        self._write(keys=[self._base], args=values, client=pipe)
                    answers += pipe.execute()
        if -1 in answers:
            raise overtaken(self.url)

    def drop(self, rows: Sequence[Pending]) -> None:
        with self._calls():
            for row in rows:
                self._run(DROP, row.id, row.text)

    def ready(self) -> None:
        """There is nothing to do: the index grows with each vector."""

    @contextmanager
    def hold(self) -> Iterator[None]:
        """See `Move`; it ends HOLD seconds after the last `write`, also by a kill, and `switch` sees that."""
        with self._calls():
            while not self._client.set(f"{self._base}:hold", self._token, nx=True, px=int(1000 * HOLD)):
                time.sleep(0.05)
        try:
            yield
        finally:
            with self._calls():
                self._run(RELEASE, self._token)

    def switch(self) -> bool:
        with self._calls():
            answer = self._run(RETIRE + SWITCH, self._target.generation, self._token)
        if answer == -1:
            raise overtaken(self.url)
        return answer == 1

    def clean(self) -> None:
        with self._calls():
            old = self._client.hget(f"{self._base}:about", "old") or b""
            for generation in map(int, old.split()):
                self._remove_generation(generation)

    def _remove_generation(self, generation: int) -> None:
        with suppress(redis.ResponseError):  # it is gone already
            self._client.execute_command("FT.DROPINDEX", index_of(self._base, generation))
        left, key = f"{self._base}:old:{generation}", key_of(self._base, generation)
        while ids := self._client.zrange(left, 0, BLOCK - 1):
            with self._client.pipeline(transaction=False) as pipe:
                pipe.unlink(*(key + id.decode() for id in ids)).zrem(left, *ids).execute()
        self._run(CLEANED, generation)

    def close(self) -> None:
        self._client.close()

    def _run(self, script: str, *values: object) -> int:
        return int(self._client.eval(HEAD + script, 1, self._base, *values))

    def _calls(self) -> AbstractContextManager[None]:
        return translated(self._address)
