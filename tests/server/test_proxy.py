"""The caching proxy with the real `openai` client, against an upstream that answers, streams, breaks and hangs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from embedsmith.cache.chat import read_chat
from embedsmith.cache.decision import Policy
from embedsmith.cache.stores import StoreError
from embedsmith.conversation import read_turns
from embedsmith.encoder import Embeddings
from embedsmith.examples import has_conversations, read_examples
from embedsmith.server import bodies
from embedsmith.server.control import read_control
from embedsmith.testing import FakeEncoder

from .conftest import TOKEN, Served

ASKED = "How do I freeze my card?"
Serve = Callable[..., Served]


def connect(served: Served, key: str = "sk-a") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0)


def ask(
    served: Served, text: str = ASKED, *, key: str = "sk-a", cache: str = "", **options: Any
) -> tuple[str, str, str]:
    """Return (what the cache says, why, the text of the answer)."""
    messages = options.pop("messages", [{"role": "user", "content": text}])
    options = {"model": "m", "messages": messages, "extra_headers": {"X-Embedsmith-Cache": cache}} | options
    raw = connect(served, key).chat.completions.with_raw_response.create(**options)
    answer = raw.parse()
    if options.get("stream"):
        said = "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)
    else:
        said = answer.choices[0].message.content
    return raw.headers["x-embedsmith-cache"], raw.headers["x-embedsmith-reason"], said


def test_a_repeat_is_served_and_a_near_miss_is_not(serve: Serve) -> None:
    served = serve()
    assert ask(served) == ("miss", "nothing stored", f"the answer to {ASKED}")
    assert ask(served, "how do i freeze my card")[:2] == ("hit", "same text")
    assert ask(served, "How do I freeze my cards?") == ("hit", "similar", f"the answer to {ASKED}")
    assert ask(served, "How do I unfreeze my card?")[:2] == ("miss", "guard: opposite (unfreeze / freeze)")
    assert served.calls == 2


@pytest.mark.parametrize(("first", "second"), [(True, True), (False, True)])  # more in test_answers.py
def test_a_stream_can_be_made_from_either_form(serve: Serve, first: bool, second: bool) -> None:
    served = serve()
    said = [ask(served, stream=stream)[2] for stream in (first, second)]
    assert said == [f"the answer to {ASKED}"] * 2
    assert served.calls == 1


def test_a_replayed_stream_has_the_upstreams_own_chunks(serve: Serve) -> None:
    served = serve()
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": ASKED}]}
    first, second = (httpx.post(f"{served.url}/v1/chat/completions", json=body).text for _ in range(2))
    assert first == second
    assert first.endswith("data: [DONE]\n\n")
    assert served.calls == 1


def test_the_asynchronous_client_works_too(serve: Serve) -> None:
    served = serve()

    async def go() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="sk-a") as client:
            messages: Any = [{"role": "user", "content": ASKED}]
            done = [await client.chat.completions.create(model="m", messages=messages) for _ in range(2)]
            return [one.choices[0].message.content for one in done]

    assert asyncio.run(go()) == [f"the answer to {ASKED}"] * 2
    assert served.calls == 1


@pytest.mark.parametrize(
    "other",
    [
        {"model": "another"},
        {"temperature": 0.3},
        {"max_tokens": 9},
        {"response_format": {"type": "json_object"}},
        {"seed": 1},
        {"key": "sk-b"},
        {"cache": "namespace=x"},
        {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": ASKED}]},
        {
            "messages": [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "hello"},
                {"role": "user", "content": ASKED},
            ]
        },
    ],
    ids=lambda other: "-".join(other),
)
def test_what_must_be_equal_is_never_crossed(serve: Serve, other: dict[str, Any]) -> None:
    served = serve()
    ask(served)
    assert ask(served, **other)[0] == "miss"
    assert ask(served, **other)[0] == "hit"
    assert served.calls == 2


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"n": 2}, "more than one answer is asked for"),
        ({"n": True}, "n is no whole number"),
        ({"temperature": 1.2}, "temperature 1.2 asks for variety"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, "tools are offered"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
            "the last message holds an image",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]},
            "the last message is not text",
        ),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "the last message is not the user's"),
    ],
)
def test_what_is_no_question_for_the_cache_is_passed_on(serve: Serve, options: dict[str, Any], reason: str) -> None:
    served = serve()
    for _ in range(2):
        assert ask(served, **options)[:2] == ("pass", reason)
    assert served.calls == 2


def test_a_client_can_ask_for_no_reading_no_storing_or_nothing_else(serve: Serve) -> None:
    served = serve()
    with pytest.raises(openai.InternalServerError, match="only-if-cached") as missing:
        ask(served, cache="only-if-cached")
    assert missing.value.response.headers["x-should-retry"] == "false"  # it would send a 504 three times
    assert ask(served, cache="no-store")[0] == "miss"
    assert ask(served)[0] == "miss"
    assert ask(served, cache="only-if-cached")[0] == "hit"
    assert ask(served, cache="no-cache")[:2] == ("miss", "no-cache was asked for")
    assert served.calls == 3
    with pytest.raises(openai.BadRequestError, match="none of"):
        ask(served, cache="no-cash")


def purge(served: Served, **which: str) -> int:
    headers = {"authorization": f"Bearer {TOKEN}"}
    removed: int = httpx.post(f"{served.url}/admin/purge", json=which, headers=headers).json()["removed"]
    return removed


def test_what_was_stored_with_a_tag_is_purged_by_it(serve: Serve) -> None:
    served = serve()
    ask(served, cache="tag=faq, tag=release 2.1, tag=faq")
    ask(served, "How do I close my account?")
    assert sorted(entry.tags for entry in served.cache.store.scan()) == [(), ("faq", "release 2.1")]
    assert ask(served, cache="tag=other")[0] == "hit"  # a tag decides nothing
    assert [purge(served, tag="other"), purge(served, tag="release 2.1"), purge(served, tag="faq")] == [0, 1, 0]
    assert ask(served)[0] == "miss"


def test_a_tag_stays_within_its_tenant(serve: Serve) -> None:
    served = serve()
    ask(served, key="sk-a", cache="tag=faq")
    assert ask(served, key="sk-b", cache="tag=faq")[0] == "miss"
    tenant = next(served.cache.store.scan()).namespace
    assert purge(served, namespace=tenant, tag="faq") == 1
    assert [entry.tags for entry in served.cache.store.scan()] == [("faq",)]


@pytest.mark.parametrize(
    "wrong", ["tag=", f"tag={'x' * 65}", "tag=Stra\xdfe", ",".join(f"tag={number}" for number in range(9))]
)
def test_tags_have_limits(wrong: str) -> None:
    with pytest.raises(ValueError, match="x-embedsmith-cache"):
        read_control([wrong])
    assert len(read_control([",".join(f"tag={number}{'x' * 63}" for number in range(8))]).tags) == 8


def chat(served: Served, headers: list[tuple[str, str]], **fields: Any) -> httpx.Response:
    body = {"model": "m", "messages": [{"role": "user", "content": ASKED}]} | fields
    return httpx.post(f"{served.url}/v1/chat/completions", json=body, headers=headers)


ONLY = [("x-embedsmith-cache", "only-if-cached")]


@pytest.mark.parametrize(
    "fields", [{"temperature": 1.9}, {"tools": [{"type": "function"}]}, {"n": 2}, {"stream": True}, {"messages": 3}]
)
def test_only_if_cached_never_reaches_the_upstream(serve: Serve, fields: dict[str, Any]) -> None:
    served = serve()
    answer = chat(served, ONLY, **fields)
    assert answer.status_code == 504
    assert "only-if-cached was asked for" in answer.text
    assert answer.headers["x-embedsmith-cache"] in ("pass", "miss")
    assert served.upstream.calls == []


@pytest.mark.parametrize(("method", "path"), [("POST", "completions"), ("POST", "embeddings"), ("GET", "models")])
def test_only_if_cached_holds_for_every_path(serve: Serve, method: str, path: str) -> None:
    served = serve()
    answer = httpx.request(method, f"{served.url}/v1/{path}", headers=ONLY, json={"model": "m"})
    assert (answer.status_code, served.upstream.calls) == (504, [])
    wrong = httpx.request(
        method, f"{served.url}/v1/{path}", headers={"x-embedsmith-cache": "no-cash"}, json={"model": "m"}
    )
    assert (wrong.status_code, served.upstream.calls) == (400, [])


@pytest.mark.parametrize("path", ["realtime?model=m", "models"])
def test_a_websocket_is_refused_in_words_and_never_asked_for_as_a_plain_page(serve: Serve, path: str) -> None:
    served = serve()
    upgrade = {"connection": "Upgrade", "upgrade": "WebSocket", "sec-websocket-version": "13", "sec-websocket-key": "x"}
    answer = httpx.get(f"{served.url}/v1/{path}", headers=upgrade)
    assert (answer.status_code, "websockets are not passed on" in answer.text) == (501, True)
    assert served.upstream.calls == []
    other = httpx.get(f"{served.url}/v1/files", headers={"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c"})
    assert other.status_code != 501  # what may go on without


def test_only_if_cached_holds_when_the_cache_fails(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve()

    def fail(*_: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(served.cache.store, "get", fail)
    answer = chat(served, ONLY)
    assert (answer.status_code, answer.headers["x-embedsmith-reason"]) == (504, "the cache failed")
    assert served.upstream.calls == []


def test_only_if_cached_holds_in_shadow(serve: Serve) -> None:
    served = serve(app={"shadow": True})
    ask(served)
    answer = chat(served, [*ONLY, ("authorization", "Bearer sk-a")])
    assert (answer.status_code, answer.headers["x-embedsmith-reason"]) == (504, "shadow: same text")
    assert served.calls == 1


def test_wishes_may_come_in_several_headers(serve: Serve) -> None:
    served = serve()
    name = "x-embedsmith-cache"
    chat(served, [(name, "ttl=60"), (name, "no-store")])
    assert served.cache.store.count().entries == 0
    chat(served, [(name, "ttl=60"), (name, "ttl=6")])
    (entry,) = served.cache.store.scan()
    assert entry.expires is not None
    assert entry.expires - entry.created == pytest.approx(6)


def test_of_two_namespaces_none_is_chosen(serve: Serve) -> None:
    """The client's own would win over the one that a gateway gives it, or the reverse."""
    served = serve()
    name = "x-embedsmith-cache"
    answers = [chat(served, [(name, "namespace=me"), (name, f"namespace={other}")]) for other in ("me", "you")]
    assert [answer.status_code for answer in answers] == [200, 400]
    assert "'me' and 'you'; at most one" in answers[1].text


@pytest.mark.parametrize("ttl", ["1e30", "abc", "0", "-1", "nan", "inf", "1e999"])
def test_a_life_that_is_none_is_told_in_words(ttl: str) -> None:
    with pytest.raises(ValueError, match=f"ttl={ttl} is not a positive number of seconds"):
        read_control([f"ttl={ttl}"])


@pytest.mark.parametrize(("wish", "life"), [("", 60), ("ttl=3600", 60), ("ttl=5", 5)])
def test_a_client_can_shorten_the_life_of_an_answer_and_not_lengthen_it(serve: Serve, wish: str, life: float) -> None:
    served = serve(cache={"ttl": 60})
    ask(served, cache=wish)
    (entry,) = served.cache.store.scan()
    assert entry.expires is not None
    assert entry.expires - entry.created == pytest.approx(life)


def test_an_answer_lives_as_long_as_it_was_given(serve: Serve) -> None:
    now = [1000.0]
    served = serve(cache={"clock": lambda: now[0]})
    ask(served, cache="ttl=60")
    now[0] += 59
    assert ask(served)[0] == "hit"
    now[0] += 2  # the hit did not extend it
    assert ask(served)[0] == "miss"


@pytest.mark.parametrize("header", ["api-key", "x-api-key", "OpenAI-Organization", "OpenAI-Project"])
def test_whoever_else_a_request_names_is_another_tenant(serve: Serve, header: str) -> None:
    served = serve()
    ask(served, extra_headers={header: "one"})
    assert ask(served, extra_headers={header: "one"})[0] == "hit"
    assert ask(served, extra_headers={header: "two"})[0] == "miss"


@pytest.mark.parametrize("broken", ["get", "search", "put"])
def test_a_store_that_fails_takes_nothing_away(serve: Serve, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve()

    def fail(*_: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(served.cache.store, broken, fail)
    for stream in (False, True):
        assert ask(served, stream=stream)[2] == f"the answer to {ASKED}"
    assert "embedsmith_failures_total" in httpx.get(f"{served.url}/metrics").text


def test_in_shadow_everything_comes_from_the_upstream_and_hits_are_only_told(serve: Serve) -> None:
    served = serve(app={"shadow": True})
    ask(served)
    assert ask(served)[:2] == ("miss", "shadow: same text")
    assert ask(served, "How do I freeze my cards?") == (
        "miss",
        "shadow: similar",
        "the answer to How do I freeze my cards?",
    )
    assert ask(served, "How do I unfreeze my card?")[1] == "guard: opposite (unfreeze / freeze)"
    assert served.calls == 4
    assert served.cache.store.count().entries == 2  # what would have been served is not stored a second time


class Noting(FakeEncoder):
    """Notes which thread encodes each text."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: dict[str, int] = {}

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        self.threads |= dict.fromkeys(texts, threading.get_ident())
        return super().encode(texts)


def test_a_lone_question_takes_no_thread_and_one_in_company_does(serve: Serve) -> None:
    encoder = Noting()
    served = serve(encoder=encoder, delay=0.3)
    ask(served, "the first alone")
    ask(served, "the second alone")
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(ask, served, "one that waits for the upstream")
        while served.calls < 3:
            time.sleep(0.005)
        ask(served, "one in company")
        slow.result()
    ask(served, "long and alone " * 40)
    loop = encoder.threads["the first alone"]
    assert encoder.threads["the second alone"] == loop
    assert encoder.threads["one in company"] != loop
    assert encoder.threads["long and alone " * 40] != loop


def test_a_large_request_is_read_and_looked_up_beside_the_event_loop(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 MiB of small numbers held up everybody else for seconds: to be read, and to be made a key of."""
    threads: list[int] = []

    def note(*args: Any, **options: Any) -> Any:
        threads.append(threading.get_ident())
        return read_chat(*args, **options)

    monkeypatch.setattr(bodies, "read_chat", note)
    encoder = Noting()
    served = serve(encoder=encoder)
    ask(served, "small")
    ask(served, "large", extra_body={"numbers": [0] * bodies.SMALL})
    small, large = threads
    assert small == encoder.threads["small"]
    assert small not in (large, encoder.threads["large"])


def test_what_may_take_long_never_holds_the_event_loop(serve: Serve) -> None:
    encoder = Noting()
    encoder.quick = False  # as a hosted encoder, or one that nobody knows
    served = serve(encoder=encoder)
    for text in ("the first alone", "the second alone"):
        ask(served, text)
        assert encoder.threads[text] not in {
            thread.ident for thread in threading.enumerate() if thread.name == "server"
        }


@pytest.mark.parametrize("stream", [False, True])
def test_many_equal_questions_at_once_are_one_call(serve: Serve, stream: bool) -> None:
    served = serve(delay=0.3)
    texts = [ASKED, "how do i freeze my card", "How do I freeze my cards?"] * 20
    with ThreadPoolExecutor(60) as pool:
        found = list(pool.map(lambda text: ask(served, text, stream=stream), texts))
    assert {said for _, _, said in found} <= {f"the answer to {text}" for text in texts}
    assert served.calls == 1


@pytest.mark.parametrize("fault", ["server_error", "rate_limit", "truncated", "null", "empty", "cut", "drop"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_answer_is_passed_on_and_never_stored(serve: Serve, fault: str, stream: bool) -> None:
    served = serve(faults={fault: 1.0})
    for _ in range(2):
        with contextlib.suppress(openai.APIError, httpx.HTTPError):
            ask(served, stream=stream)
    assert served.cache.store.count().entries == 0 or (fault == "cut" and not stream)
    served.upstream.faults.clear()
    assert ask(served)[2] == f"the answer to {ASKED}"


def test_an_upstream_that_hangs_is_a_timeout_and_holds_nobody_up(serve: Serve) -> None:
    served = serve(faults={"hang": 1.0}, hang=2.0, app={"timeout": 0.3})
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        errors = list(pool.map(lambda _: _status_of(served), range(4)))
    assert errors == [504] * 4
    assert time.monotonic() - began < 2
    assert served.calls == 1
    served.upstream.faults.clear()
    assert ask(served)[0] == "miss"


def _status_of(served: Served) -> int:
    try:
        ask(served)
    except openai.APIStatusError as error:
        return error.status_code
    return 200


def test_an_upstream_that_is_gone_is_a_502(serve: Serve) -> None:
    served = serve(app={"upstream": "http://127.0.0.1:1/v1"})
    assert _status_of(served) == 502


def test_a_client_that_goes_away_leaves_the_answer_to_the_others(serve: Serve) -> None:
    served = serve(pause=0.05)
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": ASKED}]}
    with httpx.stream(
        "POST", f"{served.url}/v1/chat/completions", json=body, headers={"authorization": "Bearer sk-a"}
    ) as answer:
        next(answer.iter_bytes())
    assert ask(served, stream=True)[2] == f"the answer to {ASKED}"
    assert served.calls == 1


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{bad", 400),
        (b"[]", 400),
        (b"\xff\xfe", 400),
        (b"", 400),
        (b"[" * 100_000, 400),
        (b'{"model": "m", "messages": 3}', 400),
        (b"x" * (9 << 20), 413),
    ],
    ids=["broken", "list", "bytes", "empty", "deep", "messages", "large"],
)
def test_bad_input_gets_its_status_and_the_server_lives(serve: Serve, content: bytes, status: int) -> None:
    served = serve(answer=lambda text: "x")
    got = httpx.post(f"{served.url}/v1/chat/completions", content=content).status_code
    assert got == status
    assert httpx.get(f"{served.url}/health").status_code == 200


def test_text_that_no_store_can_hold_is_passed_on(serve: Serve) -> None:
    served = serve(answer=lambda text: "x")
    for text in ("half \\ud83d", "nul \\u0000"):
        content = f'{{"model": "m", "messages": [{{"role": "user", "content": "{text}"}}]}}'
        answer = httpx.post(f"{served.url}/v1/chat/completions", content=content)
        assert answer.headers["x-embedsmith-cache"] == "pass"


@pytest.mark.parametrize(
    "twice",
    [
        b'{"messages": [{"role": "user", "content": "bad"}], "messages": [{"role": "user", "content": "%b"}]}',
        b'{"messages": [{"role": "user", "content": "bad", "content": "%b"}]}',
    ],
    ids=["of the request", "of a message"],
)
def test_a_request_with_a_name_twice_is_passed_on_and_never_stored(serve: Serve, twice: bytes) -> None:
    """JSON does not say which of them counts: the cache took the last one, and some upstreams take the first."""
    served = serve()
    kind = {"content-type": "application/json"}
    got = httpx.post(f"{served.url}/v1/chat/completions", content=twice % ASKED.encode(), headers=kind)
    assert (got.headers["x-embedsmith-cache"], got.headers["x-embedsmith-reason"]) == ("pass", bodies.TWICE)
    assert served.cache.store.count().entries == 0


def test_a_slow_client_does_not_hold_up_others(serve: Serve) -> None:
    served = serve()
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert ask(served)[0] == "miss"


def test_everything_else_goes_to_the_upstream_as_it_is(serve: Serve) -> None:
    served = serve()
    assert connect(served).models.list().data[0].id == "simulator"
    assert httpx.post(f"{served.url}/v1/images", json={"a": 1}).status_code == 404
    assert served.upstream.calls[-1].body == {"a": 1}


def test_keys_reach_the_upstream_and_are_kept_nowhere(serve: Serve) -> None:
    served = serve()
    ask(served, key="sk-very-secret")
    assert served.upstream.calls[-1].authorization == "Bearer sk-very-secret"
    held = json.dumps([[one.namespace, one.answer, one.partition] for one in served.cache.store.scan()])
    assert "very-secret" not in held + httpx.get(f"{served.url}/metrics").text


def speak(*contents: str) -> list[dict[str, str]]:
    return [{"role": "assistant" if place % 2 else "user", "content": text} for place, text in enumerate(contents)]


JOINT = speak("I have a joint account here.", "Noted, a joint account.", "How do I close it?")
REWORDED = speak("I have a joint account here!", "Noted: a joint account.", "How do I close it then?")
WINDOW = speak("The window of my kitchen is stuck.", "A drop of oil may help.", "How do I close it?")
BY_MEANING = {"policy": Policy(0.8, conversations=0.8), "threshold": None}


def test_reworded_conversations_share_an_answer_and_others_with_the_same_last_message_do_not(serve: Serve) -> None:
    served = serve(cache=BY_MEANING)
    assert ask(served, messages=JOINT)[0] == "miss"
    assert ask(served, messages=WINDOW)[0] == "miss"
    assert ask(served, "How do I close it?")[0] == "miss"
    assert ask(served, messages=REWORDED)[:2] == ("hit", "similar")
    assert ask(served, messages=JOINT)[:2] == ("hit", "same text")
    system = {"role": "system", "content": "be brief"}
    assert ask(served, messages=[system, *JOINT])[0] == "miss"
    assert ask(served, messages=[system, *REWORDED])[:2] == ("hit", "similar")
    assert served.calls == 4


def test_without_that_earlier_turns_must_be_equal(serve: Serve) -> None:
    served = serve()
    for messages in (JOINT, REWORDED, WINDOW):
        assert ask(served, messages=messages)[:2] == ("miss", "nothing stored")
    again = [*JOINT[:2], {"role": "user", "content": "How do I close it then?"}]
    assert ask(served, messages=again)[:2] == ("hit", "similar")
    assert served.calls == 3


def test_reworded_conversations_at_once_are_one_call(serve: Serve) -> None:
    served = serve(cache=BY_MEANING, delay=0.3)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda messages: ask(served, messages=messages), [JOINT, REWORDED, WINDOW, JOINT]))
    assert sorted(found[place][2] for place in (0, 1, 3)) == [found[0][2]] * 3
    assert served.calls == 2


def test_a_marked_conversation_is_a_pair_to_train_on_again(serve: Serve) -> None:
    served = serve(cache=BY_MEANING)
    ask(served, messages=JOINT)
    ask(served, messages=REWORDED)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    seen = httpx.get(f"{served.url}/admin/state", headers=headers).json()["latest"][0]
    assert read_turns(seen["text"])[0].content == "I have a joint account here!"
    body = {"number": seen["number"], "verdict": "wrong"}
    assert httpx.post(f"{served.url}/admin/mark", headers=headers, json=body).status_code == 200
    (pair,) = read_examples(served.feedback).examples
    assert has_conversations(pair)
    assert ask(served, messages=REWORDED)[0] == "miss"
