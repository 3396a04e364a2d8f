"""A store moves to another model: nothing but vectors changes, nothing is lost, and nobody is disturbed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import Place, entry, find_place, ids, same, units
from version_one import write_version_one

from embedsmith.cache import reencoding
from embedsmith.cache.reencoding import EntriesNotEncoded, Reencoded, reencode
from embedsmith.cache.stores import Counts, Entry, ModelMismatch, Order, Store, StoreError
from embedsmith.cache.stores.memory import MemoryStore
from embedsmith.cache.stores.moving import open_move
from embedsmith.encoder import Embeddings
from embedsmith.errors import ConfigurationError, EmbedsmithError
from embedsmith.testing import FakeEncoder

KILLS = int(os.environ.get("EMBEDSMITH_KILLS", "2"))
NEW = FakeEncoder(8)
ORDERS: tuple[Order, ...] = ("lru", "lfu", "size")


class Spy:
    """An encoder that notes what it encodes, and does something before each batch."""

    def __init__(self, encoder: FakeEncoder = NEW, before: Callable[[int], None] = lambda batch: None) -> None:
        self.encoder, self.before, self.batches = encoder, before, list[list[str]]()

    @property
    def texts(self) -> list[str]:
        return [text for batch in self.batches for text in batch]

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        if list(texts) != [reencoding.PROBE]:
            self.before(len(self.batches))
            self.batches.append(list(texts))
        return self.encoder.encode(texts)


def move(place: Place, encoder: object = NEW, model: str = "model-b", **options: object) -> Reencoded:
    return reencode(place.url, encoder, model=model, **options)  # type: ignore[arg-type]


def renewed(entries: Sequence[Entry], encoder: FakeEncoder = NEW) -> list[Entry]:
    """Return the entries as a store with the new model would have them."""
    return [replace(one, vector=encoder.encode([one.text])[0]) for one in entries]


def questions(count: int) -> list[Entry]:
    about = ("card", "pin", "loan", "rate", "meter", "tariff", "bill")
    vectors = units(count, 4)
    return [
        entry(
            f"{number:05}",
            vectors[number],
            text=f"how do i change my {about[number % 7]} number {number}?",
            namespace=f"n{number % 3}",
            partition=f"p{number % 2}",
            created=float(number),
            expires=None if number % 4 else 1000.0 + number,
            tags=(f"t{number % 5}",),
            answer="x" * (number % 11),
        )
        for number in range(count)
    ]


def use(store: Store, entries: Sequence[Entry]) -> None:
    for place, one in enumerate(entries):
        for _ in range(place % 3):
            store.touch(one.id, 5000.0 - place)


def going(store: Store, order: Order) -> list[str]:
    """Return the ids in the order in which they are evicted; the store is empty then."""
    gone, left = [], {one.id for one in store.scan()}
    while left:
        assert store.evict(entries=len(left) - 1, order=order) == 1
        now = {one.id for one in store.scan()}
        gone += left - now
        left = now
    return gone


# What stays and what changes


@pytest.mark.parametrize("order", ORDERS)
def test_all_stays_but_the_vectors(durable: Place, order: Order) -> None:
    old, entries = durable.open(), questions(23)
    old.put(entries)
    use(old, entries)
    old.close()
    done = move(durable, batch=5)
    assert (done.old_model, done.old_dimension, done.model, done.dimension) == ("model-a", 4, "model-b", 8)
    assert (done.entries, done.encoded, done.dropped) == (23, 23, ())

    new, twin = durable.open(8, "model-b"), MemoryStore(dimension=8, model="model-b")
    twin.put(renewed(entries))
    use(twin, entries)
    assert all(map(same, new.scan(), twin.scan()))
    assert all(same(new.get(one.id, 1.0), twin.get(one.id, 1.0)) for one in entries)
    for namespace in (None, "n0", "n1", "n2", "n3"):
        assert new.count(namespace) == twin.count(namespace)
    assert new.evict(bytes=twin.count().bytes) == 0
    assert new.evict(bytes=700, order=order) == twin.evict(bytes=700, order=order) > 0
    assert going(new, order) == going(twin, order)
    assert new.count() == Counts(0, 0)


def test_searches_are_those_of_a_fresh_store(durable: Place, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    entries = questions(300)
    durable.open().put(entries)
    move(durable)
    moved = durable.open(8, "model-b")
    fresh = find_place(durable.kind, request, tmp_path, durable.opened).open(8, "model-b")
    fresh.put(renewed(entries))
    for one in renewed(questions(40)):
        for partition in ("p0", "p1"):
            found, expected = (store.search(partition, one.vector, 7, 1010.0) for store in (moved, fresh))
            assert ids(found) == ids(expected)
            assert [match.similarity for match in found] == [match.similarity for match in expected]
            assert all(same(*pair) for pair in zip((m.entry for m in found), (m.entry for m in expected), strict=True))


def test_a_moved_store_works_as_any(durable: Place) -> None:
    durable.open().put(questions(12))
    move(durable)
    store = durable.open(8, "model-b")
    fresh = replace(entry("new", text="where is my card"), vector=NEW.encode(["where is my card"])[0])
    store.put([fresh, replace(renewed(questions(1))[0], answer="another")])
    assert ids(store.search("p", fresh.vector, 1, 1.0)) == ["new"]
    assert store.count() == Counts(13, sum(one.size for one in store.scan()))
    assert store.purge(tag="t1") == 3
    assert store.expire(1e9) == 3
    assert store.delete(["00002", "new"]) == 2
    assert store.count() == Counts(5, sum(one.size for one in store.scan()))


def test_a_store_can_move_again_and_back(durable: Place) -> None:
    entries, back = questions(9), FakeEncoder(4)
    durable.open().put(renewed(entries, back))
    move(durable)
    move(durable, FakeEncoder(16), "model-c")
    done = move(durable, back, "model-a")
    assert (done.old_model, done.old_dimension, done.encoded) == ("model-c", 16, 9)
    store = durable.open()
    assert all(map(same, store.scan(), renewed(entries, back)))
    assert store.count().bytes == sum(one.size for one in renewed(entries, back))


def test_a_store_of_version_one_can_move(durable: Place) -> None:
    entries = questions(9)
    write_version_one(durable, entries, {})
    assert move(durable).encoded == 9
    assert all(map(same, durable.open(8, "model-b").scan(), renewed(entries)))


def test_an_empty_store_moves(durable: Place) -> None:
    durable.open().close()
    assert move(durable).entries == 0
    assert durable.open(8, "model-b").count() == Counts(0, 0)


# Any sequence of operations meanwhile

names = st.sampled_from(["a", "b", "ü", "x y", "q'\"", "{|}"])
changes = st.one_of(
    st.tuples(st.just("put"), names, st.sampled_from(["how", "HOW", "why not", ""]), st.integers(0, 9)),
    st.tuples(st.just("touch"), names, st.just(""), st.integers(0, 99)),
    st.tuples(st.just("delete"), names, st.just(""), st.just(0)),
    st.tuples(st.just("purge"), names, st.just(""), st.just(0)),
    st.tuples(st.just("evict"), names, st.just(""), st.integers(0, 5)),
)


def change(store: Store, what: tuple[str, str, str, int]) -> None:
    name, id, text, number = what
    if name == "put":
        made = entry(id, text=text, created=float(number), tags=(id,), answer="y" * number)
        vector = NEW.encode([text])[0] if store.dimension == 8 else units(1, 4, number)[0]  # type: ignore[attr-defined]
        store.put([replace(made, vector=vector)])
    elif name == "touch":
        store.touch(id, float(number))
    elif name == "delete":
        store.delete([id])
    elif name == "purge":
        store.purge(tag=id)
    else:
        store.evict(entries=number)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=st.lists(changes, max_size=8), meanwhile=st.lists(changes, max_size=8), batch=st.integers(1, 3))
def test_whatever_happens_meanwhile_only_vectors_change(
    durable: Place,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    before: list[tuple[str, str, str, int]],
    meanwhile: list[tuple[str, str, str, int]],
    batch: int,
) -> None:
    with ExitStack() as opened:
        place = find_place(durable.kind, request, tmp_path, opened)
        old, twin, left = place.open(), MemoryStore(dimension=8, model="model-b"), list(meanwhile)
        for what in [("put", "a", "first", 1), *before]:
            change(old, what)
            change(twin, what)
        last = threading.Event()

        def disturb(_: int) -> None:
            # While the last few are encoded, additions wait: they would wait for this very thread.
            while left and not last.is_set():
                what = left.pop()
                change(old, what)
                change(twin, what)
                if len(left) % 2:
                    return

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reencoding._Work, "_finish", lambda work: (last.set(), plain(work))[1])
            move(place, Spy(before=disturb), batch=batch)
        old.close()  # SQLite writes the last uses now
        new = place.open(8, "model-b")
        assert len(list(new.scan())) == len(list(twin.scan()))
        assert all(map(same, new.scan(), twin.scan()))
        assert new.count() == twin.count()
        order = ORDERS[batch - 1]
        assert going(new, order) == going(twin, order)
        new.close()


plain = reencoding._Work._finish


# Who serves meanwhile and afterwards


def test_the_old_model_is_served_whole_until_the_switch(durable: Place) -> None:
    store, entries, seen = durable.open(), questions(20), []
    store.put(entries)

    def look(_: int) -> None:
        again = durable.open()
        for one in (store, again):
            assert ids(one.search("p0", entries[4].vector, 1, 1.0)) == ["00004"]
            assert all(map(same, one.scan(), entries))
            assert one.count() == Counts(20, sum(each.size for each in entries))
        with pytest.raises(ModelMismatch):
            durable.open(8, "model-b")
        again.close()
        seen.append(True)

    move(durable, Spy(before=look), batch=7)
    assert len(seen) == 3


def test_after_the_switch_the_old_model_is_refused_and_told_what_to_do(durable: Place) -> None:
    store, entries = durable.open(), questions(5)
    store.put(entries)
    move(durable)
    uses: tuple[Callable[[], object], ...] = (
        durable.open,
        lambda: store.search("p0", entries[0].vector, 1, 1.0),
        lambda: store.put([entries[0]]),
        lambda: store.get("00001", 1.0),
        lambda: list(store.scan()),
    )
    for attempt in uses:
        with pytest.raises(ModelMismatch, match="model-b with 8 dimensions") as caught:
            attempt()
        assert f"embedsmith reencode '{store.url}' --model" in caught.value.action
    assert all(map(same, durable.open(8, "model-b").scan(), renewed(entries)))


def test_a_model_of_the_same_dimension_is_refused_too(durable: Place) -> None:
    store, entries, other = durable.open(), questions(5), FakeEncoder(4)
    store.put(entries)
    move(durable, other)
    for attempt in (lambda: store.put([entries[0]]), lambda: store.search("p0", entries[0].vector, 1, 1.0)):
        with pytest.raises(ModelMismatch):
            attempt()
    assert all(map(same, durable.open(4, "model-b").scan(), renewed(entries, other)))


def test_a_server_whose_model_comes_back_goes_on(durable: Place) -> None:
    store, entries, own = durable.open(), questions(5), FakeEncoder(4)
    store.put(entries)
    move(durable)
    move(durable, own, "model-a")
    now = renewed(entries, own)
    with suppress(StoreError):  # one call may find that the ground has moved
        store.search("p0", now[0].vector, 1, 1.0)
    assert store.search("p0", now[0].vector, 1, 1.0)[0].similarity == pytest.approx(1.0)
    store.put([replace(now[1], id="more")])
    assert store.count().entries == 6


def test_no_acknowledged_addition_is_lost_in_a_crowd(durable: Place) -> None:
    """Writers add, replace and remove through the switch, until they are refused."""
    durable.open().put(questions(300))
    added: dict[str, str] = {}
    removed: set[str] = set()
    errors: list[BaseException] = []

    def write(number: int) -> None:
        store, vector = durable.open(), units(1, 4)[0]
        for turn in range(100_000):
            one = entry(f"w{number}-{turn % 40}", vector, text=f"writer {number} says {turn}", created=1e4 + turn)
            try:
                store.put([one])
                added[one.id] = one.text
                if turn % 7 == 0:
                    gone = f"{number * 50 + turn % 50:05}"
                    store.delete([gone])
                    removed.add(gone)
            except ModelMismatch:
                return
            except BaseException as error:
                errors.append(error)
                raise
            time.sleep(0.001)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    done = move(durable, Spy(before=lambda batch: time.sleep(0.01)), batch=32)
    for thread in threads:
        thread.join(timeout=60)
    assert not errors
    assert not any(thread.is_alive() for thread in threads)
    store = durable.open(8, "model-b")
    found = {one.id: one for one in store.scan()}
    # A writer may remove one more between the count and its first refusal, which only an addition meets.
    assert 0 <= done.entries - len(found) <= len(threads)
    assert all(found[id].text == text for id, text in added.items())
    assert not removed & found.keys()
    assert all(np.array_equal(one.vector, NEW.encode([one.text])[0]) for one in found.values())
    assert store.count() == Counts(len(found), sum(one.size for one in found.values()))
    for one in list(found.values())[::37]:
        assert store.search(one.partition, one.vector, 1, 1.0)[0].similarity == pytest.approx(1.0, abs=1e-6)


# Stops and starts


class Stop(BaseException):
    """What a Ctrl-C is."""


def stop_at(batch: int) -> Callable[[int], None]:
    def stop(number: int) -> None:
        if number == batch:
            raise Stop

    return stop


def test_a_second_run_goes_on_and_encodes_nothing_twice(durable: Place) -> None:
    durable.open().put(questions(50))
    first, second, progress = Spy(before=stop_at(3)), Spy(), list[tuple[int, int]]()
    with pytest.raises(Stop):
        move(durable, first, batch=10)
    assert durable.open().count().entries == 50
    done = move(durable, second, batch=10, on_progress=lambda *now: progress.append(now))
    assert sorted(first.texts + second.texts) == sorted(one.text for one in questions(50))
    assert (done.encoded, progress) == (20, [(30, 50), (40, 50), (50, 50)])
    again = Spy()
    assert move(durable, again).encoded == 0
    assert again.texts == []


def test_what_changes_between_two_runs_is_followed(durable: Place) -> None:
    store = durable.open()
    store.put(questions(30))
    with pytest.raises(Stop):
        move(durable, Spy(before=stop_at(2)), batch=10)
    changed = replace(questions(1)[0], text="what is this now?")
    store.put([changed, entry("new", text="and this?")])
    store.delete(["00001", "00029"])
    second = Spy()
    move(durable, second)
    assert {"what is this now?", "and this?"} <= set(second.texts)
    assert len(second.texts) == 11  # of the last ten one is gone, two are new
    expected = [one for one in questions(30) if one.id not in {"00000", "00001", "00029"}]
    left = {one.id: one for one in durable.open(8, "model-b").scan()}
    assert all(same(left.pop(one.id), one) for one in renewed([*expected, changed]))
    assert list(left) == ["new"]


def test_another_target_is_refused_until_told_to_start_anew(durable: Place) -> None:
    durable.open().put(questions(20))
    with pytest.raises(Stop):
        move(durable, Spy(before=stop_at(1)), batch=5)
    with pytest.raises(ConfigurationError, match="unfinished re-encoding to model model-b") as caught:
        move(durable, FakeEncoder(16), "model-c")
    assert "--restart" in caught.value.action
    done = move(durable, FakeEncoder(16), "model-c", restart=True)
    assert done.encoded == 20
    store = durable.open(16, "model-c")
    assert all(map(same, store.scan(), renewed(questions(20), FakeEncoder(16))))


def test_a_move_that_was_started_anew_elsewhere_stops(durable: Place) -> None:
    durable.open().put(questions(20))

    def overtake(batch: int) -> None:
        if batch == 1:
            move(durable, FakeEncoder(16), "model-c", restart=True)

    with pytest.raises(StoreError, match="another re-encoding"):
        move(durable, Spy(before=overtake), batch=5)
    assert all(map(same, durable.open(16, "model-c").scan(), renewed(questions(20), FakeEncoder(16))))


def test_an_unfinished_move_can_be_dropped(durable: Place) -> None:
    durable.open().put(questions(20))
    with pytest.raises(Stop):
        move(durable, Spy(before=stop_at(1)), batch=5)
    assert move(durable, FakeEncoder(4), "model-a", restart=True).encoded == 0
    store = durable.open()
    assert all(map(same, store.scan(), questions(20)))
    assert leftovers(durable) == 0


def test_two_that_move_at_once_do_not_harm(durable: Place) -> None:
    durable.open().put(questions(60))
    results: list[Reencoded | StoreError] = []

    def work() -> None:
        try:
            results.append(move(durable, Spy(before=lambda batch: time.sleep(0.005)), batch=4))
        except StoreError as error:  # the other one finished first
            results.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(results) == 2
    assert any(isinstance(result, Reencoded) for result in results)
    move(durable)
    assert all(map(same, durable.open(8, "model-b").scan(), renewed(questions(60))))
    assert leftovers(durable) == 0


def leftovers(place: Place) -> int:
    """Return how many tables, hashes or indexes of other models are left."""
    server, _, name = place.url.rpartition("=")
    if place.kind == "sqlite":
        import sqlite3

        with sqlite3.connect(place.url.removeprefix("sqlite:///")) as file:
            return len(file.execute("select name from sqlite_schema where name glob 'vectors_*'").fetchall()) - 1
    if place.kind == "postgres":
        import psycopg

        with psycopg.connect(server.rpartition("&")[0]) as connection:
            query = "select count(*) from pg_tables where tablename = %s or tablename like %s"
            row = connection.execute(query, (name, f"{name}_entries%")).fetchone()
            return int(row[0]) - 1 if row else 0
    import redis

    with redis.Redis.from_url(server.partition("?")[0], protocol=2) as client:
        kinds = {key.rpartition(b":")[0] for key in client.scan_iter(f"{name}:entry*")}
        indexes = [index for index in client.execute_command("FT._LIST") if index.startswith(name.encode())]
        return len(kinds) + len(indexes) - 2 + len(list(client.scan_iter(f"{name}:old*")))


@pytest.mark.parametrize("stops", [0, 1])
def test_nothing_of_the_old_model_is_left(durable: Place, stops: int) -> None:
    durable.open().put(questions(20))
    if stops:
        with pytest.raises(Stop):
            move(durable, Spy(before=stop_at(1)), batch=5)
    move(durable)
    assert leftovers(durable) == 0


def test_a_kill_after_the_switch_leaves_nothing_for_good(durable: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    durable.open().put(questions(20))
    with monkeypatch.context() as patch:
        moving = open_move(durable.url, model="model-b", dimension=8)
        patch.setattr(type(moving), "clean", lambda self: stop_at(0)(0))
        moving.close()
        with pytest.raises(Stop):
            move(durable)
    store = durable.open(8, "model-b")
    assert store.delete(["00003"]) == 1
    assert len(list(store.scan())) == 19
    assert move(durable).encoded == 0
    assert leftovers(durable) == 0
    assert len(list(store.scan())) == 19


CHILD = """
import sys, time
from embedsmith.cache.reencoding import reencode
from embedsmith.testing import FakeEncoder
class Logging(FakeEncoder):
    def encode(self, texts):
        with open(sys.argv[2], "a", encoding="utf-8") as log:
            log.writelines(text + "\\n" for text in texts if text != "dimension")
        time.sleep(0.002)
        return super().encode(texts)
print("ready", flush=True)
sys.stdin.readline()
reencode(sys.argv[1], Logging(8), model="model-b", batch=10)
"""


@pytest.mark.parametrize("seed", range(max(KILLS // 3, 1)))
def test_a_kill_costs_a_batch_and_nothing_else(durable: Place, tmp_path: Path, seed: int) -> None:
    """SIGKILL at three random moments of a re-encoding, in processes of their own, then one that may finish."""
    entries, log = questions(400), tmp_path / "encoded"
    durable.open().put(entries)
    command = [sys.executable, "-c", CHILD, durable.url, str(log)]
    pipe = subprocess.PIPE
    waiting = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(4)]
    moments = [random.Random(f"{seed} {turn}").uniform(0.0, end) for turn, end in enumerate((0.05, 0.15, 0.3))]
    for child, moment in zip(waiting, [*moments, 60.0], strict=True):
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        child.stdin.write("\n")
        child.stdin.flush()
        with suppress(subprocess.TimeoutExpired):
            child.wait(moment)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        with suppress(ModelMismatch):  # until the switch, the old model is served whole
            old = durable.open()
            assert all(map(same, old.scan(), entries))
            assert ids(old.search("p0", entries[4].vector, 1, 1.0)) == ["00004"]
            old.close()
    assert waiting[0].returncode == -signal.SIGKILL
    assert waiting[-1].returncode == 0
    assert all(map(same, durable.open(8, "model-b").scan(), renewed(entries)))
    encoded = log.read_text(encoding="utf-8").splitlines()
    assert {one.text for one in entries} <= {*encoded}
    assert len(encoded) <= len(entries) + 3 * reencoding.LAST
    assert leftovers(durable) == 0


# Dies before or after a step of the move; what a Redis was told to hold, it holds for half a second.
DYING_CHILD = """
import os, signal, sys
from embedsmith.cache.reencoding import reencode
from embedsmith.cache.stores.moving import open_move
from embedsmith.testing import FakeEncoder
url, when, step = sys.argv[1:]
moving = open_move(url, model="model-b", dimension=8)
if url.startswith("redis"):
    sys.modules[type(moving).__module__].HOLD = 0.5
plain = getattr(type(moving), step)
def dying(self, *values):
    if when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = plain(self, *values)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(type(moving), step, dying)
reencode(url, FakeEncoder(8), model="model-b", batch=10)
"""
STEPS = [("before", "switch"), ("after", "switch"), ("after", "write"), ("after", "ready"), ("before", "clean")]


@pytest.mark.parametrize(("when", "step"), STEPS if KILLS > 3 else STEPS[:2])
def test_a_kill_at_the_switch_leaves_one_model_or_the_other(durable: Place, when: str, step: str) -> None:
    entries = questions(25)
    durable.open().put(entries)
    command = [sys.executable, "-c", DYING_CHILD, durable.url, when, step]
    assert subprocess.run(command, timeout=60).returncode == -signal.SIGKILL
    try:
        store = durable.open()
    except ModelMismatch:
        store, entries = durable.open(8, "model-b"), renewed(entries)
    assert all(map(same, store.scan(), entries))
    assert ids(store.search("p0", entries[4].vector, 1, 1.0)) == ["00004"]
    store.put([replace(entries[0], answer="again")])  # nobody holds it any more
    assert store.count().entries == 25
    store.close()
    move(durable)
    again = {one.id: one for one in durable.open(8, "model-b").scan()}
    assert again.pop("00000").answer == "again"
    assert all(map(same, again.values(), renewed(questions(25))[1:]))
    assert leftovers(durable) == 0


# Texts that cannot be encoded


class Picky(FakeEncoder):
    """An encoder that cannot encode texts with a 3."""

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        if any("3" in text for text in texts):
            raise ValueError("no threes,\nplease")
        return super().encode(texts)


def test_entries_that_cannot_be_encoded_are_named_and_kept(durable: Place) -> None:
    durable.open().put(questions(15))
    with pytest.raises(EntriesNotEncoded, match="2 entries") as caught:
        move(durable, Picky(8), batch=4)
    assert [(one.id, one.reason) for one in caught.value.failures] == [
        ("00003", "ValueError: no threes, please"),
        ("00013", "ValueError: no threes, please"),
    ]
    assert "--drop-failed" in caught.value.action
    assert all(map(same, durable.open().scan(), questions(15)))


def test_entries_that_cannot_be_encoded_are_removed_when_told(durable: Place) -> None:
    durable.open().put(questions(15))
    done = move(durable, Picky(8), batch=4, drop_failed=True)
    assert [one.id for one in done.dropped] == ["00003", "00013"]
    assert (done.entries, done.encoded) == (13, 13)
    expected = [one for one in questions(15) if one.id not in {"00003", "00013"}]
    assert all(map(same, durable.open(8, "model-b").scan(), renewed(expected)))


def test_a_vector_that_is_no_number_is_a_failure(durable: Place) -> None:
    class Broken(FakeEncoder):
        def encode(self, texts: Sequence[str], /) -> Embeddings:
            vectors = super().encode(texts)
            vectors[["4" in text for text in texts]] = np.nan
            return vectors

    durable.open().put(questions(6))
    assert [one.id for one in move(durable, Broken(8), drop_failed=True).dropped] == ["00004"]


def test_an_encoder_that_fails_altogether_drops_nothing(durable: Place) -> None:
    class Down(FakeEncoder):
        calls = 0

        def encode(self, texts: Sequence[str], /) -> Embeddings:
            self.calls += 1
            if self.calls > 2:
                raise EmbedsmithError("the endpoint is down")
            return super().encode(texts)

    durable.open().put(questions(15))
    with pytest.raises(EmbedsmithError, match="down"):
        move(durable, Down(8), batch=4, drop_failed=True)
    assert all(map(same, durable.open().scan(), questions(15)))
    assert move(durable).encoded == 11


# What cannot be moved


def test_a_place_without_a_store_is_said(durable: Place) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        move(durable)
    if durable.kind == "sqlite":
        assert not Path(durable.url.removeprefix("sqlite:///")).exists()
    assert durable.open().count() == Counts(0, 0)  # and nothing was made


def test_memory_needs_none() -> None:
    with pytest.raises(ConfigurationError, match="memory"):
        reencode("memory://", NEW, model="model-b")
