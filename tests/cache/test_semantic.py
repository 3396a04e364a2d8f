"""The cache in a program: what is served, what is not, and what no crowd of threads and no kill can spoil."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedsmith.cache.decision import Policy
from embedsmith.cache.feedback import Feedback
from embedsmith.cache.guard import find_veto
from embedsmith.cache.refusals import Refusals
from embedsmith.cache.rules import served_similarities, veto_pairs
from embedsmith.cache.samples import SampleRule
from embedsmith.cache.semantic import Lookup, SemanticCache
from embedsmith.cache.stores import Entry, Match, ModelMismatch, StoreError, open_store
from embedsmith.calibration import Calibration, write_calibration
from embedsmith.conversation import parse_messages, read_turns, render
from embedsmith.encoder import TOO_LONG, Embeddings, Remembering
from embedsmith.errors import ConfigurationError, InputError
from embedsmith.examples import LabelledPair, has_conversations, read_examples, texts_of
from embedsmith.hosted import HostedEncoder
from embedsmith.model import load_encoder
from embedsmith.testing import FakeEncoder, FaultyServer

ASKED = "How do I freeze my card?"


def make(encoder: Any = None, **options: Any) -> SemanticCache:
    return SemanticCache(encoder or FakeEncoder(64), **{"threshold": 0.8, "fingerprint": "fake"} | options)


def test_a_hit_says_what_it_is_based_on() -> None:
    cache = make()
    cache.add(ASKED, "in the app")
    found = cache.lookup("How do I freeze my cards?")
    assert (found.hit, found.answer, found.decision.tier) == (True, "in the app", "semantic")
    assert found.decision.similarity == pytest.approx(
        float(FakeEncoder(64).encode([ASKED])[0] @ FakeEncoder(64).encode(["How do I freeze my cards?"])[0]), abs=1e-6
    )
    assert cache.lookup("  how do I freeze my card ?").decision.tier == "exact"


@pytest.mark.parametrize(
    "part",
    [
        {"threshold": 0.8},
        {"calibration": "/nowhere"},
        {"namespaces": "/nowhere"},
        {"guard": False},
        {"verifier": "v"},
        {"turns": "meaning"},
    ],
)
def test_a_policy_beside_what_one_is_made_of_is_refused(part: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"a policy together with {next(iter(part))}"):
        make(policy=Policy(0.9), **{"threshold": None} | part)


def test_opening_a_cache_asks_a_hosted_encoder_for_nothing_that_is_known() -> None:
    with FaultyServer() as server:
        hosted = HostedEncoder("m", base_url=server.base_url, api_key="x")
        cache = make(encoder=hosted, store=open_store("memory://", dimension=256, model="fake"))
        assert server.calls == []
        cache.add(ASKED, "in the app")
        again = make(encoder=hosted)  # it has seen its vectors
        assert (again.lookup(ASKED).hit, len(server.calls)) == (False, 2)
        strange = make(encoder=HostedEncoder("m", base_url=server.base_url, api_key="x"))
        assert (strange.encoder.dimension, len(server.calls)) == (256, 3)  # one word, for a store of its own


def test_a_store_that_was_opened_for_another_model_is_refused() -> None:
    theirs = open_store("memory://", dimension=64, model="another")
    with pytest.raises(ModelMismatch, match=r"memory:// holds vectors of model another with 64 dimensions"):
        make(store=theirs)
    assert not make(store=theirs, fingerprint="another").lookup(ASKED).hit


def test_an_encoder_of_a_folder_knows_its_dimension(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder(tiny_model)
    length = encoder.encode(["a"]).shape[1]
    monkeypatch.setattr(encoder, "encode", None)
    assert make(encoder=encoder).store.dimension == length


def test_a_vetoed_neighbour_does_not_hide_the_next_one() -> None:
    cache = make()
    cache.add("How do I freeze my card in 30 days?", "thirty")
    cache.add("How do I freeze my cards in 60 days?", "sixty")
    assert cache.lookup("how do I freeze my card in 60 days??!").answer == "sixty"


def test_an_entry_that_is_not_read_whole_does_not_hide_the_nearest_that_is() -> None:
    class Cutting(FakeEncoder):
        def find_unread(self, text: str) -> str:
            return TOO_LONG if text.endswith("too long") else ""

    cache = make(Cutting(64))
    cache.add("How do I freeze my card too long", "unread")
    cache.add("How do I pay abroad", "far")
    decision = cache.lookup("How do I freeze my card to").decision
    assert (decision.reason, decision.nearest and decision.nearest.answer) == ("below threshold", "far")


def test_without_the_guard_near_misses_are_served() -> None:
    cache = make(guard=False)
    cache.add(ASKED, "in the app")
    assert cache.lookup("How do I unfreeze my card?").hit


def test_a_lookup_can_be_printed_and_fits_a_screen() -> None:
    cache = make()
    cache.add(ASKED, "in the app")
    assert "in the app" in repr(cache.lookup(ASKED))
    assert "vector" not in repr(cache.lookup(ASKED)) + repr(cache.lookup("something else"))


def test_what_cannot_be_an_answer_is_told_by_its_type(caplog: pytest.LogCaptureFixture) -> None:
    cache = make()
    record: Any = {"a": 1}
    assert cache.serve(ASKED, lambda _: record) == record
    assert "it is a dict, and only texts (str) are" in caplog.text
    assert not cache.lookup(ASKED).hit

    async def compute(text: str) -> Any:
        return text

    later: Any = compute
    with pytest.raises(ConfigurationError, match="async def") as refused:
        cache.serve(ASKED, later)
    assert "serve_async" in refused.value.action


def test_serve_computes_once_and_caches() -> None:
    cache, calls = make(), list[str]()

    @cache.cached
    def answer(text: str) -> str:
        calls.append(text)
        return f"answer to {text}"

    assert answer(ASKED) == answer("how do I freeze my card") == f"answer to {ASKED}"
    assert calls == [ASKED]


def test_many_threads_with_one_question_compute_once() -> None:
    cache, calls = make(), list[str]()

    def slow(text: str) -> str:
        calls.append(text)
        time.sleep(0.2)
        return "done"

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda _: cache.serve(ASKED, slow), range(16))) == {"done"}
    assert len(calls) == 1


def test_a_failed_computation_reaches_all_and_stores_nothing() -> None:
    cache = make()

    def fail(_: str) -> str:
        time.sleep(0.05)
        raise RuntimeError("upstream")

    def attempt(_: int) -> str:
        try:
            return cache.serve(ASKED, fail)
        except RuntimeError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(attempt, range(4))) == {"upstream"}
    assert cache.store.count().entries == 0
    assert cache.serve(ASKED, lambda _: "fine") == "fine"


def test_coroutines_share_one_flight_and_a_cancelled_one_stops_nobody_else() -> None:
    cache, calls = make(), list[str]()

    async def slow(text: str) -> str:
        calls.append(text)
        await asyncio.sleep(0.2)
        return "done"

    async def go() -> list[str]:
        first = asyncio.create_task(cache.serve_async(ASKED, slow))
        await asyncio.sleep(0.05)
        others = [asyncio.create_task(cache.serve_async(ASKED, slow)) for _ in range(5)]
        await asyncio.sleep(0.05)
        others.pop().cancel()
        return list(await asyncio.gather(first, *others))

    assert asyncio.run(go()) == ["done"] * 5
    assert calls == [ASKED]


def test_when_the_coroutine_that_computes_is_cancelled_one_that_waits_computes() -> None:
    cache, calls = make(), list[str]()

    async def slow(text: str) -> str:
        calls.append(text)
        await asyncio.sleep(0.3)
        return text.upper()

    async def go() -> list[str]:
        first = asyncio.create_task(cache.serve_async(ASKED, slow))
        await asyncio.sleep(0.1)
        others = [asyncio.create_task(cache.serve_async(ASKED, slow)) for _ in range(3)]
        await asyncio.sleep(0.1)
        first.cancel()
        return list(await asyncio.gather(*others))

    assert asyncio.run(go()) == [ASKED.upper()] * 3
    assert calls == [ASKED] * 2
    assert cache.store.count().entries == 1


def test_an_answer_is_served_though_its_storing_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The leader leaves while the store is slow: those who wait get the answer that it has paid for."""
    cache, calls, storing, go_on = make(), list[str](), threading.Event(), threading.Event()
    put = cache.store.put

    def put_slowly(entries: Sequence[Entry]) -> None:
        storing.set()
        go_on.wait(10)
        put(entries)

    async def compute(text: str) -> str:
        calls.append(text)
        return "paid"

    async def go() -> str:
        first = asyncio.create_task(cache.serve_async(ASKED, compute))
        await asyncio.to_thread(storing.wait, 10)
        other = asyncio.create_task(cache.serve_async(ASKED, compute))
        await asyncio.sleep(0.1)
        first.cancel()
        try:
            return await asyncio.wait_for(other, 5)
        finally:
            go_on.set()

    monkeypatch.setattr(cache.store, "put", put_slowly)
    assert asyncio.run(go()) == "paid"
    assert calls == [ASKED]


def test_an_interrupted_leader_hands_over_to_a_thread_that_waits() -> None:
    cache, calls, computing = make(), list[str](), threading.Event()

    def compute(text: str) -> str:
        calls.append(text)
        if len(calls) == 1:
            computing.set()
            time.sleep(0.2)
            raise KeyboardInterrupt
        return "done"

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(cache.serve, ASKED, compute)
        computing.wait()
        others = [pool.submit(cache.serve, ASKED, compute) for _ in range(2)]
        assert [other.result(timeout=10) for other in others] == ["done", "done"]
        assert isinstance(first.exception(), KeyboardInterrupt)
    assert len(calls) == 2


def test_who_leads_just_after_a_landing_does_not_compute_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, look_again = make(), SemanticCache.look_again

    def look_and_be_overtaken(asked: Lookup) -> Lookup:
        found = look_again(cache, asked)
        cache.add(asked, "the other's")
        return found

    monkeypatch.setattr(cache, "look_again", look_and_be_overtaken)
    assert cache.serve(ASKED, lambda _: pytest.fail("computed again")) == "the other's"


def break_store(cache: SemanticCache, monkeypatch: pytest.MonkeyPatch, *methods: str) -> list[str]:
    """Let these methods of the store fail; return the list of the calls."""
    calls: list[str] = []

    def fail(name: str, *_: object, **__: object) -> None:
        calls.append(name)
        raise OSError(f"no space left for {ASKED}")

    for name in methods:
        monkeypatch.setattr(cache.store, name, partial(fail, name))
    return calls


@pytest.mark.parametrize(
    ("broken", "asked"),
    [
        (("get", "search", "put", "touch"), ["get"]),  # a lookup that failed is not followed by an addition
        (("search",), ["search"]),
        (("put",), ["put"]),
        (("expire",), ["expire"]),
    ],
)
def test_whatever_fails_in_the_store_the_computed_answer_is_served(
    broken: Sequence[str], asked: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = make()
    calls = break_store(cache, monkeypatch, *broken)

    async def compute(text: str) -> str:
        return text.upper()

    assert cache.serve(ASKED, str.upper) == ASKED.upper()
    assert calls == asked
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "OSError" in record.message
    assert "freeze" not in record.message  # no text of the user's
    other = make()
    calls = break_store(other, monkeypatch, *broken)
    assert asyncio.run(other.serve_async(ASKED, compute)) == ASKED.upper()
    assert calls == asked
    cached = make()
    break_store(cached, monkeypatch, *broken)
    assert cached.cached(shout)(ASKED) == ASKED.upper()


def shout(question: str) -> str:
    return question.upper()


def test_an_answer_that_was_found_is_served_though_its_use_is_not_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = make()
    cache.add(ASKED, "in the app")
    break_store(cache, monkeypatch, "touch")
    assert cache.serve(ASKED, lambda _: pytest.fail("it is stored")) == "in the app"
    assert cache.lookup(ASKED).answer == "in the app"
    (record,) = caplog.records  # one line, however many questions a busy second has
    assert record.message.startswith("a use of an entry could not be counted: OSError")


def test_an_encoder_that_fails_takes_nothing_away() -> None:
    class Tired(FakeEncoder):
        tired = False

        def encode(self, texts: Sequence[str], /) -> Embeddings:
            if self.tired:
                raise RuntimeError("out of memory")
            return super().encode(texts)

    encoder = Tired(64)
    cache = SemanticCache(encoder, threshold=0.8, fingerprint="fake")
    encoder.tired = True
    assert cache.serve(ASKED, str.upper) == ASKED.upper()
    with pytest.raises(RuntimeError, match="out of memory"):
        cache.lookup(ASKED)  # who looks up is told


def test_the_error_of_the_function_is_nobody_elses() -> None:
    with pytest.raises(ZeroDivisionError):
        make().serve(ASKED, lambda _: str(1 // 0))


def test_threads_of_the_loop_may_all_wait_for_a_coroutine() -> None:
    cache = make()

    async def ask() -> list[str]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        computing = asyncio.Event()

        async def slow(_: str) -> str:
            computing.set()
            await asyncio.sleep(0.2)  # the others have boarded by then
            return "done"

        first = asyncio.create_task(cache.serve_async(ASKED, slow))
        await computing.wait()
        others = [asyncio.to_thread(cache.serve, ASKED, lambda _: "computed twice") for _ in range(2)]
        return await asyncio.wait_for(asyncio.gather(first, *others), 5)

    loop = threading.Thread(target=lambda: answers.extend(asyncio.run(ask())), daemon=True)
    answers: list[str] = []
    loop.start()
    loop.join(10)
    assert answers == ["done"] * 3


@pytest.mark.parametrize("limits", [{}, {"max_bytes": 10**9}])
def test_what_has_expired_goes_without_limits_too(limits: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    cache = make(ttl=1, clock=lambda: now[0], **limits)
    for number in range(250):
        cache.add(f"question {number}", "x")
        now[0] += 10
    assert cache.store.count().entries <= 100


def test_a_store_whose_processes_are_short_is_rid_of_the_expired(tmp_path: Path) -> None:
    for number in range(5):
        cache = make(store=f"sqlite:///{tmp_path / 'c.db'}", clock=lambda now=10.0 * number: now)
        cache.add(f"question {number}", "x", ttl=1)
        assert cache.store.count().entries == 1
        cache.close()


def test_a_cache_is_closed_when_its_block_is_left(tmp_path: Path) -> None:
    with make(store=f"sqlite:///{tmp_path / 'c.db'}") as cache:
        cache.add("what is the limit", "five")
        assert cache.lookup("what is the limit").hit
    with pytest.raises(StoreError, match="is closed"):
        cache.lookup("what is the limit")


def test_a_store_whose_processes_are_short_keeps_its_limits(tmp_path: Path) -> None:
    for number in range(6):
        cache = make(store=f"sqlite:///{tmp_path / 'c.db'}", max_entries=200, clock=lambda now=number: now)
        if number == 0:
            stored = [replace(cache.add("q", "x"), id=f"e{place}") for place in range(199)]
            cache.store.put(stored)
        cache.add(f"question {number}", "x")
        assert cache.store.count().entries <= 202  # a hundredth more at most
        cache.close()


def test_not_every_addition_looks_for_what_has_expired(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, asked = make(ttl=1), list[float]()
    monkeypatch.setattr(cache.store, "expire", asked.append)
    for number in range(201):
        cache.add(f"question {number}", "x")
    assert len(asked) == 3


@pytest.mark.parametrize(
    "limits",
    [
        {"ttl": 0},
        {"ttl": -5},
        {"ttl": float("nan")},
        {"ttl": "60"},
        {"ttl": True},
        {"ttl": 1e30},
        {"ttl": 10**400},
        {"max_entries": 1 << 63},
        {"max_entries": 0},
        {"max_bytes": -1},
    ],
)
def test_a_limit_must_be_above_0(limits: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(limits))} is ") as caught:
        make(**limits)
    assert caught.value.expected
    assert caught.value.action


def test_only_texts_are_marked_wrong() -> None:
    with pytest.raises(InputError, match="5 is a int"):
        make().mark_wrong(5, "id", ASKED)  # type: ignore[arg-type]


def test_the_life_of_one_answer_must_be_above_0_and_is_checked_before_it_is_paid() -> None:
    cache = make()
    with pytest.raises(ConfigurationError, match="ttl is 0"):
        cache.add(ASKED, "x", ttl=0)
    with pytest.raises(ConfigurationError, match="ttl is -1"):
        cache.serve(ASKED, lambda _: pytest.fail("paid"), ttl=-1)
    with pytest.raises(ConfigurationError, match="ttl is -1"):
        cache.cached(ttl=-1)
    with pytest.raises(ConfigurationError, match="eviction by 'fifo'"):
        make(eviction="fifo")


def test_a_scope_may_use_the_name_that_earlier_messages_have() -> None:
    cache = make()
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ASKED}]
    cache.add(asked, "in the app", scope={"messages": "of Monday"})
    assert cache.lookup(asked, scope={"messages": "of Monday"}).answer == "in the app"
    assert not cache.lookup(asked, scope={"messages": "of Tuesday"}).hit
    assert not cache.lookup(asked).hit


def test_a_scope_that_cannot_be_compared_is_an_error_of_the_input() -> None:
    round: list[object] = []
    round.append(round)
    for scope in ({"client": object()}, {"client": round}):
        with pytest.raises(InputError, match="the scope with client cannot be compared"):
            make().lookup(ASKED, scope=scope)


def test_time_to_live_is_absolute_and_limits_hold() -> None:
    now = [0.0]
    cache = make(ttl=10, max_entries=3, clock=lambda: now[0])
    for number, text in enumerate(["one egg", "rice dish", "bread loaf", "green tea", "blue sky"]):
        now[0] = number
        cache.add(text, text)
    assert cache.store.count().entries == 3
    now[0] = 13.5
    assert cache.lookup("green tea").answer is None
    assert cache.lookup("blue sky").answer == "blue sky"


def test_a_threshold_must_come_from_somewhere(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(ConfigurationError, match="no threshold"):
        make(threshold=None)
    with pytest.raises(ConfigurationError, match="has no fingerprint"):
        make(fingerprint=None)
    with pytest.raises(ConfigurationError, match="threshold 3"):
        make(threshold=3.0)
    promise = Calibration(0.9, 0.05, 0.05, 100, 1, 0.04, 0.3, 0.6, 400, "another")
    write_calibration(tmp_path / "calibration.json", promise)
    with pytest.raises(InputError):
        make(threshold=None, calibration=tmp_path / "calibration.json")
    write_calibration(tmp_path / "calibration.json", replace(promise, model="fake"))
    assert make(threshold=None, calibration=tmp_path / "calibration.json").policy.threshold == 0.9


def test_a_lookup_tells_the_probability_that_was_learnt_for_pairs_that_the_guard_lets_pass(tmp_path: Path) -> None:
    knots = ((-1.0, 0.1), (0.8, 0.75))
    promise = Calibration(0.8, 0.05, 0.05, 100, 1, 0.04, 0.3, 0.6, 400, "fake", probabilities=knots)
    file = write_calibration(tmp_path / "calibration.json", promise)
    cache = make(threshold=None, calibration=file)
    assert cache.lookup(ASKED).probability is None  # nothing stored
    cache.add(ASKED, "in the app")
    asked = ("How do I freeze my cards?", "Who pays abroad?", "How do I unfreeze my card?", ASKED)
    found = [cache.lookup(text) for text in asked]
    assert [(one.decision.reason, one.probability) for one in found] == [
        ("similar", 0.75),
        ("below threshold", 0.1),
        (found[2].decision.reason, None),
        ("same text", None),
    ]
    assert found[2].decision.reason.startswith("guard: ")


def test_texts_that_the_model_does_not_read_to_the_end_must_be_equal(tiny_model: Path) -> None:
    """Their vectors are those of their beginnings, so a cosine of 1 says nothing (the model reads 32 tokens)."""
    cache = SemanticCache(tiny_model, threshold=0.95, guard=False)
    documents = "The manual of the heat pump says a lot about winter, " * 4
    cache.add(f"{documents} so how do I set the clock?", "press the moon")
    other = cache.lookup(f"{documents} so who pays for the repair of the compressor?")
    assert (other.hit, other.decision.reason) == (False, "longer than the model reads")
    assert cache.lookup(f" {documents} so how do I set the clock?\n").decision.tier == "exact"
    assert not cache.lookup(f"{documents} so how do I SET the clock?").hit
    beginning = "The manual of the heat pump says a lot about winter, " * 2
    assert not cache.lookup(beginning).hit
    cache.add("how do I set the clock?", "press the moon")
    assert cache.lookup("how do I set the clock, ").hit


def test_texts_that_differ_in_what_the_model_cannot_read_must_be_equal(tiny_model: Path, tmp_path: Path) -> None:
    """Every character outside its vocabulary becomes one token, so their cosine is 1."""
    cache = SemanticCache(tiny_model, threshold=0.999, guard=False, feedback=tmp_path / "feedback.jsonl")
    cache.add("怎么开通账户", "open it so")
    found = cache.lookup("怎么关闭账户")
    assert (found.hit, found.decision.reason) == (False, "holds what the model cannot read")
    assert cache.look_again(found).decision == found.decision
    assert cache.lookup(" 怎么开通账户").decision.tier == "exact"
    cache.add("what does ፈ mean", "a letter")
    assert not cache.lookup("what does mean").hit
    cache.mark_wrong("怎么关闭账户", "id", "怎么开通账户")
    assert '"cosine":-1.0' in (tmp_path / "feedback.jsonl").read_text().replace(" ", "")


def test_a_calibration_knows_which_pairs_the_model_cannot_read(tiny_model: Path) -> None:
    pairs = [LabelledPair("怎么开通账户", "怎么关闭账户", 0), LabelledPair("how are you", "how do you do", 1)]
    unread, read = served_similarities(Remembering(load_encoder(tiny_model)), pairs, guard=False)
    assert unread == -1 < read


@pytest.mark.parametrize("store", ["memory://", "sqlite:///{}/cache.db"])
@pytest.mark.parametrize("text", ["half \ud83d", "nul \0"])
def test_an_answer_that_not_every_store_can_hold_is_refused_by_all(text: str, store: str, tmp_path: Path) -> None:
    cache = make(store=store.format(tmp_path), feedback=tmp_path / "feedback.jsonl")
    for refused in (
        lambda: cache.add(ASKED, text),
        lambda: cache.add(cache.lookup(ASKED), "in the app", tags=["card", text]),
        lambda: cache.mark_same(ASKED, text),
    ):
        with pytest.raises(InputError, match="half a character"):
            refused()
    assert cache.store.count().entries == 0
    assert cache.serve(ASKED, lambda _: text) == text  # and what was computed is returned all the same
    cache.close()


@pytest.mark.parametrize("text", ["half \ud83d", "nul \0"])
def test_text_that_no_store_can_hold_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="half a character"):
        make().lookup(text)
    with pytest.raises(InputError, match="half a character"):
        make().add(text, "answer")


def test_tags_are_a_list_of_texts_so_that_a_purge_finds_them() -> None:
    cache = make()
    cache.add(ASKED, "answer", tags=["faq", "faq", "cards"])
    assert cache.purge(tag="faq") == 1
    for wrong in ("faq", ["faq", ""], [3]):
        for use in (
            lambda tags: cache.add(ASKED, "answer", tags=tags),
            lambda tags: cache.serve(ASKED, lambda _: pytest.fail("paid"), tags=tags),
            lambda tags: cache.cached(tags=tags),
        ):
            with pytest.raises(InputError, match="tags are"):
                use(wrong)
    assert cache.store.count().entries == 0


@pytest.mark.parametrize("question", [None, 123, {"role": "user", "content": "x"}])
def test_a_question_or_an_answer_that_is_no_text_is_refused(question: Any) -> None:
    with pytest.raises(InputError, match="Expected: a text"):
        make().lookup(question)
    with pytest.raises(InputError, match="Expected: a text"):
        make().add(ASKED, question)
    with pytest.raises(InputError, match="Expected: a text"):
        make().lookup(ASKED, namespace=question)
    with pytest.raises(InputError, match="scope is a str"):
        make().lookup(ASKED, scope="system")  # type: ignore[arg-type]


NAMES = st.sampled_from(["a", "b"])
SCOPES = st.fixed_dictionaries({"model": NAMES, "system": NAMES, "tools": st.sampled_from(["", "x"])})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(NAMES, SCOPES, st.sampled_from([ASKED, "how do i freeze my cards", "rice"])), max_size=40))
def test_no_answer_crosses_tenants_or_scopes(requests: list[tuple[str, Mapping[str, str], str]]) -> None:
    """Each answer carries the tenant and scope it was made for; whatever is served must carry the asker's."""
    cache = make()
    for tenant, scope, text in requests:
        mark = f"{tenant} {sorted(scope.items())}"
        served = cache.serve(text, lambda _, mark=mark: mark, namespace=tenant, scope=scope)  # type: ignore[misc]
        assert served == mark


THREADS = int(os.environ.get("EMBEDSMITH_THREADS", "8"))
OPERATIONS = int(os.environ.get("EMBEDSMITH_OPERATIONS", "60"))  # of each thread; `make stress` does 32 times 10,000


def test_threads_that_do_everything_at_once(tmp_path: Path) -> None:
    cache = make(store=f"sqlite:///{tmp_path / 'c.db'}", max_entries=50)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        draw = random.Random(seed)
        try:
            for _ in range(OPERATIONS):
                text = f"question about {draw.choice(['rice', 'bread', 'tea', 'milk'])} number {draw.randrange(20)}"
                doing = draw.randrange(10)
                if doing < 6:
                    assert cache.serve(text, str.upper, tags=[text[-1]]) == text.upper()
                elif doing < 8:
                    cache.lookup(text)
                elif doing < 9:
                    cache.purge(tag=str(draw.randrange(10)))
                else:
                    cache.store.count()
        except BaseException as error:  # noqa: BLE001  told by the test below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


KILLS = int(os.environ.get("EMBEDSMITH_KILLS", "3"))
WRITERS = 16
CHILD = f"""
import sys, threading
from embedsmith.cache.semantic import SemanticCache
from embedsmith.testing import FakeEncoder, FaultyServer
cache = SemanticCache(FakeEncoder(64), store=sys.argv[1], threshold=0.9, fingerprint="fake")
lock = threading.Lock()
def write(thread):
    number = 0
    while True:
        text = f"run {{sys.argv[2]}} thread {{thread}} question {{number}}"
        cache.add(text, text.upper())
        with lock:
            print(text, flush=True)
        number += 1
for thread in range({WRITERS}):
    threading.Thread(target=write, args=(thread,)).start()
"""


def test_a_kill_loses_no_acknowledged_entry(tmp_path: Path) -> None:
    """SIGKILL at a random moment under 16 writers: all that was acknowledged is there and whole."""
    url, acknowledged = f"sqlite:///{tmp_path / 'c.db'}", list[str]()
    for kill in range(KILLS):
        child = subprocess.Popen([sys.executable, "-c", CHILD, url, str(kill)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        acknowledged.append(child.stdout.readline().rstrip("\n"))
        time.sleep(random.Random(kill).uniform(0.0, 0.2))
        child.send_signal(signal.SIGKILL)
        lines = child.stdout.read().splitlines(keepends=True)
        acknowledged += [line.rstrip("\n") for line in lines if line.endswith("\n")]
        child.wait()
    store = open_store(url, dimension=64, model="fake")
    found = {entry.text: entry for entry in store.scan()}
    assert set(acknowledged) <= found.keys()
    assert all(entry.answer == text.upper() for text, entry in found.items())
    nearest = store.search(found[acknowledged[0]].partition, found[acknowledged[0]].vector, 1, time.time())
    assert nearest[0].similarity == pytest.approx(1.0, abs=1e-6)
    store.close()


def test_calibrating_for_the_cache_leaves_out_what_the_guard_vetoes() -> None:
    pairs = [("raise my limit", "lower my limit"), ("raise my limit", "how can I get a higher limit")]
    assert veto_pairs(np.array([0.99, 0.8]), pairs).tolist() == [-1.0, 0.8]


def test_a_policy_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    guard: Callable[[str, str], None] = lambda query, candidate: None  # noqa: E731
    cache = make(policy=Policy(threshold=0.5, guard=guard), threshold=None)
    cache.add(ASKED, "x")
    assert cache.lookup("How do I unfreeze my card?").hit


def say(*contents: str) -> list[dict[str, str]]:
    return [{"role": "assistant" if place % 2 else "user", "content": text} for place, text in enumerate(contents)]


JOINT = say("I have a joint account here.", "Noted, a joint account.", "How do I close it?")
SAME = say("I have a joint account here!", "Noted: a joint account.", "How do I close it then?")
OTHER = say("The window of my kitchen is stuck.", "A drop of oil may help.", "How do I close it?")


def make_spoken(**options: Any) -> SemanticCache:
    return make(policy=Policy(0.8, conversations=0.8), threshold=None, **options)


def test_messages_are_looked_up_as_the_proxy_reads_them() -> None:
    cache, plain = make_spoken(), make()
    for one in (cache, plain):
        one.add(JOINT, "at the counter")
        assert one.lookup(JOINT).decision.tier == "exact"
        assert not one.lookup(OTHER).hit
        assert not one.lookup("How do I close it?").hit
    assert cache.lookup(SAME).answer == "at the counter"
    assert plain.lookup(SAME).decision.reason == "nothing stored"


def test_one_message_is_its_text() -> None:
    cache = make_spoken()
    cache.add(ASKED, "in the app")
    assert cache.lookup(say(ASKED)).decision.tier == "exact"
    assert not cache.lookup([{"role": "system", "content": "be brief"}, *say(ASKED)]).hit
    assert not cache.lookup(say(ASKED), scope={"language": "de"}).hit


@pytest.mark.parametrize("messages", [[], say("a", "b"), ["a"], say(" ")])
def test_messages_that_ask_nothing_are_refused(messages: list[Any]) -> None:
    with pytest.raises(InputError):
        make_spoken().lookup(messages)


def test_conversations_have_a_threshold_of_their_own_and_a_namespace_can_only_raise_it() -> None:
    policy = Policy(0.9, conversations=0.8, thresholds={"high": 0.95, "low": 0.7})
    spoken = "User: a\nAssistant: b\nUser: c"
    thresholds = {
        name: (policy.threshold_for(name), policy.threshold_for(name, spoken)) for name in ("", "high", "low")
    }
    assert thresholds == {"": (0.9, 0.8), "high": (0.95, 0.95), "low": (0.7, 0.8)}
    assert Policy(0.9).threshold_for("", spoken) == 0.9
    cache = make(policy=policy, threshold=None)
    cache.add(JOINT, "at the counter")
    assert cache.lookup(SAME).hit
    assert not make(policy=replace(policy, conversations=0.99), threshold=None).lookup(SAME).hit


def test_a_conversation_that_the_model_does_not_read_whole_is_served_word_for_word_only(tiny_model: Path) -> None:
    encoder = load_encoder(tiny_model)
    cache = SemanticCache(encoder, policy=Policy(0.5, guard=None, conversations=0.5), fingerprint="tiny")
    long = say("where is my card " * 200, "it is on its way", "when does it come")
    near = say("where is my card " * 200, "it is on its way", "when does it come back")
    cache.add(long, "soon")
    assert cache.lookup(long).answer == "soon"
    assert cache.lookup(near).decision.reason == TOO_LONG


def test_marked_conversations_are_pairs_to_train_on_again(tmp_path: Path) -> None:
    cache = make_spoken(feedback=tmp_path / "feedback.jsonl")
    cache.add(JOINT, "at the counter")
    found = cache.lookup(SAME)
    assert found.decision.entry is not None
    assert cache.mark_wrong(found.text, found.decision.entry.id, found.decision.entry.text)
    (pair,) = read_examples(tmp_path / "feedback.jsonl", kind=LabelledPair).examples
    assert has_conversations(pair)
    assert read_turns(texts_of(pair)[1])[-1].content == "How do I close it?"


def test_the_guard_reads_what_the_user_says_in_any_turn() -> None:
    one, same, other = (
        render(parse_messages(say(first, answer, "How do I close it?")))
        for first, answer in (
            ("I have a savings account.", "That is noted."),
            ("I have a savings account.", "I have written down 3 things."),
            ("I have a current account.", "That is noted."),
        )
    )
    assert find_veto(one, same) is None
    veto = find_veto(one, other)
    assert veto is not None
    assert veto.kind == "word"


CLOSE = "How do I freeze my cards?"


def mark_wrong(cache: SemanticCache, asked: str = CLOSE, namespace: str = "default") -> None:
    found = cache.lookup(asked, namespace=namespace)
    assert found.decision.entry is not None
    cache.mark_wrong(asked, found.decision.entry.id, found.decision.entry.text, namespace=namespace)


def test_a_hit_that_was_marked_wrong_comes_back_in_neither_direction() -> None:
    cache = make()
    cache.add(ASKED, "one card")
    mark_wrong(cache)
    cache.add(CLOSE, "many cards")
    found = cache.lookup(ASKED)
    assert (found.hit, found.decision.reason) == (False, "marked wrong")
    cache.add(ASKED, "one card")
    assert [cache.lookup(text).answer for text in (ASKED, CLOSE)] == ["one card", "many cards"]
    cache.store.purge()
    cache.add(ASKED, "one card")
    assert cache.lookup(CLOSE).decision.told == "marked wrong (by a person)"
    assert cache.lookup("how do I freeze my card!").hit  # of the rest it says nothing


def test_a_marked_pair_is_that_of_one_tenant_and_one_model_and_outlives_the_process(tmp_path: Path) -> None:
    file = tmp_path / "feedback.jsonl"
    first = make(feedback=file)
    first.add(ASKED, "one card")
    mark_wrong(first)
    for name, fingerprint, hit in (("default", "fake", False), ("other", "fake", True), ("default", "new", True)):
        later = make(feedback=file, fingerprint=fingerprint)
        later.add(CLOSE, "many cards", namespace=name)
        assert later.lookup(ASKED, namespace=name).hit == hit


def test_servers_that_share_a_file_hear_of_each_others_marks_without_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "feedback.jsonl"
    here, there = make(feedback=file), make(feedback=file)
    for cache in (here, there):
        cache.add(ASKED, "one card")
    mark_wrong(here)
    assert there.lookup(CLOSE).hit  # it has looked at the file a moment ago
    monkeypatch.setattr("embedsmith.cache.verdicts.HEARING", 0.0)
    assert there.lookup(CLOSE).decision.reason == "marked wrong"
    here.mark_same(CLOSE, ASKED)
    assert there.lookup(CLOSE).hit


def test_a_feedback_file_is_read_once_at_the_start_and_then_only_what_was_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, read = tmp_path / "feedback.jsonl", list[int]()
    first = make(feedback=file)
    first.add(ASKED, "one card")
    mark_wrong(first)
    read_behind = Feedback._read_behind

    def note(self: Feedback, seen: int) -> bytes:
        read.append(seen)
        return read_behind(self, seen)

    monkeypatch.setattr(Feedback, "_read_behind", note)
    monkeypatch.setattr("embedsmith.cache.verdicts.HEARING", 0.0)
    later = make(feedback=file, sample=SampleRule(0.1))
    size = file.stat().st_size
    for _ in range(3):
        later.lookup(CLOSE)
    assert read == [0]
    first.mark_same("another", "pair")
    for _ in range(3):
        later.lookup(CLOSE)
    assert read == [0, size]


def test_a_feedback_file_that_cannot_be_read_any_more_costs_no_hit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "feedback.jsonl"
    cache = make(feedback=file)
    cache.add(ASKED, "one card")
    file.mkdir()
    monkeypatch.setattr("embedsmith.cache.verdicts.HEARING", 0.0)
    assert cache.lookup(CLOSE).hit
    assert "what was added is not heard of: Is a directory" in caplog.text


def test_a_later_mark_of_the_same_joins_a_pair_again(tmp_path: Path) -> None:
    file = tmp_path / "feedback.jsonl"
    cache = make(feedback=file)
    cache.add(ASKED, "one card")
    mark_wrong(cache)
    cache.add(CLOSE, "many cards")
    assert not cache.lookup(ASKED).hit
    cache.mark_same(ASKED, CLOSE)
    again = make(feedback=file)
    again.add(CLOSE, "many cards")
    assert [cache.lookup(ASKED).hit, again.lookup(ASKED).hit] == [True, True]


def test_a_persons_verdict_on_a_sample_is_remembered_and_a_models_is_not(tmp_path: Path) -> None:
    cache = make(feedback=tmp_path / "feedback.jsonl", sample=SampleRule(1.0))
    assert cache.samples is not None
    cache.add(ASKED, "one card")
    cache.lookup(CLOSE)
    cache.samples.settle(1, 0, "openai:x")
    assert cache.lookup(CLOSE).hit
    again = make(feedback=tmp_path / "feedback.jsonl", store=cache.store)
    assert again.lookup(CLOSE).hit
    assert cache.judge_sample(2, 0)
    assert not cache.judge_sample(2, 0)
    cache.add(CLOSE, "many cards")
    assert not cache.lookup(ASKED).hit


def test_marked_pairs_have_a_bound_and_the_oldest_go() -> None:
    refusals = Refusals(room=100)
    for number in range(1000):
        refusals.note(f"question {number}", "another", 0, "default")
    assert len(refusals) == 100
    another = Match(make().add("another", "x"), 0.9)
    refused = [bool(refusals.among(f"question {number}", [another], "default")) for number in (0, 899, 900, 999)]
    assert refused == [False, False, True, True]
