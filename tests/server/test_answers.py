"""What may be stored, and that a stored answer looks to every client as the upstream's own would."""

from __future__ import annotations

import asyncio
import codecs
import json
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import Response

from embedsmith.cache.chat import Allowances, Question
from embedsmith.server.answers import (
    BLOCK,
    Answer,
    StreamReader,
    in_blocks,
    load_answer,
    parse,
    read_body,
    stream_events,
)

from .conftest import TOKEN, Served
from .scripted import USAGE, chunk, completion, events, upstream
from .test_proxy import ASKED, Serve

FINE = json.dumps(completion()).encode()
SAID = [chunk({"role": "assistant", "content": "hi "}), chunk({"content": "there"}), chunk({}, "stop")]


@pytest.fixture
def scripted(serve: Serve) -> Iterator[Any]:
    """A proxy in front of an upstream that says what is in `says`; `calls` are the bodies it was sent."""
    calls: list[Any] = []
    says: dict[str, bytes] = {}

    async def handle(request: Request) -> Response:
        calls.append(await request.json())
        form = "stream" if calls[-1].get("stream") else "plain"
        return Response(says[form], media_type="text/event-stream" if form == "stream" else "application/json")

    with upstream(handle) as url:
        yield serve(app={"upstream": url}), says, calls


def choices_of(*texts: str) -> list[Any]:
    return [completion(text)["choices"][0] | {"index": place} for place, text in enumerate(texts)]


@pytest.fixture
def allowing(serve: Serve) -> Iterator[Any]:
    """As `scripted`, of a proxy that may answer questions about images and requests for several answers."""
    calls: list[Any] = []
    says = {
        "plain": json.dumps(completion(choices=choices_of("one", "two", "three"))).encode(),
        "stream": events(
            *(chunk({"role": "assistant", "content": ""}, choice={"index": place}) for place in (1, 0, 2)),
            *(chunk({"content": text}, choice={"index": place}) for place, text in ((0, "on"), (1, "two"), (2, "th"))),
            chunk({"content": "ree"}, choice={"index": 2}),
            chunk({"content": "e"}, choice={"index": 0}),
            *(chunk({}, "stop", choice={"index": place}) for place in (2, 0, 1)),
            {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [], "usage": USAGE},
        ),
    }

    async def handle(request: Request) -> Response:
        calls.append(await request.json())
        form = "stream" if calls[-1].get("stream") else "plain"
        return Response(says[form], media_type="text/event-stream" if form == "stream" else "application/json")

    with upstream(handle) as url:
        yield serve(app={"upstream": url, "allowed": Allowances(images=True, several=True)}), says, calls


def texts_in(answer: httpx.Response) -> list[str]:
    """Return the texts of all choices, of a stream or a plain answer, by their index."""
    texts: dict[int, str] = {}
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")] or [answer.text]
    for line in lines:
        for choice in json.loads(line)["choices"]:
            said = choice.get("delta", choice.get("message", {})).get("content") or ""
            texts[choice["index"]] = texts.get(choice["index"], "") + said
    return [texts[place] for place in sorted(texts)]


STREAMED = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize("second", [{}, STREAMED], ids=["plain", "streamed"])
@pytest.mark.parametrize("first", [{}, STREAMED], ids=["plain", "streamed"])
def test_all_of_several_answers_are_given_again_in_either_form(
    allowing: Any, first: dict[str, Any], second: dict[str, Any]
) -> None:
    served, _, calls = allowing
    assert texts_in(send(served, n=3, **first)) == ["one", "two", "three"]
    wait_for(lambda: served.cache.store.count().entries == 1)
    again = send(served, n=3, **second)
    assert (again.headers["x-embedsmith-cache"], texts_in(again)) == ("hit", ["one", "two", "three"])
    assert len(calls) == 1
    if not second:
        assert {choice["finish_reason"] for choice in again.json()["choices"]} == {"stop"}
        assert again.json()["usage"] == USAGE


@pytest.mark.parametrize("n", [1, 2, 4])
def test_another_number_of_answers_is_another_question_and_an_answer_of_another_number_is_not_stored(
    allowing: Any, n: int
) -> None:
    served, _, calls = allowing
    for options in ({}, STREAMED):
        assert send(served, n=3, **options).headers["x-embedsmith-cache"] in ("miss", "hit")
        for _ in range(2):
            assert send(served, n=n, **options).headers["x-embedsmith-cache"] == "miss"
    wait_for(lambda: len(calls) == 5)
    assert served.cache.store.count().entries == 1


@pytest.mark.parametrize(
    "wrong",
    [
        choices_of("one", "two", ""),
        [*choices_of("one", "two"), completion("three")["choices"][0] | {"index": 1}],
        [*choices_of("one", "two"), completion("three")["choices"][0] | {"index": 2, "finish_reason": "length"}],
    ],
    ids=["empty", "index", "cut"],
)
def test_several_answers_of_which_one_is_none_are_not_stored(allowing: Any, wrong: list[Any]) -> None:
    served, says, _ = allowing
    says["plain"] = json.dumps(completion(choices=wrong)).encode()
    assert [send(served, n=3).headers["x-embedsmith-cache"] for _ in range(2)] == ["miss", "miss"]


def test_a_question_about_the_same_image_is_answered_and_about_another_is_not(allowing: Any) -> None:
    served, says, calls = allowing
    says["plain"] = FINE

    def look(text: str, image: str) -> str:
        content = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": f"data:,{image}"}}]
        told: str = send(served, messages=[{"role": "user", "content": content}]).headers["x-embedsmith-cache"]
        return told

    told = [look(ASKED, "a"), look("How do I freeze my cards?", "a"), look(ASKED, "b"), look(ASKED, "a")]
    assert told == ["miss", "hit", "miss", "hit"]
    assert send(served).headers["x-embedsmith-cache"] == "miss"
    assert calls[0]["messages"][0]["content"][1]["image_url"]["url"] == "data:,a"  # passed on as it came


def send(served: Served, **options: Any) -> httpx.Response:
    body = {"model": "m", "messages": [{"role": "user", "content": ASKED}]} | options
    return httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=10)


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


POISON = {
    "NaN": FINE.replace(b'"created": 1', b'"created": NaN'),
    "Infinity": FINE.replace(b'"created": 1', b'"created": -Infinity'),
    "a number too large": FINE.replace(b'"created": 1', b'"created": 1e999'),
    "usage that is a text": json.dumps(completion(usage="x")).encode(),
    "usage that is a list": json.dumps(completion(usage=[1])).encode(),
    "a count that is a text": json.dumps(completion(usage=USAGE | {"completion_tokens": "x"})).encode(),
    "a count below zero": json.dumps(completion(usage=USAGE | {"prompt_tokens": -5})).encode(),
    "a huge count": json.dumps(completion(usage=USAGE | {"prompt_tokens": 10**300})).encode(),
    "half a character": json.dumps(completion("hi \ud83d")).encode(),
    "half a character elsewhere": json.dumps(completion(model="\ud83d")).encode(),
}


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
def test_what_cannot_be_given_again_is_passed_on_and_never_stored(scripted: Any, poison: bytes) -> None:
    served, says, calls = scripted
    says["plain"] = poison
    for _ in range(2):
        answer = send(served)
        assert (answer.status_code, answer.content) == (200, poison)
    assert len(calls) == 2
    assert served.cache.store.count().entries == 0
    for path in ("/metrics", "/admin/state"):
        assert httpx.get(served.url + path, headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


@pytest.mark.parametrize(
    "held", ["in the app", "[]", "null", '{"body": {}, "chunks": []}', POISON["usage that is a text"]]
)
def test_a_stored_answer_that_cannot_be_read_is_a_miss_and_replaced(scripted: Any, held: str | bytes) -> None:
    served, says, calls = scripted
    says["plain"] = FINE
    send(served)
    (entry,) = served.cache.store.scan()
    text = held if isinstance(held, str) else f'{{"body": {held.decode()}, "chunks": []}}'
    served.cache.store.put([replace(entry, answer=text)])
    answers = [send(served) for _ in range(2)]
    assert [answer.headers["x-embedsmith-cache"] for answer in answers] == ["miss", "hit"]
    assert answers[0].headers["x-embedsmith-reason"] == "stored, but no answer of an upstream"
    assert answers[0].json() == answers[1].json() == completion()
    assert len(calls) == 2


ODD = {
    "content that is a list": [chunk({"content": [{"type": "thinking", "thinking": "a"}]}), *SAID],
    "content that is a number": [chunk({"content": 3}), *SAID],
    "a delta that is a text": [chunk("hi"), *SAID],
    "choices that are no objects": [{**SAID[0], "choices": ["hi"]}, *SAID],
    "choices that are a number": [{**SAID[0], "choices": 3}, *SAID],
    "a chunk that is a list": [[], *SAID],
    "usage that is a list": [{**SAID[0], "usage": [3]}, *SAID],
    "half a character": [chunk({"content": "\ud83d"}), *SAID],
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_a_stream_of_an_unknown_form_reaches_its_client_whole_and_is_not_stored(scripted: Any, odd: list[Any]) -> None:
    served, says, _ = scripted
    says["stream"] = events(*odd)
    assert send(served, stream=True).content == says["stream"]
    assert served.cache.store.count().entries == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["role", "content", "tool_calls", "refusal", "reasoning", "logprobs"]
DELTAS = JSON | st.dictionaries(st.sampled_from(FIELDS), st.text(max_size=3) | JSON)
CHOICES = st.lists(
    JSON | st.builds(lambda delta, probs: {"delta": delta, "logprobs": probs, "finish_reason": "stop"}, DELTAS, JSON)
)
CHUNKS = st.lists(JSON | st.builds(lambda choices, usage: {"choices": choices, "usage": usage}, CHOICES, JSON))


@given(CHUNKS, st.integers(1, 50))
def test_no_stream_breaks_its_reader_and_what_is_kept_can_be_given_in_both_forms(chunks: list[Any], cut: int) -> None:
    reader, data = StreamReader(), events(*chunks)
    for start in range(0, len(data), cut):
        reader.feed(data[start : start + cut])
    answer = reader.answer()
    if answer is not None:
        again = load_answer(answer.dump())
        assert again == answer
        assert json.dumps(again.body, allow_nan=False).encode()
        assert list(stream_events(again, usage=True))


def test_a_byte_order_mark_costs_a_stream_no_chunk() -> None:
    """The first line was no data with it, and the answer was stored without its beginning."""
    reader = StreamReader()
    reader.feed(codecs.BOM_UTF8 + events(*SAID))
    answer = reader.answer()
    assert answer is not None
    assert answer.body["choices"][0]["message"]["content"] == "hi there"


def test_a_line_without_an_end_is_not_copied_with_every_piece_of_it() -> None:
    reader = StreamReader()
    tracemalloc.start()
    try:
        for piece in (b"x" * (4 << 20), b"y"):
            reader.feed(piece)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(10):
            reader.feed(b"y")
        assert tracemalloc.get_traced_memory()[1] - before < 1 << 20
    finally:
        tracemalloc.stop()
    reader.feed(b"\r\n" + events(*SAID))
    assert reader.answer() is not None


def test_a_stream_is_read_and_put_together_beside_the_loop(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served, says, _ = scripted
    says["stream"] = events(*SAID)
    where, read = [], StreamReader.answer

    def answer(self: StreamReader) -> Answer | None:
        where.append(threading.current_thread().name)
        return read(self)

    monkeypatch.setattr(StreamReader, "answer", answer)
    for _ in range(2):
        assert send(served, stream=True).content == says["stream"]
    assert len(where) == 1
    assert where[0] != "server"


def test_a_long_stream_is_replayed_in_blocks() -> None:
    long = [chunk({"content": f"word {number} "}) for number in range(5000)]
    reader = StreamReader()
    reader.feed(events(*long, chunk({}, "stop")))
    answer = reader.answer()
    assert answer is not None
    one_by_one = list(stream_events(answer, usage=False))

    async def collect() -> list[bytes]:
        return [block async for block in in_blocks(one_by_one)]

    blocks = asyncio.run(collect())
    assert b"".join(blocks) == b"".join(one_by_one) == events(*long, chunk({}, "stop"))
    assert len(blocks) <= 1 + sum(map(len, one_by_one)) // BLOCK


def test_a_stream_that_is_too_long_is_not_kept() -> None:
    reader = StreamReader(largest=1000)
    for _ in range(100):
        reader.feed(events(SAID[0], done=False))
    reader.feed(events(*SAID))
    assert reader.full
    assert (reader.answer(), reader.chunks) == (None, [])


TOLD = chunk({}, usage=USAGE) | {"choices": []}  # the chunk that OpenAI adds where usage was asked for
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stream": {"stream": True},
    "usage": {"stream": True, "stream_options": {"include_usage": True}},
}


def shape(answer: httpx.Response) -> tuple[str, Any]:
    """Return the text of an answer and its usage: one for a plain answer, that of every chunk for a stream."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        body = answer.json()
        return body["choices"][0]["message"]["content"], body.get("usage")
    data = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert data.pop() == "[DONE]"
    chunks = [json.loads(one) for one in data]
    text = "".join(one["choices"][0]["delta"].get("content") or "" for one in chunks if one["choices"])
    return text, [one["usage"] for one in chunks if not one["choices"]]


@pytest.mark.parametrize(
    ("first", "second", "hits"),
    [
        *[("plain", second, True) for second in FORMS],
        *[("usage", second, True) for second in FORMS],
        ("stream", "stream", True),
        ("stream", "plain", False),  # it has no usage, which every plain answer has
        ("stream", "usage", False),
    ],
)
def test_a_hit_tells_usage_as_the_upstream_would(scripted: Any, first: str, second: str, hits: bool) -> None:
    served, says, calls = scripted
    for form in (first, second, second):
        says |= {"plain": FINE, "stream": events(*SAID, *([TOLD] if form == "usage" else []))}
        answer = send(served, **FORMS[form])
        assert shape(answer) == ("hi there", {"plain": USAGE, "stream": [], "usage": [USAGE]}[form])
    assert answer.headers["x-embedsmith-cache"] == "hit"
    assert len(calls) == (1 if hits else 2)


def test_what_only_a_stream_has_is_not_in_the_plain_answer_made_from_it(scripted: Any) -> None:
    served, says, calls = scripted
    says["stream"] = events(*(part | {"obfuscation": "x7Fq"} for part in [*SAID, TOLD]))
    send(served, **FORMS["usage"])
    plain = send(served).json()
    assert (plain["object"], plain["choices"][0]["message"]["content"]) == ("chat.completion", "hi there")
    assert "obfuscation" not in plain
    assert len(calls) == 1


def test_an_upstream_that_never_tells_usage_is_not_asked_for_it_again(scripted: Any) -> None:
    served, says, calls = scripted
    says["stream"] = events(*SAID)
    answers = [send(served, **FORMS["usage"]) for _ in range(2)]
    assert answers[0].content == answers[1].content
    assert len(calls) == 1


@pytest.mark.parametrize("forms", [["plain", "usage"], ["usage", "plain"], ["stream", "plain", "usage"]])
def test_clients_of_an_upstream_without_usage_do_not_replace_each_others_answers_for_ever(
    scripted: Any, forms: list[str]
) -> None:
    served, says, calls = scripted
    says |= {"plain": json.dumps({**completion(), "usage": None}).encode(), "stream": events(*SAID)}
    for form in forms * 3:
        last = send(served, **FORMS[form])
    assert last.headers["x-embedsmith-cache"] == "hit"
    assert len(calls) <= 2


PROBS: list[dict[str, Any]] = [
    {"token": token, "logprob": -0.5, "bytes": None, "top_logprobs": []} for token in ("hi ", "there")
]


@pytest.mark.parametrize(("first", "second"), [("plain", "usage"), ("usage", "plain")])
def test_logprobs_and_reasoning_go_from_one_form_into_the_other(scripted: Any, first: str, second: str) -> None:
    served, says, calls = scripted
    thought = {"reasoning_content": "I think"}
    says["plain"] = json.dumps(completion(message=thought, choice={"logprobs": {"content": PROBS}})).encode()
    says["stream"] = events(
        chunk({"role": "assistant", "reasoning_content": "I "}),
        chunk({"reasoning_content": "think"}),
        *(chunk({"content": one["token"]}, choice={"logprobs": {"content": [one]}}) for one in PROBS),
        chunk({}, "stop"),
        TOLD,
    )
    for form in (first, second):
        answer = send(served, logprobs=True, **FORMS[form])
        if form == "plain":
            (choice,) = answer.json()["choices"]
            assert choice["message"] == {"role": "assistant", "content": "hi there"} | thought
            assert choice["logprobs"]["content"] == PROBS
        else:
            data = [json.loads(line[6:]) for line in answer.text.split("\n\n")[:-2]]
            choices = [one["choices"][0] for one in data if one["choices"]]
            assert "".join(one["delta"].get("reasoning_content", "") for one in choices) == "I think"
            assert [prob for one in choices for prob in (one.get("logprobs") or {}).get("content", [])] == PROBS
    assert len(calls) == 1


def test_a_stream_without_the_logprobs_that_are_asked_for_is_no_plain_answer_but_the_reverse_is() -> None:
    plain = read_body(completion())
    assert plain is not None
    stream, asked = replace(plain, chunks=("{}",)), Question("x", {}, logprobs=True)
    assert stream.lacks(replace(asked, stream=True)) == ""
    assert stream.lacks(asked) == "stored without logprobs"
    # A plain answer says all that its upstream has to say: it would be asked again at every change of form.
    assert plain.lacks(asked) == plain.lacks(replace(asked, stream=True)) == ""


def test_what_a_plain_answer_cannot_hold_is_given_as_a_stream_only(scripted: Any) -> None:
    served, says, calls = scripted
    says |= {"plain": FINE, "stream": events(chunk({"reasoning_details": [{"text": "a"}]}), *SAID, TOLD)}
    first, second = (send(served, **FORMS["usage"]) for _ in range(2))
    assert first.content == second.content
    plain = send(served)
    assert plain.headers["x-embedsmith-reason"] == "stored as a stream only"
    assert plain.json() == completion()
    assert len(calls) == 2


def test_answers_that_older_versions_stored_are_read() -> None:
    held = json.dumps({"body": completion(), "chunks": []})
    assert load_answer(held) == Answer(completion())


@pytest.mark.parametrize("content", [b"NaN", b"[1, Infinity]", b"{", b"[" * 100_000])
def test_what_is_no_json_is_none(content: bytes) -> None:
    assert parse(content) is None
