"""A store on another machine, waited for so long and no longer; one that hangs is left alone until it answers again.

A store that is gone says so at once; one that hangs (frozen, or behind a network that swallows packets) says nothing,
and whoever waits for it waits for an answer that the upstream could have given long ago. So a lookup may spend a
moment in the store. The first one that takes longer shuts the gate: until a probe is answered, nobody asks.

Calls of the store have threads of their own, and so have those who wait for them, twice as many: a queue then forms
in front of the store, where waiting counts. Neither takes a thread that an encoder or anybody else needs.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from embedsmith.cache.semantic import SemanticCache
from embedsmith.cache.stores import Counts, Entry, Match, ModelMismatch, Order, Store, StoreError
from embedsmith.encoder import Embeddings

LOG = logging.getLogger("embedsmith.server")
SECONDS = 1.0  # that a lookup may spend in the store
PAUSE = 3.0  # seconds between two probes
CALLS = 16  # in the store at once
SILENT = "the store does not answer"
Result = TypeVar("Result")


class StoreSilent(StoreError):
    """The store has not answered in time, now or a moment ago."""


class _Budget(threading.local):
    left = float("inf")  # seconds in the store, of the work that the thread is at


class Gate:
    """A `Store` in front of another. Shut, it raises `StoreSilent` at once.

    What a request waits for (`get`, `search`, `touch`, `count`) has the limit; what an admin asks for may take as long
    as the store itself allows.

    Args:
        seconds: that a call, or all calls of one `run`, may take. pause: seconds between two probes.

    Attributes:
        since: when it was shut, Unix seconds; None while it is open.
    """

    local = False

    def __init__(self, store: Store, *, seconds: float = SECONDS, pause: float = PAUSE) -> None:
        self.url, self.seconds = store.url, seconds
        self.since: float | None = None
        self._store, self._pause = store, pause
        self._calls = ThreadPoolExecutor(CALLS, thread_name_prefix="store")
        self._callers = ThreadPoolExecutor(2 * CALLS, thread_name_prefix="lookup")
        self._budget = _Budget()
        self._lock, self._closing = threading.Lock(), threading.Event()

    @property
    def told(self) -> str:
        """What is wrong while it is shut."""
        return f"{SILENT}: nothing within {self.seconds:g} s; it is asked again every {self._pause:g} s"

    async def run(self, work: Callable[[], Result]) -> Result:
        """Return what `work` returns, which is done in a thread and may spend `seconds` in the store.

        Raises:
            StoreSilent: it is shut, or the store took longer.
        """
        self._require_open()
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()
        return await loop.run_in_executor(self._callers, lambda: context.run(self._spend, work))

    def _spend(self, work: Callable[[], Result]) -> Result:
        self._budget.left = self.seconds
        return work()

    def get(self, id: str, now: float) -> Entry | None:
        return self._ask(lambda: self._store.get(id, now))

    def search(self, partition: str, vector: Embeddings, k: int, now: float, *, floor: float = -1.0) -> list[Match]:
        return self._ask(lambda: self._store.search(partition, vector, k, now, floor=floor))

    def touch(self, id: str, now: float) -> None:
        self._ask(lambda: self._store.touch(id, now))

    def count(self, namespace: str | None = None) -> Counts:
        return self._ask(lambda: self._store.count(namespace))

    def put(self, entries: Sequence[Entry]) -> None:
        """Add entries. One that is late shuts the gate, and is waited for: whether it was stored must be known."""
        self._require_open()
        future = self._calls.submit(self._store.put, entries)
        if not self._ended(future, self.seconds):
            self._shut()
        future.result()

    def delete(self, ids: Sequence[str]) -> int:
        return self._store.delete(ids)

    def purge(self, *, namespace: str | None = None, tag: str | None = None) -> int:
        return self._store.purge(namespace=namespace, tag=tag)

    def expire(self, now: float) -> int:
        return self._store.expire(now)

    def evict(self, *, entries: int | None = None, bytes: int | None = None, order: Order = "lru") -> int:
        return self._store.evict(entries=entries, bytes=bytes, order=order)

    def scan(self, namespace: str | None = None, *, newest: bool = False) -> Iterator[Entry]:
        return self._store.scan(namespace, newest=newest)

    def close(self) -> None:
        """End probes and threads; the store behind it belongs to whoever opened it."""
        self._closing.set()
        for pool in (self._callers, self._calls):
            pool.shutdown(wait=False, cancel_futures=True)

    def _require_open(self) -> None:
        if self.since is not None:
            raise StoreSilent(f"{self.url} does not answer")

    def _ask(self, call: Callable[[], Result]) -> Result:
        self._require_open()
        began = time.monotonic()
        future = self._calls.submit(call)
        in_time = self._ended(future, min(self.seconds, self._budget.left))
        self._budget.left -= time.monotonic() - began
        if not in_time:
            future.cancel()
            self._shut()
            raise StoreSilent(f"{self.url} has not answered within {self.seconds:g} s")
        return future.result()

    @staticmethod
    def _ended(future: Future[Result], seconds: float) -> bool:
        """Say whether a call has ended, well or not, within so many seconds."""
        try:
            future.exception(max(seconds, 0.0))
        except TimeoutError:
            return future.done()
        return True

    def _shut(self) -> None:
        with self._lock:
            if self.since is not None or self._closing.is_set():
                return
            self.since = time.time()
        LOG.warning("%s", self.told)
        threading.Thread(target=self._probe, name="probe", daemon=True).start()

    def _probe(self) -> None:
        """Ask for an entry that there is none of, in this thread, until the store answers; then open the gate."""
        while not self._closing.wait(self._pause):
            try:
                self._store.get("", time.time())
            except ModelMismatch:
                pass  # it answers; what is wrong with it the next lookup says
            except Exception:  # noqa: BLE001  whatever a store or its driver raises
                continue
            since, self.since = self.since, None
            LOG.warning("the store answers again, after %.0f s", time.time() - (since or 0.0))
            return


def gated(cache: SemanticCache, seconds: float = SECONDS) -> SemanticCache:
    """Return the cache with a gate before its store; the same one where the store is in this process."""
    if cache.store.local:
        return cache
    behind = copy.copy(cache)
    behind.store = Gate(cache.store, seconds=seconds)
    return behind
