"""A store that hangs costs a moment, once: the LLM answers meanwhile, and the cache comes back by itself."""

from __future__ import annotations

import importlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from contracts.servers import ServerMissing, start_postgres, start_redis
from embedsmith.cache.semantic import SemanticCache
from embedsmith.cache.stores import Counts, Entry, ModelMismatch, StoreError
from embedsmith.cache.stores.memory import MemoryStore
from embedsmith.encoder import Embeddings
from embedsmith.server.gate import CALLS, Gate, StoreSilent, gated
from embedsmith.testing import FakeEncoder

from .conftest import Served
from .test_app import ADMIN, state
from .test_proxy import ASKED, Serve, ask

SILENT = "the store does not answer"


class Remote(MemoryStore):
    """A store on another machine: whoever holds `frozen` lets it hang."""

    local = False

    def __init__(self) -> None:
        super().__init__(dimension=FakeEncoder().encode(["x"]).shape[1], model="fake")
        self.answering = threading.Event()
        self.answering.set()
        self.asked = 0

    def _reach(self) -> None:
        self.asked += 1
        assert self.answering.wait(20)

    def get(self, id: str, now: float) -> Entry | None:
        self._reach()
        return super().get(id, now)

    def put(self, entries: Any) -> None:
        self._reach()
        super().put(entries)

    def touch(self, id: str, now: float) -> None:
        self._reach()
        super().touch(id, now)

    def count(self, namespace: str | None = None) -> Counts:
        self._reach()
        return super().count(namespace)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        self.answering.clear()
        try:
            yield
        finally:
            self.answering.set()


@dataclass
class Timed:
    """Seconds that a block took."""

    seconds: float = 0.0


@contextmanager
def timed() -> Iterator[Timed]:
    taken, began = Timed(), time.monotonic()
    yield taken
    taken.seconds = time.monotonic() - began


def wait_until(holds: Callable[[], bool], seconds: float = 15.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def health(served: Served) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{served.url}/health").json()
    return found


@pytest.fixture
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gate.__init__, "__kwdefaults__", {"seconds": 1.0, "pause": 0.3})


def start_behind(serve: Serve, store: Remote | str, seconds: float = 0.4, **options: Any) -> Served:
    return serve(cache={"store": store}, app={"store_seconds": seconds}, **options)


def test_a_store_in_this_process_has_no_gate() -> None:
    cache = SemanticCache(FakeEncoder(), threshold=0.8, fingerprint="fake")
    assert gated(cache) is cache
    remote = SemanticCache(FakeEncoder(), store=Remote(), threshold=0.8, fingerprint="fake")
    assert isinstance(gated(remote).store, Gate)


@pytest.mark.usefixtures("quick_probes")
def test_a_store_that_hangs_costs_a_moment_once_and_comes_back_by_itself(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    store = Remote()
    served = start_behind(serve, store)
    assert [ask(served)[0], ask(served)[0]] == ["miss", "hit"]
    with store.frozen():
        with timed() as first:
            assert ask(served) == ("pass", SILENT, f"the answer to {ASKED}")
        assert 0.3 < first.seconds < 3
        asked = store.asked
        with timed() as next_ones:
            assert [ask(served, stream=stream)[:2] for stream in (False, True) * 5] == [("pass", SILENT)] * 10
        assert next_ones.seconds < 3
        assert store.asked <= asked + 1  # a probe; requests leave it alone
        answer = httpx.get(f"{served.url}/health")
        assert (answer.status_code, answer.json()) == (200, {"status": "degraded", "failing": [SILENT]})
        (trouble,) = state(served)["troubles"]
        assert trouble["told"].startswith(SILENT)
        metrics = httpx.get(f"{served.url}/metrics").text
        assert "embedsmith_store_silent 1.0" in metrics
        assert "embedsmith_entries NaN" in metrics
        assert f'embedsmith_failures_total{{reason="{SILENT}"}} 11.0' in metrics
    wait_until(lambda: health(served) == {"status": "ok"})
    assert ask(served)[0] == "hit"
    assert "embedsmith_store_silent 0.0" in httpx.get(f"{served.url}/metrics").text
    told = [record.getMessage() for record in caplog.records if record.name == "embedsmith.server"]
    assert [re.sub(r"after \d+ s", "after N s", line) for line in told] == [
        f"{SILENT}: nothing within 0.4 s; it is asked again every 0.3 s",
        "the store answers again, after N s",
    ]


def test_a_crowd_waits_no_longer_than_one_and_takes_no_thread_from_others(serve: Serve) -> None:
    store = Remote()
    served = start_behind(serve, store, seconds=1.0)
    with store.frozen(), ThreadPoolExecutor(2 * CALLS + 9) as crowd:
        with timed() as taken:
            waiting = [crowd.submit(ask, served, f"question number {number}") for number in range(2 * CALLS + 8)]
            embedded = crowd.submit(
                httpx.post, f"{served.url}/v1/embeddings", json={"model": "embedsmith", "input": "an egg"}
            )
            assert embedded.result().status_code == 200
            assert not any(one.done() for one in waiting)
            assert {one.result()[:2] for one in waiting} == {("pass", SILENT)}
        assert taken.seconds < 5


def test_an_answer_that_is_stored_late_is_counted_and_found(serve: Serve) -> None:
    """Its client has it long before; those who asked the same meanwhile have asked for themselves."""
    store = Remote()
    served = start_behind(serve, store, delay=0.5)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask, served, cache="ttl=60")
        wait_until(lambda: served.calls == 1)
        with store.frozen():
            with timed() as taken:
                assert asking.result() == ("miss", "nothing stored", f"the answer to {ASKED}")
            assert taken.seconds < 3
            assert "embedsmith_stored_total 0.0" in httpx.get(f"{served.url}/metrics").text
            thawed = time.time()
    wait_until(lambda: "embedsmith_stored_total 1.0" in httpx.get(f"{served.url}/metrics").text)
    (entry,) = served.cache.store.scan()
    assert entry.expires is not None
    assert entry.expires < thawed + 60  # from the moment it was to be stored, not from when the store woke up
    wait_until(lambda: ask(served)[0] == "hit")
    assert served.watch is not None
    assert served.watch.troubles == {}


def test_all_calls_of_a_lookup_share_its_time() -> None:
    class Slow(Remote):
        def _reach(self) -> None:
            time.sleep(0.25)

    gate = Gate(Slow(), seconds=0.4)
    work = gate._spend
    work(lambda: gate.get("a", 0.0))  # each by itself has time enough
    work(lambda: gate.get("a", 0.0))
    with pytest.raises(StoreSilent):
        work(lambda: [gate.get(id, 0.0) for id in "ab"])
    gate.close()


def test_an_encoder_that_is_slow_is_no_store_that_hangs(serve: Serve) -> None:
    class Slow(FakeEncoder):
        def encode(self, texts: Any, /) -> Embeddings:
            time.sleep(0.3)
            return super().encode(texts)

    served = start_behind(serve, Remote(), seconds=0.2, encoder=Slow())
    assert [ask(served)[0], ask(served, "How do I freeze my cards?")[0]] == ["miss", "hit"]


@pytest.mark.parametrize("late", [False, True])
def test_an_error_of_the_store_stays_its_own(late: bool) -> None:
    class Broken(Remote):
        def get(self, id: str, now: float) -> Entry | None:
            time.sleep(0.3 if late else 0.0)
            raise TimeoutError("of the driver")

    gate = Gate(Broken(), seconds=0.1 if late else 5.0, pause=60.0)
    with pytest.raises(StoreSilent if late else TimeoutError):
        gate.get("a", 0.0)
    assert (gate.since is not None) is late
    gate.close()


@pytest.mark.parametrize(("error", "opens"), [(StoreError("gone"), False), (ModelMismatch("another"), True)])
def test_a_probe_that_fails_leaves_the_gate_shut_unless_it_was_answered(error: Exception, opens: bool) -> None:
    store = Remote()
    gate = Gate(store, seconds=0.05, pause=0.05)
    with store.frozen(), pytest.raises(StoreSilent):
        gate.get("a", 0.0)
    probes: list[str] = []

    def fail(id: str, now: float) -> None:
        probes.append(id)
        raise error

    store.get = fail  # type: ignore[method-assign]
    wait_until(lambda: len(probes) > (0 if opens else 2))
    wait_until(lambda: (gate.since is None) is opens)
    gate.close()


@contextmanager
def start_store(kind: str) -> Iterator[str]:
    pytest.importorskip({"redis": "redis", "postgres": "psycopg_pool"}[kind])
    server = start_redis() if kind == "redis" else start_postgres()
    try:
        url = server.__enter__()
    except ServerMissing as error:
        pytest.skip(str(error))
    try:
        yield url
    finally:
        server.__exit__(None, None, None)


@contextmanager
def stopped(url: str) -> Iterator[None]:
    """Stop the server of `url`, all its processes, as a frozen machine would be."""
    if url.startswith("redis"):
        port = int(url.rpartition(":")[2].partition("/")[0])
        found = [
            process
            for process in psutil.process_iter()
            if any(wire.status == "LISTEN" and wire.laddr.port == port for wire in _wires(process))
        ]
    else:
        first = psutil.Process(int(Path(url.partition("host=")[2], "postmaster.pid").read_text().split()[0]))
        found = [first, *first.children(recursive=True)]
    assert found
    for process in found:
        os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in found:
            os.kill(process.pid, signal.SIGCONT)


def _wires(process: psutil.Process) -> list[Any]:
    try:
        return list(process.net_connections())
    except psutil.Error:
        return []


@pytest.mark.parametrize("kind", ["redis", "postgres"])
@pytest.mark.usefixtures("quick_probes")
def test_a_server_that_is_stopped_takes_nothing_away_and_is_used_again(kind: str, serve: Serve) -> None:
    with start_store(kind) as url:
        served = start_behind(serve, url, seconds=1.0)  # a busy machine may take half a second
        assert [ask(served)[0], ask(served)[0]] == ["miss", "hit"]
        with stopped(url), ThreadPoolExecutor(24) as crowd:
            with timed() as taken:
                found = list(crowd.map(lambda number: ask(served, f"question number {number}"), range(24)))
            assert {one[:2] for one in found} == {("pass", SILENT)}
            assert taken.seconds < 5
            assert health(served)["failing"] == [SILENT]
            assert httpx.get(f"{served.url}/admin/state", headers=ADMIN).status_code == 200
        wait_until(lambda: health(served) == {"status": "ok"})
        assert ask(served)[0] == "hit"
        assert ask(served, "what is a standing charge?")[0] == "miss"
        assert served.cache.store.count().entries == 2


def test_a_clean_up_in_a_server_that_stands_still_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with start_store("postgres") as url:
        driver = importlib.import_module("embedsmith.cache.stores.postgres")
        monkeypatch.setattr(driver, "WAIT", 1.0)
        cache = SemanticCache(FakeEncoder(), store=url, threshold=0.8, fingerprint="fake")
        cache.lookup(ASKED)
        with stopped(url), ThreadPoolExecutor(1) as pool, timed() as taken:
            cleaning = pool.submit(cache.store.expire, time.time())  # it may take minutes
            time.sleep(0.3)
            cache.close()
            with pytest.raises(StoreError, match="cannot be reached: no answer before the store was closed"):
                cleaning.result(20)
        assert taken.seconds < 8


@pytest.mark.parametrize("kind", ["redis", "postgres"])
def test_a_program_gets_an_error_within_the_stores_own_limit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with start_store(kind) as url:
        driver = importlib.import_module(f"embedsmith.cache.stores.{kind}")
        monkeypatch.setattr(driver, "WAIT", 0.5)
        if kind == "postgres":
            limit = driver._limit
            monkeypatch.setattr(driver, "_limit", lambda calls, _, end: limit(calls, 0.5, end))
        cache = SemanticCache(FakeEncoder(), store=url, threshold=0.8, fingerprint="fake")
        cache.add(ASKED, "an answer")
        works: list[Callable[[], object]] = [lambda: cache.lookup(ASKED), lambda: cache.add("another", "answer")]
        works += [lambda: cache.purge(namespace="none"), lambda: list(cache.store.scan())]
        with stopped(url):
            for work in works:
                with timed() as taken, pytest.raises(StoreError, match="cannot be reached"):
                    work()
                assert taken.seconds < 4
            assert cache.serve(ASKED, lambda _: "computed") == "computed"
        wait_until(lambda: cache.lookup(ASKED).hit)
        cache.close()
