"""Embeddings, metrics, and what the admin sees and does."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import numpy as np
import openai
import pytest
from starlette.applications import Starlette

from embedsmith.cache.decision import entry_id
from embedsmith.cache.feedback import Feedback, read_feedback
from embedsmith.cache.reencoding import reencode
from embedsmith.cache.samples import SampleRule
from embedsmith.cache.semantic import Lookup, SemanticCache
from embedsmith.cache.stores import Entry, StoreError
from embedsmith.cache.stores.memory import MemoryStore
from embedsmith.encoder import TOO_LONG, Embeddings
from embedsmith.server.answers import Answer
from embedsmith.server.app import create_app
from embedsmith.server.dashboard import find_entries
from embedsmith.server.openapi import describe_api
from embedsmith.server.proxy import missed
from embedsmith.server.watch import HELD, LATEST, Prices, Savings, Watch
from embedsmith.testing import FakeEncoder

from .conftest import TOKEN, Served
from .test_proxy import ASKED, Serve, ask, connect

ADMIN = {"authorization": f"Bearer {TOKEN}"}


@dataclass(frozen=True)
class Placed:
    """An encoder that puts each text at an angle, so that a test says who is nearest."""

    angles: dict[str, float]

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        angles = [self.angles.get(text, 3.0) for text in texts]
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_embeddings_are_those_of_the_model(serve: Serve) -> None:
    client = connect(serve())
    texts = ["an egg", "rice"]
    plain = client.embeddings.create(model="embedsmith", input=texts, encoding_format="float")
    packed = client.embeddings.create(model="embedsmith", input=texts)  # base64 on the wire
    wanted = FakeEncoder().encode(texts)
    np.testing.assert_allclose([row.embedding for row in plain.data], wanted, rtol=1e-6)
    np.testing.assert_allclose([row.embedding for row in packed.data], wanted, rtol=1e-6)


def test_fewer_dimensions_are_of_length_one_again(serve: Serve) -> None:
    client = connect(serve())
    (row,) = client.embeddings.create(model="embedsmith", input="an egg", dimensions=64).data
    assert len(row.embedding) == 64
    assert np.linalg.norm(row.embedding) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"input": 3},
        {"input": []},
        {"input": [[1, 2]]},
        {"dimensions": 0},
        {"dimensions": 9999},
        {"dimensions": 10**30},
        {"input": ["x"] * 3000},
    ],
)
def test_wrong_embedding_requests_are_refused(serve: Serve, wrong: dict[str, Any]) -> None:
    body = {"model": "embedsmith", "input": "x"} | wrong
    assert httpx.post(f"{serve().url}/v1/embeddings", json=body).status_code == 400


class Short(FakeEncoder):
    """Reads the first 20 characters."""

    max_length = 20

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        return super().encode([text[:20] for text in texts])

    def find_unread(self, text: str) -> str:
        return TOO_LONG if len(text) > 20 else ""


@pytest.mark.parametrize("copies", [1, 500])
def test_a_text_that_the_model_does_not_read_whole_is_refused_unless_its_beginning_is_wanted(
    serve: Serve, copies: int
) -> None:
    client = connect(serve(encoder=Short()))
    texts = ["how do I freeze my c", "how do I freeze my card when I am abroad"] * copies
    with pytest.raises(openai.BadRequestError, match="maximum context length is 20 tokens; input 1 is") as caught:
        client.embeddings.create(model="embedsmith", input=texts)
    assert caught.value.type == "invalid_request_error"
    read = client.embeddings.create(model="embedsmith", input=texts, extra_body={"truncate": True})
    assert read.data[0].embedding == read.data[1].embedding
    assert client.embeddings.create(model="embedsmith", input=texts[0]).data[0].embedding == read.data[0].embedding


def test_a_server_may_embed_beginnings_where_the_request_does_not_say(serve: Serve) -> None:
    client = connect(serve(encoder=Short(), app={"truncate": True}))
    long = "how do I freeze my card when I am abroad"
    read = client.embeddings.create(model="embedsmith", input=["how do I freeze my c", long])
    assert read.data[0].embedding == read.data[1].embedding
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        client.embeddings.create(model="embedsmith", input=long, extra_body={"truncate": False})


def test_another_model_is_asked_of_the_upstream(serve: Serve) -> None:
    served = serve()
    connect(served).embeddings.create(model="other", input="x")
    assert served.upstream.calls[-1].body["model"] == "other"


def test_metrics_count_by_outcome_and_reason(serve: Serve) -> None:
    served = serve()
    ask(served)
    ask(served)
    text = httpx.get(f"{served.url}/metrics").text
    assert 'embedsmith_lookups_total{outcome="hit",reason="same text"} 1.0' in text
    assert 'embedsmith_lookups_total{outcome="miss",reason="nothing stored"} 1.0' in text
    assert "embedsmith_entries 1.0" in text
    assert "embedsmith_saved_completion_tokens_total 50.0" in text


@pytest.mark.parametrize("path", ["/admin/state", "/admin/entries"])
def test_nothing_is_shown_without_the_token(serve: Serve, path: str) -> None:
    url = serve().url
    assert httpx.get(url + path).status_code == 401
    assert httpx.get(url + path, headers={"authorization": "Bearer wrong"}).status_code == 401
    assert httpx.get(url + path, headers=ADMIN).status_code == 200


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
        (f"BEARER   {TOKEN}", 200),
        (TOKEN, 401),
        (f"Basic {TOKEN}", 401),
        (f"Bearer{TOKEN}", 401),
        (f"Bearer {TOKEN} x", 401),
        ("Bearer", 401),
        ("", 401),
    ],
)
def test_the_token_comes_with_its_scheme_in_any_case(serve: Serve, given: str, status: int) -> None:
    assert httpx.get(f"{serve().url}/admin/state", headers={"authorization": given}).status_code == status


def test_an_empty_token_lets_nobody_in(serve: Serve) -> None:
    served = serve(app={"admin_token": ""})
    assert httpx.get(f"{served.url}/admin/state", headers={"authorization": "Bearer"}).status_code == 401


def test_the_dashboard_page_holds_no_data(serve: Serve) -> None:
    served = serve()
    ask(served)
    page = httpx.get(f"{served.url}/dashboard")
    assert "freeze" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]  # which the default does not speak of


def test_the_address_of_the_server_leads_to_the_dashboard(serve: Serve) -> None:
    answer = httpx.get(f"{serve().url}/", follow_redirects=True)
    assert (answer.status_code, answer.url.path) == (200, "/dashboard")


def test_the_dashboard_names_the_model_and_says_that_nothing_is_judged_yet(serve: Serve) -> None:
    served = serve(cache={"sample": SampleRule(share=0.5), "delta": 0.1})
    found = state(served)
    assert (found["folder"], found["model"]) == ("FakeEncoder", "fake")
    assert found["drift"]["promise"]["judged"] == 0
    assert not found["drift"]["promise"]["made"]  # the threshold was given by hand: the page must speak of no promise
    assert "Nothing judged yet" in httpx.get(f"{served.url}/dashboard").text


def post(served: Served, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(served.url + path, json=body, headers=ADMIN)


def state(served: Served) -> dict[str, Any]:
    """Return /admin/state, held to its description: nothing is missing, and nothing more is said."""
    found: dict[str, Any] = httpx.get(f"{served.url}/admin/state", headers=ADMIN).json()
    schemas = closed(describe_api()["components"]["schemas"])
    jsonschema_rs.validate(schemas["State"] | {"components": {"schemas": schemas}}, found)
    return found


def closed(schema: Any) -> Any:
    """Return a schema whose objects with named fields may hold no others."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    whole = {name: closed(part) for name, part in schema.items()}
    return {"additionalProperties": False} | whole if "properties" in schema else whole


def mark(served: Served, seen: dict[str, Any], verdict: str) -> httpx.Response:
    return post(served, "/admin/mark", {"number": seen["number"], "verdict": verdict})


def test_a_hit_marked_wrong_is_removed_and_kept_to_learn_from(serve: Serve) -> None:
    served = serve()
    ask(served)
    ask(served, "How do I freeze my cards?")
    seen = state(served)["latest"][0]
    assert mark(served, seen, "wrong").json() == {"marked": "wrong", "removed": True, "kept": True}
    assert ask(served)[0] == "miss"
    row = json.loads(served.feedback.read_text())
    assert (row["sentence1"], row["sentence2"], row["label"]) == ("How do I freeze my cards?", ASKED, 0)


def test_a_miss_marked_as_the_same_becomes_a_duplicate_to_learn_from(serve: Serve) -> None:
    served = serve()
    ask(served)
    ask(served, "put my card on ice")
    seen = state(served)["latest"][0]
    assert mark(served, seen, "same").json() == {"marked": "same", "removed": False, "kept": True}
    assert json.loads(served.feedback.read_text())["label"] == 1


RAISE, LOWER, OTHER = (
    "How do I raise my card limit",
    "How do I lower my card limit",
    "How would I raise my card limit",
)


def test_wrong_is_said_of_what_was_served_not_of_a_nearer_question_that_was_vetoed(serve: Serve) -> None:
    encoder = Placed({RAISE: 0.0, LOWER: 0.1, OTHER: 0.3})
    served = serve(cache={"fingerprint": "placed"}, encoder=encoder)
    ask(served, LOWER)
    ask(served, OTHER)
    assert ask(served, RAISE) == ("hit", "similar", f"the answer to {OTHER}")
    seen = state(served)["latest"][0]
    assert (seen["nearest"], seen["served"], seen["mark"]) == (LOWER, OTHER, "wrong")
    mark(served, seen, "wrong")
    assert [entry.text for entry in served.cache.store.scan()] == [LOWER]
    row = json.loads(served.feedback.read_text())
    assert (row["sentence1"], row["sentence2"], row["label"]) == (RAISE, OTHER, 0)


def test_in_shadow_mode_wrong_is_said_of_what_would_have_been_served() -> None:
    cache = SemanticCache(Placed({RAISE: 0.0, LOWER: 0.1, OTHER: 0.3}), threshold=0.8, fingerprint="placed")
    watch = Watch(cache, shadow=True)
    for text in (LOWER, OTHER):
        cache.add(text, "an answer")
    found = cache.lookup(RAISE)
    watch.looked_up(missed(found, f"shadow: {found.decision.told}"), served=found.decision.entry)
    seen = watch.find(1)
    assert seen is not None
    assert (seen.outcome, seen.reason, seen.nearest) == ("miss", "shadow: similar", LOWER)
    assert (seen.served, seen.served_id, seen.mark) == (OTHER, entry_id(found.partition, OTHER), "wrong")


@pytest.mark.parametrize(
    ("text", "verdict", "told"),
    [
        (ASKED, "wrong", "nothing to mark"),  # the same text: it says nothing of a pair
        ("put my card on ice", "wrong", "'same' only"),  # nothing was served
        ("How do I freeze my cards?", "same", "'wrong' only"),
    ],
)
def test_a_verdict_that_says_nothing_of_a_pair_is_refused(serve: Serve, text: str, verdict: str, told: str) -> None:
    served = serve()
    ask(served)
    ask(served, text)
    refused = mark(served, state(served)["latest"][0], verdict)
    assert (refused.status_code, told in refused.json()["error"]["message"]) == (400, True)
    assert not served.feedback.exists()
    assert ask(served)[0] == "hit"


def test_a_lookup_is_marked_once(serve: Serve) -> None:
    served = serve()
    ask(served)
    ask(served, "put my card on ice")
    seen = state(served)["latest"][0]
    with ThreadPoolExecutor(4) as pool:
        statuses = [answer.status_code for answer in pool.map(lambda _: mark(served, seen, "same"), range(4))]
    assert sorted(statuses) == [200, 409, 409, 409]
    assert len(served.feedback.read_text().splitlines()) == 1
    assert [one["marked"] for one in state(served)["latest"]] == [True, False]


def test_without_a_feedback_file_it_is_said_that_nothing_is_kept(serve: Serve) -> None:
    served = serve(cache={"feedback": None})
    ask(served)
    ask(served, "put my card on ice")
    ask(served, "How do I freeze my cards?")
    hit, miss, _ = state(served)["latest"]
    refused = mark(served, miss, "same")
    assert (refused.status_code, "--feedback FILE" in refused.json()["error"]["message"]) == (409, True)
    assert mark(served, hit, "wrong").json() == {"marked": "wrong", "removed": True, "kept": False}
    assert state(served)["keeps_marks"] is False


def test_a_mark_that_cannot_be_written_removes_nothing_and_can_be_made_again(serve: Serve) -> None:
    served = serve()
    ask(served)
    ask(served, "How do I freeze my cards?")
    seen = state(served)["latest"][0]
    served.feedback.mkdir()
    refused = mark(served, seen, "wrong")
    assert (refused.status_code, "Is a directory" in refused.json()["error"]["message"]) == (503, True)
    assert ask(served)[0] == "hit"
    served.feedback.rmdir()
    assert mark(served, seen, "wrong").status_code == 200


def test_a_long_answer_is_shown_as_text_and_cut(serve: Serve) -> None:
    served = serve(answer=lambda _: "word “and” " * 400)
    ask(served)
    served.cache.add("in a program", "plain text")
    plain, long = (
        entry["answer"] for entry in httpx.get(f"{served.url}/admin/entries", headers=ADMIN).json()["entries"]
    )
    assert (long, plain) == (("word “and” " * 400)[:2000] + " …", "plain text")


HOSTILE = {
    "half a character": "\ud83d",
    "a number that is none": '{"body": {"usage": {"completion_tokens": NaN}}, "chunks": []}',
    "no object": "[" * 100_000,
    "strange fields": '{"body": {"choices": [{"message": {"content": {"x": 1e999}}}]}, "chunks": 3}',
    "nothing": "",
}


@pytest.mark.parametrize("store", ["memory://", "sqlite"])
def test_state_metrics_and_entries_never_fail_whatever_is_stored(serve: Serve, store: str, tmp_path: Path) -> None:
    url = store if store == "memory://" else f"sqlite:///{tmp_path}/cache.db"
    served = serve(cache={"store": url, "sample": SampleRule(1.0)})
    for text, answer in HOSTILE.items():
        with suppress(UnicodeError):  # SQLite refuses half characters itself, and so does `add`
            entry = served.cache.add(text, "an answer")
            served.cache.store.put([replace(entry, answer=answer)])
    watch = served.watch
    assert watch is not None
    for text in HOSTILE:
        found = served.cache.lookup(text + "s")
        watch.looked_up(replace(found, decision=replace(found.decision, similarity=float("nan"))))
    watch.looked_up(replace(found, text="\ud83d", namespace="\udfff"))
    for path in ("/admin/state", "/metrics", "/admin/entries"):
        assert httpx.get(served.url + path, headers=ADMIN).status_code == 200
    assert f"embedsmith_entries {served.cache.store.count().entries}.0" in httpx.get(f"{served.url}/metrics").text
    assert state(served)["latest"][0]["text"] == "\ud83d"


def test_a_store_that_fails_hides_no_other_figure(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(cache={"sample": SampleRule(1.0)})
    ask(served)
    ask(served, "How do I freeze my cards?")

    def fail(*_: object) -> None:
        raise StoreError("the store at redis://secret@host is gone")

    for name in ("count", "get"):
        monkeypatch.setattr(served.cache.store, name, fail)
    shown = state(served)
    assert (shown["entries"], shown["bytes"], shown["hits"]) == (None, None, 1)
    assert shown["store_trouble"].startswith("StoreError")
    assert shown["quality"]["to_judge"][0]["answer"] == "(cannot be read: StoreError)"
    assert "secret" not in json.dumps(shown)
    metrics = httpx.get(f"{served.url}/metrics").text
    assert "embedsmith_entries NaN" in metrics
    assert "embedsmith_hits_by_similarity 1.0" in metrics


STRANGE = ["many", True, 1.5, -5, float("nan"), float("inf"), 10**400, None]


@pytest.mark.parametrize("usage", ["x", [1], None, *({"completion_tokens": told} for told in STRANGE)], ids=range(11))
def test_usage_that_is_none_counts_nothing(usage: Any) -> None:
    savings = Savings(Prices(1.0, 1.0))
    assert savings.served(Answer({"usage": usage}), 0.0) == savings.tokens == savings.money == 0


async def _read_under_traffic(app: Starlette, watch: Watch, found: Lookup) -> set[int]:
    """Return the statuses of /admin/state while lookups come in, on the loop as in the server."""
    reading = True

    async def feed() -> None:
        while reading:
            watch.looked_up(found)
            await asyncio.sleep(0)

    traffic = asyncio.create_task(feed())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False)) as client:
        statuses = {(await client.get("http://x/admin/state", headers=ADMIN)).status_code for _ in range(20)}
    reading = False
    await traffic
    return statuses


def test_the_state_can_be_read_while_lookups_come_in() -> None:
    cache = SemanticCache(FakeEncoder(), threshold=0.8, fingerprint="fake")
    app = create_app(cache, upstream="http://localhost:1/v1", admin_token=TOKEN, secret=b"secret")
    found = cache.lookup(ASKED)
    for _ in range(LATEST):
        app.state.watch.looked_up(found)
    assert asyncio.run(_read_under_traffic(app, app.state.watch, found)) == {200}


def test_the_latest_lookups_are_bounded_in_number_and_in_characters() -> None:
    """They were bounded in number only: 500 questions of 8 MB, which any client may send, took 4 GB and more."""
    cache = SemanticCache(FakeEncoder(), threshold=0.8, fingerprint="fake")
    watch = Watch(cache)
    short = cache.lookup(ASKED)
    for _ in range(LATEST + 5):
        watch.looked_up(short)
    assert len(watch.latest) == LATEST
    long = replace(short, text="x" * (HELD // 4))
    for _ in range(9):
        watch.looked_up(long)
    assert 3 <= len(watch.latest) <= 4
    watch.looked_up(replace(short, text="x" * (HELD + 1)))
    assert len(watch.latest) == 1  # the newest is there whatever its size
    watch.looked_up(short)
    assert [seen.text for seen in watch.latest] == [ASKED]


def test_feedback_is_an_examples_file(serve: Serve) -> None:
    from embedsmith.examples import LabelledPair, read_examples

    served = serve()
    served.cache.mark_same("one", "two")
    (pair,) = read_examples(served.feedback).examples
    assert isinstance(pair, LabelledPair)
    assert (pair.sentence1, pair.sentence2, pair.label) == ("one", "two", 1)


def test_reasons_are_counted_without_what_the_guard_found_in_each_pair(serve: Serve) -> None:
    served = serve()
    for days in (30, 60, 90):
        ask(served, f"what happens {days} days after my payment is late")
    assert state(served)["reasons"] == {"miss: guard: number": 2, "miss: nothing stored": 1}
    assert state(served)["latest"][0]["reason"].startswith("guard: number (")


def test_a_cache_that_fails_is_seen_until_it_works_again(serve: Serve, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/cache.db"
    served = serve(cache={"store": url})
    ask(served)
    assert httpx.get(f"{served.url}/health").json() == {"status": "ok"}
    reencode(url, FakeEncoder(64), model="another")
    assert ask(served, cache="ttl=9")[:2] == ("pass", "the cache failed")
    assert httpx.get(f"{served.url}/health").json() == {"status": "degraded", "failing": ["the cache failed"]}
    (trouble,) = state(served)["troubles"]
    assert "restart this server" in trouble["told"]
    assert "ModelMismatch at" in trouble["told"]
    ask(served)
    assert state(served)["troubles"] == [trouble]  # since its beginning


def test_a_trouble_ends_with_the_first_lookup_or_addition_that_works(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve()

    def fail(*_: object, **__: object) -> None:
        raise StoreError("the store at redis://secret@host is gone")

    for name, text, what in (
        ("get", ASKED, "the cache failed"),
        ("put", "what is a standing charge?", "an answer could not be stored"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(served.cache.store, name, fail)
            ask(served, text)
            (trouble,) = state(served)["troubles"]
            assert trouble["told"].startswith(f"{what}: StoreError at")
            assert "secret" not in trouble["told"]
        ask(served, text)
        assert state(served)["troubles"] == []


def test_a_store_that_fails_is_a_503_for_the_admin(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve()

    def fail(*_: object, **__: object) -> None:
        raise StoreError("the store at redis://secret@host is gone")

    for name in ("scan", "delete", "purge"):
        monkeypatch.setattr(served.cache.store, name, fail)
    answers = [httpx.get(f"{served.url}/admin/entries", headers=ADMIN)]
    answers += [post(served, "/admin/purge", body) for body in ({"id": "x"}, {"all": True})]
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")
        assert "the store failed (StoreError)" in answer.json()["error"]["message"]


def test_the_newest_entries_are_found_first_and_how_many_there_are() -> None:
    cache = SemanticCache(FakeEncoder(), threshold=0.8, fingerprint="fake")
    for number in range(5):
        cache.add(f"question {number}", "an answer")
    found = find_entries(cache.store, "question", most=2)
    assert [entry["text"] for entry in found["entries"]] == ["question 4", "question 3"]
    assert (found["found"], found["whole"]) == (5, True)
    assert find_entries(cache.store, "question 1")["found"] == 1

    class Slow(MemoryStore):
        def scan(self, namespace: str | None = None, *, newest: bool = False) -> Iterator[Entry]:
            for place, entry in enumerate(cache.store.scan(namespace, newest=newest)):
                time.sleep(0.5 if place == 2 else 0)
                yield entry

    found = find_entries(Slow(dimension=16, model="fake"), "question", seconds=0.4)
    assert [entry["text"] for entry in found["entries"]] == ["question 4", "question 3"]  # the oldest are left out
    assert (found["found"], found["whole"]) == (2, False)
    assert find_entries(cache.store, "question", seconds=-1.0) == {"entries": [], "found": 0, "whole": False}


def test_entries_are_searched_and_purged(serve: Serve) -> None:
    served = serve()
    ask(served)
    ask(served, "what is a standing charge?")
    found = httpx.get(f"{served.url}/admin/entries?text=FREEZE", headers=ADMIN).json()["entries"]
    assert [entry["text"] for entry in found] == [ASKED]
    assert post(served, "/admin/purge", {"id": found[0]["id"]}).json() == {"removed": 1, "judged_removed": 0}
    assert post(served, "/admin/purge", {"all": True}).json() == {"removed": 1, "judged_removed": 0}
    assert ask(served)[0] == "miss"


def test_a_feedback_file_that_cannot_be_written_is_told_before_anything_is_removed(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve()
    ask(served)

    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Feedback, "remove", fail)
    named = {"namespace": next(served.cache.store.scan()).namespace}
    answer = post(served, "/admin/purge", {**named, "judged": True})
    assert answer.status_code == 503
    assert "nothing was removed: the feedback file cannot be written (No space left on device)" in answer.text
    assert served.cache.store.count().entries == 1
    assert post(served, "/admin/purge", named).json() == {"removed": 1, "judged_removed": 0}
    for unclear in ({**named, "judged": 1}, {**named, "judged": True, "tag": "x"}, {"all": True, "judged": True}):
        assert post(served, "/admin/purge", unclear).status_code == 400


def test_who_has_a_key_can_be_removed_whole_and_alone(serve: Serve) -> None:
    served = serve()
    for key, part in (("sk-a", ""), ("sk-a", "namespace=team-a"), ("sk-a", "namespace=team-b"), ("sk-b", "")):
        ask(served, key=key, cache=part)
    entry = next(served.cache.store.scan())
    body = {"headers": {"Authorization": "Bearer sk-a "}}
    told = [post(served, "/admin/tenant", one).json() for one in ({"key": "sk-a"}, body)]
    assert told == [{"namespace": entry.namespace}] * 2
    other = post(served, "/admin/tenant", {"key": "sk-b"}).json()["namespace"]
    for name in (other, entry.namespace, f"{entry.namespace}/team-a"):
        served.cache.mark_same(ASKED, f"what {name} asks", namespace=name)
    assert post(served, "/admin/purge", {**told[0], "judged": True}).json() == {"removed": 3, "judged_removed": 2}
    assert [row.namespace for row in read_feedback(served.feedback)[0]] == [other]
    assert [entry.namespace for entry in served.cache.store.scan()] == [other]
    assert [seen["namespace"] for seen in state(served)["latest"]] == [other]  # whose questions stayed in sight


def test_a_key_whose_tenant_is_asked_for_is_in_no_log_and_in_no_answer(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    served = serve()
    with caplog.at_level(logging.DEBUG):
        answers = [
            post(served, "/admin/tenant", {"key": "sk-very-secret"}),
            post(
                served, "/admin/tenant", {"headers": {"authorization": "sk-very-secret"}, "query": "a=sk-very-secret"}
            ),
            post(served, "/admin/tenant", {"key": "sk-very-secret", "query": 3}),
            post(served, "/admin/tenant", {"key": "sk-very-secret \u20ac"}),
            httpx.post(f"{served.url}/admin/tenant", json={"key": "sk-very-secret"}),
        ]
    assert [answer.status_code for answer in answers] == [200, 200, 400, 400, 401]
    assert "very-secret" not in caplog.text + "".join(answer.text + str(answer.headers) for answer in answers)


@pytest.mark.parametrize("body", [{}, {"number": 1}, {"number": "x", "verdict": "wrong"}, {"all": "yes"}])
@pytest.mark.parametrize("path", ["/admin/mark", "/admin/purge", "/admin/tenant"])
def test_wrong_admin_requests_are_refused(serve: Serve, path: str, body: dict[str, Any]) -> None:
    assert post(serve(), path, body).status_code == 400


def test_bad_keys_do_not_disturb(serve: Serve) -> None:
    with pytest.raises(openai.APIStatusError):
        connect(serve(api_key="right"), "wrong").chat.completions.create(
            model="m", messages=[{"role": "user", "content": "x"}]
        )


def test_the_dashboard_knows_what_hits_did_not_cost(serve: Serve) -> None:
    served = serve(app={"prices": Prices(prompt=1.0, completion=4.0)}, delay=0.2)
    ask(served)
    ask(served)
    state = httpx.get(f"{served.url}/admin/state", headers=ADMIN).json()
    (usage,) = [json.loads(entry.answer)["body"]["usage"] for entry in served.cache.store.scan()]
    expected = (usage["prompt_tokens"] * 1.0 + usage["completion_tokens"] * 4.0) / 1e6
    assert (state["saved_tokens"], state["saved_money"]) == (50, pytest.approx(expected))
    assert 0.1 < state["saved_seconds"] < 5
    assert f"embedsmith_saved_money {state['saved_money']}" in httpx.get(f"{served.url}/metrics").text
